//! Random histories.

use super::api::Access;
use super::history::{Action, History, Setup};
use super::network::{Pace, Path};
use super::scripts::scripted;
use super::{LEASE, SHORT};
use crate::core::rules::Rule;

/// A small generator of random numbers whose sequence never changes.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What a history is mostly about: how often each family of actions comes.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Foreign changes of a session.
    pub change: usize,
    /// Deletes, recreations.
    pub delete: usize,
    /// Reads by clients.
    pub read: usize,
    /// Writes by clients.
    pub write: usize,
    /// Watches that are late or silent, relists.
    pub watch: usize,
    /// Paths and streams.
    pub network: usize,
    /// Crashes and stops.
    pub crash: usize,
    pub pause: usize,
    /// Slow and lost answers of the API server.
    pub api: usize,
    /// Restores of etcd from a backup.
    pub restore: usize,
}

/// A bit of everything.
pub const MIXED: Theme = Theme {
    change: 20,
    delete: 8,
    read: 30,
    write: 14,
    watch: 10,
    network: 14,
    crash: 4,
    pause: 6,
    api: 8,
    restore: 0,
};

/// Who sees what of a write, and when: agents that reach one replica only, GETs in flight, restarts.
pub const CONFIRM: Theme = Theme {
    change: 4,
    delete: 4,
    read: 35,
    write: 30,
    watch: 12,
    network: 20,
    crash: 8,
    pause: 8,
    api: 10,
    restore: 0,
};

const THEMES: [Theme; 7] = [
    MIXED,
    CONFIRM,
    Theme { watch: 30, ..MIXED },
    Theme { network: 40, crash: 0, ..MIXED },
    Theme { delete: 30, write: 30, api: 20, crash: 0, ..MIXED },
    Theme { crash: 15, pause: 15, write: 20, ..MIXED },
    Theme { delete: 14, pause: 10, restore: 10, ..MIXED },
];

/// The history of a seed.
pub fn history(seed: u64) -> History {
    let mut rng = Rng::new(seed);
    if rng.chance(25) {
        let rule = rng.pick(Rule::ALL);
        return scripted(rule, &mut rng);
    }
    let theme = rng.pick(&THEMES);
    themed(&mut rng, &theme)
}

/// A random history with this theme.
pub fn themed(rng: &mut Rng, theme: &Theme) -> History {
    let (agents, replicas) = (1 + rng.below(3), 2 + usize::from(rng.chance(25)));
    let sessions = 1 + usize::from(rng.chance(30));
    let all = (1 << replicas) - 1;
    let whole = if theme.write > 25 { 40 } else { 60 };
    let reach = (0..agents).map(|_| if rng.chance(whole) { all } else { 1 + rng.below(usize::from(all)) as u8 });
    let reach = reach.collect();
    let setup = Setup {
        seed: rng.next(),
        agents,
        replicas,
        sessions,
        reach,
        drift: rng.chance(50),
        entries: if rng.chance(10) { 1 } else { 100 },
        holdings: if rng.chance(10) { 1 } else { 100 },
        chunk: 1 + rng.below(3),
        leases: (0..replicas).map(|_| if rng.chance(20) { SHORT } else { LEASE }).collect(),
    };
    let length = 4 + rng.below(24);
    // Without copies nothing goes wrong: mostly, everybody starts with some.
    let mut actions = Vec::new();
    for agent in 0..agents {
        for session in 0..sessions {
            if rng.chance(70) {
                actions.push((rng.below(30) as u64, Action::Get(agent, session)));
            }
        }
    }
    actions.extend((0..length).map(|_| (pause(rng), action(rng, &setup, theme))));
    History { setup, actions }
}

fn pause(rng: &mut Rng) -> u64 {
    let most = rng.pick(&[4, 4, 12, 12, 60, 60, 250, LEASE as usize]);
    rng.below(most) as u64
}

fn pace(rng: &mut Rng) -> Pace {
    rng.pick(&[Pace::Fast, Pace::Slow, Pace::Slow, Pace::Hung])
}

pub fn action(rng: &mut Rng, setup: &Setup, theme: &Theme) -> Action {
    let (a, r) = (rng.below(setup.agents), rng.below(setup.replicas));
    let s = rng.below(setup.sessions);
    let Theme { change, delete, read, write, watch, network, crash, pause, api, restore } = *theme;
    let weights = [change, delete, read, write, watch, network, crash, pause, api, restore];
    let mut at = rng.below(weights.iter().sum());
    let family = weights.iter().position(|w| {
        let here = at < *w;
        at = at.wrapping_sub(*w);
        here
    });
    match family {
        Some(0) => match rng.below(8) {
            0 => Action::Spec(s),
            1 => Action::Label(s),
            _ => Action::Write(s, rng.below(2), rng.below(4)),
        },
        Some(1) => match rng.below(6) {
            0 | 1 => Action::Delete(s, rng.chance(40)),
            2 => Action::Finalize(s),
            _ => Action::Recreate(s, rng.below(16)),
        },
        Some(2) if rng.chance(10) => Action::GetAnew(a, s),
        Some(2) => Action::Get(a, s),
        Some(3) => match rng.below(6) {
            0 => Action::OwnDelete(a, s, rng.chance(30), rng.chance(70)),
            1 => Action::OwnCreate(a, s, rng.below(16), rng.chance(70)),
            _ => Action::OwnWrite(a, s, rng.below(2), rng.below(4), rng.chance(70)),
        },
        Some(4) => match rng.below(3) {
            0 => Action::Relist(r, [0, 0, 1, 3, 8, 20][rng.below(6)]),
            _ => Action::Watch(r, pace(rng)),
        },
        Some(5) => match rng.below(8) {
            0..3 => Action::Cut(a, r, rng.below(3), rng.below(3)),
            3 => Action::Repeat(a, r, rng.chance(50)),
            4 => Action::Replay(a, rng.below(8)),
            _ => {
                let path = Path { up: pace(rng), down: pace(rng), reachable: rng.chance(80) };
                Action::Path(a, r, path)
            }
        },
        Some(6) => match rng.below(8) {
            0..3 => Action::CrashReplica(r),
            3 => Action::StopReplica(r),
            4 => Action::Relength(r),
            5 => Action::Shadow(r),
            _ => Action::CrashAgent(a),
        },
        Some(7) => {
            let agent = rng.chance(40);
            let n = if agent { a } else { r };
            if rng.chance(50) { Action::Pause(agent, n) } else { Action::Resume(agent, n) }
        }
        Some(9) => {
            let more = rng.chance(60).then(|| rng.below(30).cast_signed() - 10);
            Action::Restore(rng.next() % (2 * LEASE), more)
        }
        _ => {
            let agent = rng.chance(70);
            let mut pace = || rng.pick(&[Pace::Fast, Pace::Slow, Pace::Slow]);
            let access = Access { effect: pace(), answer: pace(), lose: u8::from(rng.chance(20)) };
            Action::Access(agent, if agent { a } else { r }, access)
        }
    }
}
