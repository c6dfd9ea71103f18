//! When authorities and certificates are made, used and forgotten. Plain decisions: no clock, no keys, no I/O.
//!
//! An authority is first told to everybody, and signs only when they have had time to hear of it; it is believed until it
//! ends. So at each moment whoever has heard of the bundle of some time ago believes the certificate that is shown, and a
//! replacement interrupts nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Since when something is valid, and until when: seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// When it was made.
    pub made: u64,
    /// When it ends.
    pub ends: u64,
}

impl Validity {
    /// From `now` on for so long.
    pub fn new(now: u64, lifetime: Duration) -> Self {
        Self { made: now, ends: now.saturating_add(lifetime.as_secs().max(1)) }
    }

    /// Whether the last third has begun: time for a successor, with time left if it cannot be made at once.
    fn is_late(&self, now: u64) -> bool {
        now.saturating_sub(self.made) * 3 >= self.ends.saturating_sub(self.made) * 2
    }

    /// Whether it goes on for so long at least.
    fn lasts(&self, now: u64, least: Duration) -> bool {
        self.ends.saturating_sub(now) >= least.as_secs()
    }

    fn is_over(&self, now: u64) -> bool {
        now >= self.ends
    }

    /// Whether it was made by somebody whose clock was ahead, and is believed by nobody yet.
    fn is_of_the_future(&self, now: u64) -> bool {
        self.made > now.saturating_add(AHEAD.as_secs())
    }
}

/// What is made is valid some time before: so much may the clocks of two machines differ.
pub const AHEAD: Duration = Duration::from_mins(5);

/// An authority, as far as it matters when it signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    /// When it is valid.
    pub validity: Validity,
    /// Since when it is in all bundles: seconds since 1970. `None`: it is not, as far as is known.
    pub told: Option<u64>,
}

/// For how long what is made is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// An authority.
    pub authority: Duration,
    /// A certificate for serving.
    pub serving: Duration,
}

impl Lifetimes {
    /// How long an authority is told of before it signs: a twelfth of its life, 30 days of a year. Its successor comes in the
    /// last third, so there is room for it.
    pub fn notice(&self) -> Duration {
        self.authority / 12
    }
}

/// The certificate that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown<'a> {
    /// Which of the authorities has signed it; `None`: one that is no more.
    pub by: Option<usize>,
    /// When it is valid.
    pub validity: Validity,
    /// The names in it.
    pub names: &'a [String],
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forget this authority: it has ended.
    Forget(usize),
    /// Make another authority.
    NewAuthority,
    /// Make another certificate, signed by this authority.
    NewCertificate(usize),
}

/// What is to be done next, if anything. `authorities`: the oldest first. Each step that is done brings another one, or none.
pub fn next(
    authorities: &[Authority],
    shown: Option<Shown<'_>>,
    names: &[String],
    lifetimes: Lifetimes,
    now: u64,
) -> Option<Step> {
    if let Some(over) = authorities.iter().position(|authority| authority.validity.is_over(now)) {
        return Some(Step::Forget(over));
    }
    let believed = |authority: &Authority| !authority.validity.is_of_the_future(now);
    if authorities.last().is_none_or(|newest| newest.validity.is_late(now) || !believed(newest)) {
        return Some(Step::NewAuthority);
    }
    // The newest that everybody knows. If there is none, the oldest is, or will be first. One that is about to end signs no more:
    // where the next one could not be told, nobody would be helped by waiting for the end, and all others would be harmed.
    let notice = lifetimes.notice();
    let known = |authority: &Authority| authority.told.is_some_and(|told| now.saturating_sub(told) >= notice.as_secs());
    let lasts = |authority: &Authority| believed(authority) && authority.validity.lasts(now, notice);
    let signer = authorities.iter().rposition(|authority| known(authority) && lasts(authority));
    let signer = signer.or_else(|| authorities.iter().position(lasts)).unwrap_or(0);
    let fits = |validity: Validity| !validity.is_late(now) && !validity.is_of_the_future(now);
    let good = shown.is_some_and(|shown| shown.by == Some(signer) && fits(shown.validity) && shown.names == names);
    if good { None } else { Some(Step::NewCertificate(signer)) }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes { authority: Duration::from_mins(20), serving: Duration::from_mins(2) };

    /// What is kept, followed through time.
    #[derive(Default)]
    struct Kept {
        authorities: Vec<Authority>,
        shown: Option<(Authority, Validity)>,
        names: Vec<String>,
    }

    impl Kept {
        fn act(&mut self, names: &[String], lifetimes: Lifetimes, now: u64) {
            for _ in 0..10 {
                let shown = self.shown.map(|(by, validity)| Shown {
                    by: self.authorities.iter().position(|authority| authority.validity == by.validity),
                    validity,
                    names: &self.names,
                });
                match next(&self.authorities, shown, names, lifetimes, now) {
                    None => return,
                    Some(Step::Forget(at)) => drop(self.authorities.remove(at)),
                    Some(Step::NewAuthority) => {
                        let validity = Validity::new(now, lifetimes.authority);
                        self.authorities.push(Authority { validity, told: Some(now) });
                    }
                    Some(Step::NewCertificate(by)) => {
                        let by = self.authorities[by];
                        let mut validity = Validity::new(now, lifetimes.serving);
                        validity.ends = validity.ends.min(by.validity.ends);
                        self.shown = Some((by, validity));
                        self.names = names.to_vec();
                    }
                }
            }
            panic!("it never comes to an end");
        }
    }

    proptest! {
        /// Whenever the controller gets to it, within a time that is short beside the lifetimes: who knows the bundle of a
        /// notice ago believes the certificate, it has not ended, and no more than three authorities are kept.
        #[test]
        fn whoever_has_heard_in_time_always_believes(
            authority in 1_200_u64..400_000, part in 2_u64..20, pauses in proptest::collection::vec(1_u64..100, 50..200),
        ) {
            let lifetimes = Lifetimes {
                authority: Duration::from_secs(authority),
                serving: Duration::from_secs(authority / part),
            };
            let (mut kept, mut now) = (Kept::default(), 1_000_000);
            let mut bundles: VecDeque<(u64, Vec<Authority>)> = VecDeque::new();
            let names = vec!["a".to_owned()];
            for pause in pauses {
                kept.act(&names, lifetimes, now);
                bundles.push_back((now, kept.authorities.clone()));
                let heard = now.saturating_sub(lifetimes.notice().as_secs());
                // Up to a twentieth of a certificate's life may pass until the next look.
                now += (pause * (authority / part) / 2_000).max(1);
                let (by, validity) = kept.shown.unwrap();
                prop_assert!(!validity.is_over(now) && !by.validity.is_over(now), "it has ended");
                prop_assert!(kept.authorities.len() <= 3);
                let bundle = bundles.iter().rfind(|(at, _)| *at <= heard);
                if let Some((_, bundle)) = bundle {
                    prop_assert!(bundle.contains(&by), "somebody does not believe it yet");
                }
            }
        }
    }

    #[test]
    fn other_names_need_another_certificate() {
        let (mut kept, names) = (Kept::default(), ["a".to_owned(), "b".to_owned()]);
        kept.act(&names[..1], LIFETIMES, 100);
        let first = kept.shown;
        kept.act(&names[..1], LIFETIMES, 101);
        assert_eq!(kept.shown, first);
        kept.act(&names, LIFETIMES, 101);
        assert_ne!(kept.shown, first);
        assert_eq!(kept.authorities.len(), 1);
    }

    #[test]
    fn an_authority_signs_when_its_predecessor_is_in_its_last_third_and_all_have_had_notice() {
        let mut kept = Kept::default();
        let mut signers = Vec::new();
        for now in 0..1_300 {
            kept.act(&[], LIFETIMES, now);
            let (by, _) = kept.shown.unwrap();
            let made = by.validity.made;
            if signers.last().is_none_or(|(before, _)| *before != made) {
                signers.push((made, now));
            }
        }
        assert_eq!(signers, [(0, 0), (800, 900)]);
        let validity = Validity { made: 800, ends: 2_000 };
        assert_eq!(kept.authorities, [Authority { validity, told: Some(800) }]);
    }

    #[test]
    fn what_was_made_by_a_clock_that_was_ahead_is_replaced_when_the_clock_is_right() {
        // Of an authority that nobody believes yet, and of a certificate only.
        for ahead in [LIFETIMES.authority.as_secs() * 2, LIFETIMES.serving.as_secs() / 3 + AHEAD.as_secs()] {
            let now = 1_000_000;
            let mut kept = Kept::default();
            kept.act(&[], LIFETIMES, now - 10);
            kept.act(&[], LIFETIMES, now + ahead);
            kept.shown = kept.shown.map(|(by, _)| (by, Validity::new(now + ahead, LIFETIMES.serving)));
            kept.act(&[], LIFETIMES, now);
            let (by, validity) = kept.shown.unwrap();
            assert!(by.validity.made <= now && validity.made <= now, "{by:?} {validity:?}");
        }
    }

    #[test]
    fn an_authority_that_not_all_were_told_of_signs_only_when_there_is_no_other() {
        let authority = |made, told| Authority { validity: Validity { made, ends: made + 1_200 }, told };
        let signer = |authorities: &[Authority], now| next(authorities, None, &[], LIFETIMES, now);
        let (old, untold) = (authority(0, Some(0)), authority(800, None));
        assert_eq!(signer(&[old, untold], 1_100), Some(Step::NewCertificate(0)));
        assert_eq!(signer(&[old, untold], 1_101), Some(Step::NewCertificate(1)), "the old one is about to end");
        assert_eq!(signer(&[old, untold], 1_200), Some(Step::Forget(0)));
        assert_eq!(signer(&[untold], 1_200), Some(Step::NewCertificate(0)));
    }
}
