//! Histories: what disturbs the system, and when.

use super::api::Access;
use super::network::{Pace, Path};
use super::world::{MAPS, with_value};
use super::{Event, LEASE, Process, SHORT, Sim};

/// The system of a history.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub agents: usize,
    pub replicas: usize,
    pub sessions: usize,
    /// For each agent the replicas that it can reach, as bits.
    pub reach: Vec<u8>,
    /// Whether clocks tick at different rates.
    pub drift: bool,
    /// Copies that a shard keeps.
    pub entries: usize,
    /// Holdings that a replica takes of an agent.
    pub holdings: usize,
    /// Reports and signals in one message.
    pub chunk: usize,
    /// For each replica how long the leases of its next process are.
    pub leases: Vec<u64>,
}

/// A disturbance. Each makes sense, or does nothing, whatever came before: any part of a history is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Somebody writes one key of a session.
    Write(usize, usize, usize),
    /// Somebody changes the spec, but not the metadata.
    Spec(usize),
    /// Somebody sets a label.
    Label(usize),
    /// Somebody deletes a session; with a finalizer it is only marked.
    Delete(usize, bool),
    Finalize(usize),
    Recreate(usize, usize),
    /// A session in another namespace comes and goes under the name of a replica's registration.
    Shadow(usize),
    Get(usize, usize),
    /// A client asks for a session as it is now, whatever its agent holds.
    GetAnew(usize, usize),
    /// A client of an agent writes one key, and wants to know when everybody has it.
    OwnWrite(usize, usize, usize, usize, bool),
    OwnCreate(usize, usize, usize, bool),
    OwnDelete(usize, usize, bool, bool),
    Watch(usize, Pace),
    /// The watch ends, and the list that follows is this far behind.
    Relist(usize, u64),
    Path(usize, usize, Path),
    Cut(usize, usize, usize, usize),
    Repeat(usize, usize, bool),
    /// What a replica told an agent long ago is told again.
    Replay(usize, usize),
    CrashReplica(usize),
    StopReplica(usize),
    /// A replica stops, and is started with leases of the other length.
    Relength(usize),
    CrashAgent(usize),
    Pause(bool, usize),
    Resume(bool, usize),
    Access(bool, usize, Access),
    /// Etcd is restored from a backup that is two leases and so much older. If it says so, then so many more writes than were lost
    /// follow at once, or fewer.
    Restore(u64, Option<isize>),
}

/// A seed with what happens, each after a pause.
#[derive(Clone, Debug)]
pub struct History {
    pub setup: Setup,
    pub actions: Vec<(u64, Action)>,
}

impl Sim {
    pub fn act(&mut self, action: Action) {
        self.tell(|| format!("-- {action:?}"));
        let (now, before) = (self.now, self.world.rv());
        match action {
            Action::Write(s, key, value) => {
                let map = self.world.body(s).map_or(0, |b| b.map);
                self.world.write(s, with_value(map, key, value), now, None);
            }
            Action::Spec(s) => self.world.touch(s, true, now),
            Action::Label(s) => self.world.touch(s, false, now),
            Action::Delete(s, finalizer) => self.world.delete(s, finalizer, now),
            Action::Finalize(s) => {
                if self.world.body(s).is_some_and(|b| b.terminating) {
                    self.world.delete(s, false, now);
                }
            }
            Action::Recreate(s, map) => {
                self.world.create(s, map % MAPS, now, None);
            }
            Action::Shadow(r) => {
                let name = self.replicas[r].registration.clone();
                let record = self.world.record("other", &name, false);
                self.world.create(record, 0, now, None);
                self.committed(before);
                self.world.delete(record, false, now);
            }
            Action::Get(a, s) => {
                let life = self.agents[a].life;
                self.schedule(now, Event::Asked(a, life, s, now));
            }
            Action::GetAnew(a, s) => {
                if self.runs(a) {
                    self.asked_anew(a, s);
                }
            }
            Action::OwnWrite(a, s, key, value, everywhere) => {
                if self.runs(a) {
                    self.patch(a, s, key, value, everywhere);
                }
            }
            Action::OwnCreate(a, s, map, everywhere) => {
                if self.runs(a) {
                    self.create(a, s, map % MAPS, everywhere);
                }
            }
            Action::OwnDelete(a, s, finalizer, everywhere) => {
                if self.runs(a) {
                    self.remove(a, s, finalizer, everywhere);
                }
            }
            Action::Watch(r, pace) => {
                self.replicas[r].watch = pace;
                self.follow(r);
            }
            Action::Relist(r, back) => {
                self.replicas[r].stale = back;
                let life = self.replicas[r].life;
                self.schedule(now, Event::List(r, life));
            }
            Action::Path(a, r, path) => {
                let reach = self.setup.reach[a] >> r & 1 == 1;
                let reachable = path.reachable && reach;
                self.set_path(a, r, Path { reachable, ..path });
            }
            Action::Cut(a, r, up, down) => {
                if let Some(conn) = self.conn(a, r) {
                    self.cut(conn, up, down);
                }
            }
            Action::Repeat(a, r, up) => {
                if let Some(conn) = self.conn(a, r) {
                    self.repeat(conn, up);
                }
            }
            Action::Replay(a, n) => {
                if self.runs(a) {
                    self.replay(a, n);
                }
            }
            Action::CrashReplica(r) => {
                if self.replicas[r].alive {
                    self.crash_replica(r);
                }
            }
            Action::StopReplica(r) => {
                let process = self.process(false, r);
                if !self.paused(process) {
                    self.stop_replica(r);
                }
            }
            Action::Relength(r) => {
                let lease = &mut self.setup.leases[r];
                *lease = if *lease == LEASE { SHORT } else { LEASE };
                self.act(Action::StopReplica(r));
            }
            Action::CrashAgent(a) => {
                if self.agents[a].alive {
                    self.crash_agent(a);
                }
            }
            Action::Pause(agent, n) => {
                let process = self.process(agent, n);
                if self.alive(process) {
                    self.pause(process);
                }
            }
            Action::Resume(agent, n) => {
                let process = self.process(agent, n);
                self.resume(process);
            }
            Action::Access(true, a, access) => self.agents[a].access = access,
            Action::Access(false, r, access) => self.replicas[r].access = access,
            Action::Restore(age, more) => self.restore(now.saturating_sub(2 * LEASE + age), more),
        }
        self.committed(before);
        self.check();
    }

    fn restore(&mut self, then: u64, more: Option<isize>) {
        let now = self.now;
        let lost = self.world.restore(then, now);
        self.checks.restored(lost);
        let another = self.world.record("other", "busy", false);
        self.world.create(another, 0, now, None);
        for _ in 0..more.map_or(0, |more| lost.saturating_add_signed(more)) {
            self.world.touch(another, false, now);
        }
        // Their watches go on from where they are.
        for replica in 0..self.setup.replicas {
            self.follow(replica);
        }
    }

    fn process(&self, agent: bool, n: usize) -> Process {
        if agent { Process::Agent(n, self.agents[n].life) } else { Process::Replica(n, self.replicas[n].life) }
    }

    /// Whether an agent can do something at this moment.
    fn runs(&self, agent: usize) -> bool {
        let process = self.process(true, agent);
        self.alive(process) && !self.paused(process)
    }

    /// The last stream of an agent to a replica.
    fn conn(&self, agent: usize, replica: usize) -> Option<usize> {
        self.conns.iter().rposition(|c| (c.agent.0, c.replica.0) == (agent, replica))
    }

    /// Everything works again.
    fn heal(&mut self) {
        self.tell(|| "-- everything heals".to_owned());
        for a in 0..self.setup.agents {
            for r in 0..self.setup.replicas {
                let path = Path { up: Pace::Fast, down: Pace::Fast, reachable: true };
                self.act(Action::Path(a, r, path));
            }
            self.agents[a].access = Access::GOOD;
        }
        for r in 0..self.setup.replicas {
            self.replicas[r].access = Access::GOOD;
            self.act(Action::Watch(r, Pace::Fast));
        }
        self.resume_all();
    }

    /// Once everything works, everybody must come to hold the truth, and nothing may be left over.
    fn settle(&mut self) {
        self.heal();
        self.run(self.now + 2 * LEASE + LEASE / 4);
        for _ in 0..2 {
            for a in 0..self.setup.agents {
                for s in 0..self.setup.sessions {
                    self.act(Action::Get(a, s));
                }
            }
            self.run(self.now + LEASE / 2);
        }
        self.left_over();
    }
}

/// Runs a history to its end, or until a promise is broken.
pub fn play(history: &History, tell: bool) -> Sim {
    let mut sim = Sim::new(history.setup.clone(), tell);
    // Streams are open and leases in force.
    sim.run(LEASE / 4);
    for (pause, action) in &history.actions {
        sim.run(sim.now + pause);
        if sim.checks.broken.is_some() {
            return sim;
        }
        sim.act(*action);
    }
    sim.run(sim.now + LEASE);
    if sim.checks.broken.is_none() {
        sim.settle();
    }
    sim
}
