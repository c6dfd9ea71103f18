//! What one pod, and the pods of one namespace, may open. Whatever they do beyond that, they do to themselves.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tonic::Status;

use super::clock::now;
use crate::core::rate::Buckets;
use crate::core::tally::{Bounds, Full, Tally};
use crate::core::time::Time;

/// Streams at once. One pod needs one for each of its processes that has a cache, and one more while the network has not yet
/// told that an older one is over. Each may come on a connection of its own, and there must be connections left for those who
/// are not yet known (see [`super::connections`]).
const STREAMS: Bounds = Bounds { all: 7_680, per_pod: 8 };
/// Streams that one pod may open at once and, after these, one in each interval: more often than an agent comes back.
const OPENINGS: u32 = 32;
const OPENING_INTERVAL: Duration = Duration::from_millis(250);
/// Pods of which it is known how often they open streams: more than can have any.
const MOST_PODS: usize = 16_384;

/// A pod, or its namespace, has too much.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Exceeded {
    /// Too many streams.
    #[error("too many streams: {0}")]
    Streams(#[from] Full),
    /// Streams are opened too often.
    #[error("this pod opens streams too often: at most one in {} ms is allowed", OPENING_INTERVAL.as_millis())]
    Openings,
}

impl From<Exceeded> for Status {
    fn from(exceeded: Exceeded) -> Self {
        Self::resource_exhausted(exceeded.to_string())
    }
}

/// Counts what each pod has.
#[derive(Debug)]
pub struct StreamLimits {
    pods: Mutex<Pods>,
}

#[derive(Debug)]
struct Pods {
    streams: Tally,
    openings: Buckets<Arc<str>>,
}

impl Default for StreamLimits {
    fn default() -> Self {
        let openings = Buckets::new(OPENINGS, OPENING_INTERVAL, MOST_PODS);
        Self { pods: Mutex::new(Pods { streams: Tally::default(), openings }) }
    }
}

impl StreamLimits {
    /// A stream for the pod `uid` of a namespace, until the guard is dropped.
    pub fn open(self: &Arc<Self>, namespace: &str, uid: &str) -> Result<StreamPermit, Exceeded> {
        self.open_at(namespace, uid, now())
    }

    fn open_at(self: &Arc<Self>, namespace: &str, uid: &str, now: Time) -> Result<StreamPermit, Exceeded> {
        let mut pods = self.pods.lock();
        pods.streams.admits(namespace, uid, STREAMS)?;
        let (namespace, uid): (Arc<str>, Arc<str>) = (namespace.into(), uid.into());
        if !pods.openings.of(&uid, now).take(now) {
            return Err(Exceeded::Openings);
        }
        pods.streams.add(&namespace, &uid);
        Ok(StreamPermit { namespace, uid, by: self.clone() })
    }
}

/// The right to one open stream.
#[derive(Debug)]
pub struct StreamPermit {
    namespace: Arc<str>,
    uid: Arc<str>,
    by: Arc<StreamLimits>,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.by.pods.lock().streams.remove(&self.namespace, &self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_a_few_streams_and_others_have_theirs() {
        let (all, now) = (Arc::new(StreamLimits::default()), Time::default());
        let mut streams: Vec<_> = (0..STREAMS.per_pod).map(|_| all.open_at("ns", "a", now).unwrap()).collect();
        assert_eq!(all.open_at("ns", "a", now).unwrap_err(), Exceeded::Streams(Full::Pod));
        assert!(all.open_at("ns", "b", now).is_ok());
        streams.pop();
        assert!(all.open_at("ns", "a", now).is_ok());
    }

    #[test]
    fn a_namespace_with_many_pods_leaves_streams_to_others() {
        let (all, now) = (Arc::new(StreamLimits::default()), Time::default());
        let streams =
            (0..STREAMS.all).map_while(|n| all.open_at("greedy", &(n / STREAMS.per_pod).to_string(), now).ok());
        let greedy: Vec<_> = streams.collect();
        assert!(greedy.len() > STREAMS.all / 2 && greedy.len() < STREAMS.all, "{}", greedy.len());
        assert_eq!(all.open_at("greedy", "another", now).unwrap_err(), Exceeded::Streams(Full::Namespace));
        let others: Vec<_> = (0..1_000).map_while(|n| all.open_at("other", &n.to_string(), now).ok()).collect();
        assert_eq!(others.len(), 1_000);
    }

    #[test]
    fn a_pod_that_opens_streams_again_and_again_must_wait_and_others_need_not() {
        let (all, now) = (Arc::new(StreamLimits::default()), Time::default());
        for _ in 0..OPENINGS {
            all.open_at("ns", "a", now).unwrap();
        }
        assert_eq!(all.open_at("ns", "a", now).unwrap_err(), Exceeded::Openings);
        assert!(all.open_at("ns", "b", now).is_ok());
        assert!(all.open_at("ns", "a", now + OPENING_INTERVAL).is_ok());
    }

    #[test]
    fn pods_of_which_nothing_is_left_are_forgotten() {
        let (all, now) = (Arc::new(StreamLimits::default()), Time::default());
        let kept = all.open_at("ns", "kept", now).unwrap();
        for n in 0..MOST_PODS * 2 {
            let now = now + OPENING_INTERVAL * u32::try_from(n).unwrap();
            all.open_at("ns", &n.to_string(), now).unwrap();
        }
        let pods = all.pods.lock().openings.len();
        assert!(pods <= MOST_PODS, "{pods}");
        assert_eq!(all.pods.lock().streams.of_pod("ns", "kept"), 1);
        drop(kept);
        assert_eq!(all.pods.lock().streams.used(), 0);
    }
}
