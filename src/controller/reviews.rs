//! The API server's answers about tokens: asked for seldom, used for a short time.
//!
//! A stream's token is checked when the stream is opened, and whoever reaches the port can open streams. So answers are
//! used again for a few seconds, an answer that is being waited for is waited for by all who ask the same, and questions
//! come out of token buckets: one for tokens that were good before, of which each namespace gets a part only, and one for all
//! others, of which each address gets a part only. A flood of made-up tokens does not empty the first one, so who was let in before
//! can come back with the same token; nor, if it comes from one address, the second, so others get in with new ones.
//!
//! What is kept is a hash of each token, never the token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::clock::now;
use super::token::Token;
use crate::core::rate::{Buckets, TokenBucket};
use crate::core::time::Time;

/// How long an answer is used: the time for which a token that was revoked, or whose pod was deleted, still opens streams.
pub const FRESH: Duration = Duration::from_secs(5);
/// Of pods.
const OF_PODS: Rates = Rates {
    // More than all streams that there may be need to be looked at again every 25 s: 7,680.
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
type Group = Arc<str>;
type Slot<T> = Arc<tokio::sync::Mutex<Option<(Time, Option<T>)>>>;

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
    by_address: Buckets<IpAddr>,
}

impl<T> State<T> {
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
            by_address: Rates::each(rates.address),
        };
        Self { state: Mutex::new(state) }
    }
}

impl<T: Clone> Reviews<T> {
    /// Who `token` belongs to, which came `from` an address: by an answer that is at most [`FRESH`] old, or by a new one from `ask`. What group somebody is of who is let in, `welcome` says.
    pub async fn who<E: From<Busy>>(
        &self,
        token: &Token,
        from: IpAddr,
        welcome: impl Fn(&T) -> Option<Group>,
        ask: impl AsyncFnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let hash: Hash = Sha256::digest(token.reveal()).into();
        let slot = self.slot(hash);
        let mut answer = slot.lock().await;
        // Before the question is sent: what the answer says was true then or later.
        let asked = now();
        if let Some((since, who)) = &*answer
            && asked.saturating_since(*since) < FRESH
        {
            return Ok(who.clone());
        }
        if !self.state.lock().take(&hash, from, asked) {
            return Err(Busy.into());
        }
        let who = ask().await?;
        *answer = Some((asked, who.clone()));
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
mod tests {
    use std::cell::Cell;
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    fn token(text: &str) -> Token {
        Token::bearer(&format!("Bearer {text}")).unwrap()
    }

    async fn ask(reviews: &Reviews<u8>, text: &str, asked: &Cell<u32>) -> Result<Option<u8>, Busy> {
        ask_from(HERE, reviews, text, asked).await
    }

    /// Asks for a token, and counts. `good` ones are of one group, `other` ones of another, and `unwelcome` ones of none.
    async fn ask_from(from: IpAddr, reviews: &Reviews<u8>, text: &str, asked: &Cell<u32>) -> Result<Option<u8>, Busy> {
        let good = match text.as_bytes()[0] {
            b'g' => Some(1),
            b'o' => Some(2),
            b'u' => Some(0),
            _ => None,
        };
        reviews
            .who(
                &token(text),
                from,
                |who| (*who > 0).then(|| who.to_string().into()),
                async || {
                    asked.set(asked.get() + 1);
                    tokio::task::yield_now().await;
                    Ok(good)
                },
            )
            .await
    }

    #[tokio::test]
    async fn who_asks_the_same_shares_one_answer() {
        let (reviews, asked) = (Reviews::default(), Cell::new(0));
        for (token, expected) in [("good", Some(1)), ("bad", None)] {
            asked.set(0);
            let all = futures::future::join_all((0..1000).map(|_| ask(&reviews, token, &asked))).await;
            assert!(all.iter().all(|answer| *answer == Ok(expected)), "{token}");
            assert_eq!(asked.get(), 1, "{token}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_not_used_for_long() {
        let (reviews, asked) = (Reviews::<u8>::default(), Cell::new(0));
        ask(&reviews, "good", &asked).await.unwrap();
        let slot = reviews.slot(Sha256::digest("good").into());
        let (since, _) = slot.lock().await.unwrap();
        let earlier = |by: Duration| Time::from_nanos(since.as_nanos() - u64::try_from(by.as_nanos()).unwrap());
        *slot.lock().await = Some((earlier(FRESH / 2), Some(1)));
        ask(&reviews, "good", &asked).await.unwrap();
        assert_eq!(asked.get(), 1);
        *slot.lock().await = Some((earlier(FRESH), Some(1)));
        ask(&reviews, "good", &asked).await.unwrap();
        assert_eq!(asked.get(), 2);
    }

    #[tokio::test]
    async fn an_error_is_no_answer() {
        let reviews = Reviews::<u8>::default();
        assert_eq!(reviews.who(&token("good"), HERE, |_| Some("".into()), async || Err(Busy)).await, Err(Busy));
        assert_eq!(
            reviews.who(&token("good"), HERE, |_| Some("".into()), async || Ok::<_, Busy>(Some(1))).await,
            Ok(Some(1))
        );
    }

    #[tokio::test]
    async fn a_flood_of_made_up_tokens_is_cut_and_keeps_nobody_out_who_was_in() {
        let (reviews, asked) = (Reviews::default(), Cell::new(0));
        ask(&reviews, "good", &asked).await.unwrap();
        let begun = now();
        let mut refused = 0;
        for n in 0..20_000 {
            refused += u32::from(ask(&reviews, &n.to_string(), &asked).await.is_err());
        }
        let seconds = now().saturating_since(begun).as_secs_f64();
        let (burst, interval) = OF_PODS.address;
        let allowed = f64::from(burst + 1) + seconds / interval.as_secs_f64() + 1.0;
        assert!(f64::from(asked.get()) <= allowed, "{} asked in {seconds} s", asked.get());
        assert_eq!(asked.get() - 1 + refused, 20_000);
        let hash = Sha256::digest("good").into();
        *reviews.slot(hash).lock().await = None;
        assert_eq!(ask(&reviews, "good", &asked).await, Ok(Some(1)));
        // And others have come with new ones meanwhile.
        assert_eq!(ask(&reviews, "good, and new", &asked).await, Err(Busy));
        assert_eq!(ask_from(THERE, &reviews, "good, and new", &asked).await, Ok(Some(1)));
        let state = reviews.state.lock();
        assert!(state.strangers.len() <= MOST_STRANGERS);
        assert_eq!(state.known.len(), 2);
    }

    #[tokio::test]
    async fn who_is_not_let_in_uses_up_nothing_of_those_who_are() {
        let (reviews, asked) = (Reviews::of_few(), Cell::new(0));
        let forget = async |text: &str| *reviews.slot(Sha256::digest(text).into()).lock().await = None;
        ask(&reviews, "good", &asked).await.unwrap();
        ask(&reviews, "unwelcome", &asked).await.unwrap();
        let mut refused = 0;
        for _ in 0..1_000 {
            forget("unwelcome").await;
            refused += u32::from(ask(&reviews, "unwelcome", &asked).await.is_err());
        }
        assert!(refused > 500, "{refused}");
        for _ in 0..OF_FEW.known.0 {
            forget("good").await;
            assert_eq!(ask(&reviews, "good", &asked).await, Ok(Some(1)));
        }
        let state = reviews.state.lock();
        assert_eq!((state.known.len(), state.unwelcome.len()), (1, 1));
    }

    #[tokio::test]
    async fn a_group_that_asks_much_leaves_something_to_others() {
        let (reviews, asked) = (Reviews::default(), Cell::new(0));
        let forget = async |text: &str| *reviews.slot(Sha256::digest(text).into()).lock().await = None;
        ask(&reviews, "good", &asked).await.unwrap();
        ask(&reviews, "other", &asked).await.unwrap();
        let mut refused = 0;
        for _ in 0..2_000 {
            forget("good").await;
            refused += u32::from(ask(&reviews, "good", &asked).await.is_err());
        }
        assert!(refused > 500, "{refused}");
        for _ in 0..OF_PODS.known.0 - OF_PODS.group.0 {
            forget("other").await;
            assert_eq!(ask(&reviews, "other", &asked).await, Ok(Some(2)));
        }
    }

    #[tokio::test]
    async fn a_flood_from_many_addresses_is_cut_and_takes_no_memory() {
        let (reviews, asked) = (Reviews::default(), Cell::new(0));
        let begun = now();
        for n in 0..20_000_u32 {
            let _ = ask_from(IpAddr::V4(n.into()), &reviews, &n.to_string(), &asked).await;
        }
        let seconds = now().saturating_since(begun).as_secs_f64();
        let (burst, interval) = OF_PODS.strangers;
        let allowed = f64::from(burst) + seconds / interval.as_secs_f64() + 1.0;
        assert!(f64::from(asked.get()) <= allowed, "{} asked in {seconds} s", asked.get());
        assert!(reviews.state.lock().by_address.len() <= MOST_REMEMBERED);
    }

    #[tokio::test]
    async fn a_token_that_is_good_no_more_is_a_stranger_again() {
        let reviews = Reviews::<u8>::default();
        let hash: Hash = Sha256::digest("t").into();
        reviews.who(&token("t"), HERE, |_| Some("".into()), async || Ok::<_, Busy>(Some(1))).await.unwrap();
        *reviews.slot(hash).lock().await = None;
        assert_eq!(reviews.who(&token("t"), HERE, |_| Some("".into()), async || Ok::<_, Busy>(None)).await, Ok(None));
        assert!(reviews.state.lock().known.is_empty());
    }
}
