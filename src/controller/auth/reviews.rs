//! The API server's answers about tokens: asked for seldom, used for a short time.
//!
//! A stream's token is checked when the stream is opened, and whoever reaches the port can open streams. So answers
//! are used again for a few seconds, an answer that is being waited for is waited for by all who ask the same, what
//! got none is not asked again at once, and questions come out of token buckets: one for tokens that were good before,
//! of which each namespace gets a part only, and one for all others, of which each address gets a part only. A flood
//! of made-up tokens does not empty the first one, so who was let in before can come back with the same token; nor, if
//! it comes from one address, the second, so others get in with new ones. Looks at streams that are open have a bucket of their own:
//! nobody, of the same namespace or not, keeps a stream open by asking so much that nobody looks at it.
//!
//! What is kept is a hash of each token, never the token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::token::Token;
use crate::controller::clock::now;
use crate::core::rate::{Buckets, TokenBucket};
use crate::core::time::Time;

/// How long an answer is used: the time for which a token that was revoked, or whose pod was deleted, still opens streams.
pub const FRESH: Duration = Duration::from_secs(5);
/// How long nothing is asked again that got no answer. Else all who wait for one would ask in turn, each for as long as
/// a call may take.
const RESPITE: Duration = Duration::from_secs(1);
/// Of pods.
const OF_PODS: Rates = Rates {
    // More than all streams that there may be need to be looked at again every 25 s: 7,680. That is for looks, which have as much for
    // themselves, and a good part of them may come back at once.
    known: (500, Duration::from_micros(2_500)),
    // More than those of them need that one namespace may have: 6,144.
    group: (400, Duration::from_micros(3_125)),
    // As many as pods may start at once, or come to a new replica, then 100 in a second.
    strangers: (400, Duration::from_millis(10)),
    // Pods of one node may share its address.
    address: (100, Duration::from_millis(50)),
};
/// Of those who read metrics, who are few.
const OF_FEW: Rates = Rates {
    known: (20, Duration::from_millis(100)),
    group: (20, Duration::from_millis(100)),
    strangers: (10, Duration::from_millis(500)),
    address: (5, Duration::from_secs(1)),
};
/// Hashes of good tokens that are kept, of those who are let in and of others: more than there are pods. Which one goes when there are
/// more does not matter.
const MOST_KNOWN: usize = 16_384;
/// Hashes of other tokens that are kept. All go when there are more.
const MOST_STRANGERS: usize = 1_024;
/// Addresses, and groups, that are remembered.
const MOST_REMEMBERED: usize = 1_024;

/// How many questions may be asked: so many at once, then one in each interval.
#[derive(Clone, Copy)]
struct Rates {
    /// About tokens whose owners were let in before. About those of owners that were not, as many again: whoever can make tokens must
    /// not use up what others need.
    known: (u32, Duration),
    /// About those of them that are of one group.
    group: (u32, Duration),
    /// About all others.
    strangers: (u32, Duration),
    /// About those of them that come from one address.
    address: (u32, Duration),
}

impl Rates {
    fn bucket((burst, interval): (u32, Duration)) -> TokenBucket {
        TokenBucket::new(burst, interval)
    }

    fn each<K: Clone + Eq + std::hash::Hash>((burst, interval): (u32, Duration)) -> Buckets<K> {
        Buckets::new(burst, interval, MOST_REMEMBERED)
    }
}

type Hash = [u8; 32];
/// Whose part of the questions it is.
pub type Group = Arc<str>;
type Slot<T> = Arc<tokio::sync::Mutex<Option<Asked<T>>>>;

/// What became of the last question about a token.
enum Asked<T> {
    /// It was sent then, and this is whose the token is.
    Answered(Time, Option<T>),
    /// It got no answer until then.
    Unanswered(Time),
}

/// Whom a token belongs to.
enum Standing {
    /// Nobody: it is not good.
    Nobody,
    /// Somebody who is not let in.
    Unwelcome,
    /// Somebody of this group.
    Welcome(Group),
}

/// Too many questions; ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Answers of the API server: who it is, or `None` for nobody.
pub struct Reviews<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    known: HashMap<Hash, (Group, Slot<T>)>,
    /// Good tokens of those who are not let in.
    unwelcome: HashMap<Hash, Slot<T>>,
    strangers: HashMap<Hash, Slot<T>>,
    for_known: TokenBucket,
    for_unwelcome: TokenBucket,
    for_strangers: TokenBucket,
    by_group: Buckets<Group>,
    for_looks: TokenBucket,
    looks_by_group: Buckets<Group>,
    by_address: Buckets<IpAddr>,
}

impl<T> State<T> {
    /// Whether the API server may be asked about who is in, of this group. How many those are is bounded, and how often each is looked
    /// at: a flood does not come here, whatever is known of the token by now.
    fn take_look(&mut self, group: &Group, now: Time) -> bool {
        self.looks_by_group.of(group, now).take(now) && self.for_looks.take(now)
    }

    /// Whether the API server may be asked about it.
    fn take(&mut self, hash: &Hash, from: IpAddr, now: Time) -> bool {
        if let Some((group, _)) = self.known.get(hash) {
            // What a group or an address may not ask costs the others nothing.
            return self.by_group.of(group, now).take(now) && self.for_known.take(now);
        }
        if self.unwelcome.contains_key(hash) {
            return self.for_unwelcome.take(now);
        }
        self.by_address.of(&from, now).take(now) && self.for_strangers.take(now)
    }
}

impl<T> Default for Reviews<T> {
    /// For the pods of a cluster.
    fn default() -> Self {
        Self::new(OF_PODS)
    }
}

impl<T> Reviews<T> {
    /// For those who read metrics.
    pub fn of_few() -> Self {
        Self::new(OF_FEW)
    }

    fn new(rates: Rates) -> Self {
        let state = State {
            known: HashMap::new(),
            unwelcome: HashMap::new(),
            strangers: HashMap::new(),
            for_known: Rates::bucket(rates.known),
            for_unwelcome: Rates::bucket(rates.known),
            for_strangers: Rates::bucket(rates.strangers),
            by_group: Rates::each(rates.group),
            for_looks: Rates::bucket(rates.known),
            looks_by_group: Rates::each(rates.group),
            by_address: Rates::each(rates.address),
        };
        Self { state: Mutex::new(state) }
    }
}

impl<T: Clone> Reviews<T> {
    /// Who `token` belongs to, which came `from` an address: by an answer that is at most [`FRESH`] old, or by a new
    /// one from `ask`. What group somebody is of who is let in, `welcome` says.
    pub async fn who<E: From<Busy>>(
        &self,
        token: &Token,
        from: IpAddr,
        welcome: impl Fn(&T) -> Option<Group>,
        ask: impl AsyncFnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        self.answer(token, |state, hash, now| state.take(hash, from, now), welcome, ask).await
    }

    /// The same for somebody who was let in and is in, of this `group`.
    pub async fn still<E: From<Busy>>(
        &self,
        token: &Token,
        group: &Group,
        welcome: impl Fn(&T) -> Option<Group>,
        ask: impl AsyncFnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        self.answer(token, |state, _, now| state.take_look(group, now), welcome, ask).await
    }

    async fn answer<E: From<Busy>>(
        &self,
        token: &Token,
        take: impl FnOnce(&mut State<T>, &Hash, Time) -> bool,
        welcome: impl Fn(&T) -> Option<Group>,
        ask: impl AsyncFnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let hash: Hash = Sha256::digest(token.reveal()).into();
        let slot = self.slot(hash);
        let mut last = slot.lock().await;
        // Before the question is sent: what the answer says was true then or later.
        let asked = now();
        match &*last {
            Some(Asked::Answered(since, who)) if asked.saturating_since(*since) < FRESH => return Ok(who.clone()),
            Some(Asked::Unanswered(since)) if asked.saturating_since(*since) < RESPITE => return Err(Busy.into()),
            _ => {}
        }
        if !take(&mut self.state.lock(), &hash, asked) {
            return Err(Busy.into());
        }
        let who = match ask().await {
            Ok(who) => who,
            Err(error) => {
                *last = Some(Asked::Unanswered(now()));
                return Err(error);
            }
        };
        *last = Some(Asked::Answered(asked, who.clone()));
        let standing =
            who.as_ref().map_or(Standing::Nobody, |who| welcome(who).map_or(Standing::Unwelcome, Standing::Welcome));
        self.keep(hash, &slot, standing);
        Ok(who)
    }

    fn slot(&self, hash: Hash) -> Slot<T> {
        let mut state = self.state.lock();
        if let Some(slot) = state.known.get(&hash).map(|(_, slot)| slot).or_else(|| state.unwelcome.get(&hash)) {
            return slot.clone();
        }
        if state.strangers.len() >= MOST_STRANGERS {
            state.strangers.clear();
        }
        state.strangers.entry(hash).or_default().clone()
    }

    fn keep(&self, hash: Hash, slot: &Slot<T>, standing: Standing) {
        let mut state = self.state.lock();
        state.known.remove(&hash);
        state.unwelcome.remove(&hash);
        match standing {
            Standing::Nobody => return,
            Standing::Unwelcome => insert(&mut state.unwelcome, hash, slot.clone()),
            Standing::Welcome(group) => insert(&mut state.known, hash, (group, slot.clone())),
        }
        state.strangers.remove(&hash);
    }
}

fn insert<V>(kept: &mut HashMap<Hash, V>, hash: Hash, value: V) {
    if kept.len() >= MOST_KNOWN
        && let Some(any) = kept.keys().next().copied()
    {
        kept.remove(&any);
    }
    kept.insert(hash, value);
}

#[cfg(test)]
#[path = "reviews_tests.rs"]
mod tests;
