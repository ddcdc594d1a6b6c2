//! A tenant's flood, and whose sockets are read beside it.

use super::tests::{Peer, Server, echoes, nothing_is_left};
use std::sync::Barrier;
use tungstenite::Message;

const FLOOD: &str = "/of/1";
const SENDERS: usize = 56;
const MESSAGES: usize = 40;

/// Nothing that a flood brought is taken before somebody else has said so: whoever stops reading others' sockets for it waits
/// for ever.
#[test]
fn what_a_tenant_floods_the_shard_with_stops_nobody_elses_socket() {
    let held_bytes_max = 256 << 10;
    let server = Server::start_with(true, Peer::new(), None, |config| config.held_bytes_max = held_bytes_max);
    let mut early = server.connect("/of/2");
    echoes(&mut early, "before");
    let sent = Barrier::new(SENDERS + 1);
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (mut socket, sent) = (server.connect(FLOOD), &sent);
            scope.spawn(move || {
                let texts: Vec<String> = (0..MESSAGES)
                    .map(|n| {
                        format!("{}{sender} {n} {}", if n == 0 { "later 1000000000 " } else { "" }, "x".repeat(1500))
                    })
                    .collect();
                for text in &texts {
                    socket.write(Message::text(text.as_str())).unwrap();
                }
                socket.flush().unwrap();
                sent.wait();
                for text in &texts {
                    loop {
                        match socket.read().unwrap() {
                            Message::Ping(_) => {}
                            got => break assert_eq!(got, Message::text(text.as_str())),
                        }
                    }
                }
                socket.close(None).unwrap();
                while socket.read().is_ok() {}
            });
        }
        sent.wait();
        let mut late = server.connect("/of/3");
        for n in 0..100 {
            echoes(&mut early, &format!("early {n} {}", "y".repeat(1500)));
            echoes(&mut late, &format!("late {n}"));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        // One more of those who flood waits with them.
        let mut another = server.connect(FLOOD);
        another.send(Message::text("another")).unwrap();
        echoes(&mut late, "release");
        assert_eq!(another.read().unwrap(), Message::text("another"));
        for mut socket in [early, late, another] {
            socket.close(None).unwrap();
            while socket.read().is_ok() {}
        }
    });
    let rest = server.stop();
    nothing_is_left(&rest);
    let room = held_bytes_max - 16 * 2048;
    assert!(rest.held_bytes_most >= room / 2, "there was no flood: {rest:?}");
    assert!(rest.held_bytes_most < room, "it was no tenant's bound that was met: {rest:?}");
}
