//! A client with entries: it owns some keys of each place, and believes what it is told of all the others.
//!
//! ```text
//!   key    unsure ── get ─► sure of a revision ── put, delete with if_revision ─► told ─► sure again
//!             ▲                                            └ refused, or the connection went ─┐
//!             └───────────────────────────────────────────────────────────────────────────────┘
//!   view   idle ─ watch, from behind what it knows ─► entries: a fact each
//! ```
//! Nobody else writes its keys, so a change that was acknowledged can only be undone by its own words, or by its own time.

use super::*;

/// Keys of a client in one place.
const KEYS: u64 = 3;

/// A key that it owns.
#[derive(Debug, Default)]
struct Own {
    revision: u64,
    sure: bool,
    asked: bool,
}

/// A place that it watches.
#[derive(Debug, Default)]
struct View {
    asked: bool,
    live: bool,
    /// Something was told, and nothing is missing of it.
    whole: bool,
    revision: u64,
    believes: BTreeMap<String, (u64, String)>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Keeps {
    keys: BTreeMap<(String, String), Own>,
    views: BTreeMap<String, View>,
    next: u64,
}

/// A command that was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// Key, value, when it goes.
    Put(String, String, Option<u64>),
    Delete(String),
    /// Key, and when it was asked.
    /// With the revision that was known then: what is told meanwhile may overtake the answer.
    Get(String, u64),
    List,
    Watch,
}

#[derive(Deserialize)]
struct EntriesText<'a> {
    session: Option<&'a str>,
    bucket: Option<&'a str>,
    after: Option<u64>,
    revision: u64,
    #[serde(default)]
    snapshot: bool,
    #[serde(default)]
    more: bool,
    #[serde(borrow)]
    entries: Vec<Item<'a>>,
    #[serde(borrow, default)]
    deleted: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    key: &'a str,
    revision: u64,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The fields that name a place: a bucket, or a session.
fn fields(place: &str) -> String {
    match place.strip_prefix("bucket ") {
        Some(bucket) => format!("\"bucket\":\"{bucket}\""),
        None => format!("\"session\":\"{place}\""),
    }
}

impl Keeps {
    pub fn new(role: &Role, index: u32) -> Keeps {
        let mut keeps = Keeps::default();
        for place in &role.keeps {
            for n in 0..KEYS {
                keeps.keys.insert((place.clone(), format!("c{index}.{n}")), Own { sure: true, ..Own::default() });
            }
            keeps.views.insert(place.clone(), View::default());
        }
        keeps
    }

    /// The connection is gone.
    pub fn cut_off(&mut self) {
        for own in self.keys.values_mut().filter(|own| own.asked) {
            (own.asked, own.sure) = (false, false);
        }
        for view in self.views.values_mut() {
            (view.asked, view.live) = (false, false);
        }
    }

    /// Why it has not come to rest.
    pub fn unrest(&self, oracle: &Oracle) -> Option<String> {
        if let Some((key, _)) = self.keys.iter().find(|(_, own)| !own.sure || own.asked) {
            return Some(format!("it is not sure of {key:?}"));
        }
        for (place, view) in &self.views {
            if !view.live || !view.whole && oracle.entries.revision(place) > 0 {
                return Some(format!("its view of {place} is not whole"));
            }
            if view.revision < oracle.entries.revision(place) {
                return Some(format!(
                    "{place} is known up to {}, its view up to {}",
                    oracle.entries.revision(place),
                    view.revision
                ));
            }
            if let Err(why) = oracle.entries.believed(place, &view.believes, view.revision) {
                return Some(why);
            }
        }
        None
    }
}

impl Client {
    /// Does something with entries. `false`: it has none.
    pub(super) fn keep(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) -> bool {
        if self.role.keeps.is_empty() {
            return false;
        }
        let now_us = oracle.now_us;
        let idle: Vec<String> =
            self.keeps.views.iter().filter(|(_, view)| !view.live && !view.asked).map(|v| v.0.clone()).collect();
        for place in idle {
            let view = self.keeps.views.get_mut(&place).expect("listed");
            view.asked = true;
            // Sometimes from the start, though it knows more.
            let revision = if view.whole && !workload.chance(200) {
                format!(",\"revision\":{}", view.revision)
            } else {
                (view.revision, view.whole) = (0, false);
                view.believes.clear();
                String::new()
            };
            let id = self.command(Pending::Keep(place.clone(), Ask::Watch));
            self.send(net, &format!("{{\"type\":\"entry.watch\",\"id\":{id},{}{revision}}}", fields(&place)));
        }
        let free: Vec<(String, String)> =
            self.keeps.keys.iter().filter(|(_, own)| !own.asked && (!calm || !own.sure)).map(|k| k.0.clone()).collect();
        if free.is_empty() {
            return true;
        }
        let (place, key) = workload.pick(&free).clone();
        self.keeps.next += 1;
        let next = self.keeps.next;
        let own = self.keeps.keys.get_mut(&(place.clone(), key.clone())).expect("listed");
        own.asked = true;
        let (sure, revision) = (own.sure, own.revision);
        let at = fields(&place);
        if !sure || workload.chance(150) {
            let known = oracle.entries.known(&place, &key);
            let id = self.command(Pending::Keep(place, Ask::Get(key.clone(), known)));
            return self.say_keep(net, &format!("{{\"type\":\"entry.get\",\"id\":{id},{at},\"key\":\"{key}\"}}"));
        }
        if revision > 0 && workload.chance(200) {
            oracle.entries.deletes(&place, &key);
            let id = self.command(Pending::Keep(place, Ask::Delete(key.clone())));
            let text =
                format!("{{\"type\":\"entry.delete\",\"id\":{id},{at},\"key\":\"{key}\",\"if_revision\":{revision}}}");
            return self.say_keep(net, &text);
        }
        if workload.chance(100) {
            let id = self.command(Pending::Keep(place.clone(), Ask::List));
            self.keeps.keys.get_mut(&(place, key)).expect("listed").asked = false;
            return self.say_keep(net, &format!("{{\"type\":\"entry.list\",\"id\":{id},{at},\"prefix\":\"c\"}}"));
        }
        let padding = workload.below(80) as usize;
        let value = format!("\"{next} {}\"", "v".repeat(padding));
        let ttl_ms = workload.chance(200).then(|| workload.between(2, 60));
        let life = ttl_ms.map_or(String::new(), |ttl| format!(",\"ttl_ms\":{ttl}"));
        oracle.entries.puts(&place, &key, &value, ttl_ms.is_some());
        if workload.chance(200) {
            // As a part of a commit: nothing else is in it, for events of this place are nobody's.
            if !place.starts_with("bucket ") {
                let id = self.command(Pending::Keep(
                    place,
                    Ask::Put(key.clone(), value.clone(), ttl_ms.map(|ms| now_us + ms * 1000)),
                ));
                let entry = format!("{{\"key\":\"{key}\",\"data\":{value},\"if_revision\":{revision}{life}}}");
                return self.say_keep(net, &format!("{{\"type\":\"commit\",\"id\":{id},{at},\"entries\":[{entry}]}}"));
            }
        }
        let goes_us = ttl_ms.map(|ms| now_us + ms * 1000);
        let id = self.command(Pending::Keep(place, Ask::Put(key.clone(), value.clone(), goes_us)));
        let text = format!(
            "{{\"type\":\"entry.put\",\"id\":{id},{at},\"key\":\"{key}\",\"data\":{value},\"if_revision\":{revision}{life}}}"
        );
        self.say_keep(net, &text)
    }

    fn say_keep(&mut self, net: &mut Random, text: &str) -> bool {
        self.send(net, text);
        true
    }

    /// An answer that is no page.
    pub(super) fn kept(&mut self, place: &str, ask: &Ask, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let answer = &*frame.r#type;
        let refusal = frame.refusal.as_deref();
        if *ask == Ask::Watch {
            let view = self.keeps.views.get_mut(place).ok_or("a place that is not watched")?;
            view.asked = false;
            view.live = answer == "watching";
            return match (answer, refusal) {
                ("watching", _) | (_, Some("too_many_watches")) => Ok(()),
                _ if frame.code.is_some_and(|code| code < 4200) => Ok(()),
                _ => Err("a watch was refused for ever".to_owned()),
            };
        }
        let (Ask::Put(key, ..) | Ask::Delete(key) | Ask::Get(key, ..)) = ask else {
            return if frame.code.is_some_and(|code| code < 4200) { Ok(()) } else { Err("a list".to_owned()) };
        };
        let own = self.keeps.keys.get_mut(&(place.to_owned(), key.clone())).ok_or("a key that is not its own")?;
        own.asked = false;
        let revision = frame.revision.unwrap_or(0);
        match (ask, answer, refusal) {
            (Ask::Put(_, value, goes_us), "put" | "committed", _) => {
                if revision <= own.revision {
                    return Err(format!("{} was the last of {key}", own.revision));
                }
                (own.revision, own.sure) = (revision, true);
                let goes_us = if oracle.entries_clock { *goes_us } else { goes_us.map(|_| 0) };
                oracle.entries.kept(place, key, revision, value, goes_us)
            }
            (Ask::Delete(_), "deleted", _) => {
                (own.revision, own.sure) = (0, true);
                oracle.entries.fact(place, key, revision, None)
            }
            (_, _, Some("wrong_revision" | "unknown_entry")) => {
                own.sure = false;
                Ok(())
            }
            (_, _, Some(_)) if frame.code.is_some_and(|code| code < 4200) => {
                own.sure &= !matches!(ask, Ask::Get(..));
                Ok(())
            }
            _ => Err(format!("{ask:?} answered by {answer} {refusal:?}")),
        }
    }

    /// The entry of a session that was asked for.
    pub(super) fn last_frame(&mut self, session: &str, text: &str, oracle: &Oracle) -> Checked {
        let page: EntriesText<'_> = serde_json::from_str(text).map_err(|e| format!("no frame of ours: {e}"))?;
        let value = page.entries.first().and_then(|item| item.data).map(RawValue::get);
        self.last_read(session, value, oracle)
    }

    /// A page of entries, asked for or not.
    pub(super) fn entries_frame(&mut self, text: &str, ask: Option<(String, Ask)>, oracle: &mut Oracle) -> Checked {
        let page: EntriesText<'_> = serde_json::from_str(text).map_err(|e| format!("no frame of ours: {e}"))?;
        self.counts.add("frame", if page.snapshot { "entries, snapshot" } else { "entries" });
        let place = match (page.session, page.bucket) {
            (Some(session), None) => session.to_owned(),
            (None, Some(bucket)) => format!("bucket {bucket}"),
            _ => return Err("entries of nowhere".to_owned()),
        };
        for item in &page.entries {
            let value = item.data.ok_or("an entry without data")?.get();
            oracle.entries.fact(&place, item.key, item.revision, Some(value.to_owned()))?;
        }
        for item in &page.deleted {
            oracle.entries.fact(&place, item.key, item.revision, None)?;
        }
        match ask {
            Some((_, Ask::Get(key, known))) => {
                let found = page.entries.first().map(|item| item.revision);
                let own = self.keeps.keys.get_mut(&(place.clone(), key.clone())).ok_or("a key that is not its own")?;
                (own.asked, own.sure, own.revision) = (false, true, found.unwrap_or(0));
                oracle.entries.told(&place, &key, found, known, oracle.now_us)
            }
            Some((_, Ask::List)) => Ok(()),
            Some((_, ask)) => Err(format!("{ask:?} answered by a page")),
            None => {
                let view = self.keeps.views.get_mut(&place).ok_or("a place that is not watched")?;
                if !view.live {
                    return Err("a view that is not live".to_owned());
                }
                let after = page.after.ok_or("no place that it goes on from")?;
                if page.snapshot {
                    view.believes.clear();
                } else if after != view.revision {
                    return Err(format!("a hole: {} was known", view.revision));
                }
                (view.revision, view.whole) = (page.revision, !page.more);
                for item in &page.deleted {
                    view.believes.remove(item.key);
                }
                for item in &page.entries {
                    let value = item.data.map_or("", RawValue::get).to_owned();
                    view.believes.insert(item.key.to_owned(), (item.revision, value));
                }
                if view.whole { oracle.entries.believed(&place, &view.believes, view.revision) } else { Ok(()) }
            }
        }
    }
}
