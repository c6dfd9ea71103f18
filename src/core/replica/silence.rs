//! Which replicas are no more, by their markers: whoever wants a confirmation would wait for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Registration;
use crate::core::lease::with_drift;
use crate::core::rules::Rule;
use crate::core::time::Time;

/// For how long each marker has stood still.
#[derive(Debug, Default)]
pub struct Silence {
    seen: BTreeMap<Arc<str>, (Registration, Time)>,
}

/// A removal that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The leases that a replica granted end a lease after it sent the last marker that proved its watch, however late it granted
/// them. A marker is written about five times in a lease, so it is given the time of one more.
fn longest(registration: &Registration) -> Duration {
    if !Rule::StayRegistered.on() {
        return registration.lease / 2;
    }
    with_drift(registration.lease) + registration.lease / 5
}

impl Silence {
    /// These are registered now. Returns those that have not moved for too long, by this process's own clock.
    pub fn seen(&mut self, registered: &BTreeMap<Arc<str>, Registration>, now: Time) -> Vec<(Arc<str>, Registration)> {
        self.seen.retain(|name, _| registered.contains_key(name));
        let mut dead = Vec::new();
        for (name, registration) in registered {
            match self.seen.get(name) {
                Some((known, since)) if known == registration => {
                    if *since + longest(registration) <= now {
                        dead.push((name.clone(), registration.clone()));
                    }
                }
                _ => {
                    self.seen.insert(name.clone(), (registration.clone(), now));
                }
            }
        }
        dead
    }

    /// It was tried to remove this one: not again at once.
    pub fn wait(&mut self, name: &str, now: Time) {
        if let Some((registration, since)) = self.seen.get_mut(name) {
            let again = now.saturating_since(Time::ZERO + longest(registration));
            *since = Time::ZERO + again + AGAIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::{ResourceVersion, Uid};

    fn at(millis: u64) -> Time {
        Time::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn registered(markers: &[(&str, u64)]) -> BTreeMap<Arc<str>, Registration> {
        with_leases(markers, Duration::from_secs(10))
    }

    fn with_leases(markers: &[(&str, u64)], lease: Duration) -> BTreeMap<Arc<str>, Registration> {
        let (namespace, uid) = (Arc::from("a"), Uid::from_u128(1));
        let registration = |rv| Registration { namespace, uid, resource_version: ResourceVersion(rv), lease };
        markers.iter().map(|(name, rv)| (Arc::from(*name), registration.clone()(*rv))).collect()
    }

    #[test]
    fn only_a_marker_that_stands_still_is_dead() {
        let mut silence = Silence::default();
        let mut names = |markers: &[(&str, u64)], millis| {
            let dead = silence.seen(&registered(markers), at(millis));
            dead.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        let none: [String; 0] = [];
        assert_eq!(names(&[("a", 1), ("b", 2)], 0), none);
        assert_eq!(names(&[("a", 1), ("b", 3)], 5_000), none);
        assert_eq!(names(&[("a", 1), ("b", 3)], 12_099), none);
        assert_eq!(names(&[("a", 1), ("b", 3)], 12_100), ["a"]);
        assert_eq!(names(&[("a", 9), ("b", 3)], 12_200), none, "it lives");
        assert_eq!(names(&[("b", 3)], 17_100), ["b"]);
        assert_eq!(names(&[], 17_200), none);
        assert_eq!(names(&[("a", 9)], 99_000), none, "what was forgotten is new");
    }

    #[test]
    fn a_replica_with_longer_leases_is_given_the_time_of_these() {
        let mut silence = Silence::default();
        let markers = with_leases(&[("a", 1)], Duration::from_mins(1));
        assert_eq!(silence.seen(&markers, at(0)).len(), 0);
        assert_eq!(silence.seen(&markers, at(72_599)).len(), 0);
        assert_eq!(silence.seen(&markers, at(72_600)).len(), 1);
    }

    #[test]
    fn a_failed_removal_is_tried_again_after_a_second() {
        let mut silence = Silence::default();
        let markers = registered(&[("a", 1)]);
        silence.seen(&markers, at(0));
        assert_eq!(silence.seen(&markers, at(12_100)).len(), 1);
        silence.wait("a", at(12_100));
        assert_eq!(silence.seen(&markers, at(13_099)).len(), 0);
        assert_eq!(silence.seen(&markers, at(13_100)).len(), 1);
    }
}
