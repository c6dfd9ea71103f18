//! What is true of commands, as `COMMAND INFO` says it.

/// What is true of a command, in Redis's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// It changes keys.
    pub const WRITE: Self = Self(1);
    /// It reads keys.
    pub const READONLY: Self = Self(1 << 1);
    /// It needs memory.
    pub const DENYOOM: Self = Self(1 << 2);
    /// It is for administrators.
    pub const ADMIN: Self = Self(1 << 3);
    /// It is about channels.
    pub const PUBSUB: Self = Self(1 << 4);
    /// Not from scripts.
    pub const NOSCRIPT: Self = Self(1 << 5);
    /// Also while the data is being loaded.
    pub const LOADING: Self = Self(1 << 6);
    /// Also on a replica that has lost its master.
    pub const STALE: Self = Self(1 << 7);
    /// Not in the slow log.
    pub const SKIP_SLOWLOG: Self = Self(1 << 8);
    /// In constant or logarithmic time.
    pub const FAST: Self = Self(1 << 9);
    /// Without a password.
    pub const NO_AUTH: Self = Self(1 << 10);
    /// Also while a script runs too long.
    pub const ALLOW_BUSY: Self = Self(1 << 11);
    /// Not within `MULTI`.
    pub const NO_MULTI: Self = Self(1 << 12);
    /// Within `MULTI`, it is carried out at once. Redis has no name for this.
    pub const NOT_QUEUED: Self = Self(1 << 13);
    /// Allowed to whoever has subscribed, in RESP2. Redis has no name for this.
    pub const LISTENER: Self = Self(1 << 14);

    /// Names, in the order in which Redis lists them.
    const NAMES: [(Self, &'static str); 13] = [
        (Self::WRITE, "write"),
        (Self::READONLY, "readonly"),
        (Self::DENYOOM, "denyoom"),
        (Self::ADMIN, "admin"),
        (Self::PUBSUB, "pubsub"),
        (Self::NOSCRIPT, "noscript"),
        (Self::LOADING, "loading"),
        (Self::STALE, "stale"),
        (Self::SKIP_SLOWLOG, "skip_slowlog"),
        (Self::FAST, "fast"),
        (Self::NO_AUTH, "no_auth"),
        (Self::ALLOW_BUSY, "allow_busy"),
        (Self::NO_MULTI, "no_multi"),
    ];

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of these are set.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| name)
    }
}
