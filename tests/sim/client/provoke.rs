//! What no server should accept, and each answer it must give: one provocation for every refusal and close code that a
//! client's bytes can bring about.
//!
//! ```text
//!   provoke ─┬─ a command ─► Pending::Provoked(expected) ─► refused, with that name and no other
//!            ├─ a frame that cannot name itself ─► one more nameless refusal is due
//!            └─ bytes that are no WebSocket ─► the connection ends with that code
//! ```

use super::say::put_frame;
use super::*;

/// What a provocation must bring about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Expected {
    /// Name of the refusal.
    pub refusal: &'static str,
    /// Nothing else will do, but a refusal that asks to come back later.
    pub sure: bool,
}

pub(super) const fn sure(refusal: &'static str) -> Expected {
    Expected { refusal, sure: true }
}

/// Depends on what went before, which a full disk may have refused.
pub(super) const fn perhaps(refusal: &'static str) -> Expected {
    Expected { refusal, sure: false }
}

/// Bodies that are refused whatever the state: all but the brackets, `type` and `id`. `@` is a session with a past.
const BODIES: &[(&str, &str, &str)] = &[
    ("destroy", "", "unknown_command"),
    ("", "", "unknown_command"),
    ("publish", r#""session":"@","topic":"a","data":1"#, "missing_field"),
    ("publish", r#""session":"@","message_id":"x","data":1"#, "missing_field"),
    ("publish", r#""topic":"a","message_id":"x","data":1"#, "missing_field"),
    ("publish", r#""session":"@","topic":"a","message_id":"x""#, "missing_field"),
    ("publish", r#""session":"@","topic":"a","producer_seq":1,"data":1"#, "missing_field"),
    ("commit", r#""session":"@","events":[]"#, "missing_field"),
    ("commit", r#""session":"@","events":[{"topic":"a","data":1}]"#, "missing_field"),
    ("subscribe", "", "missing_field"),
    ("ack", "", "missing_field"),
    ("mark", r#""session":"@","name":"m""#, "missing_field"),
    ("history", r#""session":"@","from":"start""#, "wrong_type"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data":1,"durability":"glass""#, "wrong_type"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data":1,"ttl_ms":"long""#, "wrong_type"),
    ("publish", r#""session":7,"topic":"a","message_id":"x","data":1"#, "wrong_type"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data":1,"traceparent":7"#, "wrong_type"),
    ("subscribe", r#""session":"@","from":{"position":"1.1"}"#, "wrong_type"),
    ("subscribe", r#""patterns":["a"],"from":{"offset":1}"#, "wrong_type"),
    ("commit", r#""session":"@","events":7"#, "wrong_type"),
    ("publish", r#""session":"no spaces","topic":"a","message_id":"x","data":1"#, "bad_name"),
    ("publish", r#""session":"$own","topic":"a","message_id":"x","data":1"#, "bad_name"),
    ("publish", r#""session":"@","topic":"a","message_id":"","data":1"#, "bad_name"),
    ("mark", r#""session":"@","name":"a/b","offset":0"#, "bad_name"),
    ("publish", r#""session":"@","topic":"a..b","message_id":"x","data":1"#, "bad_topic"),
    ("publish", r#""session":"@","topic":"a.>","message_id":"x","data":1"#, "bad_topic"),
    ("commit", r#""session":"@","events":[{"topic":".","message_id":"x","data":1}]"#, "bad_topic"),
    ("subscribe", r#""patterns":["a.>.b"]"#, "bad_pattern"),
    ("subscribe", r#""patterns":["a*"]"#, "bad_pattern"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data":"\ud800""#, "bad_data"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data_kind":"bytes","data":"A""#, "bad_data"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data_kind":"bytes","data":7"#, "bad_data"),
    (
        "commit",
        r#""session":"@","events":[{"session":"elsewhere","topic":"a","message_id":"x","data":1}]"#,
        "cross_session",
    ),
    ("publish", r#""session":"@","topic":"zz.secret","message_id":"x","data":1"#, "forbidden"),
    (
        "commit",
        r#""session":"@","events":[{"topic":"a","message_id":"x","data":1},{"topic":"zz.secret","message_id":"y","data":1}]"#,
        "forbidden",
    ),
    // Only the session's owner can tell.
    ("stream.append", r#""session":"@","stream":"zz","seq":0,"delta":"x","topic":"zz.secret""#, "forbidden"),
    ("auth", r#""token":"no.key.here""#, "bad_credential"),
    ("revoke.client", r#""name":"somebody""#, "forbidden"),
    ("revoke.token", r#""name":"no name""#, "bad_name"),
    ("quota.get", r#""tenant":"sim""#, "forbidden"),
    ("quota.set", r#""quota":{"weight":7}"#, "forbidden"),
    ("quota.set", r#""quota":{"sessions":7}"#, "wrong_type"),
    ("quota.set", r#""quota":{"weight":101}"#, "out_of_range"),
    ("presence.update", r#""session":"@","state":"tool""#, "not_present"),
    ("presence.leave", r#""session":"@""#, "not_present"),
    ("presence.unwatch", r#""session":"@""#, "not_watching"),
    ("receipts.unwatch", r#""session":"@""#, "not_watching"),
    ("presence.enter", r#""session":"@","lease_ms":0"#, "out_of_range"),
    ("presence.enter", r#""session":"@","state":"asleep""#, "wrong_type"),
    ("read", r#""session":"@","offset":9999999"#, "offset_out_of_range"),
    ("read", r#""session":"@""#, "missing_field"),
    ("history", r#""session":"nobody""#, "unknown_session"),
    ("mark", r#""session":"nobody","name":"m","offset":5"#, "unknown_session"),
    ("subscribe", r#""session":"@","from":{"marker":"nobody-set-it"}"#, "unknown_marker"),
    ("subscribe", r#""session":"nobody","from":{"marker":"none"}"#, "unknown_marker"),
    ("subscribe", r#""session":"nobody","from":{"offset":99}"#, "offset_out_of_range"),
    ("subscribe", r#""session":"@","from":{"offset":9999999}"#, "offset_out_of_range"),
    ("history", r#""session":"@","from":9999999"#, "offset_out_of_range"),
    ("mark", r#""session":"@","name":"far","offset":9999999"#, "offset_out_of_range"),
    ("subscribe", r#""session":"@","from":{"offset":0,"epoch":"0000000000000001"}"#, "foreign_epoch"),
    ("subscribe", r#""session":"nobody","from":{"offset":0,"epoch":"0123456789abcdef"}"#, "foreign_epoch"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","prev_message_id":"never-sent","data":1"#, "causal_gap"),
    (
        "publish",
        r#""session":"@","topic":"a","message_id":"x","prev_event_id":"@:0000000000000001:0","data":1"#,
        "causal_gap",
    ),
    (
        "publish",
        r#""session":"@","topic":"a","message_id":"x","prev_event_id":"nobody:0000000000000001:0","data":1"#,
        "cross_session",
    ),
    ("publish", r#""session":"@","topic":"a","producer_epoch":9,"producer_seq":99,"data":1"#, "producer_gap"),
    (
        "commit",
        r#""session":"@","events":[{"topic":"a","message_id":"y","data":1},{"topic":"a","message_id":"y","data":2}]"#,
        "message_id_reused",
    ),
    (
        "commit",
        r#""session":"@","events":[],"markers":[{"name":"twice","offset":0},{"name":"twice","offset":0}]"#,
        "marker_backwards",
    ),
    ("subscribe", r#""patterns":["a"],"from":{"position":"9999.1"}"#, "bad_position"),
    ("subscribe", r#""patterns":["a"],"from":{"position":"1.1,1.2"}"#, "bad_position"),
    ("subscribe", r#""patterns":["a"],"from":{"position":"here"}"#, "bad_position"),
    ("ack", r#""events":999999"#, "bad_credit"),
    ("ack", r#""events":0,"bytes":999999999"#, "bad_credit"),
    ("unsubscribe", r#""session":"nobody-else""#, "not_subscribed"),
    ("history", r#""session":"@","limit":0"#, "out_of_range"),
    ("history", r#""session":"@","limit":257"#, "out_of_range"),
    ("publish", r#""session":"@","topic":"a","message_id":"x","data":1,"ttl_ms":0"#, "out_of_range"),
    ("hello", r#""credit":{"events":0}"#, "out_of_range"),
    ("ack", r#""events":9007199254740992"#, "out_of_range"),
    ("ping", r#""type":"ping""#, "repeated_field"),
    ("publish", r#""session":"@","session":"@","topic":"a","message_id":"x","data":1"#, "repeated_field"),
];

/// Frames whose refusal cannot name a command.
const NAMELESS: &[(&str, &str)] = &[
    ("{", "bad_frame"),
    ("null", "bad_frame"),
    ("[7]", "bad_frame"),
    ("{\"type\":\"ping\"}x", "bad_frame"),
    ("{\"type\":\"ping\",\"id\":[]}", "wrong_type"),
    ("{\"type\":\"ping\",\"id\":-1}", "out_of_range"),
];

impl Client {
    /// Sends one thing that is wrong.
    pub(super) fn provoke(&mut self, workload: &mut Random, net: &mut Random, oracle: &Oracle) {
        let Some(own) = self.role.publishes.first().filter(|session| oracle.tail(session) > 0).cloned() else { return };
        match workload.below(100) {
            0..=64 => {
                let (kind, fields, refusal) = *workload.pick(BODIES);
                self.provoke_with(net, kind, &fields.replace('@', &own), sure(refusal));
            }
            65..=72 => {
                let (text, refusal) = *workload.pick(NAMELESS);
                *self.nameless.entry(refusal).or_default() += 1;
                self.send(net, text);
            }
            73..=75 => self.provoke_by_size(workload, net, &own),
            76..=79 => {
                // Marks up to the bound, then one more.
                let markers: Vec<String> = (0..64).map(|n| format!("{{\"name\":\"m{n}\",\"offset\":0}}")).collect();
                let id = self.command(Pending::Other);
                let markers = markers.join(",");
                let text = format!(
                    "{{\"type\":\"commit\",\"id\":{id},\"session\":\"{own}\",\"events\":[],\"markers\":[{markers}]}}"
                );
                self.send(net, &text);
                let fields = format!("\"session\":\"{own}\",\"name\":\"one-more\",\"offset\":0");
                self.provoke_with(net, "mark", &fields, perhaps("too_many_markers"));
            }
            80..=83 => {
                for _ in 0..2 {
                    self.provoke_with(net, "subscribe", "\"patterns\":[\"zz.none\"]", perhaps("patterns_held"));
                }
            }
            84..=87 => {
                for _ in 0..2 {
                    self.provoke_with(net, "unsubscribe", "\"patterns\":true", perhaps("not_subscribed"));
                }
            }
            88..=90 => {
                for n in 0..self.role.subscriptions_max + 2 {
                    let fields = format!("\"session\":\"none-{n}\"");
                    self.provoke_with(net, "subscribe", &fields, perhaps("too_many_subscriptions"));
                }
            }
            95 if self.role.bold => self.read_backwards(net, &own),
            91..=95 => {
                let fields = format!("\"session\":\"{own}\",\"name\":\"back\",\"offset\":");
                let id = self.command(Pending::Other);
                self.send(net, &format!("{{\"type\":\"mark\",\"id\":{id},{fields}1}}"));
                self.provoke_with(net, "mark", &format!("{fields}0"), perhaps("marker_backwards"));
            }
            96 => {
                // More sessions than it may be in; nobody watches them. Asked too often, it is refused for that.
                for n in 0..66 {
                    let fields = format!("\"session\":\"none-{n}\"");
                    self.provoke_with(net, "presence.enter", &fields, perhaps("too_many_presences"));
                }
            }
            97 => {
                let fields = format!("\"session\":\"{own}\",\"data\":\"{}\"", "x".repeat(300));
                self.provoke_with(net, "presence.enter", &fields, sure("presence_too_large"));
            }
            _ => self.provoke_the_framer(workload, net),
        }
    }

    pub(super) fn provoke_with(&mut self, net: &mut Random, kind: &str, fields: &str, expected: Expected) {
        let id = self.command(Pending::Provoked(expected));
        let comma = if fields.is_empty() { "" } else { "," };
        self.send(net, &format!("{{\"type\":\"{kind}\",\"id\":{id}{comma}{fields}}}"));
    }

    fn provoke_by_size(&mut self, workload: &mut Random, net: &mut Random, own: &str) {
        match workload.below(8) {
            0 | 5..=7 => {
                let data = "x".repeat(self.role.data_bytes_max as usize + 100);
                let fields = format!("\"session\":\"{own}\",\"topic\":\"a\",\"message_id\":\"x\",\"data\":\"{data}\"");
                self.provoke_with(net, "publish", &fields, sure("event_too_large"));
            }
            1 => {
                let patterns = vec!["\"a\""; 33].join(",");
                self.provoke_with(net, "subscribe", &format!("\"patterns\":[{patterns}]"), sure("command_too_large"));
            }
            2 => {
                let markers = vec!["{\"name\":\"m\",\"offset\":0}"; 65].join(",");
                let fields = format!("\"session\":\"{own}\",\"events\":[],\"markers\":[{markers}]");
                self.provoke_with(net, "commit", &fields, sure("command_too_large"));
            }
            3 => {
                let events = vec!["{\"topic\":\"a\",\"message_id\":\"y\",\"data\":1}"; 257].join(",");
                let fields = format!("\"session\":\"{own}\",\"events\":[{events}]");
                self.provoke_with(net, "commit", &fields, sure("command_too_large"));
            }
            _ => {
                *self.nameless.entry("bad_frame").or_default() += 1;
                let pings = vec!["{\"type\":\"ping\"}"; 257].join(",");
                self.send(net, &format!("[{pings}]"));
            }
        }
    }

    /// Bytes after which the server closes. What was sent before is answered or not.
    fn provoke_the_framer(&mut self, workload: &mut Random, net: &mut Random) {
        let code = match workload.below(7) {
            0 => {
                self.outgoing.extend_from_slice(&[0x81, 0x02, b'{', b'}']);
                1002
            }
            1 => {
                put_frame(&mut self.outgoing, net, 0xc1, b"{}");
                1002
            }
            2 => {
                put_frame(&mut self.outgoing, net, 0x83, b"{}");
                1002
            }
            3 => {
                put_frame(&mut self.outgoing, net, 0x82, b"{}");
                1003
            }
            4 => {
                put_frame(&mut self.outgoing, net, 0x81, &[b'"', 0xff, b'"']);
                1007
            }
            5 => {
                put_frame(&mut self.outgoing, net, 0x81, &vec![b' '; self.role.frame_bytes_max + 1]);
                1009
            }
            _ => {
                put_frame(&mut self.outgoing, net, 0x88, &1000u16.to_be_bytes());
                1000
            }
        };
        self.doomed = Some(code);
    }
}
