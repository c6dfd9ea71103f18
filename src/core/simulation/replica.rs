//! The edge of a replica: it carries messages to and from the core, and decides nothing.
//! Its marker is in [`super::marker`].

use std::sync::Arc;

use super::agent::{WINDOW, stream};
use super::api::{Access, Outcome, Request};
use super::marker::Writing;
use super::network::{Down, Pace, Up};
use super::world::{NAMESPACE, SYSTEM, object};
use super::{Clock, Event, LEASE, Process, Sim, ticks};
use crate::core::replica::{Config, Hello, Replica, ScopeId, Silence};
use crate::core::rules::Rule;
use crate::core::session::ResourceVersion;
use crate::core::tally::Bounds;
use crate::core::time::Time;

/// A process of a replica.
pub struct ReplicaEdge {
    pub life: u32,
    pub alive: bool,
    pub clock: Clock,
    pub access: Access,
    pub core: Replica,
    /// How long its leases are.
    pub lease: u64,
    pub scope: ScopeId,
    /// Its registration, which is its marker's name.
    pub registration: Arc<str>,
    /// The marker's record, once it was written.
    pub marker: usize,
    pub writing: Writing,
    /// What the watch has shown, as an index into the log; `None` while a list runs.
    shown: Option<usize>,
    pub watch: Pace,
    /// The next list comes from an API server that is this far behind.
    pub stale: u64,
    scheduled: bool,
    pub stopping: bool,
    /// When it last looked at the clock by itself.
    gauge: Time,
    silence: Silence,
}

impl ReplicaEdge {
    pub fn new(sim: &Sim, at: usize, life: u32) -> Self {
        let holdings = Bounds { all: usize::MAX, per_pod: sim.setup.holdings };
        let lease = sim.setup.leases[at];
        let config = Config { lease: ticks(lease), holdings, confirmations: Bounds { all: 16, per_pod: 16 } };
        let core = Replica::new(config, &[]);
        let scope = core.scopes().next().map(|(scope, _)| scope);
        let process = if Rule::NewProcessNewReplica.on() { life } else { 0 };
        Self {
            life,
            alive: true,
            clock: Clock::new(sim.bits(&[12, at as u64]), sim.setup.drift),
            access: Access::GOOD,
            core,
            lease,
            scope: scope.expect("a scope"),
            registration: format!("r{at}-{process}").into(),
            marker: 0,
            writing: Writing::default(),
            shown: None,
            watch: Pace::Fast,
            stale: 0,
            scheduled: false,
            stopping: false,
            gauge: Time::ZERO,
            silence: Silence::default(),
        }
    }
}

impl Sim {
    pub fn start_replica(&mut self, at: usize) {
        if !self.replicas[at].alive {
            let ReplicaEdge { life, access, watch, .. } = self.replicas[at];
            self.replicas[at] = ReplicaEdge { access, watch, ..ReplicaEdge::new(self, at, life + 1) };
            self.tell(|| format!("replica {at} starts anew"));
        }
        let registration = self.replicas[at].registration.clone();
        self.replicas[at].marker = self.world.record(SYSTEM, &registration, true);
        let life = self.replicas[at].life;
        // It does not wait for the marker: that it is listed once more after that must be enough.
        self.schedule(self.now + 1, Event::List(at, life));
        self.schedule(self.now + 6, Event::Marker(at, life));
        self.schedule(self.now + LEASE / 10, Event::Poll(at, life));
    }

    pub fn replica_now(&self, at: usize) -> Time {
        self.replicas[at].clock.read(self.now)
    }

    /// Lists anew, perhaps from an API server that is behind. The watch is over, and the position stands still.
    pub fn list(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.shown = None;
        let back = std::mem::take(&mut replica.stale);
        let caller = Process::Replica(at, replica.life);
        let doubts = replica.core.doubts(replica.scope);
        self.call(caller, Request::List { back, doubts });
    }

    pub fn listed(&mut self, at: usize, doubts: u64, outcome: Outcome) {
        let now = self.replica_now(at);
        let replica = &mut self.replicas[at];
        let life = replica.life;
        let (Outcome::Listed(objects, rv), true) = (outcome, replica.core.doubts(replica.scope) == doubts) else {
            self.schedule(self.now + 20, Event::List(at, life));
            return;
        };
        let taken = replica.core.relist(replica.scope, objects, ResourceVersion(rv), now);
        self.tell(|| format!("replica {at} lists at {rv}: {taken:?}"));
        if taken.is_ok() {
            self.replicas[at].shown = Some(rv as usize);
            self.follow(at);
        } else {
            self.schedule(self.now + 20, Event::List(at, life));
        }
        self.after(at);
    }

    /// Something was committed, if the log has grown since `before`: watches will show it.
    pub fn committed(&mut self, before: u64) {
        if self.world.rv() > before {
            for at in 0..self.replicas.len() {
                self.follow(at);
            }
        }
    }

    /// Schedules what the watch shows next.
    pub fn follow(&mut self, at: usize) {
        let replica = &self.replicas[at];
        let Some(next) = replica.shown.filter(|_| !replica.scheduled && replica.alive) else {
            return;
        };
        let Some((_, state)) = self.world.log.get(next) else {
            return;
        };
        let delay = replica.watch.delay(self.bits(&[13, at as u64, next as u64]));
        if replica.watch == Pace::Hung {
            return;
        }
        let due = state.at.saturating_add(delay).max(self.now);
        let event = Event::Watch(at, replica.life);
        self.replicas[at].scheduled = true;
        self.schedule(due, event);
    }

    pub fn watch_shows(&mut self, at: usize) {
        let now = self.replica_now(at);
        let replica = &mut self.replicas[at];
        replica.scheduled = false;
        let (Some(next), true) = (replica.shown, replica.watch != Pace::Hung) else {
            return;
        };
        let Some((record, state)) = self.world.log.get(next) else {
            return;
        };
        let record = &self.world.records[*record];
        if let Some(object) = object(record, state) {
            replica.core.apply(replica.scope, object, now);
        } else {
            let rv = ResourceVersion(state.rv);
            replica.core.delete(replica.scope, &record.key, rv, now);
        }
        replica.shown = Some(next + 1);
        let (key, state) = (record.key.clone(), *state);
        self.tell(|| format!("replica {at} sees {key} {:?} at {}", state.body, state.rv));
        self.follow(at);
        self.after(at);
    }

    pub fn replica_receives(&mut self, conn: usize) {
        let Some(message) = self.arrive_up(conn) else {
            return;
        };
        if !self.conns[conn].replica_open {
            return;
        }
        let (agent, life) = self.conns[conn].agent;
        if self.agents[agent].life == life && !self.paused(Process::Agent(agent, life)) {
            self.pump(conn);
        }
        let at = self.conns[conn].replica.0;
        self.tell(|| format!("replica {at} <- stream {conn}: {message:?}"));
        let now = self.replica_now(at);
        let id = stream(conn);
        // A process that starts anew is one of another pod, so that what it may hold does not depend on when the older stream ends.
        let name: Arc<str> = format!("pod-{agent}-{life}").into();
        let instance = self.instance(agent, life);
        let replica = &mut self.replicas[at];
        match message {
            Up::Hello => {
                let hello = Hello { instance, namespace: NAMESPACE.into(), name };
                let settings = Down::Settings(replica.registration.clone(), replica.lease);
                let superseded = replica.core.stream_opened(id, hello, now);
                self.send_down(conn, settings);
                if let Some(old) = superseded {
                    let old = old.0 as usize - 1;
                    self.conns[old].replica_open = false;
                    self.cut(old, 0, usize::MAX);
                }
            }
            Up::Reports(reports, through) => {
                // A controller ends the stream then. What has to hold without that holds with it.
                let _ = replica.core.reported(id, reports, through, now);
            }
            Up::Heartbeat(number) => {
                let read = if Rule::ReadClockLate.on() { now } else { replica.gauge };
                replica.core.heartbeat(id, number, read);
            }
            Up::Ack(key, signal) => replica.core.acknowledged(id, &key, signal, false, now),
            Up::Confirm(request, key, barrier) => {
                if replica.core.confirm(id, request, key, barrier, now).is_err() {
                    self.send_down(conn, Down::Refused);
                }
            }
            Up::LeaseReturned => replica.core.lease_returned(id),
            Up::Closed => {
                replica.core.stream_closed(id, now);
                self.conns[conn].replica_open = false;
            }
        }
        self.after(at);
    }

    /// Whatever the core woke will be looked at, a little later.
    pub fn after(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        let woken: Vec<_> = replica.core.take_woken().collect();
        replica.core.take_facts();
        for id in woken {
            self.wake(id.0 as usize - 1);
        }
    }

    pub fn wake(&mut self, conn: usize) {
        let c = &self.conns[conn];
        let process = Process::Replica(c.replica.0, c.replica.1);
        if !c.draining && c.replica_open && self.alive(process) {
            let delay = self.bits(&[15, conn as u64, self.now]);
            let delay = if delay.is_multiple_of(4) { delay / 4 % 30 } else { 0 };
            self.conns[conn].draining = true;
            self.schedule(self.now + delay, Event::Drain(conn));
        }
    }

    /// Sends what waits for the stream, as far as it takes it.
    pub fn drain(&mut self, conn: usize) {
        self.conns[conn].draining = false;
        let at = self.conns[conn].replica.0;
        while self.conns[conn].replica_open && self.conns[conn].down.len() < WINDOW {
            let core = &mut self.replicas[at].core;
            let Some(out) = core.drain(stream(conn), self.setup.chunk) else {
                return;
            };
            self.send_down(conn, Down::Out(out));
            if self.conns[conn].broken && self.conns[conn].down.len() == 0 {
                return;
            }
        }
    }

    pub fn poll(&mut self, at: usize) {
        let now = self.replica_now(at);
        let replica = &mut self.replicas[at];
        replica.core.poll(now);
        replica.gauge = now;
        let life = replica.life;
        let over = replica.core.all_leases_over(now) || !Rule::StayRegistered.on();
        if replica.stopping && over {
            let (marker, rv) = (replica.marker, self.world.records[replica.marker].last().rv);
            self.call(Process::Replica(at, life), Request::Remove { marker, rv });
            self.crash_replica(at);
            return;
        }
        self.schedule(self.now + LEASE / 10, Event::Poll(at, life));
        self.remove_registrations(at, now);
        self.after(at);
    }

    /// Removes registrations of replicas that cannot have a lease in force.
    fn remove_registrations(&mut self, at: usize, now: Time) {
        let replica = &mut self.replicas[at];
        let dead = replica.silence.seen(replica.core.registered(replica.scope), now);
        let (caller, own) = (Process::Replica(at, replica.life), replica.registration.clone());
        for (name, registration) in dead.into_iter().filter(|(name, _)| *name != own) {
            let marker = self.world.record(SYSTEM, &name, true);
            self.call(caller, Request::Remove { marker, rv: registration.resource_version.0 });
        }
    }

    pub fn stop_replica(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        if replica.alive && !replica.stopping {
            replica.stopping = true;
            replica.core.stop();
            self.after(at);
        }
    }

    pub fn crash_replica(&mut self, at: usize) {
        let life = self.replicas[at].life;
        self.replicas[at].alive = false;
        self.resume(Process::Replica(at, life));
        for conn in 0..self.conns.len() {
            if self.conns[conn].replica == (at, life) {
                self.conns[conn].replica_open = false;
                let keep = self.bits(&[16, conn as u64]) as usize % 3;
                self.cut(conn, 0, keep);
            }
        }
        let after = Pace::Slow.delay(self.bits(&[17, at as u64, u64::from(life)])) / 4;
        self.schedule(self.now + 5 + after, Event::StartReplica(at));
    }
}
