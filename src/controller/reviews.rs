//! The API server's answers about tokens: asked for seldom, used for a short time.
//!
//! A stream's token is checked when the stream is opened, and whoever reaches the port can open streams. So answers are
//! used again for a few seconds, an answer that is being waited for is waited for by all who ask the same, and questions
//! come out of token buckets: one for tokens that were good before, one for all others. A flood of made-up tokens empties
//! only the second one: who was let in before can always come back.
//!
//! What is kept is a hash of each token, never the token.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::clock::now;
use crate::core::rate::TokenBucket;
use crate::core::time::Time;

/// How long an answer is used: the time for which a token that was revoked, or whose pod was deleted, still opens streams.
pub const FRESH: Duration = Duration::from_secs(5);
/// Tokens that were good before: questions at once, and the interval after these.
const KNOWN: (u32, Duration) = (500, Duration::from_millis(5));
/// All others: as many as pods may start at once, then 50 in a second.
const STRANGERS: (u32, Duration) = (200, Duration::from_millis(20));
/// Hashes of good tokens that are kept: more than there are pods. Which one goes when there are more does not matter.
const MOST_KNOWN: usize = 16_384;
/// Hashes of other tokens that are kept. All go when there are more.
const MOST_STRANGERS: usize = 1_024;

type Hash = [u8; 32];
type Slot<T> = Arc<tokio::sync::Mutex<Option<(Time, Option<T>)>>>;

/// Too many questions; ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Answers of the API server: who it is, or `None` for nobody.
pub struct Reviews<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    known: HashMap<Hash, Slot<T>>,
    strangers: HashMap<Hash, Slot<T>>,
    for_known: TokenBucket,
    for_strangers: TokenBucket,
}

impl<T> Default for Reviews<T> {
    fn default() -> Self {
        let bucket = |(burst, interval)| TokenBucket::new(burst, interval);
        let (for_known, for_strangers) = (bucket(KNOWN), bucket(STRANGERS));
        let state = State { known: HashMap::new(), strangers: HashMap::new(), for_known, for_strangers };
        Self { state: Mutex::new(state) }
    }
}

impl<T: Clone> Reviews<T> {
    /// Who `token` belongs to, by an answer that is at most [`FRESH`] old or by a new one from `ask`.
    pub async fn who<E: From<Busy>>(
        &self,
        token: &str,
        ask: impl AsyncFnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let hash: Hash = Sha256::digest(token).into();
        let slot = self.slot(hash);
        let mut answer = slot.lock().await;
        // Before the question is sent: what the answer says was true then or later.
        let asked = now();
        if let Some((since, who)) = &*answer
            && asked.saturating_since(*since) < FRESH
        {
            return Ok(who.clone());
        }
        if !self.may_ask(&hash, asked) {
            return Err(Busy.into());
        }
        let who = ask().await?;
        *answer = Some((asked, who.clone()));
        self.keep(hash, &slot, who.is_some());
        Ok(who)
    }

    fn slot(&self, hash: Hash) -> Slot<T> {
        let mut state = self.state.lock();
        if let Some(slot) = state.known.get(&hash) {
            return slot.clone();
        }
        if state.strangers.len() >= MOST_STRANGERS {
            state.strangers.clear();
        }
        state.strangers.entry(hash).or_default().clone()
    }

    fn may_ask(&self, hash: &Hash, now: Time) -> bool {
        let mut state = self.state.lock();
        if state.known.contains_key(hash) { state.for_known.take(now) } else { state.for_strangers.take(now) }
    }

    fn keep(&self, hash: Hash, slot: &Slot<T>, good: bool) {
        let mut state = self.state.lock();
        if !good {
            state.known.remove(&hash);
            return;
        }
        state.strangers.remove(&hash);
        if state.known.len() >= MOST_KNOWN
            && let Some(any) = state.known.keys().next().copied()
        {
            state.known.remove(&any);
        }
        state.known.insert(hash, slot.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Asks for a token that is good if it begins with `good`, and counts.
    async fn ask(reviews: &Reviews<u8>, token: &str, asked: &Cell<u32>) -> Result<Option<u8>, Busy> {
        let good = token.starts_with("good").then_some(1);
        reviews
            .who(token, async || {
                asked.set(asked.get() + 1);
                tokio::task::yield_now().await;
                Ok(good)
            })
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
        assert_eq!(reviews.who("good", async || Err(Busy)).await, Err(Busy));
        assert_eq!(reviews.who("good", async || Ok::<_, Busy>(Some(1))).await, Ok(Some(1)));
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
        let allowed = f64::from(STRANGERS.0 + 1) + seconds / STRANGERS.1.as_secs_f64() + 1.0;
        assert!(f64::from(asked.get()) <= allowed, "{} asked in {seconds} s", asked.get());
        assert_eq!(asked.get() - 1 + refused, 20_000);
        let hash = Sha256::digest("good").into();
        *reviews.slot(hash).lock().await = None;
        assert_eq!(ask(&reviews, "good", &asked).await, Ok(Some(1)));
        let state = reviews.state.lock();
        assert!(state.strangers.len() <= MOST_STRANGERS);
        assert_eq!(state.known.len(), 1);
    }

    #[tokio::test]
    async fn a_token_that_is_good_no_more_is_a_stranger_again() {
        let reviews = Reviews::<u8>::default();
        let hash: Hash = Sha256::digest("t").into();
        reviews.who("t", async || Ok::<_, Busy>(Some(1))).await.unwrap();
        *reviews.slot(hash).lock().await = None;
        assert_eq!(reviews.who("t", async || Ok::<_, Busy>(None)).await, Ok(None));
        assert!(reviews.state.lock().known.is_empty());
    }
}
