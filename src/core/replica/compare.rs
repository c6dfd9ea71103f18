//! Whether a holding must be evicted, given what the watch shows.

use super::Truth;
use super::holdings::Held;
use crate::core::rules::Rule;
use crate::core::session::ResourceVersion;
use crate::core::signal::{Barrier, Fate, Mark};

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The copy equals the truth as far as is known.
    Keep,
    /// The pod knows more than the watch: compare again when the watch has reached this resourceVersion.
    Wait(ResourceVersion),
    /// The copy differs from this truth.
    Evict(Barrier),
}

/// Compares a holding with the object of its name, at this position of the watch.
pub(super) fn compare(held: &Held, truth: Option<&Truth>, position: ResourceVersion) -> Verdict {
    let Held { holding: held, shown, .. } = held;
    let evict = |fate, at: Option<&Truth>| {
        Verdict::Evict(Barrier {
            mark: Mark { uid: held.uid, fate, resource_version: at.map_or(position, |t| t.resource_version) },
            // By now the agent may hold a newer copy that equals this state, though its generation is lower.
            digest: at.filter(|_| fate != Fate::Gone).map(|t| t.summary.digest),
        })
    };
    // A watch that has reached what the pod read, or has shown it, knows at least as much as the pod. If it has shown
    // it at a lower resourceVersion, and shows something else there now, then the pod's is of a history that a restored
    // backup has wiped out.
    let reached = position >= held.resource_version || *shown && Rule::ShownIsReached.on();
    let caught_up = reached || !Rule::WaitForPosition.on();
    let live = truth.filter(|t| t.uid == held.uid && !(t.terminating && Rule::TerminatingIsGone.on()));
    let Some(object) = live else {
        return if caught_up { evict(Fate::Gone, truth) } else { Verdict::Wait(held.resource_version) };
    };
    let equal = object.summary.digest == held.digest;
    let stale = Fate::Stale { below: object.generation };
    if !Rule::CompareGeneration.on() {
        return if equal { Verdict::Keep } else { evict(stale, truth) };
    }
    if object.generation > held.generation {
        return if equal && Rule::CompareDigest.on() { Verdict::Keep } else { evict(stale, truth) };
    }
    if object.generation == held.generation && equal {
        return Verdict::Keep;
    }
    if reached {
        // The pod claims a state that the watch has passed without showing it: etcd was restored from a backup.
        return evict(Fate::Gone, truth);
    }
    Verdict::Wait(held.resource_version)
}
