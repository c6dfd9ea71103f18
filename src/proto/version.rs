//! Which version of the protocol two programs speak with each other.

use std::fmt;

use super::convert::Malformed;

/// The versions of the protocol that a program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest one.
    pub lowest: u32,
    /// The newest one.
    pub highest: u32,
}

/// One of two programs, as a text names it, and the versions that it speaks.
pub type Side = (&'static str, Versions);

impl Versions {
    /// Those of this program.
    pub const OWN: Self = Self { lowest: 1, highest: 1 };

    /// Those that a hello tells of. Zero is what was not said: the first version, and no other than the lowest.
    pub fn told(lowest: u32, highest: u32) -> Self {
        let lowest = lowest.max(1);
        Self { lowest, highest: highest.max(lowest) }
    }

    /// The version that two programs speak with each other: the highest of those that both do. Each finds the same one.
    pub fn agree(one: Side, other: Side) -> Result<u32, Malformed> {
        let (older, newer) = if one.1.highest < other.1.highest { (one, other) } else { (other, one) };
        let version = older.1.highest;
        if version >= newer.1.lowest { Ok(version) } else { Err(Malformed::NoVersion { older, newer }) }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { lowest, highest } if lowest == highest => write!(f, "version {lowest}"),
            Self { lowest, highest } => write!(f, "versions {lowest} to {highest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(agent: (u32, u32), controller: (u32, u32)) -> Result<u32, String> {
        let told = |(lowest, highest)| Versions::told(lowest, highest);
        let there = Versions::agree(("agent", told(agent)), ("controller", told(controller)));
        let back = Versions::agree(("controller", told(controller)), ("agent", told(agent)));
        assert_eq!(there, back, "both sides find the same");
        there.map_err(|apart| apart.to_string())
    }

    #[test]
    fn the_highest_version_that_both_speak_is_used() {
        for (agent, controller, expected) in [
            ((1, 1), (1, 1), 1),
            ((1, 3), (1, 1), 1),
            ((1, 2), (2, 5), 2),
            ((1, 4), (2, 3), 3),
            ((3, 3), (1, 9), 3),
            // Those of before versions were told in ranges, and those that say nothing at all.
            ((1, 0), (1, 2), 1),
            ((0, 0), (1, 2), 1),
            ((2, 1), (1, 2), 2),
        ] {
            assert_eq!(agree(agent, controller), Ok(expected), "{agent:?} {controller:?}");
        }
    }

    #[test]
    fn who_has_none_in_common_is_told_both_ranges_and_what_to_upgrade() {
        let told = |agent, controller| agree(agent, controller).unwrap_err();
        let apart = "no version of the protocol in common";
        let older = "the agent speaks versions 2 to 3, the controller version 1: upgrade the controller";
        assert_eq!(told((2, 3), (1, 1)), format!("{apart}: {older}"));
        let newer = "the controller speaks version 4, the agent versions 2 to 3: upgrade the agent";
        assert_eq!(told((2, 3), (4, 4)), format!("{apart}: {newer}"));
        assert!(told((0, 0), (2, 3)).ends_with("the agent version 1: upgrade the agent"));
        assert!(agree((u32::MAX, u32::MAX), (1, 1)).is_err());
    }
}
