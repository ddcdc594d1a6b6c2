//! What a client hears: frames taken apart, and each answer, event and gap held against what it sent and the oracle.

use super::say::put_frame;
use super::*;

impl Client {
    /// Bytes from the server. Each whole frame is checked.
    pub fn receive(&mut self, bytes: &[u8], oracle: &mut Oracle, net: &mut Random, wall_ms: u64) -> Checked {
        self.incoming.extend_from_slice(bytes);
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut at = 0;
        let result = loop {
            match take_frame(&incoming[at..]) {
                Err(why) => break Err(why),
                Ok(None) => break Ok(()),
                Ok(Some((opcode, payload, length))) => {
                    if let Err(why) = self.frame(opcode, payload, oracle, net, wall_ms) {
                        break Err(format!("{} got {}: {why}", self.name(), String::from_utf8_lossy(payload)));
                    }
                    at += length;
                }
            }
        };
        incoming.drain(..at);
        self.incoming = incoming;
        result
    }

    fn frame(&mut self, opcode: u8, payload: &[u8], oracle: &mut Oracle, net: &mut Random, wall_ms: u64) -> Checked {
        match opcode {
            0x1 => {}
            0x8 => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                self.closed_with = Some(code);
                self.counts.add(CLOSE, close_name(code));
                // Whoever does not read may be closed whatever else it did.
                return match self.doomed {
                    Some(expected) if code == expected => Ok(()),
                    _ if code == 4100 || code == 1001 => Ok(()),
                    expected => Err(format!("closed with {code}, expected {expected:?}")),
                };
            }
            0x9 => {
                put_frame(&mut self.outgoing, net, 0x8a, payload);
                return Ok(());
            }
            0xa => return Ok(()),
            other => return Err(format!("opcode {other:#x}")),
        }
        let text = std::str::from_utf8(payload).map_err(|e| format!("no UTF-8: {e}"))?;
        let frame: Frame<'_> = serde_json::from_str(text).map_err(|e| format!("no frame of ours: {e}"))?;
        if !std::mem::replace(&mut self.welcomed, true) && frame.r#type != "welcome" {
            return Err("the first frame is no welcome".to_owned());
        }
        match &*frame.r#type {
            "welcome" => {
                let named = Frame::text(&frame.client, "client")?;
                if named != self.name() { Err(format!("welcomed as {named}")) } else { Ok(()) }
            }
            "event" => {
                if let Some(heard) = self.labour_heard(&frame, oracle) {
                    self.event_frame(payload.len() as u64)?;
                    return heard;
                }
                self.event(&frame, payload.len() as u64, oracle)
            }
            "job" => self.job_frame(&frame, oracle),
            "job.lost" => self.job_lost(&frame),
            "entries" => {
                let pending = frame.id.map(|id| self.pending.remove(&id).ok_or("an answer to nothing")).transpose()?;
                let ask = match pending {
                    None => None,
                    Some(Pending::Keep(place, ask)) => Some((place, ask)),
                    Some(Pending::Labour(labour::Ask::Last(session))) => {
                        return self.last_frame(&session, text, oracle);
                    }
                    Some(other) => return Err(format!("{other:?} answered by entries")),
                };
                self.entries_frame(text, ask, oracle)
            }
            "stream.delta" => {
                self.event_frame(payload.len() as u64)?;
                let listens = frame.session.as_deref().is_some_and(|session| self.tells.listens(session));
                if listens { self.heard_merged(&frame, oracle) } else { self.fed_merged(&frame, oracle) }
            }
            "notice" => self.notice(&frame),
            "gap" => self.gap(&frame, oracle, wall_ms),
            "volatile" => match self.follows.get(Frame::text(&frame.session, "session")?) {
                None if self.feed.is_none() => Err("volatile event of a session that is not followed".to_owned()),
                _ => Ok(()),
            },
            "goaway" => Ok(()),
            "presence" => self.presence_frame(text, &oracle.board),
            "receipts" => self.receipts_frame(text, oracle),
            _ => self.answer(&frame, oracle, wall_ms),
        }
    }

    /// A frame that costs credit.
    fn event_frame(&mut self, bytes: u64) -> Checked {
        self.event_frames += 1;
        // The window is open while anything is left of it.
        if let Some(credit) = self.role.credit_bytes
            && self.event_bytes.iter().sum::<u64>() >= credit
        {
            return Err(format!("more than the {credit} bytes lent"));
        }
        if self.role.credit.is_some() || self.role.credit_bytes.is_some() || self.role.resumes {
            self.event_bytes.push_back(bytes);
            self.event_places.push_back(std::mem::take(&mut self.gap_places));
        }
        if let Some(credit) = self.role.credit
            && self.event_frames > self.event_frames_acknowledged + credit
        {
            return Err(format!("more than the {credit} events lent"));
        }
        Ok(())
    }

    /// A control event was committed: of a session it listens to, of a topic that is one of control.
    fn notice(&mut self, frame: &Frame<'_>) -> Checked {
        self.counts.add("frame", "notice");
        let (session, topic) = (Frame::text(&frame.session, "session")?, Frame::text(&frame.topic, "topic")?);
        let (named, ..) = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?;
        let listens = self.follows.contains_key(session) || self.feed.is_some() || self.labour.listens(session);
        if named != session || !topic.starts_with("control.") || !listens {
            return Err("a notice of nothing".to_owned());
        }
        Ok(())
    }

    fn event(&mut self, frame: &Frame<'_>, bytes: u64, oracle: &mut Oracle) -> Checked {
        self.counts.add("frame", "event");
        self.event_frame(bytes)?;
        if frame.stream.is_some() {
            let (listens, offset) = self.heard(frame, oracle)?;
            let at = parse_place(Frame::text(&frame.at, "at")?)?;
            return if listens { Ok(()) } else { self.fed(frame, oracle, offset, at) };
        }
        if labour::is_of_jobs(frame) {
            // Brought by a feed to one who has nothing to do with jobs.
            let (_, _, offset) = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?;
            let at = parse_place(Frame::text(&frame.at, "at")?)?;
            return self.fed(frame, oracle, offset, at);
        }
        let (key, epoch, offset, at) = oracle.seen(&seen_of(frame)?)?;
        let session = Frame::text(&frame.session, "session")?;
        let fed = self.feed.is_some();
        if let Some(follow) = self.follows.get_mut(session).filter(|follow| follow.brings(offset, fed)) {
            if !matches!(follow.state, State::Live | State::Leaving) {
                return Err(format!("an event while the subscription is {:?}", follow.state));
            }
            if follow.next != Some(offset) {
                return Err(format!("{session}: offset {:?} was next", follow.next));
            }
            if follow.epoch.replace(epoch).is_some_and(|before| before != epoch) {
                return Err("the epoch changed".to_owned());
            }
            follow.next = Some(offset + 1);
            follow.events.push((offset, key));
            if follow.is_leaving() {
                self.either(at);
            }
            if let Some(places) = self.event_places.back_mut() {
                places.push((session.to_owned(), offset + 1));
            }
            return Ok(());
        }
        self.fed(frame, oracle, offset, at)
    }

    /// An event of the pattern feed.
    fn fed(&mut self, frame: &Frame<'_>, oracle: &Oracle, offset: u64, at: (u64, u64)) -> Checked {
        let session = Frame::text(&frame.session, "session")?;
        let topic = Frame::text(&frame.topic, "topic")?;
        let patterns = &self.role.patterns;
        let Some(feed) = self.feed.as_mut().filter(|feed| feed.state == State::Live) else {
            return Err("an event nobody asked for".to_owned());
        };
        if !patterns.iter().any(|pattern| shards::names::pattern_matches(pattern, topic)) {
            return Err(format!("topic {topic} matches none of {patterns:?}"));
        }
        let place = feed.position.entry(at.0).or_default();
        if at.1 <= *place {
            return Err(format!("slice {} stood at {place} already", at.0));
        }
        *place = at.1;
        if let Some(before) = feed.last.insert(session.to_owned(), offset)
            && before >= offset
        {
            return Err(format!("{session}: offset {before} came before {offset}"));
        }
        feed.events.insert(at, (session.to_owned(), offset));
        if let (Some(stream), Some(seq)) = (&frame.stream, frame.seq) {
            let end = if frame.status.is_some() { seq } else { seq + 1 };
            feed.told(session, stream, at, seq..end, oracle.retention)?;
        }
        self.follows.get_mut(session).map_or(Ok(()), |follow| follow.fed(offset))
    }

    fn gap(&mut self, frame: &Frame<'_>, oracle: &mut Oracle, wall_ms: u64) -> Checked {
        if frame.session.is_none() {
            // Of a feed: places of a slice, or only that something is missing.
            self.counts.add("frame", "gap of a feed");
            return match (&mut self.feed, frame.reason.as_deref()) {
                (Some(_), Some("retention")) if oracle.retention => Ok(()),
                (Some(feed), Some("damaged")) if oracle.damage => {
                    feed.damaged = true;
                    Ok(())
                }
                _ if self.role.rude => Ok(()),
                (feed, reason) => Err(format!("a gap of a feed for {reason:?}, {feed:?}")),
            };
        }
        let session = Frame::text(&frame.session, "session")?;
        let (Some(from), Some(to)) = (frame.from, frame.to) else { return Err("a gap without bounds".to_owned()) };
        let reason = Frame::text(&frame.reason, "reason")?;
        self.counts.add("frame", gap_name(reason));
        if self.labour.listens(session) {
            return self.labour_gap(session, from, to, reason, oracle);
        }
        if self.feed.is_some() && !self.follows.contains_key(session) && session.starts_with('j') {
            return Ok(());
        }
        if reason == "policy" && self.is_mixed() {
            let follow = self.follows.get_mut(session).ok_or("a session that is not followed")?;
            return follow.leaves(from, to);
        }
        oracle.gone(session, from, to, reason, wall_ms)?;
        let Some(follow) = self.follows.get_mut(session) else {
            return if self.feed.is_some() { Ok(()) } else { Err("a gap nobody asked for".to_owned()) };
        };
        if follow.next != Some(from) || to <= from {
            return Err(format!("{session}: {:?} was next", follow.next));
        }
        follow.next = Some(to);
        self.gap_places.push((session.to_owned(), to));
        follow.gaps.push((from, to));
        if reason == "damaged" {
            follow.damaged.push((from, to));
        }
        Ok(())
    }

    fn answer(&mut self, frame: &Frame<'_>, oracle: &mut Oracle, wall_ms: u64) -> Checked {
        let Some(id) = frame.id else {
            if frame.r#type == "subscribed" && self.role.resumes {
                return self.restored(frame, oracle);
            }
            let refusal = frame.refusal.as_deref().unwrap_or_default();
            return match self.nameless.get_mut(refusal).filter(|due| **due > 0) {
                Some(due) => {
                    *due -= 1;
                    Ok(())
                }
                None => Err("an answer without an id".to_owned()),
            };
        };
        let Some(pending) = self.pending.remove(&id) else {
            return Err("an answer to nothing".to_owned());
        };
        self.life.answered(id, self.event_frames);
        let outcome = outcome_of(frame);
        self.counts.add(pending.kind(&self.work), outcome);
        if frame.r#type == "refused" {
            return self.refused(pending, frame, oracle);
        }
        match (pending, &*frame.r#type) {
            (Pending::Work(first), "published" | "committed") => {
                let Some(work) = self.work.remove(&first) else { return Ok(()) };
                self.check_acknowledged(&work, frame, oracle)?;
                let event_id = frame.event_id.as_deref().unwrap_or("").to_owned();
                let durability = frame.durability.as_deref();
                if durability == Some("disk") || oracle.sync_off && !work.memory {
                    self.done.push((work, event_id));
                }
                Ok(())
            }
            (Pending::Keep(place, ask), _) => self.kept(&place, &ask, frame, oracle),
            (Pending::Labour(ask), _) => self.laboured(&ask, frame, oracle),
            (Pending::Resume(claim), "resumed") => self.resumed(claim, frame, oracle),
            (Pending::Presence(session, ask), answer) => {
                self.presence_answered(&session, ask, answer, None, &mut oracle.board)
            }
            (Pending::Read(session, offset), "read") => self.read_answered(&session, offset, frame.offset),
            (Pending::Minds(session, watches), answer) => self.minds_answered(&session, watches, answer, false),
            (Pending::Ping, "pong") | (Pending::Hello, "hello") => Ok(()),
            // A subscription that a later one replaced while it attached.
            (Pending::Provoked(_), "unsubscribed") => Ok(()),
            (Pending::Provoked(expected), other) if !expected.sure => {
                debug_assert!(other != "refused");
                Ok(())
            }
            (Pending::Repeat(index), "published" | "committed") => {
                let (work, event_id) = self.done[index].clone();
                if !frame.duplicate {
                    return Err(format!("a repeat of {event_id} was taken for new"));
                }
                self.check_acknowledged(&work, frame, oracle)
            }
            (Pending::Reused, _) => Err("another body under the same message id was taken".to_owned()),
            (Pending::Subscribe(session), "subscribed") => {
                self.life.stands(&session);
                self.subscribed(&session, frame, oracle)
            }
            (Pending::Unsubscribe(session), "unsubscribed") => {
                let fed = self.feed.as_ref().is_some_and(|feed| feed.state != State::Idle);
                if let Some(follow) = self.follows.get_mut(&session) {
                    follow.ended(fed);
                }
                Ok(())
            }
            (Pending::SubscribeFeed, "subscribed") => self.subscribed_feed(frame),
            (Pending::Mark { session, name, offset }, "marked") => {
                let stands = frame.offset.ok_or("no offset")?;
                if frame.name.as_deref() != Some(name.as_str()) || stands < offset {
                    return Err(format!("marked {name} at {offset}"));
                }
                oracle.mark_seen(&session, &name, stands, Some(offset))
            }
            (Pending::History { session, from, limit }, "history") => {
                self.page(&session, from, limit, frame, oracle, wall_ms)
            }
            (Pending::Volatile, "published") if frame.durability.as_deref() == Some("volatile") => Ok(()),
            (Pending::Tell(at, seq), "published") => self.told(at, Some(seq), frame, oracle),
            (Pending::TellEnd(at), "published") => self.told(at, None, frame, oracle),
            (Pending::Listen(session), "subscribed") => self.listening(&session, frame),
            (Pending::Other, _) => Ok(()),
            (pending, other) => Err(format!("{pending:?} answered by {other}")),
        }
    }

    fn check_acknowledged(&mut self, work: &Work, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let durability = Frame::text(&frame.durability, "durability")?;
        // Without sync every acknowledgement says memory, and what was written survives the process alone.
        let durable = durability == "disk" || oracle.sync_off && !work.memory;
        if !(durable || work.memory && durability == "memory") || oracle.sync_off && durability != "memory" {
            return Err(format!("acknowledged as {durability}"));
        }
        if work.commit && frame.count != Some(work.events.len() as u64) {
            return Err(format!("{} events committed", work.events.len()));
        }
        let Some(event_id) = frame.event_id.as_deref() else {
            // Of what a numbering producer sent before its last event only that it is there is known.
            return match work.events[0].producer {
                Some(_) if frame.duplicate => Ok(()),
                _ => Err("no event id".to_owned()),
            };
        };
        let (_, epoch, offset) = crate::oracle::parse_event_id(event_id)?;
        for index in 0..work.events.len() as u64 {
            let key = Key { client: self.index, number: work.first + index };
            let event_id = format!("{}:{epoch:016x}:{}", work.session, offset + index);
            oracle.acknowledged(&work.session, key, &event_id, durable)?;
        }
        if let Some(marker) = work.marker.filter(|_| !frame.duplicate) {
            oracle.mark_seen(&work.session, &self.marker_name(), marker, Some(marker))?;
        }
        Ok(())
    }

    pub(super) fn subscribed(&mut self, session: &str, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let (Some(next), Some(earliest)) = (frame.next, frame.earliest) else { return Err("no offsets".to_owned()) };
        if earliest > 0 {
            oracle.gone(session, 0, earliest, "retention", 0)?;
        }
        let start = self.role.from;
        let marker = self.marker_name();
        let whole = self.life.is_whole();
        let follow = self.follows.get_mut(session).ok_or("a session that is not followed")?;
        if let Some(epoch) = &frame.epoch {
            let epoch = u64::from_str_radix(epoch, 16).map_err(|e| e.to_string())?;
            if follow.epoch.replace(epoch).is_some_and(|before| before != epoch) && !follow.events.is_empty() {
                return Err("the epoch changed".to_owned());
            }
        }
        let again_latest = follow.shared.asked_latest && follow.next.is_some();
        // What is asked for beside a life does not change what that has kept.
        follow.maybe_latest &= !whole;
        follow.begins(follow.next, next)?;
        match follow.next {
            _ if again_latest => {}
            // A position below what is retained is met by a gap frame; the answer itself moves nobody.
            Some(wanted) if next != wanted && !(oracle.retention && next >= wanted) => {
                return Err(format!("resumed at {next}, asked for {wanted}"));
            }
            None if start == Start::Earliest && next != earliest => {
                return Err(format!("begins at {next}, earliest is {earliest}"));
            }
            None => {
                if let Some(acknowledged) = follow.by_marker.take() {
                    let tried = oracle.mark_bound(session, &marker);
                    if !(acknowledged..=tried).contains(&next) {
                        return Err(format!("marker at {acknowledged} to {tried}, begins at {next}"));
                    }
                    self.counts.add("subscribe to a session", "from a marker");
                }
                follow.first = next;
            }
            _ => {}
        }
        if let Some(wanted) = follow.next.filter(|wanted| next > *wanted && !again_latest) {
            follow.gaps.push((wanted, next));
        }
        follow.next = Some(next);
        follow.state = State::Live;
        Ok(())
    }

    pub(super) fn subscribed_feed(&mut self, frame: &Frame<'_>) -> Checked {
        let position = Frame::text(&frame.position, "position")?;
        let mut given = BTreeMap::new();
        for part in position.split(',').filter(|part| !part.is_empty()) {
            let (slice, seq) = parse_place(part)?;
            given.insert(slice, seq);
        }
        let feed = self.feed.as_mut().ok_or("no feed was asked for")?;
        if feed.start.is_none() {
            feed.start = Some(given.clone());
            feed.position = given;
        } else {
            for (slice, seq) in given {
                let stood = feed.position.get(&slice).copied().unwrap_or(0);
                if seq != stood {
                    return Err(format!("slice {slice} resumes at {seq}, stood at {stood}"));
                }
            }
        }
        feed.state = State::Live;
        Ok(())
    }

    fn page(
        &mut self,
        session: &str,
        from: u64,
        limit: u64,
        frame: &Frame<'_>,
        oracle: &mut Oracle,
        wall_ms: u64,
    ) -> Checked {
        let (Some(next), Some(tail)) = (frame.next, frame.tail) else { return Err("no offsets".to_owned()) };
        if frame.events.len() as u64 > limit || next > tail {
            return Err(format!("limit {limit}, next {next}, tail {tail}"));
        }
        if frame.events.is_empty() && next < tail && next == from {
            return Err(format!("no progress from {from} towards {tail}"));
        }
        let mut at = from;
        for event in &frame.events {
            let (_, _, offset, _) = oracle.seen(&seen_of(event)?)?;
            if offset < at {
                return Err(format!("offset {offset} after {at}"));
            }
            if offset > at {
                self.page_gap(session, at, offset, oracle, wall_ms)?;
            }
            at = offset + 1;
        }
        if next > at {
            self.page_gap(session, at, next, oracle, wall_ms)?;
        }
        if next < at { Err(format!("next is {next} after {at}")) } else { Ok(()) }
    }

    /// A page has no gap frames: what it leaves out must be gone by retention or expiry.
    fn page_gap(&self, session: &str, from: u64, to: u64, oracle: &mut Oracle, wall_ms: u64) -> Checked {
        if oracle.retention {
            return Ok(());
        }
        oracle.gone(session, from, to, "expired", wall_ms)
    }

    fn refused(&mut self, pending: Pending, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let code = frame.code.ok_or("a refusal without a code")?;
        let refusal = Frame::text(&frame.refusal, "refusal")?;
        let retry = code < 4200;
        match pending {
            Pending::Work(first) => {
                let Some(work) = self.work.get(&first) else { return Ok(()) };
                for index in 0..work.events.len() as u64 {
                    oracle.refused(&work.session, Key { client: self.index, number: first + index });
                }
                // Some cause of it is on its way again, or was given up.
                let causes: Vec<u64> =
                    work.events.iter().filter_map(|e| e.prev_message.as_ref().map(|(_, number)| *number)).collect();
                if !causes.is_empty() && refusal == "causal_gap" {
                    let waits = causes.iter().any(|cause| self.work.contains_key(cause));
                    let known = |cause: &u64| self.done.iter().any(|(done, _)| done.first == *cause);
                    if causes.iter().all(known) && !oracle.retention {
                        return Err(format!("its causes {causes:?} were acknowledged"));
                    }
                    if !waits || oracle.retention {
                        self.work.remove(&first);
                    }
                    return Ok(());
                }
                if refusal == "too_many_producers" && self.role.crowd {
                    self.work.remove(&first);
                    return Ok(());
                }
                // The second of two numbered events, when the first was refused: both are sent again.
                if retry || (refusal == "producer_gap" && self.role.numbers) {
                    return Ok(());
                }
                // Retention may take the first copy of a commit between the lookups of two of its events.
                if oracle.retention && work.commit && refusal == "message_id_reused" {
                    self.work.remove(&first);
                    return Ok(());
                }
                // The payload that fills `event_bytes_max` may not fit with its names, or a commit of several.
                let large = work.events.iter().map(|e| e.data.len() as u64).sum::<u64>() >= self.role.data_bytes_max;
                let stale = work.marker.is_some() && refusal == "marker_backwards";
                if (large && refusal == "command_too_large") || stale {
                    let numbered = work.events.first().is_some_and(|e| e.producer.is_some());
                    if !numbered {
                        self.work.remove(&first);
                        return Ok(());
                    }
                    // A number that is never used would end the producer: the same events go without what was refused.
                    if !stale {
                        return Err("a numbered event that does not fit".to_owned());
                    }
                    self.work.get_mut(&first).expect("looked up above").marker = None;
                    return Ok(());
                }
                Err("a good command was refused for ever".to_owned())
            }
            Pending::Keep(place, ask) => self.kept(&place, &ask, frame, oracle),
            Pending::Labour(ask) => self.laboured(&ask, frame, oracle),
            Pending::Tell(at, seq) => self.not_told(at, Some(seq), refusal, frame),
            Pending::TellEnd(at) => self.not_told(at, None, refusal, frame),
            Pending::Listen(session) if retry || refusal == "no_credit" => {
                self.unlisten(&session);
                Ok(())
            }
            Pending::Presence(session, ask) => {
                self.presence_answered(&session, ask, "refused", Some((refusal, retry)), &mut oracle.board)
            }
            Pending::Read(session, _) => self.read_refused(&session, refusal, retry),
            Pending::Minds(session, watches) => self.minds_answered(&session, watches, "refused", retry),
            Pending::Resume(claim) => self.resume_refused(claim, refusal, retry, oracle),
            Pending::Provoked(expected) if retry || refusal == expected.refusal || !expected.sure => Ok(()),
            // What was provoked before is seen first, whatever else is wrong.
            Pending::Provoked(_)
                if ["too_many_subscriptions", "patterns_held", "too_many_presences"].contains(&refusal) =>
            {
                Ok(())
            }
            // A producer of a newer epoch is at work by now.
            Pending::Repeat(_) if refusal == "producer_fenced" && self.role.numbers => Ok(()),
            Pending::Reused if refusal == "message_id_reused" || retry => Ok(()),
            Pending::Repeat(_) | Pending::Volatile | Pending::History { .. } if retry => Ok(()),
            Pending::Subscribe(session) if retry || refusal == "no_credit" => {
                if let Some(follow) = self.follows.get_mut(&session) {
                    (follow.state, follow.shared.asked_latest) = (State::Idle, false);
                }
                Ok(())
            }
            Pending::SubscribeFeed if retry => {
                if let Some(feed) = &mut self.feed {
                    feed.state = State::Idle;
                }
                // A feed that did not come about knows nothing of subscriptions that ended meanwhile: it brings their events.
                self.follows.values_mut().for_each(Follow::feed_refused);
                Ok(())
            }
            Pending::Unsubscribe(session) if retry => {
                if let Some(follow) = self.follows.get_mut(&session) {
                    follow.state = State::Live;
                }
                Ok(())
            }
            // A mark that overtakes nothing: an earlier one, whose answer was lost, may stand further.
            Pending::Mark { .. } if retry || refusal == "marker_backwards" => Ok(()),
            Pending::Other => Ok(()),
            other => Err(format!("{other:?} was refused for ever with {refusal}")),
        }
    }
}

/// How an answer is counted.
fn outcome_of(frame: &Frame<'_>) -> &'static str {
    match (&*frame.r#type, frame.durability.as_deref(), frame.duplicate) {
        ("published" | "committed", _, true) => "acknowledged as a repeat",
        ("published" | "committed", Some("memory"), _) => "acknowledged in memory",
        ("published" | "committed", ..) => "acknowledged",
        ("refused", ..) => "refused",
        _ => "answered",
    }
}

fn gap_name(reason: &str) -> &'static str {
    ["retention", "expired", "policy", "epoch", "damaged"]
        .iter()
        .zip(["gap, retention", "gap, expired", "gap, policy", "gap, epoch", "gap, damaged"])
        .find_map(|(known, name)| (*known == reason).then_some(name))
        .unwrap_or("gap of no known reason")
}

fn close_name(code: u16) -> &'static str {
    match code {
        1000 => "1000 as asked",
        1001 => "1001 going away",
        1002 => "1002 protocol",
        1003 => "1003 unsupported data",
        1007 => "1007 invalid UTF-8",
        1009 => "1009 too large",
        4100 => "4100 too slow",
        _ => "another code",
    }
}

fn seen_of<'f>(frame: &'f Frame<'_>) -> Checked<Seen<'f>> {
    Ok(Seen {
        event_id: Frame::text(&frame.event_id, "event_id")?,
        session: Frame::text(&frame.session, "session")?,
        topic: Frame::text(&frame.topic, "topic")?,
        client: Frame::text(&frame.client, "client")?,
        message_id: frame.message_id.as_deref().unwrap_or(""),
        prev_event_id: frame.prev_event_id.as_deref(),
        traceparent: frame.traceparent.as_deref().unwrap_or(""),
        data_kind: frame.data_kind.as_deref(),
        at: Frame::text(&frame.at, "at")?,
        data: frame.data.ok_or("no data")?.get(),
    })
}

/// A whole frame of a server at the front of `bytes`: opcode, payload, length.
fn take_frame(bytes: &[u8]) -> Checked<Option<(u8, &[u8], usize)>> {
    let [head, length, ..] = bytes else { return Ok(None) };
    if head & 0xf0 != 0x80 || length & 0x80 != 0 {
        return Err(format!("a server's frame begins {head:#x} {length:#x}"));
    }
    let (length, start) = match length {
        126 => match bytes.get(2..4) {
            Some(b) => (u64::from(u16::from_be_bytes([b[0], b[1]])), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10) {
            Some(b) => (u64::from_be_bytes(b.try_into().expect("eight bytes")), 10),
            None => return Ok(None),
        },
        short => (u64::from(*short), 2),
    };
    let end = start + length as usize;
    Ok(bytes.get(start..end).map(|payload| (head & 0x0f, payload, end)))
}
