//! How large the answer to one request may become.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::refusal::Refusal;
use crate::resp::Reply;

/// Bytes that the parts of one answer may still take. A part is counted as soon as it is made: an answer that is larger than
/// all that may wait for a client is never sent, so it must not take the memory either.
#[derive(Debug)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// Counts a part. An error: it is one too many.
    pub fn take(&self, part: &Reply) -> Result<(), Refusal> {
        let weight = part.weight();
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(weight));
        taken.map(drop).map_err(|_| Refusal::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Flow;
    use crate::agent::testing::Bench;
    use crate::resp::Reply;

    /// Less than a tenth of what may wait for a client of the bench.
    fn big() -> String {
        "x".repeat(60_000)
    }

    #[tokio::test]
    async fn answers_are_weighed_while_they_are_gathered() {
        let bench = Bench::new();
        let mut guest = bench.guest();
        for session in ["k", "l"] {
            guest.sends(&["HSET", session, "a", &big()]).await;
        }
        let is_too_large = |flow| matches!(flow, Flow::TooLarge);
        // From memory.
        assert!(!is_too_large(guest.sends(&["MGET", "k", "l", "k"]).await));
        assert!(is_too_large(guest.sends(&[&["MGET"], &["k"; 1_000][..]].concat()).await));
        // One of them must be asked for.
        assert!(is_too_large(guest.sends(&[&["MGET", "none"], &["k"; 1_000][..]].concat()).await));
        // It is read no further than that: of a hundred that must be asked for, most are not.
        let other = bench.beside();
        let mut stranger = other.guest();
        let mut wanted = vec!["MGET".to_owned()];
        for n in 0..100 {
            wanted.push(format!("m{n}"));
            guest.sends(&["HSET", &format!("m{n}"), "a", &big()]).await;
        }
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        assert!(is_too_large(stranger.sends(&wanted).await));
        let asked = other.agent.sessions.cache().state().api_calls;
        assert!(asked < 60, "{asked} were asked for");
        // The same field again and again is kept once, and weighs as much as it will take.
        assert!(is_too_large(guest.sends(&["MULTI"]).await) || guest.client.transaction_len() == Some(0));
        guest.sends(&[&["HMGET", "k"], &["a"; 1_000][..]].concat()).await;
        assert!(is_too_large(guest.sends(&["EXEC"]).await));
        assert!(is_too_large(guest.sends(&[&["HMGET", "k"], &["a"; 1_000][..]].concat()).await));
    }

    #[tokio::test]
    async fn a_transaction_whose_answer_is_too_large_writes_nothing() {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.sends(&["HSET", "k", "a", &big()]).await;
        guest.asks("MULTI").await;
        guest.asks("HSET k b 1").await;
        for command in ["HGETALL k", "GET k", "HVALS k", "INFO"].into_iter().cycle().take(100) {
            guest.asks(command).await;
        }
        assert!(matches!(guest.sends(&["EXEC"]).await, Flow::TooLarge));
        assert_eq!(guest.asks("HEXISTS k b").await, Reply::Int(0));
        // What needs no key counts too.
        guest.asks("MULTI").await;
        for _ in 0..4_000 {
            guest.asks("INFO").await;
        }
        assert!(matches!(guest.sends(&["EXEC"]).await, Flow::TooLarge));
    }

    #[tokio::test]
    async fn a_transaction_keeps_no_more_sessions_than_fit() {
        let bench = Bench::new();
        let mut guest = bench.guest();
        for n in 0..40 {
            guest.sends(&["HSET", &format!("k{n}"), "a", &big()]).await;
        }
        for (sessions, fits) in [(10, true), (40, false)] {
            guest.asks("MULTI").await;
            for n in 0..sessions {
                guest.asks(&format!("HSET k{n} b 1")).await;
            }
            let answer = guest.asks("EXEC").await;
            assert_eq!(matches!(answer, Reply::Array(_)), fits, "{answer:?}");
        }
        assert_eq!(guest.asks("HEXISTS k39 b").await, Reply::Int(0), "nothing was written");
        assert_eq!(guest.asks("HEXISTS k9 b").await, Reply::Int(1));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_long_transaction_lets_others_go_first() {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.sends(&["HSET", "k", "n", "0", "a", &big()]).await;
        guest.asks("MULTI").await;
        for _ in 0..4_000 {
            guest.asks("HINCRBY k n 1").await;
        }
        let turns = async {
            let mut turns = 0_u32;
            loop {
                tokio::task::yield_now().await;
                turns += 1;
                if turns == 10 {
                    return;
                }
            }
        };
        let exec = async {
            let answer = guest.sends(&["EXEC"]).await;
            assert!(matches!(answer, Flow::Reply(Reply::Array(answers)) if answers.len() == 4_000));
            bench.api.object("k").unwrap()["spec"]["metadata"]["n"].clone()
        };
        // With one thread, the turns come only where the transaction gives way.
        let mut exec = std::pin::pin!(exec);
        tokio::select! {
            biased;
            _ = &mut exec => panic!("it held the worker all the time"),
            () = turns => {}
        }
        assert_eq!(exec.await, "4000");
    }
}
