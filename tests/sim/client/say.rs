//! What a client says: commands as masked frames, each remembered until it is answered.

use super::*;
use crate::oracle::TRACEPARENT;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

impl Client {
    pub(super) fn publish(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, wall_ms: u64) {
        if self.role.publishes.is_empty() || self.work.len() >= WORK_MAX {
            return;
        }
        // What a lost connection or a refusal left behind goes first: its order is the promise.
        self.resend(net);
        let bursts = self.role.commits && workload.chance(200) && !self.role.crowd;
        let burst = if bursts { workload.between(2, 6) } else { 1 };
        let mut texts = Vec::new();
        for _ in 0..burst {
            let session = workload.pick(&self.role.publishes).clone();
            let commit = self.role.commits && workload.chance(300);
            let count = if commit { workload.between(1, 5) } else { 1 };
            let first = self.next_number;
            self.next_number += count;
            let mut events = Vec::new();
            for index in 0..count {
                let number = first + index;
                let mut submission = self.submission(workload, oracle, &session, (number, !commit), wall_ms);
                submission.group = commit.then_some((first, count));
                oracle.submit(&session, Key { client: self.index, number }, submission.clone());
                events.push(submission);
            }
            let tail = oracle.tail(&session);
            let marker = (commit && workload.chance(300) && tail > 0).then_some(tail);
            if let Some(offset) = marker {
                oracle.mark_tried(&session, &self.marker_name(), offset);
            }
            // A numbered event that was acknowledged early and then lost would leave a gap nobody can fill.
            let memory = !commit && !self.role.numbers && !self.role.crowd && workload.chance(100);
            self.work.insert(first, Work { session, first, events, commit, memory, marker });
            texts.push(self.text_of(first));
        }
        let frame = format!("[{}]", texts.join(","));
        if texts.len() > 1 && frame.len() <= self.role.frame_bytes_max {
            return self.send(net, &frame);
        }
        for text in texts {
            self.send(net, &text);
        }
    }

    fn submission(
        &mut self,
        workload: &mut Random,
        oracle: &Oracle,
        session: &str,
        (number, alone): (u64, bool),
        wall_ms: u64,
    ) -> Submission {
        let padding = match workload.below(20) {
            0 => self.role.data_bytes_max,
            1..=4 => workload.below(self.role.data_bytes_max),
            _ => workload.below(64),
        };
        let mut data = format!("{{\"c\":{},\"n\":{number},\"p\":\"", self.index);
        for _ in 0..padding {
            data.push((b'a' + workload.below(26) as u8) as char);
        }
        data.push_str("\"}");
        let bytes = data.len() < self.role.data_bytes_max as usize / 2 && workload.chance(60);
        if bytes {
            data = format!("\"{}\"", BASE64.encode(data));
        }
        let producer = if self.role.crowd { Some((1, 0)) } else { self.next_of_producer(workload, session, alone) };
        // A cause among one's own: acknowledged, or on its way before this one.
        let mut prev_message = None;
        if producer.is_none() && workload.chance(60) {
            let mine = self.work.values().filter(|work| work.session == session && !work.memory);
            let done = self.done.iter().rev().take(8).map(|(work, _)| work).filter(|work| work.session == session);
            let causes: Vec<(String, u64)> = mine
                .chain(done)
                .filter(|work| !work.events[0].message_id.is_empty())
                .map(|work| (work.events[0].message_id.clone(), work.first))
                .collect();
            if !causes.is_empty() {
                prev_message = Some(workload.pick(&causes).clone());
            }
        }
        let topics = ["chat.message", "chat.typing.note", "tool.call", "job.llm", "chat"];
        let cause = oracle.tail(session).checked_sub(1).filter(|_| prev_message.is_none() && workload.chance(100));
        Submission {
            // By its number, so that dice keep their meaning.
            topic: if number % 37 == 5 { "control.cancel" } else { *workload.pick(&topics) }.to_owned(),
            message_id: if producer.is_some() { String::new() } else { format!("m{number}") },
            client: self.name(),
            data,
            bytes,
            traceparent: workload.chance(60),
            prev_message,
            prev_event_id: cause.and_then(|offset| oracle.event_id(session, offset)),
            ttl_ms: match workload.below(40) {
                0 => Some(workload.between(1, 50)),
                1 => Some(24 * 3600 * 1000),
                _ => None,
            },
            sent_ms: wall_ms,
            producer,
            ..Submission::default()
        }
    }

    /// A number for an event of a numbering client. Now and then, with nothing on its way there, it begins an epoch.
    fn next_of_producer(&mut self, workload: &mut Random, session: &str, alone: bool) -> Option<(u64, u64)> {
        if !self.role.numbers {
            return None;
        }
        let fresh = !self.work.values().any(|work| work.session == session) && workload.chance(40);
        let (epoch, next) = self.producer_next.entry(session.to_owned()).or_insert((1, 0));
        // The others of a commit are not among the works yet: only what is published alone begins an epoch.
        if fresh && alone {
            (*epoch, *next) = (*epoch + 1, 0);
        }
        *next += 1;
        Some((*epoch, *next - 1))
    }

    pub(super) fn marker_name(&self) -> String {
        format!("mark-{}", self.index)
    }

    /// The command for a work, as pending under a new id.
    fn text_of(&mut self, first: u64) -> String {
        let id = self.command(Pending::Work(first));
        command_text(&self.work[&first], id, &self.marker_name())
    }

    /// Sends again what has no answer on this connection, oldest first.
    pub(super) fn resend(&mut self, net: &mut Random) {
        let waiting: BTreeSet<u64> = self
            .pending
            .values()
            .filter_map(|p| if let Pending::Work(first) = p { Some(*first) } else { None })
            .collect();
        // A numbering producer may only go on from the oldest gap; the others do so too, to keep their order.
        let todo: Vec<u64> = self.work.keys().copied().filter(|first| !waiting.contains(first)).collect();
        for first in todo {
            let text = self.text_of(first);
            self.send(net, &text);
        }
    }

    pub(super) fn repeat(&mut self, workload: &mut Random, net: &mut Random) {
        if self.done.is_empty() || self.role.crowd {
            return;
        }
        let index = workload.index(self.done.len());
        let (mut work, _) = self.done[index].clone();
        let numbered = work.events.iter().any(|e| e.producer.is_some());
        let marker = self.marker_name();
        if workload.chance(100) && !numbered {
            work.events[0].bytes = false;
            work.events[0].data = "{\"c\":0,\"n\":0,\"p\":\"another body under the same id\"}".to_owned();
            let id = self.command(Pending::Reused);
            self.send(net, &command_text(&work, id, &marker));
        } else {
            let id = self.command(Pending::Repeat(index));
            self.send(net, &command_text(&work, id, &marker));
        }
    }

    pub(super) fn mark(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle) {
        let Some((session, tail)) = self.some_session(workload, oracle) else { return };
        let name = self.marker_name();
        let offset = tail;
        oracle.mark_tried(&session, &name, offset);
        let id = self.command(Pending::Mark { session: session.clone(), name: name.clone(), offset });
        self.send(
            net,
            &format!(
                "{{\"type\":\"mark\",\"id\":{id},\"session\":\"{session}\",\"name\":\"{name}\",\"offset\":{offset}}}"
            ),
        );
    }

    pub(super) fn history(&mut self, workload: &mut Random, net: &mut Random, oracle: &Oracle) {
        let Some((session, tail)) = self.some_session(workload, oracle) else { return };
        let from = workload.below(tail + 1).max(oracle.earliest(&session));
        let limit = workload.between(1, 40);
        let id = self.command(Pending::History { session: session.clone(), from, limit });
        self.send(
            net,
            &format!(
                "{{\"type\":\"history\",\"id\":{id},\"session\":\"{session}\",\"from\":{from},\"limit\":{limit}}}"
            ),
        );
    }

    pub(super) fn volatile(&mut self, workload: &mut Random, net: &mut Random) {
        if self.role.publishes.is_empty() {
            return;
        }
        let session = workload.pick(&self.role.publishes).clone();
        let id = self.command(Pending::Volatile);
        self.send(
            net,
            &format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"{session}\",\"topic\":\"chat.typing\",\
                 \"durability\":\"volatile\",\"data\":{{\"v\":{}}}}}",
                self.index
            ),
        );
    }

    /// A session that has facts, of those this client has to do with.
    fn some_session(&self, workload: &mut Random, oracle: &Oracle) -> Option<(String, u64)> {
        let mine: Vec<&String> =
            self.role.publishes.iter().chain(self.follows.keys()).filter(|s| oracle.tail(s) > 0).collect();
        if mine.is_empty() {
            return None;
        }
        let session = (*workload.pick(&mine)).clone();
        let tail = oracle.tail(&session);
        Some((session, tail))
    }

    pub(super) fn unsubscribe(&mut self, workload: &mut Random, net: &mut Random) {
        let live: Vec<String> =
            self.follows.iter().filter(|(_, f)| f.state == State::Live).map(|(s, _)| s.clone()).collect();
        if live.is_empty() {
            return;
        }
        let session = workload.pick(&live).clone();
        self.life.leaves(&session);
        let id = self.command(Pending::Unsubscribe(session.clone()));
        self.send(net, &format!("{{\"type\":\"unsubscribe\",\"id\":{id},\"session\":\"{session}\"}}"));
        self.leave(&session);
    }

    /// Subscribes where it should and does not.
    pub fn subscribe_all(&mut self, net: &mut Random, oracle: &mut Oracle) {
        if self.life.settles() {
            return;
        }
        let idle: Vec<String> =
            self.follows.iter().filter(|(_, f)| f.state == State::Idle).map(|(s, _)| s.clone()).collect();
        for session in idle {
            let name = self.marker_name();
            let mut by_marker = None;
            let latest = self.follows[&session].next.is_none() && self.role.from == Start::Latest;
            let from = match (&self.follows[&session].next, &self.follows[&session].epoch) {
                (Some(next), Some(epoch)) => format!("{{\"offset\":{next},\"epoch\":\"{epoch:016x}\"}}"),
                (Some(next), None) => format!("{{\"offset\":{next}}}"),
                (None, _) if latest => "\"latest\"".to_owned(),
                (None, _) => match oracle.marked(&session, &name).filter(|_| self.role.from == Start::Marker) {
                    Some(offset) => {
                        by_marker = Some(offset);
                        format!("{{\"marker\":\"{name}\"}}")
                    }
                    None => "\"earliest\"".to_owned(),
                },
            };
            oracle.board.confirms(&session, &self.name(), self.follows[&session].next.unwrap_or(0));
            let id = self.command(Pending::Subscribe(session.clone()));
            let text = format!("{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"{session}\",\"from\":{from}}}");
            self.send(net, &text);
            let follow = self.follows.get_mut(&session).expect("idle");
            (follow.state, follow.by_marker, follow.shared.asked_latest) = (State::Asked, by_marker, latest);
        }
        let Some(feed) = self.feed.as_mut().filter(|feed| feed.state == State::Idle) else { return };
        feed.state = State::Asked;
        let from = match (&feed.start, self.role.feed_from) {
            (Some(_), _) => {
                let parts: Vec<String> = feed.position.iter().map(|(slice, seq)| format!("{slice}.{seq}")).collect();
                format!("{{\"position\":\"{}\"}}", parts.join(","))
            }
            (None, Start::Latest) => "\"latest\"".to_owned(),
            (None, Start::Earliest | Start::Marker) => "\"earliest\"".to_owned(),
        };
        let patterns: Vec<String> = self.role.patterns.iter().map(|p| format!("\"{p}\"")).collect();
        let id = self.command(Pending::SubscribeFeed);
        let text =
            format!("{{\"type\":\"subscribe\",\"id\":{id},\"patterns\":[{}],\"from\":{from}}}", patterns.join(","));
        self.send(net, &text);
    }

    pub(super) fn command(&mut self, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    /// One masked text frame, now and then in two fragments.
    pub(super) fn send(&mut self, net: &mut Random, text: &str) {
        if self.said.len() < 64 {
            self.said.push(text.to_owned());
        }
        if net.chance(30) && text.len() > 2 {
            let cut = net.between(1, text.len() as u64 - 1) as usize;
            put_frame(&mut self.outgoing, net, 0x01, &text.as_bytes()[..cut]);
            put_frame(&mut self.outgoing, net, 0x80, &text.as_bytes()[cut..]);
        } else {
            put_frame(&mut self.outgoing, net, 0x81, text.as_bytes());
        }
    }
}

fn command_text(work: &Work, id: u64, marker_name: &str) -> String {
    let session = &work.session;
    if !work.commit {
        let fields = event_fields(&work.events[0]);
        let durability = if work.memory { ",\"durability\":\"memory\"" } else { "" };
        return format!("{{\"type\":\"publish\",\"id\":{id},\"session\":\"{session}\",{fields}{durability}}}");
    }
    let events: Vec<String> = work.events.iter().map(|event| format!("{{{}}}", event_fields(event))).collect();
    let markers = work
        .marker
        .map_or(String::new(), |offset| format!(",\"markers\":[{{\"name\":\"{marker_name}\",\"offset\":{offset}}}]"));
    format!("{{\"type\":\"commit\",\"id\":{id},\"session\":\"{session}\",\"events\":[{}]{markers}}}", events.join(","))
}

fn event_fields(event: &Submission) -> String {
    let mut text = format!("\"topic\":\"{}\"", event.topic);
    if !event.message_id.is_empty() {
        let _ = write!(text, ",\"message_id\":\"{}\"", event.message_id);
    }
    if let Some((epoch, seq)) = event.producer {
        let _ = write!(text, ",\"producer_epoch\":{epoch},\"producer_seq\":{seq}");
    }
    if let Some((prev, _)) = &event.prev_message {
        let _ = write!(text, ",\"prev_message_id\":\"{prev}\"");
    }
    if event.traceparent {
        let _ = write!(text, ",\"traceparent\":\"{TRACEPARENT}\"");
    }
    if event.bytes {
        text.push_str(",\"data_kind\":\"bytes\"");
    }
    if let Some(prev) = &event.prev_event_id {
        let _ = write!(text, ",\"prev_event_id\":\"{prev}\"");
    }
    if let Some(ttl) = event.ttl_ms {
        let _ = write!(text, ",\"ttl_ms\":{ttl}");
    }
    let _ = write!(text, ",\"data\":{}", event.data);
    text
}

/// Appends a masked frame; `head` is FIN and opcode.
pub(super) fn put_frame(out: &mut Vec<u8>, net: &mut Random, head: u8, payload: &[u8]) {
    out.push(head);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = (net.any() as u32).to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}
