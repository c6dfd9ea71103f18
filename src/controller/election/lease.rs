//! Between the Lease object and what the election needs of it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::core::election::{Observed, Step, Timings};

/// What others wrote as their identity is cut to this many bytes; nobody's own may be longer.
const MAX_IDENTITY: usize = 253;

fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// What the election needs of the object; `None` if it has no version.
pub(super) fn observed(lease: &Lease) -> Option<Observed> {
    let version = lease.metadata.resource_version.clone().filter(|version| !version.is_empty())?;
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
    Some(Observed {
        holder: cut(holder, MAX_IDENTITY).to_owned(),
        resource_version: version,
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
    })
}

/// The object to send. What others have put into `seen` stays, since a PUT replaces everything.
pub(super) fn body(
    seen: Option<&Lease>,
    step: &Step,
    name: &str,
    identity: &str,
    timings: &Timings,
    now: Timestamp,
) -> Lease {
    let mut lease = match step {
        Step::Create => Lease::default(),
        _ => seen.cloned().unwrap_or_default(),
    };
    lease.metadata.name = Some(name.to_owned());
    lease.metadata.managed_fields = None;
    if let Step::Acquire { resource_version } | Step::Renew { resource_version } | Step::Release { resource_version } =
        step
    {
        lease.metadata.resource_version = Some(resource_version.clone());
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    let stamp = MicroTime(after(spec.renew_time.as_ref(), now));
    if let Step::Acquire { .. } | Step::Create = step {
        spec.acquire_time = Some(stamp.clone());
        let before = spec.lease_transitions.unwrap_or_default();
        let changed = i32::from(matches!(step, Step::Acquire { .. }));
        spec.lease_transitions = Some(before.saturating_add(changed));
    }
    let released = matches!(step, Step::Release { .. });
    spec.holder_identity = Some(if released { String::new() } else { identity.to_owned() });
    let seconds = timings.lease_duration().as_millis().div_ceil(1000);
    spec.lease_duration_seconds = Some(i32::try_from(seconds).unwrap_or(i32::MAX));
    spec.renew_time = Some(stamp);
    lease
}

/// Always another microsecond than before: a PUT that changes nothing gives no new resourceVersion, and the others
/// would not see the renewal.
fn after(before: Option<&MicroTime>, now: Timestamp) -> Timestamp {
    match before {
        Some(before) if before.0.as_microsecond() == now.as_microsecond() => {
            now.checked_add(SignedDuration::from_micros(1)).unwrap_or(now)
        }
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timings() -> Timings {
        Timings::new(Duration::from_millis(2500), Duration::from_secs(2), Duration::from_millis(500)).unwrap()
    }

    fn held() -> Lease {
        let mut lease = body(None, &Step::Create, "lease", "b_1", &timings(), Timestamp::UNIX_EPOCH);
        lease.metadata.resource_version = Some("5".to_owned());
        lease.metadata.uid = Some("uid".to_owned());
        lease.metadata.labels = Some([("team".to_owned(), "x".to_owned())].into());
        lease
    }

    fn acquire() -> Step {
        Step::Acquire { resource_version: "5".to_owned() }
    }

    #[test]
    fn a_part_of_a_second_is_rounded_up() {
        assert_eq!(observed(&held()).unwrap().duration, Duration::from_secs(3));
    }

    #[test]
    fn taking_over_counts_and_keeps_what_others_wrote() {
        let lease = body(Some(&held()), &acquire(), "lease", "a_1", &timings(), Timestamp::UNIX_EPOCH);
        assert_eq!(lease.metadata.labels, held().metadata.labels);
        assert_eq!(lease.metadata.uid.as_deref(), Some("uid"));
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("5"));
        let spec = lease.spec.unwrap();
        assert_eq!(spec.lease_transitions, Some(1));
        assert_eq!(spec.holder_identity.as_deref(), Some("a_1"));
    }

    #[test]
    fn a_renewal_always_changes_something() {
        let renew = Step::Renew { resource_version: "5".to_owned() };
        let lease = body(Some(&held()), &renew, "lease", "b_1", &timings(), Timestamp::UNIX_EPOCH);
        let (before, after) = (held().spec.unwrap(), lease.spec.unwrap());
        assert_ne!(before.renew_time, after.renew_time);
        assert_eq!(before.acquire_time, after.acquire_time);
        assert_eq!(before.lease_transitions, after.lease_transitions);
    }

    #[test]
    fn a_lease_put_back_after_a_deletion_is_a_new_object() {
        let lease = body(Some(&held()), &Step::Create, "lease", "b_1", &timings(), Timestamp::UNIX_EPOCH);
        assert_eq!(lease.metadata.uid, None);
        assert_eq!(lease.metadata.resource_version, None);
    }

    #[test]
    fn a_released_lease_has_an_empty_holder() {
        let release = Step::Release { resource_version: "5".to_owned() };
        let lease = body(Some(&held()), &release, "lease", "b_1", &timings(), Timestamp::UNIX_EPOCH);
        assert_eq!(observed(&lease).unwrap().holder, "");
        assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(""));
    }

    #[test]
    fn what_others_wrote_is_bounded() {
        let mut lease = held();
        let spec = lease.spec.as_mut().unwrap();
        spec.holder_identity = Some("é".repeat(1000));
        spec.lease_duration_seconds = Some(-1);
        assert_eq!(observed(&lease).unwrap().holder.len(), 252);
        assert_eq!(observed(&lease).unwrap().duration, Duration::ZERO);
    }

    #[test]
    fn a_lease_without_a_version_is_no_answer() {
        let mut lease = held();
        for version in [None, Some(String::new())] {
            lease.metadata.resource_version = version;
            assert!(observed(&lease).is_none());
        }
    }
}
