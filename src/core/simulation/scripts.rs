//! Histories that lead to a place where a rule matters: the steps in their order, everything else left to chance.

use super::api::Access;
use super::generate::{CONFIRM, MIXED, Rng, Theme, action, themed};
use super::history::{Action, History, Setup};
use super::network::{Pace, Path};
use super::{LEASE, SHORT};
use crate::core::rules::Rule;

const GOOD: Path = Path { up: Pace::Fast, down: Pace::Fast, reachable: true };
const APART: Path = Path { reachable: false, ..GOOD };
const SLOW_ANSWER: Access = Access { answer: Pace::Slow, ..Access::GOOD };
const SLOW: Access = Access { effect: Pace::Slow, ..SLOW_ANSWER };

/// Agent 0 reaches both replicas, agent 1 only replica 0.
const WRITER: usize = 0;
const READER: usize = 1;
const ONLY: usize = 0;
const OTHER: usize = 1;

struct Script<'a> {
    rng: &'a mut Rng,
    setup: Setup,
    actions: Vec<(u64, Action)>,
}

impl Script<'_> {
    /// A step, after a pause of between `from` and `to` ticks. Now and then something else happens before.
    fn step(&mut self, from: u64, to: u64, step: Action) -> &mut Self {
        let mut pause = from + self.rng.next() % (to - from + 1);
        if self.rng.chance(15) {
            let theme: Theme = if self.rng.chance(50) { MIXED } else { CONFIRM };
            let other = action(self.rng, &self.setup, &theme);
            self.actions.push((pause / 2, other));
            pause -= pause / 2;
        }
        self.actions.push((pause, step));
        self
    }

    fn write(&mut self, agent: usize, everywhere: bool) -> Action {
        let (key, value) = (self.rng.below(2), self.rng.below(4));
        Action::OwnWrite(agent, 0, key, value, everywhere)
    }

    /// So many more writes follow than a restore has lost.
    fn more_than_lost(&mut self) -> isize {
        1 + self.rng.below(20).cast_signed()
    }

    /// The reader is cut off until its lease has ended and the replica has forgotten it.
    fn forget_reader(&mut self) {
        self.step(0, 20, Action::Path(READER, ONLY, APART));
        self.step(0, 5, Action::Cut(READER, ONLY, 3, 3));
        self.step(LEASE, LEASE + 400, Action::Label(0));
    }
}

/// A random history in which this rule is likely to matter.
pub fn scripted(rule: Rule, rng: &mut Rng) -> History {
    let setup = Setup {
        seed: rng.next(),
        agents: 2,
        replicas: 2,
        sessions: 1,
        reach: vec![3, 1],
        drift: rng.chance(20),
        entries: 100,
        holdings: 100,
        chunk: 1 + rng.below(3),
        leases: vec![LEASE; 2],
    };
    let mut s = Script { rng, setup, actions: Vec::new() };
    let get = |agent| Action::Get(agent, 0);
    let everywhere = s.write(WRITER, true);
    let change = Action::Write(0, s.rng.below(2), s.rng.below(4));
    let nothing = Action::Watch(ONLY, Pace::Fast);
    s.step(0, 30, get(WRITER));
    match rule {
        Rule::LeaseFromSend => {
            let late = Path { down: Pace::Slow, ..GOOD };
            s.step(0, 30, get(READER)).step(0, 60, Action::Path(READER, ONLY, late));
            s.step(0, 200, Action::Watch(ONLY, Pace::Hung)).step(0, 20, change);
        }
        Rule::EvictionsBeforeLease => {
            let hung = Path { down: Pace::Hung, ..GOOD };
            let slow = Path { down: Pace::Slow, ..GOOD };
            s.step(0, 30, get(READER)).step(0, 30, Action::Path(READER, ONLY, hung));
            s.step(600, 1200, change).step(150, 500, Action::Path(READER, ONLY, slow));
            s.step(0, 300, Action::Cut(READER, ONLY, 3, 1)).step(0, 5, Action::Path(READER, ONLY, APART));
        }
        Rule::NewCopyNewSequence => {
            // A, seen; B, read late by a GET; A again, before the watch of the only replica goes on with a list.
            s.step(0, 30, get(READER)).step(20, 60, Action::Watch(ONLY, Pace::Hung));
            s.step(LEASE, LEASE + 100, Action::Write(0, 0, 2));
            s.step(0, 5, Action::Access(true, READER, SLOW_ANSWER)).step(0, 3, get(READER));
            s.step(5, 30, Action::Write(0, 0, 1)).step(0, 5, Action::Relist(ONLY, 0)).step(
                0,
                5,
                Action::Watch(ONLY, Pace::Fast),
            );
            let hung = Path { up: Pace::Hung, ..GOOD };
            s.step(150, 400, Action::Path(READER, ONLY, hung));
        }
        Rule::CoverFromSend => {
            // What a GET has read changes, and it is answered when leases of a moment before are in force and no report gets
            // through any more.
            let mute = Path { up: Pace::Hung, ..GOOD };
            s.step(0, 30, Action::Access(true, READER, SLOW_ANSWER)).step(0, 5, get(READER)).step(4, 12, change);
            s.step(250, 500, Action::Path(READER, ONLY, mute)).step(LEASE, LEASE + 100, nothing);
        }
        Rule::FenceRestores | Rule::BarrierToAll | Rule::NoLateJoin => {
            s.step(0, 30, Action::Access(true, READER, SLOW_ANSWER));
            s.step(0, 30, get(READER)).step(2, 12, everywhere).step(5, 60, get(READER));
        }
        Rule::FenceWrites => {
            s.step(0, 30, get(READER)).step(0, 30, Action::Access(true, READER, SLOW_ANSWER));
            let own = s.write(READER, false);
            s.step(0, 20, own).step(2, 12, everywhere);
        }
        Rule::UnknownVoids => {
            // A GET reads, the write takes effect, and the GET is answered when the write has been given up.
            s.step(0, 30, get(READER)).step(0, 30, Action::Pause(false, ONLY));
            s.step(LEASE, LEASE + 100, Action::Access(true, READER, SLOW_ANSWER)).step(0, 5, get(READER));
            s.step(5, 20, Action::Access(true, READER, Access { lose: 1, ..Access::GOOD }));
            let own = s.write(READER, false);
            s.step(0, 5, own);
        }
        Rule::CoverByLeasesInForce => {
            s.forget_reader();
            s.step(0, 5, Action::Access(true, READER, SLOW_ANSWER));
            s.step(0, 20, get(READER)).step(2, 12, everywhere);
        }
        Rule::RememberAgents => {
            s.step(0, 30, get(READER)).step(0, 20, Action::Path(READER, ONLY, APART));
            s.step(0, 5, Action::Cut(READER, ONLY, 0, 3)).step(0, 200, everywhere);
        }
        Rule::GoneOutranks => {
            s.step(0, 30, get(READER)).step(0, 30, Action::Pause(false, ONLY));
            s.step(LEASE, LEASE + 100, Action::Access(true, READER, SLOW));
            let own = s.write(READER, false);
            s.step(0, 5, own).step(0, 40, get(READER)).step(0, 60, Action::OwnDelete(READER, 0, false, true));
        }
        Rule::BarrierToNewStreams | Rule::ConfirmWhenSeen => {
            s.step(0, 30, get(READER));
            s.forget_reader();
            s.step(0, 200, Action::Watch(ONLY, Pace::Hung)).step(0, 20, everywhere);
            s.step(5, 60, Action::Path(READER, ONLY, GOOD));
            let late = Path { down: Pace::Slow, ..GOOD };
            s.step(60, 300, Action::Path(READER, ONLY, late)).step(0, 20, Action::Watch(ONLY, Pace::Fast));
        }
        Rule::NewProcessNewReplica => {
            s.step(0, 30, get(READER)).step(0, 20, Action::Path(READER, ONLY, APART));
            s.step(0, 20, Action::CrashReplica(ONLY)).step(10, 600, everywhere);
        }
        Rule::ReturnOwnLease => {
            s.step(0, 30, get(READER)).step(0, 20, Action::Cut(READER, ONLY, 3, 3));
            s.step(0, 60, Action::StopReplica(ONLY)).step(60, 300, everywhere);
        }
        Rule::RecheckWaiting => {
            s.step(0, 20, Action::Delete(0, false)).step(10, 60, Action::Watch(ONLY, Pace::Hung));
            s.step(0, 60, Action::Recreate(0, 3)).step(0, 20, get(READER));
            s.step(5, 40, Action::Delete(0, false)).step(0, 60, Action::Relist(ONLY, 0));
            s.step(0, 5, Action::Watch(ONLY, Pace::Fast));
        }
        Rule::AskEveryReplica | Rule::WaitWholeLease => {
            let mute = Path { up: Pace::Hung, ..GOOD };
            s.step(0, 30, get(READER)).step(0, 60, Action::Watch(ONLY, Pace::Hung));
            s.step(0, 60, Action::Path(WRITER, ONLY, mute)).step(0, 20, everywhere);
        }
        Rule::ReadClockLate => {
            s.step(0, 30, get(READER)).step(0, 60, Action::Watch(ONLY, Pace::Hung));
            s.step(0, 20, change).step(0, 30, Action::Pause(false, ONLY)).step(300, 900, Action::Resume(false, ONLY));
        }
        Rule::StayRegistered => {
            s.step(0, 30, get(READER)).step(0, 30, Action::Pause(false, ONLY));
            s.step(500, 900, everywhere);
        }
        Rule::RefusedEndsCover => {
            s.setup.holdings = 1;
            s.setup.sessions = 2;
            for agent in [WRITER, READER] {
                for session in [0, 1] {
                    s.step(0, 20, Action::Get(agent, session));
                }
            }
            s.step(0, 250, change).step(0, 250, Action::Write(1, 0, 2));
        }
        Rule::WritesMark | Rule::NeverGoBack => {
            // The own copy may be gone for want of room before an older answer comes.
            s.setup.sessions = 2;
            s.setup.entries = 1;
            s.step(0, 30, get(READER)).step(0, 30, Action::Pause(false, ONLY));
            s.step(LEASE, LEASE + 100, Action::Access(true, READER, SLOW_ANSWER));
            let own = s.write(READER, false);
            s.step(0, 5, get(READER)).step(5, 20, Action::Access(true, READER, Access::GOOD)).step(0, 5, own);
            if rule == Rule::WritesMark {
                s.step(5, 20, Action::Get(READER, 1));
            }
        }
        Rule::AdoptGeneration => {
            s.step(0, 30, get(READER)).step(20, 60, Action::Watch(ONLY, Pace::Hung));
            s.step(LEASE, LEASE + 100, Action::Write(0, 0, 2));
            s.step(0, 5, Action::Write(0, 0, 1)).step(0, 3, get(READER)).step(10, 40, Action::Watch(ONLY, Pace::Fast));
        }
        Rule::BehindIsRestored | Rule::RemovedIsDoubted => {
            // The change is lost. In the oldest backup there are no markers.
            s.step(2 * LEASE + 200, 3 * LEASE, change).step(0, 60, get(READER));
            let age = if rule == Rule::BehindIsRestored { s.rng.next() % 100 } else { 9 * LEASE };
            let restore = Action::Restore(age, Some(s.more_than_lost()));
            s.step(0, 300, restore).step(LEASE + 50, 2 * LEASE, nothing);
        }
        Rule::FirstIsDoubted => {
            // A new process lists the change before it is lost, and has its first marker acknowledged after that.
            s.step(2 * LEASE + 200, 3 * LEASE, change).step(0, 60, get(READER));
            s.step(0, 60, Action::Access(false, ONLY, SLOW)).step(0, 5, Action::CrashReplica(ONLY));
            let restore = Action::Restore(s.rng.next() % 100, Some(s.more_than_lost()));
            s.step(5, 400, restore).step(0, 60, Action::Access(false, ONLY, Access::GOOD));
            s.step(LEASE + 50, 2 * LEASE, nothing);
        }
        Rule::LongAgoIsDoubted => {
            // No marker is acknowledged from before the backup until after the restore, while the watch goes on.
            s.step(0, 100, Action::Access(false, ONLY, Access { lose: u8::MAX, ..Access::GOOD }));
            s.step(300, 500, change).step(0, 60, get(READER));
            let restore = Action::Restore(s.rng.next() % 100, Some(s.more_than_lost()));
            s.step(2 * LEASE - 200, 2 * LEASE, restore).step(0, 60, Action::Access(false, ONLY, Access::GOOD));
            s.step(LEASE + 50, 2 * LEASE, nothing);
        }
        Rule::CoverWhatIsCompared => {
            // The reader comes back with a copy that is above all that there is now.
            s.step(2 * LEASE + 200, 3 * LEASE, change).step(0, 60, get(READER));
            s.step(0, 60, Action::Path(READER, ONLY, APART)).step(0, 5, Action::Cut(READER, ONLY, 3, 3));
            let restore = Action::Restore(s.rng.next() % 100, None);
            s.step(0, 100, restore).step(LEASE, LEASE + 400, Action::Path(READER, ONLY, GOOD));
            s.step(100, 300, nothing);
        }
        Rule::ShownIsReached => {
            // The watch shows the change and falls silent. What the reader reads then has the same metadata at a later
            // version. In the backup there are no markers, and what follows ends between the two versions.
            s.step(2 * LEASE, 2 * LEASE + 100, change).step(10, 30, Action::Watch(ONLY, Pace::Hung));
            for _ in 0..8 {
                s.step(0, 3, Action::Label(0));
            }
            let fewer = Some(-4 - s.rng.below(10).cast_signed());
            s.step(0, 10, get(READER)).step(200, 300, Action::Restore(9 * LEASE, fewer));
            s.step(0, 3, nothing);
            // The marker that follows is the last one for long.
            s.step(100, 400, Action::Access(false, ONLY, Access { lose: u8::MAX, ..Access::GOOD }));
            s.step(LEASE, LEASE + 400, nothing);
        }
        Rule::LengthOfItsReplica => {
            // The reader has known the other one, too. What the only one grants it is shorter.
            s.setup.leases[ONLY] = SHORT;
            s.setup.reach[READER] = 3;
            s.step(0, 30, get(READER)).step(0, 20, Action::Path(READER, OTHER, APART));
            s.step(0, 5, Action::Cut(READER, OTHER, 3, 3)).step(LEASE, LEASE + 100, Action::Path(READER, ONLY, APART));
            s.step(0, 5, Action::Cut(READER, ONLY, 0, 3)).step(SHORT, SHORT + 300, everywhere);
        }
        Rule::WaitLongestLease => {
            // The writer reaches only the one whose leases are short.
            s.setup.leases[OTHER] = SHORT;
            s.setup.reach[WRITER] = 2;
            s.step(0, 30, get(READER)).step(0, 60, Action::Watch(ONLY, Pace::Hung)).step(0, 20, everywhere);
        }
        Rule::RegisteredLength => {
            s.setup.leases[OTHER] = SHORT;
            s.step(0, 30, get(READER)).step(0, 30, Action::Pause(false, ONLY));
            s.step(SHORT + SHORT / 4, LEASE - 100, everywhere);
        }
        Rule::MarkedAbsence => {
            s.step(0, 20, Action::Delete(0, false)).step(0, 60, Action::Access(true, READER, SLOW_ANSWER));
            s.step(0, 20, get(READER)).step(0, 20, Action::Access(true, READER, Access::GOOD)).step(
                0,
                20,
                Action::OwnCreate(READER, 0, 3, true),
            );
        }
        _ => {
            let theme = if s.rng.chance(50) { MIXED } else { CONFIRM };
            return themed(s.rng, &theme);
        }
    }
    s.step(0, 60, get(READER));
    History { setup: s.setup, actions: s.actions }
}
