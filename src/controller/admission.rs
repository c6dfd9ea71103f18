//! What one pod may open. Whatever it does beyond that, it does to itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tonic::Status;

use super::clock::now;
use crate::core::rate::TokenBucket;
use crate::core::time::Time;

/// Streams of one pod at once. It needs one for each of its processes that has a cache, and one more while the network
/// has not yet told that an older one is over.
const STREAMS: usize = 8;
/// Streams that one pod may open at once and, after these, one in each interval: more often than an agent comes back.
const OPENINGS: u32 = 32;
const OPENING_INTERVAL: Duration = Duration::from_millis(250);
/// Pods are forgotten, once nothing is left to be known of them, when there are twice as many as at the last time.
const FORGET_FROM: usize = 1_024;

/// A pod has too much.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TooMuch {
    /// Too many streams.
    #[error("this pod has {STREAMS} streams already: no more are allowed")]
    Streams,
    /// Streams are opened too often.
    #[error("this pod opens streams too often: at most one in {} ms is allowed", OPENING_INTERVAL.as_millis())]
    Openings,
}

impl From<TooMuch> for Status {
    fn from(too_much: TooMuch) -> Self {
        Self::resource_exhausted(too_much.to_string())
    }
}

/// Counts what each pod has.
#[derive(Debug, Default)]
pub struct Admission {
    pods: Mutex<Pods>,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<Arc<str>, Use>,
    forget_at: usize,
}

#[derive(Debug)]
struct Use {
    streams: usize,
    openings: TokenBucket,
}

impl Admission {
    /// A stream for the pod `uid`, until the guard is dropped.
    pub fn admit(self: &Arc<Self>, uid: &str) -> Result<Admitted, TooMuch> {
        self.admit_at(uid, now())
    }

    fn admit_at(self: &Arc<Self>, uid: &str, now: Time) -> Result<Admitted, TooMuch> {
        let uid: Arc<str> = uid.into();
        let mut pods = self.pods.lock();
        if pods.by_uid.len() >= pods.forget_at.max(FORGET_FROM) {
            pods.by_uid.retain(|_, used| used.streams > 0 || !used.openings.is_full(now));
            pods.forget_at = pods.by_uid.len() * 2;
        }
        let new = || Use { streams: 0, openings: TokenBucket::new(OPENINGS, OPENING_INTERVAL) };
        let used = pods.by_uid.entry(uid.clone()).or_insert_with(new);
        if used.streams >= STREAMS {
            return Err(TooMuch::Streams);
        }
        if !used.openings.take(now) {
            return Err(TooMuch::Openings);
        }
        used.streams += 1;
        Ok(Admitted { uid, by: self.clone() })
    }
}

/// A stream that was admitted.
#[derive(Debug)]
pub struct Admitted {
    uid: Arc<str>,
    by: Arc<Admission>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(used) = self.by.pods.lock().by_uid.get_mut(&self.uid) {
            used.streams -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_a_few_streams_and_others_have_theirs() {
        let (all, now) = (Arc::new(Admission::default()), Time::default());
        let mut streams: Vec<_> = (0..STREAMS).map(|_| all.admit_at("a", now).unwrap()).collect();
        assert_eq!(all.admit_at("a", now).unwrap_err(), TooMuch::Streams);
        assert!(all.admit_at("b", now).is_ok());
        streams.pop();
        assert!(all.admit_at("a", now).is_ok());
    }

    #[test]
    fn a_pod_that_opens_streams_again_and_again_must_wait_and_others_need_not() {
        let (all, now) = (Arc::new(Admission::default()), Time::default());
        for _ in 0..OPENINGS {
            all.admit_at("a", now).unwrap();
        }
        assert_eq!(all.admit_at("a", now).unwrap_err(), TooMuch::Openings);
        assert!(all.admit_at("b", now).is_ok());
        assert!(all.admit_at("a", now + OPENING_INTERVAL).is_ok());
    }

    #[test]
    fn pods_of_which_nothing_is_left_are_forgotten() {
        let (all, now) = (Arc::new(Admission::default()), Time::default());
        let kept = all.admit_at("kept", now).unwrap();
        for n in 0..FORGET_FROM * 3 {
            let now = now + OPENING_INTERVAL * u32::try_from(n).unwrap();
            all.admit_at(&n.to_string(), now).unwrap();
        }
        let pods = all.pods.lock().by_uid.len();
        assert!(pods <= FORGET_FROM, "{pods}");
        assert!(all.pods.lock().by_uid.contains_key("kept"));
        drop(kept);
    }
}
