//! What pods and namespaces have of something that is bounded, so that no namespace is left without by another.
//!
//! A fixed part for each namespace would either be too small where there is one namespace only, or leave nothing where there
//! are many. So a namespace may take more as long as it has less than a few times what is free: one alone can have most of it,
//! two have equal parts, and something is always left for one that comes later. These are the dynamic thresholds of
//! Choudhury and Hahne ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on
//! Networking 6(2), 1998).

use std::sync::Arc;

use hashbrown::HashMap;
use thiserror::Error;

/// A namespace may have so many times what is free: four fifths of all if it is alone, four ninths if there are two.
const TIMES_FREE: usize = 4;

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For all pods together.
    pub all: usize,
    /// For one pod.
    pub per_pod: usize,
}

/// Whose part is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Full {
    /// The pod's own.
    #[error("the pod has as many as one may have")]
    Pod,
    /// What its namespace may have of what is left.
    #[error("the pods of the namespace have as many as they may have beside those of others")]
    Namespace,
}

/// Counts what each pod has.
#[derive(Debug, Default)]
pub struct Tally {
    used: usize,
    namespaces: HashMap<Arc<str>, OfNamespace>,
}

#[derive(Debug, Default)]
struct OfNamespace {
    used: usize,
    pods: HashMap<Arc<str>, usize>,
}

impl Tally {
    /// Whether the pod may have one more.
    ///
    /// # Errors
    ///
    /// Whose part is used up, if it may not.
    pub fn admits(&self, namespace: &str, pod: &str, bounds: Bounds) -> Result<(), Full> {
        if self.of_pod(namespace, pod) >= bounds.per_pod {
            return Err(Full::Pod);
        }
        let own = self.namespaces.get(namespace).map_or(0, |of| of.used);
        let free = bounds.all.saturating_sub(self.used);
        if own < free.saturating_mul(TIMES_FREE) { Ok(()) } else { Err(Full::Namespace) }
    }

    /// The pod has one more.
    pub fn add(&mut self, namespace: &str, pod: &str) {
        self.used += 1;
        let of = self.namespaces.entry_ref(namespace).or_default();
        of.used += 1;
        *of.pods.entry_ref(pod).or_default() += 1;
    }

    /// The pod has one less. Nothing is kept of who has nothing.
    pub fn remove(&mut self, namespace: &str, pod: &str) {
        let Some(of) = self.namespaces.get_mut(namespace) else { return };
        let Some(own) = of.pods.get_mut(pod) else { return };
        *own -= 1;
        if *own == 0 {
            of.pods.remove(pod);
        }
        of.used -= 1;
        if of.used == 0 {
            self.namespaces.remove(namespace);
        }
        self.used -= 1;
    }

    /// What the pod has.
    pub fn of_pod(&self, namespace: &str, pod: &str) -> usize {
        self.namespaces.get(namespace).and_then(|of| of.pods.get(pod)).copied().unwrap_or(0)
    }

    /// What all have together.
    pub fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { all: 100, per_pod: 30 };

    /// Takes as many as it gets, over as many pods as it needs.
    fn greedy(tally: &mut Tally, namespace: &str) -> usize {
        let mut taken = 0;
        for pod in 0..10 {
            while tally.admits(namespace, &pod.to_string(), BOUNDS).is_ok() {
                tally.add(namespace, &pod.to_string());
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn one_namespace_alone_has_most_and_there_is_always_some_for_the_next() {
        let mut tally = Tally::default();
        assert_eq!(greedy(&mut tally, "greedy"), 80);
        assert_eq!(tally.admits("greedy", "10", BOUNDS), Err(Full::Namespace));
        assert_eq!(greedy(&mut tally, "second"), 16);
        assert_eq!(greedy(&mut tally, "third"), 4);
        assert_eq!(tally.admits("fourth", "0", BOUNDS), Err(Full::Namespace), "nothing is left at last");
        assert_eq!(tally.used(), BOUNDS.all);
    }

    #[test]
    fn a_pod_has_its_part_and_one_of_its_name_elsewhere_has_another() {
        let mut tally = Tally::default();
        for _ in 0..BOUNDS.per_pod {
            assert_eq!(tally.admits("a", "pod", BOUNDS), Ok(()));
            tally.add("a", "pod");
        }
        assert_eq!(tally.admits("a", "pod", BOUNDS), Err(Full::Pod));
        assert_eq!(tally.admits("b", "pod", BOUNDS), Ok(()));
        tally.remove("a", "pod");
        assert_eq!(tally.admits("a", "pod", BOUNDS), Ok(()));
    }

    proptest! {
        /// It counts as a plain list does, however it came to be, and keeps nothing of who has nothing.
        #[test]
        fn it_counts_right(steps in prop::collection::vec((any::<bool>(), 0..3_u8, 0..3_u8), 0..200)) {
            let (mut tally, mut list) = (Tally::default(), Vec::new());
            for (adds, namespace, pod) in steps {
                let (namespace, pod) = (namespace.to_string(), pod.to_string());
                if adds {
                    tally.add(&namespace, &pod);
                    list.push((namespace, pod));
                } else {
                    tally.remove(&namespace, &pod);
                    if let Some(at) = list.iter().position(|one| *one == (namespace.clone(), pod.clone())) {
                        list.swap_remove(at);
                    }
                }
            }
            prop_assert_eq!(tally.used(), list.len());
            for (namespace, pod) in &list {
                let count = list.iter().filter(|(n, p)| n == namespace && p == pod).count();
                prop_assert_eq!(tally.of_pod(namespace, pod), count);
            }
            let mut namespaces: Vec<&String> = list.iter().map(|(namespace, _)| namespace).collect();
            namespaces.sort();
            namespaces.dedup();
            prop_assert_eq!(tally.namespaces.len(), namespaces.len());
        }
    }
}
