//! What a write does to a session besides its metadata: its timeout, and how it counts as written.

use std::collections::BTreeMap;
use std::time::Duration;

use super::entry::{ANNOTATION_FORM, Entry, Form};
use super::ttl::{ANNOTATION_EXPIRES_AT, Timeout, Wanted};
use crate::api::{ANNOTATION_RENEWED_AT, MAX_TIMEOUT_SECONDS};
use crate::cache::{Change, IdleTimeout, Metadata};

/// What a write does besides the metadata.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Whether anything of this is not so already, as far as the base tells.
    pub needed: bool,
    pub idle: IdleTimeout,
    pub annotations: BTreeMap<String, Option<String>>,
    pub sets_timeout: bool,
    /// Whether a timeout begins.
    pub begins: bool,
    pub ends_at: Option<u64>,
    /// Whether others whose copies have the older timeout would renew that in memory, or take it for none: they must be told
    /// that it is another one. One that is an instant is nowhere renewed in memory, and asked for when it has passed.
    pub outdates: bool,
    /// Whether others are told of what is in the object already, as far as this agent knows.
    pub repeats: bool,
    /// Whether it only says that the session was used, and all else is so already.
    pub renews: bool,
}

impl Plan {
    pub fn of(base: &Entry, form: Option<Form>, wanted: Wanted, now: u64) -> Self {
        let mut plan = Self::default();
        let has = base.timeout();
        match wanted {
            Wanted::Keep => {}
            Wanted::Clear => {
                plan.idle = IdleTimeout::Clear;
                plan.sets_timeout = true;
                plan.needed = has.is_some();
            }
            Wanted::Begin(_) | Wanted::Over => {
                if let Some(timeout) = begins(wanted, now) {
                    plan.idle = IdleTimeout::Set(Duration::from_secs(seconds_to_write(has, timeout).into()));
                    plan.ends_at = timeout.expires_at;
                    (plan.sets_timeout, plan.begins) = (true, true);
                    plan.needed = has != Some(timeout);
                }
            }
        }
        plan.outdates = plan.needed && has.is_none_or(|has| has.expires_at.is_none());
        if plan.sets_timeout {
            let begun = (plan.begins && plan.ends_at.is_none()).then_some(now);
            for (name, instant) in [(ANNOTATION_EXPIRES_AT, plan.ends_at), (ANNOTATION_RENEWED_AT, begun)] {
                plan.annotations.insert(name.to_owned(), instant.map(|at| at.to_string()));
            }
        }
        if let Some(form) = form {
            plan.annotations.insert(ANNOTATION_FORM.to_owned(), Some(form.as_str().to_owned()));
            plan.needed |= form != base.form();
        }
        plan
    }

    /// The same, which is also needed if a timeout begins anew of which no controller would hear.
    pub fn heard_unless(mut self, unheard: bool) -> Self {
        self.renews = unheard && self.begins && !self.needed;
        self.needed |= self.renews;
        self
    }

    /// The same, which is also needed, and told, if nobody knows what became of an earlier one.
    pub fn again_if(mut self, unsettled: bool) -> Self {
        if unsettled && self.sets_timeout {
            self.repeats = !self.outdates;
            (self.needed, self.outdates, self.renews) = (true, true, false);
        }
        self
    }

    pub fn change(&self, metadata: Option<Metadata>) -> Change {
        Change {
            renews: self.renews && metadata.is_none(),
            metadata,
            idle_timeout: self.idle,
            annotations: self.annotations.clone(),
            outdates_equal: self.outdates,
            repeats: self.repeats,
            ..Change::default()
        }
    }
}

/// The idle timeout of the object. An instant that is just as many seconds away as the idle timeout was long would be an annotation
/// only, which is no new generation: copies of before could not be told from it, and would be renewed in memory. So it is
/// a second more. At the maximum it is one less, which the controller still does not take for the end before the instant: it waits
/// for a batch of uses after that.
fn seconds_to_write(has: Option<Timeout>, timeout: Timeout) -> u32 {
    let seconds = timeout.idle_seconds;
    let is_same = has.is_some_and(|has| has.expires_at.is_none() && has.idle_seconds == seconds);
    match timeout.expires_at {
        Some(_) if is_same && seconds < MAX_TIMEOUT_SECONDS => seconds + 1,
        Some(_) if is_same => seconds - 1,
        _ => seconds,
    }
}

/// The timeout that begins. One that is over at once is written all the same: whoever reads the session finds that it has
/// ended.
pub(super) fn begins(wanted: Wanted, now: u64) -> Option<Timeout> {
    match wanted {
        Wanted::Keep | Wanted::Clear => None,
        Wanted::Begin(timeout) => Some(timeout),
        Wanted::Over => Some(Timeout { idle_seconds: 1, expires_at: Some(now) }),
    }
}
