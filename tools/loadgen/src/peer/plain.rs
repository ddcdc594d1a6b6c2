//! A bare publish/subscribe over WebSocket: the path says who one is, a message is passed on as it came.

use super::{Link, Note, Peer, Publish, Role, Transport};
use crate::stamp::Stamp;
use crate::websocket;

pub struct Plain;

impl Peer for Plain {
    fn transport(&self) -> Transport {
        Transport::Messages
    }

    fn path(&self, link: &Link, _place: &str) -> String {
        match link.role {
            Role::Publisher(_) => format!("/pub/{}", link.session),
            Role::Reader(_) => format!("/sub/{}", link.session),
            Role::Bare => "/pub/nobody".into(),
        }
    }

    fn subprotocol(&self) -> Option<&'static str> {
        None
    }

    fn acknowledges(&self) -> bool {
        false
    }

    fn opened(&mut self, _link: &mut Link, _out: &mut Vec<u8>) -> bool {
        true
    }

    fn publish(&mut self, _link: &mut Link, publish: &Publish, out: &mut Vec<u8>) {
        websocket::encode_with(out, websocket::TEXT, |text| publish.stamp.write(text, publish.bytes));
    }

    fn receive(&mut self, _link: &mut Link, bytes: &[u8], _out: &mut Vec<u8>, notes: &mut dyn FnMut(Note)) -> usize {
        notes(match Stamp::find(bytes) {
            Some(stamp) => Note::Event(stamp),
            None => Note::Error(format!("a message without a stamp: {}", String::from_utf8_lossy(bytes))),
        });
        bytes.len()
    }
}
