use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(10);

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn key(text: &str) -> SessionKey {
    let (namespace, name) = text.split_once('/').unwrap();
    SessionKey::new(namespace, name)
}

fn deleted(uid: u128, since: Time) -> Terminating {
    Terminating { uid: Uid::from_u128(uid), resource_version: ResourceVersion(7), since }
}

fn session(text: &str) -> SessionRef {
    SessionRef { key: key(text), uid: Uid::from_u128(1) }
}

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

/// A replica `own` beside one that is called `other`, in the namespaces a and b.
struct Bench {
    finalizing: Finalizing,
    registered: HashMap<Arc<str>, Registered>,
    calls: usize,
}

impl Bench {
    fn new() -> Self {
        let of = Registered { replicas: names(&["own", "other"]).into_iter().collect(), longest: LEASE };
        let registered = ["a", "b"].map(|namespace| (namespace.into(), of.clone())).into_iter().collect();
        Self { finalizing: Finalizing::new("own".into()), registered, calls: 8 }
    }

    fn deleted(&mut self, names: &[&str], since: Time) {
        for name in names {
            self.finalizing.terminating(&key(name), deleted(1, since));
        }
    }

    fn look(&mut self, now: Time) -> Tasks {
        self.finalizing.look(now, self.calls, |namespace| self.registered.get(namespace))
    }

    /// What is let go of now.
    fn let_go(&mut self, now: Time) -> Vec<(String, Why)> {
        let named = |(session, why): (SessionRef, Why)| (format!("{session}"), why);
        self.look(now).let_go.into_iter().map(named).collect()
    }

    fn confirm_all(&mut self, asked: &[Request]) {
        for request in asked {
            for replica in ["own", "other"] {
                self.finalizing.confirmed(request.number, replica.into(), names(&["own", "other"]));
            }
        }
    }
}

#[test]
fn it_is_let_go_of_when_all_have_confirmed_and_again_if_that_fails() {
    let mut bench = Bench::new();
    bench.deleted(&["a/s"], at(0));
    let tasks = bench.look(at(0));
    let [request] = &tasks.ask[..] else { panic!("{tasks:?}") };
    assert_eq!((&request.key, request.barrier), (&key("a/s"), deleted(1, at(0)).barrier()));
    assert_eq!((&tasks.let_go[..], tasks.wake), (&[][..], Some(at(10_000))));
    assert_eq!(bench.finalizing.requests().collect::<Vec<_>>(), tasks.ask, "whoever comes now is asked too");
    bench.finalizing.confirmed(request.number, "own".into(), names(&["own", "other"]));
    assert_eq!(bench.look(at(1)), Tasks { wake: Some(at(10_000)), ..Tasks::default() });
    bench.finalizing.confirmed(request.number, "other".into(), names(&["own", "other"]));
    assert_eq!(bench.let_go(at(2)), [("a/s".to_owned(), Why::Confirmed)]);
    assert_eq!(bench.look(at(20_000)), Tasks::default(), "a call is under way");

    let session = session("a/s");
    bench.finalizing.ended(&session, Outcome::Refused, at(3));
    assert_eq!(bench.look(at(4)).wake, Some(at(1_003)));
    assert_eq!(bench.let_go(at(1_003)), [("a/s".to_owned(), Why::Confirmed)]);
    bench.finalizing.gone(&key("a/s"));
    bench.finalizing.ended(&session, Outcome::LetGo, at(1_004));
    assert!(bench.finalizing.is_empty() && bench.finalizing.queues.is_empty());
    assert_eq!(bench.look(at(9_000)), Tasks::default());
}

#[test]
fn what_fails_again_and_again_is_left_alone_for_longer_each_time() {
    let (mut bench, mut now) = (Bench::new(), at(10_000));
    bench.deleted(&["a/s"], at(0));
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(bench.let_go(now).len(), 1);
        bench.finalizing.ended(&session("a/s"), Outcome::Refused, now);
        let again = bench.look(now).wake.unwrap();
        let pause = again.saturating_since(now);
        assert_eq!(bench.let_go(now + pause.saturating_sub(Duration::from_millis(1))), []);
        pauses.push(pause.as_secs());
        now = again;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    // It is another deletion.
    bench.finalizing.gone(&key("a/s"));
    bench.deleted(&["a/s"], at(0));
    assert_eq!(bench.let_go(now).len(), 1);
    bench.finalizing.ended(&session("a/s"), Outcome::Refused, now);
    assert_eq!(bench.look(now).wake, Some(now + AGAIN));
}

/// Nothing else may be under way that could tell when the API server is back, and the watch may not show what was let go of.
#[test]
fn what_gets_no_answer_or_stays_there_is_tried_soon_but_not_every_second() {
    use Outcome::{LetGo, Nothing, Refused, Unanswered};
    let (mut bench, mut now) = (Bench::new(), at(10_000));
    bench.deleted(&["a/s"], at(0));
    let mut pause = |outcome| {
        assert_eq!(bench.let_go(now).len(), 1);
        bench.finalizing.ended(&session("a/s"), outcome, now);
        let again = bench.look(now).wake.unwrap();
        let pause = again.saturating_since(now).as_secs();
        now = again;
        pause
    };
    assert_eq!([LetGo, Nothing, LetGo, Nothing, Nothing].map(&mut pause), [1, 2, 4, 8, 8]);
    assert_eq!(
        [Refused, Unanswered, Unanswered, Refused].map(&mut pause),
        [32, 8, 8, 64],
        "it was in vain all the time"
    );
}

/// As many as there may be calls fail for so long that each waits for a minute.
#[test]
fn when_one_is_let_go_of_all_others_are_tried_at_once_but_not_over_and_over() {
    let all = ["a/1", "a/2", "a/3", "a/4", "b/1", "b/2"];
    let (mut bench, mut now) = (Bench::new(), at(10_000));
    let fail = |bench: &mut Bench, now: Time| {
        let tried = bench.look(now).let_go;
        for (session, _) in &tried {
            bench.finalizing.ended(session, Outcome::Refused, now);
        }
        tried.len()
    };
    bench.deleted(&all, at(0));
    for pause in [1, 2, 4, 8, 16, 32, 64] {
        assert_eq!(fail(&mut bench, now), all.len());
        now = now + AGAIN * pause;
    }
    assert_eq!(fail(&mut bench, now), all.len());
    now = now + AGAIN;
    bench.deleted(&["a/new"], at(0));
    bench.calls = 3;
    let tried: Vec<SessionRef> = bench.look(now).let_go.into_iter().map(|(session, _)| session).collect();
    assert_eq!(tried, [session("a/new")]);
    bench.finalizing.gone(&key("a/new"));
    bench.finalizing.ended(&tried[0], Outcome::LetGo, now);
    let at_once: Vec<String> = bench.let_go(now).into_iter().map(|(name, _)| name).collect();
    assert_eq!(at_once, ["b/1", "a/1", "b/2"], "no more calls than there may be");
    consistent(&bench.finalizing);
    bench.finalizing.gone(&key("a/2"));
    for name in ["b/1", "a/1", "b/2"] {
        bench.finalizing.ended(&session(name), Outcome::Refused, now);
    }
    assert_eq!(fail(&mut bench, now), 2, "the rest");
    assert_eq!(fail(&mut bench, now), 0);
    // These fail for a reason of their own.
    let works = |bench: &mut Bench, now: Time| {
        bench.finalizing.ended(&session("a/other"), Outcome::LetGo, now);
        bench.calls = 8;
        bench.let_go(now).len()
    };
    assert_eq!(works(&mut bench, now + AGAIN), 0);
    assert_eq!(works(&mut bench, now + AGAIN * (Patience::MOST - 1)), 0);
    assert_eq!(works(&mut bench, now + AGAIN * Patience::MOST), 5);
}

#[test]
fn whoever_is_not_registered_any_more_need_not_confirm_but_this_replica_must() {
    let finalizing = Finalizing::new("own".into());
    let is_enough = |quorum: &Quorum, among: &[&str]| finalizing.is_enough(quorum, &names(among).into_iter().collect());
    let mut quorum = Quorum::default();
    quorum.confirmed("a".into(), names(&["own", "a", "b"]));
    assert!(!is_enough(&quorum, &["own"]), "this replica's watch may not show the deletion yet");
    quorum.confirmed("own".into(), names(&["own", "a", "b"]));
    assert!(!is_enough(&quorum, &["own", "a", "b"]), "b may have leases");
    assert!(!is_enough(&quorum, &[]), "nothing is known after a restore of etcd");
    assert!(is_enough(&quorum, &["own", "a", "new"]));
}

#[test]
fn it_waits_for_the_last_lease_and_no_longer() {
    let mut bench = Bench::new();
    bench.deleted(&["a/s"], at(500));
    assert_eq!(bench.look(at(10_499)).wake, Some(at(10_500)));
    // A replica with longer leases has come, as the watch shows.
    bench.registered.get_mut("a").unwrap().longest = LEASE * 2;
    assert_eq!(bench.let_go(at(10_500)), []);
    assert_eq!(bench.let_go(at(20_500)), [("a/s".to_owned(), Why::LeasesEnded)]);
    // Who is deleted for so long already needs nobody's word.
    bench.deleted(&["b/s"], at(0));
    assert_eq!(
        bench.look(at(30_000)),
        Tasks {
            let_go: vec![(SessionRef { key: key("b/s"), uid: Uid::from_u128(1) }, Why::LeasesEnded)],
            ..Tasks::default()
        }
    );
}

#[test]
fn a_successor_is_another_session() {
    let mut bench = Bench::new();
    bench.deleted(&["a/s"], at(0));
    let first = bench.look(at(0)).ask;
    bench.finalizing.terminating(&key("a/s"), deleted(2, at(1)));
    let second = bench.look(at(1)).ask;
    bench.confirm_all(&first);
    assert_eq!(bench.let_go(at(2)), []);
    bench.confirm_all(&second);
    assert_eq!(bench.let_go(at(3)), [("a/s".to_owned(), Why::Confirmed)]);
    bench.finalizing.ended(&session("a/s"), Outcome::Refused, at(4));
    assert_eq!(bench.look(at(4)), Tasks::default(), "that was the call for the one before");
    // Answers to what was asked before all was forgotten are for nothing.
    bench.finalizing.clear();
    bench.deleted(&["a/s"], at(5));
    let third = bench.look(at(5)).ask;
    bench.confirm_all(&[first, second].concat());
    assert_eq!(bench.let_go(at(6)), []);
    bench.confirm_all(&third);
    assert_eq!(bench.let_go(at(6)).len(), 1);
}

#[test]
fn namespaces_take_turns() {
    let mut bench = Bench::new();
    bench.registered.insert("c".into(), bench.registered["a"].clone());
    bench.deleted(&["a/1", "a/2", "a/3", "b/1", "b/2", "c/1"], at(0));
    let now = at(10_000);
    let mut let_go = |calls: usize| {
        bench.calls = calls;
        bench.let_go(now).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(let_go(0), [""; 0]);
    assert_eq!(let_go(2), ["a/1", "b/1"]);
    assert_eq!(let_go(2), ["c/1", "a/2"]);
    // Both have one less under way than a.
    bench.finalizing.gone(&key("b/1"));
    bench.calls = 9;
    let rest: Vec<String> = bench.let_go(now).into_iter().map(|(name, _)| name).collect();
    assert_eq!(rest, ["b/2", "a/3"]);
}

/// More namespaces than calls, and those of the first ones end again and again without effect.
#[test]
fn a_namespace_that_had_its_turn_waits_for_those_that_had_none() {
    let mut bench = Bench::new();
    let of = bench.registered["a"].clone();
    for n in 0..20 {
        let namespace = format!("n{n:02}");
        bench.registered.insert(namespace.as_str().into(), of.clone());
        for name in 0..50 {
            bench.deleted(&[&format!("{namespace}/{name}")], at(0));
        }
    }
    let mut had = BTreeSet::new();
    let mut under_way: Vec<SessionRef> = Vec::new();
    for round in 0..20 {
        let now = at(10_000 + round * 2_000);
        bench.calls = 8 - under_way.len();
        under_way.extend(bench.look(now).let_go.into_iter().map(|(session, _)| session));
        had.extend(under_way.iter().map(|session| session.key.namespace().clone()));
        bench.finalizing.ended(&under_way.remove(0), Outcome::Nothing, now);
    }
    assert_eq!(had.len(), 20);
}

#[test]
fn while_it_is_not_known_who_is_registered_nobody_is_let_go_of() {
    let mut bench = Bench::new();
    let known = std::mem::take(&mut bench.registered);
    bench.deleted(&["a/s"], at(0));
    assert_eq!(bench.look(at(60_000)), Tasks { wake: Some(at(61_000)), ..Tasks::default() });
    bench.registered = known;
    assert_eq!(bench.let_go(at(61_000)).len(), 1);
}

#[test]
fn a_flood_leaves_some_confirmations_to_others_and_the_rest_waits() {
    let mut bench = Bench::new();
    let flood: Vec<String> = (0..5_000).map(|n| format!("a/{n:04}")).collect();
    bench.deleted(&flood.iter().map(String::as_str).collect::<Vec<_>>(), at(0));
    let asked = bench.look(at(0)).ask;
    assert!((800..850).contains(&asked.len()), "{}", asked.len());
    bench.deleted(&["b/s"], at(1));
    assert_eq!(bench.look(at(1)).ask.len(), 1);
    bench.confirm_all(&asked);
    let more = bench.look(at(2)).ask;
    assert!((800..850).contains(&more.len()), "those that wait for a call are confirmed: {}", more.len());
    let again: BTreeSet<&SessionKey> = asked.iter().chain(&more).map(|request| &request.key).collect();
    assert_eq!(again.len(), asked.len() + more.len(), "nobody is asked about one twice");
}

/// With a hundred thousand of them, each of as many events is followed by a look.
#[test]
fn a_look_copies_nothing_of_those_that_wait() {
    let cost = |sessions: usize| {
        let mut bench = Bench::new();
        for n in 0..sessions {
            bench.deleted(&[&format!("a/{n}")], at(0));
        }
        bench.look(at(0));
        let session = bench.look(at(10_000)).let_go[0].0.clone();
        bench.finalizing.gone(&session.key);
        allocation_counter::measure(|| {
            assert_eq!(bench.look(at(10_001)).let_go.len(), 8);
        })
        .count_total
    };
    let (few, many) = (cost(2_000), cost(50_000));
    assert!(many <= few + 10, "{few} allocations, and {many} with 25 times as many");
}

#[derive(Debug, Clone)]
enum Step {
    Deleted { namespace: bool, name: u8, uid: u8 },
    Gone { namespace: bool, name: u8 },
    Confirmed { which: usize, replica: bool },
    Ended { which: usize, outcome: Outcome },
    Look { passed: u64, calls: usize, longest: u64, other: bool },
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..6u8;
    let outcome =
        prop_oneof![Just(Outcome::LetGo), Just(Outcome::Nothing), Just(Outcome::Unanswered), Just(Outcome::Refused)];
    prop_oneof![
        4 => (any::<bool>(), name.clone(), 0..3u8).prop_map(|(namespace, name, uid)| Step::Deleted { namespace, name, uid }),
        2 => (any::<bool>(), name).prop_map(|(namespace, name)| Step::Gone { namespace, name }),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(which, replica)| Step::Confirmed { which, replica }),
        3 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::Ended { which, outcome }),
        6 => (0..4_000u64, 0..4usize, 8..12u64, prop::bool::weighted(0.8)).prop_map(|(passed, calls, longest, other)| Step::Look { passed, calls, longest, other }),
        1 => Just(Step::Clear),
    ]
}

fn named(namespace: bool, name: u8) -> SessionKey {
    SessionKey::new(if namespace { "a" } else { "b" }, name.to_string())
}

/// What one knows who writes down all that happens.
#[derive(Default)]
struct Diary {
    now: Time,
    sessions: BTreeMap<SessionKey, Terminating>,
    /// What was asked, who has confirmed it, and whether that was all that mattered at some look.
    requests: Vec<(Request, BTreeSet<bool>, bool)>,
    /// Those whose last lease had ended at some look.
    over: BTreeSet<SessionKey>,
    calls: Vec<SessionRef>,
}

impl Diary {
    /// What is so at a look where leases are so long, and the other replica is registered or is not.
    fn looked(&mut self, longest: Duration, other: bool) {
        for (_, by, complete) in &mut self.requests {
            *complete |= by.contains(&true) && (by.contains(&false) || !other);
        }
        let over = self.sessions.iter().filter(|(_, known)| self.now >= known.since + longest);
        self.over.extend(over.map(|(key, _)| key.clone()));
    }

    fn may_go(&self, session: &SessionRef, why: Why) -> bool {
        let known = self.sessions[&session.key];
        let confirmed = |(request, _, complete): &(Request, BTreeSet<bool>, bool)| {
            *complete && request.key == session.key && request.barrier == known.barrier()
        };
        known.uid == session.uid
            && match why {
                Why::Confirmed => self.requests.iter().any(confirmed),
                Why::LeasesEnded => self.over.contains(&session.key),
            }
    }

    fn gone(&mut self, key: &SessionKey) {
        self.sessions.remove(key);
        self.over.remove(key);
        // One of the same uid is another deletion here, and a confirmation of the one before counts for nothing.
        self.requests.retain(|(request, ..)| request.key != *key);
    }
}

fn consistent(finalizing: &Finalizing) {
    let of = |count: fn(&Stage) -> bool| finalizing.works.values().filter(|work| count(&work.stage)).count();
    let queued = |count: fn(&Queues) -> usize| finalizing.queues.values().map(count).sum::<usize>();
    let unasked = of(|stage| matches!(stage, Stage::Unasked));
    let asked = of(|stage| matches!(stage, Stage::Asked { .. }));
    assert_eq!(queued(|queues| queues.unasked.len()), unasked);
    assert_eq!(queued(|queues| queues.waiting.len()), unasked + asked);
    assert_eq!((finalizing.asked.len(), finalizing.tally.used()), (asked, asked));
    assert_eq!(
        queued(|queues| queues.ready.len() + queues.at_once.len()),
        of(|stage| matches!(stage, Stage::Ready { .. }))
    );
    assert_eq!(queued(|queues| queues.letting_go), of(|stage| matches!(stage, Stage::LettingGo { .. })));
    assert!(finalizing.queues.values().all(|queues| !queues.is_empty()));
}

proptest! {
    /// Nothing is let go of that a pod may serve, whatever happens in whatever order; and in the end nothing is left.
    #[test]
    fn nothing_goes_too_early_and_everything_in_the_end(steps in prop::collection::vec(step(), 1..200)) {
        let (mut bench, mut diary) = (Bench::new(), Diary { now: at(1), ..Diary::default() });
        for step in steps {
            match step {
                Step::Deleted { namespace, name, uid } => {
                    let key = named(namespace, name);
                    let terminating = deleted(uid.into(), diary.now);
                    bench.finalizing.terminating(&key, terminating);
                    if diary.sessions.get(&key).is_none_or(|known| known.uid != terminating.uid) {
                        diary.gone(&key);
                        diary.sessions.insert(key, terminating);
                    }
                }
                Step::Gone { namespace, name } => {
                    let key = named(namespace, name);
                    bench.finalizing.gone(&key);
                    diary.gone(&key);
                }
                Step::Confirmed { which, replica } => {
                    let all = diary.requests.len();
                    if let Some((request, by, _)) = diary.requests.get_mut(which.checked_rem(all).unwrap_or_default()) {
                        by.insert(replica);
                        let replica = if replica { "own" } else { "other" };
                        bench.finalizing.confirmed(request.number, replica.into(), names(&["own", "other"]));
                    }
                }
                Step::Ended { which, outcome } => {
                    if let Some(which) = which.checked_rem(diary.calls.len()) {
                        bench.finalizing.ended(&diary.calls.swap_remove(which), outcome, diary.now);
                    }
                }
                Step::Look { passed, calls, longest, other } => {
                    diary.now = diary.now + Duration::from_millis(passed);
                    bench.calls = calls;
                    let longest = Duration::from_secs(longest);
                    let replicas: BTreeSet<Arc<str>> = names(if other { &["own", "other"] } else { &["own"] }).into_iter().collect();
                    let now = Registered { replicas, longest };
                    bench.registered.values_mut().for_each(|registered| registered.clone_from(&now));
                    diary.looked(longest, other);
                    let tasks = bench.look(diary.now);
                    prop_assert!(tasks.let_go.len() <= calls);
                    prop_assert!(tasks.wake.is_none_or(|wake| wake > diary.now));
                    for (session, why) in tasks.let_go {
                        prop_assert!(diary.may_go(&session, why), "{session} {why:?}");
                        diary.calls.push(session);
                    }
                    diary.requests.extend(tasks.ask.into_iter().map(|request| (request, BTreeSet::new(), false)));
                }
                Step::Clear => {
                    bench.finalizing.clear();
                    diary.sessions.clear();
                    diary.over.clear();
                    diary.requests.clear();
                }
            }
            prop_assert_eq!(bench.finalizing.len(), diary.sessions.len());
            consistent(&bench.finalizing);
        }
        for session in diary.calls {
            bench.finalizing.ended(&session, Outcome::Refused, diary.now);
        }
        bench.calls = 100;
        let gone = bench.look(diary.now + LEASE * 2 + AGAIN * Patience::MOST).let_go;
        prop_assert_eq!(gone.len(), diary.sessions.len());
    }
}
