//! Replicas, a network and an API server, small enough to run thousands of histories of.

use std::time::Duration;

use super::history::{Broken, Fault, FaultKind, History, Net, TICK_MS};
use super::{Answer, Election, Observed, Step};
use crate::core::time::Time;

struct Lease {
    holder: String,
    version: u64,
    duration: Duration,
    stamp: u64,
}

enum Reply {
    Read(Option<Observed>),
    Wrote(Answer),
}

struct Call {
    id: u64,
    step: Step,
    sent: Time,
    deadline: Time,
    reply: Option<(u64, Reply)>,
}

struct Request {
    call: u64,
    replica: usize,
    holder: String,
    duration: Duration,
    stamp: u64,
    step: Step,
    arrives: u64,
    back: u64,
    lose_answer: bool,
}

struct Replica {
    election: Option<Election>,
    incarnations: u32,
    paused_until: u64,
    partitioned_until: u64,
    restart_at: Option<u64>,
    call: Option<Call>,
}

pub struct World {
    history: History,
    broken: Broken,
    tick: u64,
    version: u64,
    lease: Option<Lease>,
    requests: Vec<Request>,
    replicas: Vec<Replica>,
    calls: u64,
    deleted: bool,
}

impl World {
    pub fn new(history: History, broken: Broken) -> Self {
        let replicas = (0..history.timings.len())
            .map(|_| Replica {
                election: None,
                incarnations: 0,
                paused_until: 0,
                partitioned_until: 0,
                restart_at: Some(0),
                call: None,
            })
            .collect();
        Self {
            history,
            broken,
            tick: 0,
            version: 0,
            lease: None,
            requests: Vec::new(),
            replicas,
            calls: 0,
            deleted: false,
        }
    }

    /// Plays the history, then a while without faults. Says what went wrong, if anything did.
    pub fn play(mut self) -> Result<(), String> {
        let ticks = u64::from(self.history.ticks);
        while self.tick < ticks {
            self.step_and_check()?;
        }
        self.history.nets.clear();
        self.history.faults.clear();
        for replica in &mut self.replicas {
            replica.paused_until = 0;
            replica.partitioned_until = 0;
        }
        let longest = self.history.timings.iter().map(|t| t.lease_duration).max().unwrap_or_default();
        let quiet = 5 * u64::try_from(longest.as_millis()).unwrap_or(0) / TICK_MS + 200;
        let mut leader = None;
        for _ in 0..quiet {
            leader = self.step_and_check()?;
        }
        let anybody = self.replicas.iter().any(|r| r.election.as_ref().is_some_and(|e| !e.stopping));
        if anybody && !self.history.frozen && leader.is_none() {
            return Err("nobody leads after a long time without faults".to_owned());
        }
        Ok(())
    }

    fn local(&self, replica: usize) -> Time {
        let true_ms = self.tick * TICK_MS;
        let offset = 1_000_000 * (replica as u64 + 1);
        Time::from_nanos((offset + true_ms * self.history.rates[replica] / 1000) * 1_000_000)
    }

    fn leads(&self, replica: usize) -> bool {
        let Some(election) = &self.replicas[replica].election else {
            return false;
        };
        match self.broken {
            Broken::LeadUntilTold => election.leads_until().is_some(),
            _ => election.is_leader(self.local(replica)),
        }
    }

    fn step_and_check(&mut self) -> Result<Option<usize>, String> {
        self.tick += 1;
        self.inject();
        self.serve();
        for replica in 0..self.replicas.len() {
            self.act(replica);
            self.check()?;
        }
        self.check()
    }

    fn check(&self) -> Result<Option<usize>, String> {
        let leaders: Vec<usize> = (0..self.replicas.len()).filter(|r| self.leads(*r)).collect();
        if leaders.len() > 1 {
            return Err(format!("replicas {leaders:?} lead at once, at {} ms", self.tick * TICK_MS));
        }
        Ok(leaders.first().copied())
    }

    fn inject(&mut self) {
        let due: Vec<Fault> = self.history.faults.iter().copied().filter(|f| u64::from(f.at) == self.tick).collect();
        for Fault { replica, kind, .. } in due {
            let index = replica % self.replicas.len();
            let tick = self.tick;
            match kind {
                FaultKind::Delete => self.delete(),
                FaultKind::Pause(ticks) => {
                    self.replicas[index].paused_until = tick + u64::from(ticks);
                }
                FaultKind::Partition(ticks) => {
                    self.replicas[index].partitioned_until = tick + u64::from(ticks);
                }
                FaultKind::Crash { down_for } => {
                    let replica = &mut self.replicas[index];
                    if replica.election.take().is_some() {
                        replica.call = None;
                        replica.restart_at = Some(tick + u64::from(down_for));
                    }
                }
                FaultKind::Stop => {
                    let now = self.local(index);
                    if let Some(election) = &mut self.replicas[index].election {
                        election.stop(now);
                    }
                }
            }
        }
    }

    /// A person deletes the lease, once, when every replica has seen it: what a replica that starts right then may do
    /// is a documented exception.
    fn delete(&mut self) {
        let uniform = self.history.timings.windows(2).all(|pair| pair[0] == pair[1]);
        let known = self.replicas.iter().all(|r| r.election.as_ref().is_some_and(|e| e.longest_seen.is_some()));
        if uniform && known && !self.deleted {
            self.deleted = true;
            self.lease = None;
        }
    }

    fn serve(&mut self) {
        self.requests.sort_by_key(|request| request.arrives);
        while self.requests.first().is_some_and(|request| request.arrives <= self.tick) {
            let request = self.requests.remove(0);
            let reply = match &request.step {
                Step::Read => Reply::Read(self.lease.as_ref().map(|lease| Observed {
                    holder: lease.holder.clone(),
                    resource_version: lease.version.to_string(),
                    duration: lease.duration,
                })),
                Step::Create => Reply::Wrote(self.store(&request, None)),
                Step::Acquire { resource_version }
                | Step::Renew { resource_version }
                | Step::Release { resource_version } => {
                    Reply::Wrote(self.store(&request, Some(resource_version.clone())))
                }
                Step::Wait { .. } | Step::Done => continue,
            };
            let replica = &mut self.replicas[request.replica];
            let cut = replica.partitioned_until > self.tick;
            if let Some(call) = replica.call.as_mut().filter(|call| call.id == request.call)
                && !request.lose_answer
                && !cut
            {
                call.reply = Some((self.tick + request.back, reply));
            }
        }
    }

    fn store(&mut self, request: &Request, replaces: Option<String>) -> Answer {
        let released = matches!(request.step, Step::Release { .. });
        let holder = if released { String::new() } else { request.holder.clone() };
        match (&self.lease, replaces) {
            (Some(_), None) | (None, Some(_)) => return Answer::NotStored,
            (Some(lease), Some(version)) => {
                if lease.version.to_string() != version && self.broken != Broken::PutWithoutVersion {
                    return Answer::NotStored;
                }
                if lease.holder == holder && lease.stamp == request.stamp && lease.duration == request.duration {
                    return Answer::Stored { resource_version: lease.version.to_string() };
                }
            }
            (None, None) => {}
        }
        self.version += 1;
        self.lease = Some(Lease { holder, version: self.version, duration: request.duration, stamp: request.stamp });
        Answer::Stored { resource_version: self.version.to_string() }
    }

    fn act(&mut self, index: usize) {
        if self.replicas[index].paused_until > self.tick {
            return;
        }
        self.restart(index);
        let now = self.local(index);
        let Self { replicas, broken, tick, .. } = self;
        let replica = &mut replicas[index];
        let Some(election) = &mut replica.election else {
            return;
        };
        if let Some(mut call) = replica.call.take() {
            match call.reply.take() {
                Some((at, reply)) if at <= *tick => match reply {
                    Reply::Read(found) => {
                        let seen = if *broken == Broken::WatchFromTheSending { call.sent } else { now };
                        election.observed(found, seen);
                    }
                    Reply::Wrote(answer) => {
                        let sent = if *broken == Broken::CountFromTheAnswer { now } else { call.sent };
                        election.wrote(&call.step, sent, answer, now);
                    }
                },
                _ if now >= call.deadline => match call.step {
                    Step::Read => election.read_failed(now),
                    step => election.wrote(&step, call.sent, Answer::Unknown, now),
                },
                reply => {
                    replica.call = Some(Call { reply, ..call });
                    return;
                }
            }
        }
        match election.next(now) {
            Step::Wait { .. } | Step::Done => {}
            step => self.call(index, step, now),
        }
    }

    fn restart(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        let due = replica.restart_at.is_some_and(|at| at <= self.tick);
        // After a deletion nobody starts: see `delete`.
        if !due || (self.deleted && replica.incarnations > 0) {
            return;
        }
        replica.restart_at = None;
        replica.incarnations += 1;
        let identity = format!("replica-{index}_{}", replica.incarnations);
        let mut timings = self.history.timings[index];
        if self.broken == Broken::DeadlineBeyondTheLease {
            timings.renew_deadline = timings.lease_duration * 11 / 10;
        }
        let mut election = Election::new(identity, timings);
        if let Broken::Inside(rule) = self.broken {
            election.off = Some(rule);
        }
        replica.election = Some(election);
    }

    fn call(&mut self, index: usize, step: Step, now: Time) {
        self.calls += 1;
        let net = if self.history.nets.is_empty() {
            Net::default()
        } else {
            self.history.nets[usize::try_from(self.calls).unwrap_or(0) % self.history.nets.len()]
        };
        let replica = &mut self.replicas[index];
        let Some(election) = &replica.election else {
            return;
        };
        let deadline = now + election.timings.renew_deadline.min(election.timings.lease_duration * 2 / 3) / 3;
        let stamp = if self.history.frozen { 0 } else { self.calls };
        if !net.lose_request && replica.partitioned_until <= self.tick {
            self.requests.push(Request {
                call: self.calls,
                replica: index,
                holder: election.identity.clone(),
                duration: election.timings.lease_duration,
                stamp,
                step: step.clone(),
                arrives: self.tick + 1 + u64::from(net.to),
                back: u64::from(net.back),
                lose_answer: net.lose_answer,
            });
        }
        replica.call = Some(Call { id: self.calls, step, sent: now, deadline, reply: None });
    }
}
