//! The clients of an agent: they read, write and delete sessions, and the agent calls the API server for them.

use super::api::{Outcome, Request};
use super::world::{known, map_of, number, uid, with_value};
use super::{Process, Sim};
use crate::core::cache::{Answer, FlightId, Join, Restored};
use crate::core::session::ResourceVersion;
use crate::core::signal::{Barrier, Fate, Mark};

/// A GET, sent or about to be.
pub struct Get {
    name: usize,
    flight: FlightId,
    sent: bool,
    /// When those who wait for it came.
    requests: Vec<u64>,
}

impl Sim {
    /// A client asks for a session; it did so at `when`, which may be before the agent was resumed.
    pub fn asked(&mut self, at: usize, record: usize, when: u64) {
        let (now, name) = (self.agent_now(at), self.name(record));
        let shard = &mut self.agents[at].shard;
        if let Some(copy) = shard.get(&name, now).cloned() {
            self.answer(at, record, Some(&copy), when, true);
            return;
        }
        let joined = shard.join(&name, now);
        self.joined(at, record, joined, when);
    }

    /// A client asks for a session as it is now.
    pub fn asked_anew(&mut self, at: usize, record: usize) {
        let name = self.name(record);
        let joined = self.agents[at].shard.join_anew(&name);
        self.joined(at, record, joined, self.now);
    }

    fn joined(&mut self, at: usize, record: usize, joined: Join, when: u64) {
        match joined {
            Join::Serve(copy) => self.answer(at, record, Some(&copy), when, true),
            Join::Follow(flight) => {
                let gets = &mut self.agents[at].gets;
                let get = gets.iter_mut().find(|g| g.name == record && g.flight == flight);
                if let Some(get) = get {
                    get.requests.push(when);
                }
            }
            Join::Lead(flight) => {
                self.agents[at].gets.push(Get { name: record, flight, sent: false, requests: vec![when] });
                self.send_get(at, record);
            }
        }
    }

    /// Sends the next GET of this session, if none is in flight.
    fn send_get(&mut self, at: usize, record: usize) {
        let (now, name) = (self.agent_now(at), self.name(record));
        let agent = &mut self.agents[at];
        let mut gets = agent.gets.iter_mut().filter(|g| g.name == record);
        if gets.any(|g| g.sent) {
            return;
        }
        let Some(get) = agent.gets.iter_mut().find(|g| g.name == record) else {
            return;
        };
        get.sent = true;
        let flight = get.flight;
        agent.shard.restore_sent(&name, flight, now);
        let caller = Process::Agent(at, agent.life);
        self.call(caller, Request::Get { name: record, flight });
    }

    pub fn get_answered(&mut self, at: usize, record: usize, flight: FlightId, outcome: Outcome) {
        let (now, name) = (self.agent_now(at), self.name(record));
        let agent = &mut self.agents[at];
        let gets = &mut agent.gets;
        let Some(pos) = gets.iter().position(|g| g.name == record && g.flight == flight) else {
            return;
        };
        let Outcome::Read(answer) = outcome else {
            agent.shard.restore_failed(&name, flight);
            gets.remove(pos);
            self.send_get(at, record);
            return;
        };
        let reports = &mut agent.reports;
        let restored = agent.shard.restore_answered(&name, flight, answer.clone(), now, reports);
        self.tell(|| format!("agent {at} restores {name}: {}", short(&restored, &answer)));
        let (copy, dropped) = match restored {
            Restored::Serve { copy, validated, dropped } => {
                if let Answer::Found(found) = &answer {
                    self.read(at, record, found.copy.resource_version.0);
                }
                if !validated {
                    self.restored(at, record, &copy);
                }
                (Some(copy), dropped)
            }
            Restored::NotFound { dropped } => (None, dropped),
            Restored::AskAgain => {
                self.agents[at].gets[pos].sent = false;
                self.asked_again(at, record);
                self.send_get(at, record);
                return;
            }
        };
        let get = self.agents[at].gets.remove(pos);
        if let Some(dropped) = dropped {
            self.evicted(at, record, &dropped, None);
        }
        for when in get.requests {
            self.answer(at, record, copy.as_ref(), when, false);
        }
        self.send_get(at, record);
        self.pump_all(at);
    }

    /// A client writes one key of the session that it was last given.
    pub fn patch(&mut self, at: usize, record: usize, key: usize, value: usize, everywhere: bool) {
        let (now, name) = (self.agent_now(at), self.name(record));
        let agent = &mut self.agents[at];
        let Some(copy) = agent.shard.peek(&name) else {
            return;
        };
        let wrote = with_value(map_of(copy.digest), key, value);
        let uid = number(copy.uid);
        let flight = agent.shard.write_sent(&name, now);
        let caller = Process::Agent(at, agent.life);
        let request = Request::Patch { name: record, flight, uid, key, value, wrote: known(wrote).digest, everywhere };
        self.call(caller, request);
    }

    pub fn create(&mut self, at: usize, record: usize, map: usize, everywhere: bool) {
        let (now, name) = (self.agent_now(at), self.name(record));
        let agent = &mut self.agents[at];
        let flight = agent.shard.write_sent(&name, now);
        let caller = Process::Agent(at, agent.life);
        let request = Request::Create { name: record, flight, map, everywhere };
        self.call(caller, request);
    }

    pub fn remove(&mut self, at: usize, record: usize, finalizer: bool, everywhere: bool) {
        let name = self.name(record);
        let agent = &mut self.agents[at];
        let Some(copy) = agent.shard.peek(&name) else {
            return;
        };
        let (uid, alive) = (number(copy.uid), copy.resource_version.0);
        let caller = Process::Agent(at, agent.life);
        let request = Request::Delete { name: record, uid, finalizer, alive, everywhere };
        self.call(caller, request);
    }

    pub fn write_answered(&mut self, at: usize, request: &Request, outcome: Outcome) {
        let (record, flight, wrote, everywhere) = match *request {
            Request::Patch { name, flight, wrote, everywhere, .. } => (name, flight, wrote, everywhere),
            Request::Create { name, flight, map, everywhere } => (name, flight, known(map).digest, everywhere),
            _ => return,
        };
        let (now, name) = (self.agent_now(at), self.name(record));
        let agent = &mut self.agents[at];
        let reports = &mut agent.reports;
        let observed = match outcome {
            Outcome::Written(observed) => observed,
            Outcome::Lost(through) => {
                agent.shard.write_unknown(&name, flight, true, reports);
                self.wrote_unknown(at, record, through);
                self.pump_all(at);
                return;
            }
            _ => {
                let dropped = agent.shard.write_failed(&name, flight, reports);
                if let Some(dropped) = dropped {
                    self.evicted(at, record, &dropped, None);
                }
                self.pump_all(at);
                return;
            }
        };
        let before = agent.shard.peek(&name).cloned();
        let written = agent.shard.write_answered(&name, flight, observed.clone(), wrote, now, reports);
        self.tell(|| format!("agent {at} wrote {name}: {observed:?} -> {written:?}"));
        let copy = observed.copy;
        self.wrote(at, record, &copy, before, wrote, written.dropped.as_ref());
        if let Some(dropped) = &written.dropped {
            self.evicted(at, record, dropped, None);
        }
        if everywhere && written.session.is_some() {
            let mark = Mark {
                uid: copy.uid,
                fate: Fate::Stale { below: copy.generation },
                resource_version: copy.resource_version,
            };
            let digest = Some(copy.digest);
            self.confirm(at, record, Barrier { mark, digest });
        }
        self.pump_all(at);
    }

    pub fn delete_answered(&mut self, at: usize, request: &Request, outcome: &Outcome) {
        let Request::Delete { name, uid: gone, alive, everywhere, .. } = *request else {
            return;
        };
        if !matches!(outcome, Outcome::Deleted) {
            return;
        }
        let mark = Mark { uid: uid(gone), fate: Fate::Gone, resource_version: ResourceVersion(alive) };
        let key = self.world.records[name].key.clone();
        let barrier = Barrier { mark, digest: None };
        self.evict(at, &key, barrier);
        if everywhere {
            self.confirm(at, name, barrier);
        }
        self.pump_all(at);
    }
}

fn short(restored: &Restored, answer: &Answer) -> String {
    match (restored, answer) {
        (Restored::AskAgain, _) => format!("asks again after {answer:?}"),
        _ => format!("{restored:?}"),
    }
}
