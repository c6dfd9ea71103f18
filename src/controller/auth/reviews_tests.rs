//! Who asks how often, and what it costs others.

use std::cell::Cell;
use std::net::Ipv4Addr;

use super::*;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

fn token(text: &str) -> Token {
    Token::bearer(&format!("Bearer {text}")).unwrap()
}

impl<T> Reviews<T> {
    /// Nothing more is asked for who comes from this address, or is known and of this group.
    pub fn exhaust(&self, group: &Group, from: IpAddr) {
        let mut state = self.state.lock();
        let State { for_known, for_unwelcome, for_strangers, by_group, by_address, .. } = &mut *state;
        let each = [by_group.of(group, now()), by_address.of(&from, now())];
        for bucket in [for_known, for_unwelcome, for_strangers].into_iter().chain(each) {
            *bucket = TokenBucket::new(1, Duration::from_hours(1));
            bucket.take(now());
        }
    }
}

fn ago(by: Duration) -> Time {
    Time::from_nanos(now().as_nanos() - u64::try_from(by.as_nanos()).unwrap())
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
    *slot.lock().await = Some(Asked::Answered(ago(FRESH / 2), Some(1)));
    ask(&reviews, "good", &asked).await.unwrap();
    assert_eq!(asked.get(), 1);
    *slot.lock().await = Some(Asked::Answered(ago(FRESH), Some(1)));
    ask(&reviews, "good", &asked).await.unwrap();
    assert_eq!(asked.get(), 2);
}

#[derive(Debug, PartialEq)]
enum Unknown {
    Busy,
    Unanswered,
}

impl From<Busy> for Unknown {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

#[tokio::test]
async fn an_error_is_no_answer_and_who_waited_for_it_does_not_ask_again_at_once() {
    let (reviews, asked) = (Reviews::<u8>::default(), Cell::new(0));
    let (good, welcome) = (token("good"), |_: &u8| Some("".into()));
    let fail = async || {
        asked.set(asked.get() + 1);
        tokio::task::yield_now().await;
        Err(Unknown::Unanswered)
    };
    let all = futures::future::join_all((0..100).map(|_| reviews.who(&good, HERE, welcome, &fail))).await;
    assert_eq!(all.iter().filter(|answer| **answer == Err(Unknown::Busy)).count(), 99);
    assert_eq!(asked.get(), 1);
    // It is said of this token only.
    assert_eq!(reviews.who(&token("other"), HERE, welcome, &fail).await, Err(Unknown::Unanswered));
    *reviews.slot(Sha256::digest("good").into()).lock().await = Some(Asked::Unanswered(ago(RESPITE)));
    let answer = async || Ok::<_, Unknown>(Some(1));
    assert_eq!(reviews.who(&good, HERE, welcome, answer).await, Ok(Some(1)));
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

#[tokio::test]
async fn streams_are_looked_at_whatever_else_is_asked() {
    let (reviews, asked) = (Reviews::default(), Cell::new(0));
    // So many tokens are made that nothing is left to ask, and ours is forgotten.
    reviews.exhaust(&"1".into(), HERE);
    assert_eq!(ask(&reviews, "good", &asked).await, Err(Busy));
    let look = async |group: &str| {
        let answer = async || Ok::<_, Busy>(Some(1));
        reviews.still(&token("good"), &group.into(), |_| Some("1".into()), answer).await
    };
    assert_eq!(look("1").await, Ok(Some(1)));
    // Nor does a namespace with many streams keep those of others from being looked at.
    let hash = Sha256::digest("good").into();
    *reviews.slot(hash).lock().await = None;
    let begun = now();
    while reviews.state.lock().take_look(&"1".into(), begun) {}
    assert_eq!(look("1").await, Err(Busy));
    assert_eq!(look("2").await, Ok(Some(1)));
}

#[tokio::test]
async fn looks_at_streams_take_nothing_from_who_opens_one() {
    let (reviews, asked) = (Reviews::default(), Cell::new(0));
    ask(&reviews, "good", &asked).await.unwrap();
    let (begun, mut looks) = (now(), 0);
    for group in ["1", "2"] {
        while reviews.state.lock().take_look(&group.into(), begun) {
            looks += 1;
        }
    }
    assert_eq!(looks, OF_PODS.known.0);
    *reviews.slot(Sha256::digest("good").into()).lock().await = None;
    assert_eq!(ask(&reviews, "good", &asked).await, Ok(Some(1)));
    assert_eq!(ask(&reviews, "good, and new", &asked).await, Ok(Some(1)));
}
