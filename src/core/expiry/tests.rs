use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const A: Uid = Uid::from_u128(1);
const RENEWAL: Duration = Duration::from_secs(5);
const WALL: u64 = 1_000_000;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

fn wall(seconds: u64) -> WallTime {
    secs(WALL + seconds)
}

fn key() -> SessionKey {
    SessionKey::new("ns", "s")
}

fn limits(idle: Option<u64>, ends: Option<u64>) -> Limits {
    Limits { uid: A, idle: idle.map(secs), ends: ends.map(wall), renewed_at: None, persisted: None }
}

fn observed(limits: Limits, seconds: u64) -> Expiry {
    let mut expiry = Expiry::new(RENEWAL);
    expiry.observed(&key(), limits, at(seconds), wall(seconds));
    expiry
}

const NONE: [Expired; 0] = [];

/// What is over at this second, for a leader that has heard everything since `since`.
fn expired(expiry: &mut Expiry, since: Option<u64>, seconds: u64) -> Vec<Expired> {
    let heard = since.map(|since| Heard { since: at(since), through: at(seconds) });
    expiry.expired(heard, at(seconds), wall(seconds), 10).into_iter().map(|(_, _, why)| why).collect()
}

#[test]
fn idle_after_a_timeout_and_one_batch_without_use() {
    let mut expiry = observed(limits(Some(60), None), 100);
    assert_eq!(expired(&mut expiry, Some(0), 164), NONE);
    assert_eq!(expired(&mut expiry, Some(0), 165), [Expired::Idle]);
    assert_eq!(expired(&mut expiry, Some(0), 166), NONE, "given out already");
    assert_eq!(expired(&mut expiry, Some(0), 170), [Expired::Idle], "it is still there");
    expiry.removed(&key());
    assert_eq!(expired(&mut expiry, Some(0), 999), NONE);
    assert!(expiry.is_empty() && expiry.idle.is_empty());
}

#[test]
fn a_use_counts_from_when_it_was() {
    let mut expiry = observed(limits(Some(60), None), 100);
    expiry.used(&key(), A, at(150));
    expiry.used(&key(), A, at(120));
    expiry.used(&key(), Uid::from_u128(2), at(200));
    assert_eq!(expired(&mut expiry, Some(0), 214), NONE);
    assert_eq!(expired(&mut expiry, Some(0), 215), [Expired::Idle]);
}

#[test]
fn who_is_used_after_all_is_not_idle_any_more() {
    let mut expiry = observed(limits(Some(60), None), 100);
    let heard = |seconds| Some(Heard { since: at(0), through: at(seconds) });
    assert_eq!(expired(&mut expiry, Some(0), 170), [Expired::Idle]);
    let is_idle = |expiry: &Expiry, uid| expiry.is_idle(&key(), uid, heard(180), at(180), wall(180));
    assert!(is_idle(&expiry, A));
    assert!(!expiry.is_idle(&key(), A, None, at(180), wall(180)), "nothing is heard any more");
    assert!(!is_idle(&expiry, Uid::from_u128(2)), "another session");
    expiry.used(&key(), A, at(175));
    assert!(!is_idle(&expiry, A));
}

#[test]
fn what_an_agent_writes_that_nobody_hears_is_a_use() {
    let mut expiry = observed(limits(Some(60), None), 100);
    let renewed = Limits { renewed_at: Some(7), ..limits(Some(60), None) };
    expiry.observed(&key(), renewed, at(150), wall(150));
    // The same once more is none, whatever else has changed.
    expiry.observed(&key(), Limits { persisted: Some(wall(1)), ..renewed }, at(180), wall(180));
    assert_eq!(expired(&mut expiry, Some(0), 214), NONE);
    assert_eq!(expired(&mut expiry, Some(0), 215), [Expired::Idle]);
}

#[test]
fn nobody_is_idle_for_a_leader_that_may_have_missed_a_use() {
    let mut expiry = observed(limits(Some(60), None), 100);
    assert_eq!(expired(&mut expiry, None, 10_000), NONE, "somebody is not heard");
    assert_eq!(expired(&mut expiry, Some(9_990), 10_000), NONE, "not heard for long enough");
    assert_eq!(expired(&mut expiry, Some(9_990), 10_054), NONE);
    assert_eq!(expired(&mut expiry, Some(9_990), 10_055), [Expired::Idle]);
}

#[test]
fn a_persisted_use_holds_it_back() {
    let mut expiry = observed(Limits { persisted: Some(wall(150)), ..limits(Some(60), None) }, 100);
    assert_eq!(expired(&mut expiry, Some(0), 209), NONE);
    assert_eq!(expired(&mut expiry, Some(0), 210), [Expired::Idle]);
}

#[test]
fn a_lifetime_ends_by_the_wall_clock_whether_used_or_heard_or_not() {
    let mut expiry = observed(limits(Some(60), Some(200)), 100);
    expiry.used(&key(), A, at(199));
    assert_eq!(expired(&mut expiry, None, 200), NONE, "clocks differ");
    assert_eq!(expired(&mut expiry, None, 201), [Expired::Lifetime]);
    assert_eq!(expired(&mut expiry, None, 202), NONE);
}

#[test]
fn a_changed_timeout_runs_from_its_change() {
    let mut expiry = observed(limits(Some(60), None), 100);
    expiry.observed(&key(), limits(Some(600), None), at(150), wall(150));
    assert_eq!(expired(&mut expiry, Some(0), 754), NONE);
    expiry.observed(&key(), limits(Some(30), None), at(754), wall(754));
    assert_eq!(expired(&mut expiry, Some(0), 788), NONE, "whoever set it may not have told yet that it was used");
    expiry.observed(&key(), limits(Some(30), Some(9_000)), at(788), wall(788));
    assert_eq!(expired(&mut expiry, Some(0), 789), [Expired::Idle], "the other limit says nothing about uses");
    expiry.observed(&key(), limits(None, None), at(790), wall(790));
    assert!(expiry.is_empty() && expiry.idle.is_empty() && expiry.ends.is_empty());
    expiry.observed(&key(), limits(Some(60), None), at(800), wall(800));
    let successor = Limits { uid: Uid::from_u128(2), ..limits(Some(60), None) };
    expiry.observed(&key(), successor, at(850), wall(850));
    assert_eq!(expired(&mut expiry, Some(0), 914), NONE, "another object of that name is new");
    assert_eq!(expired(&mut expiry, Some(0), 915), [Expired::Idle]);
}

#[test]
fn uses_are_persisted_coarsely_and_only_if_there_were_any() {
    let mut expiry = observed(limits(Some(600), None), 0);
    let none: [u64; 0] = [];
    let persisted = |expiry: &mut Expiry, seconds| {
        let due = expiry.to_persist(at(seconds), wall(seconds), 10);
        due.into_iter().map(|persist| persist.used.as_secs() - WALL).collect::<Vec<_>>()
    };
    assert_eq!(persisted(&mut expiry, 1000), none);
    expiry.used(&key(), A, at(990));
    expiry.used(&key(), A, at(1000));
    assert_eq!(persisted(&mut expiry, 1000), [1000]);
    expiry.used(&key(), A, at(1100));
    assert_eq!(persisted(&mut expiry, 1299), none, "half of the timeout must pass");
    // What was written comes back through the watch; that changes nothing about what is pending.
    expiry.observed(&key(), Limits { persisted: Some(wall(1000)), ..limits(Some(600), None) }, at(1299), wall(1299));
    assert_eq!(persisted(&mut expiry, 1300), [1100]);
    assert_eq!(persisted(&mut expiry, 9999), none, "it was not used since");

    let mut successor = observed(Limits { persisted: Some(wall(900)), ..limits(Some(600), None) }, 1000);
    successor.used(&key(), A, at(1000));
    assert_eq!(persisted(&mut successor, 1199), none, "the leader before has written it");
    assert_eq!(persisted(&mut successor, 1300), [1000]);
    let mut short = observed(limits(Some(10), None), 0);
    short.used(&key(), A, at(5));
    assert_eq!(persisted(&mut short, 59), none, "at most once a minute");
    assert_eq!(persisted(&mut short, 60), [5]);
}

#[test]
fn what_is_gone_after_a_relist_is_forgotten() {
    let mut expiry = observed(limits(Some(60), Some(200)), 100);
    expiry.used(&key(), A, at(100));
    expiry.retain(|_| false);
    assert!(expiry.is_empty() && expiry.idle.is_empty() && expiry.ends.is_empty() && expiry.persist.is_empty());
}

#[test]
fn what_cannot_be_deleted_leaves_room_for_others_and_is_tried_less_and_less_often() {
    let mut expiry = Expiry::new(RENEWAL);
    for n in 0..100 {
        expiry.observed(&SessionKey::new("full", n.to_string()), limits(None, Some(10)), at(0), wall(0));
    }
    expiry.observed(&key(), limits(Some(5), None), at(0), wall(0));
    let heard = |now| Some(Heard { since: at(0), through: at(now) });
    let over = expiry.expired(heard(20), at(20), wall(20), 10);
    let kinds = |why| over.iter().filter(|(_, _, this)| *this == why).count();
    assert_eq!((kinds(Expired::Lifetime), kinds(Expired::Idle)), (5, 1));

    let mut expiry = observed(limits(None, Some(10)), 0);
    let tries: Vec<u64> = (0..2_000).filter(|now| !expired(&mut expiry, None, *now).is_empty()).collect();
    let between: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(between, [5, 10, 20, 40, 80, 160, 320, 320, 320, 320, 320]);
}

#[test]
fn a_last_use_in_the_future_is_not_believed() {
    let mut future = limits(Some(60), None);
    future.persisted = Some(wall(1_000_000));
    let mut expiry = observed(future, 100);
    expiry.used(&key(), A, at(150));
    assert_eq!(expiry.to_persist(at(160), wall(160), 10).len(), 1, "it is put right");
    assert_eq!(expired(&mut expiry, Some(100), 214), NONE);
    assert_eq!(expired(&mut expiry, Some(100), 215), [Expired::Idle]);
}

/// What may happen around a leader with two other replicas.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A client uses the session through a pod of this replica (0 is the leader itself).
    Use(usize),
    /// Time passes.
    Wait(u64),
    /// The stream to a replica breaks, and what is on it is lost.
    Break(usize),
    /// It is opened again.
    Open(usize),
    /// A replica stops to hand over, or goes on, while the stream stays open.
    Stall(usize),
    /// What a replica sends is late from now on, or all of it comes.
    Delay(usize),
    /// The first batch comes of those that are late.
    Come(usize),
    /// Another replica leads for a moment, and takes what the others had kept.
    Failover,
    /// The process of a replica dies, with what it had kept; its marker goes.
    Die(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_usize..3).prop_map(Event::Use),
        8 => (1_u64..20).prop_map(Event::Wait),
        1 => (1_usize..3).prop_map(Event::Break),
        2 => (1_usize..3).prop_map(Event::Open),
        2 => (1_usize..3).prop_map(Event::Stall),
        2 => (1_usize..3).prop_map(Event::Delay),
        4 => (1_usize..3).prop_map(Event::Come),
        1 => Just(Event::Failover),
        1 => (1_usize..3).prop_map(Event::Die),
    ]
}

/// What is on an open stream.
#[derive(Default)]
struct Stream {
    questions: Option<Questions>,
    /// The last question that has come to the replica.
    asked: u64,
    /// Batches on their way: which question each answers, and the uses in it.
    batches: Vec<(u64, Vec<u64>)>,
}

/// A leader, the replicas that it hears, and what these and their agents have not handed over yet.
struct World {
    now: u64,
    hearing: Hearing,
    expiry: Expiry,
    names: [Arc<str>; 3],
    alive: [bool; 3],
    open: [bool; 3],
    stalled: [bool; 3],
    delayed: [bool; 3],
    streams: [Stream; 3],
    /// Uses that agents have not reported yet, by replica.
    agents: BTreeMap<usize, Vec<u64>>,
    /// Uses that replicas have not handed over yet.
    kept: BTreeMap<usize, Vec<u64>>,
    /// All uses that they know of.
    known: BTreeMap<usize, Vec<u64>>,
}

impl World {
    fn new() -> Self {
        let names = ["own".into(), "a".into(), "b".into()];
        let mut hearing = Hearing::new("own".into(), at(0));
        hearing.registered(names.iter().cloned().collect(), at(0));
        World {
            now: 0,
            hearing,
            expiry: observed(limits(Some(40), None), 0),
            names,
            alive: [true; 3],
            open: [true, false, false],
            stalled: [false; 3],
            delayed: [false; 3],
            streams: Default::default(),
            agents: BTreeMap::new(),
            kept: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    /// Agents report every `RENEWAL`; so do replicas, a second later.
    fn second(&mut self) {
        self.now += 1;
        if self.now.is_multiple_of(RENEWAL.as_secs()) {
            for (replica, uses) in std::mem::take(&mut self.agents) {
                self.kept.entry(replica).or_default().extend(&uses);
                self.known.entry(replica).or_default().extend(uses);
            }
        }
        for replica in 0..3 {
            let hands_over = replica == 0 || self.now % RENEWAL.as_secs() == 1;
            if self.open[replica] && self.alive[replica] && !self.stalled[replica] && hands_over {
                let uses = self.kept.remove(&replica).unwrap_or_default();
                let stream = &mut self.streams[replica];
                stream.batches.push((stream.asked, uses));
            }
            if !self.delayed[replica] {
                self.come(replica, usize::MAX);
            }
        }
    }

    /// So many batches come that are on their way, at most.
    fn come(&mut self, replica: usize, most: usize) {
        let stream = &mut self.streams[replica];
        let most = most.min(stream.batches.len());
        for (answers, uses) in stream.batches.drain(..most) {
            for used in uses {
                self.expiry.used(&key(), A, at(used));
            }
            let Some(questions) = &mut stream.questions else { continue };
            self.hearing.handed_over(&self.names[replica], questions.answered(answers));
            if let Some(next) = questions.next() {
                questions.sent(at(self.now));
                stream.asked = next;
            }
        }
    }

    fn close(&mut self, replica: usize) {
        if std::mem::take(&mut self.open[replica]) {
            // The last batch was on its way.
            self.kept.remove(&replica);
            self.streams[replica] = Stream::default();
            self.hearing.closed(&self.names[replica]);
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Use(replica) if self.alive[replica] => {
                self.agents.entry(replica).or_default().push(self.now);
            }
            Event::Break(replica) => self.close(replica),
            Event::Open(replica) if self.alive[replica] && !self.open[replica] => {
                self.open[replica] = true;
                self.kept.insert(replica, self.known.get(&replica).cloned().unwrap_or_default());
                let questions = Some(Questions::opening(at(self.now)));
                self.streams[replica] = Stream { questions, asked: Questions::FIRST, batches: Vec::new() };
                self.hearing.opened(self.names[replica].clone(), at(self.now));
            }
            Event::Stall(replica) => self.stalled[replica] ^= true,
            Event::Delay(replica) => self.delayed[replica] ^= true,
            Event::Come(replica) => self.come(replica, 1),
            Event::Failover => {
                self.kept.clear();
                self.open = [true, false, false];
                self.streams = Default::default();
                self.hearing.restart(at(self.now));
            }
            Event::Die(replica) => {
                self.alive[replica] = false;
                self.close(replica);
                self.agents.remove(&replica);
                self.kept.remove(&replica);
                self.known.remove(&replica);
                let alive = (0..3).filter(|replica| self.alive[*replica]);
                self.hearing.registered(alive.map(|replica| self.names[replica].clone()).collect(), at(self.now));
            }
            _ => {}
        }
    }
}

/// As streams do whose tokens end.
#[test]
fn streams_that_break_again_and_again_keep_nothing_alive() {
    let mut world = World::new();
    for second in 0..40 + 3 * RENEWAL.as_secs() {
        if second.is_multiple_of(13) {
            for replica in 1..3 {
                world.close(replica);
                world.apply(Event::Open(replica));
            }
        }
        world.second();
    }
    let now = at(world.now);
    let expired = world.expiry.expired(world.hearing.heard(now), now, wall(world.now), 10);
    assert_eq!(expired, [(key(), A, Expired::Idle)]);
}

proptest! {
    /// Whatever breaks, a session is never taken for idle within its timeout; and if nothing breaks, it is in the end.
    #[test]
    fn never_early(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        let (mut last_use, mut was_idle) = (0, false);
        for event in events {
            if let Event::Use(replica) = event && world.alive[replica] {
                last_use = world.now;
            }
            world.apply(event);
            let Event::Wait(seconds) = event else { continue };
            for _ in 0..seconds {
                world.second();
                let now = world.now;
                let heard = world.hearing.heard(at(now));
                let expired = world.expiry.expired(heard, at(now), wall(now), 10);
                // A use that comes after the timeout, but before its end is found, is too late.
                was_idle |= now >= last_use + 40;
                prop_assert!(expired.is_empty() || was_idle, "{now}: used at {last_use}");
                if !expired.is_empty() {
                    return Ok(());
                }
            }
        }
        (world.stalled, world.delayed) = ([false; 3], [false; 3]);
        for replica in 1..3 {
            world.apply(Event::Open(replica));
        }
        let mut over = false;
        for _ in 0..40 + 3 * RENEWAL.as_secs() {
            world.second();
            let now = world.now;
            let heard = world.hearing.heard(at(now));
            over |= !world.expiry.expired(heard, at(now), wall(now), 10).is_empty();
        }
        prop_assert!(over);
    }
}
