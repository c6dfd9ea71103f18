//! What the commands of a transaction have made of a key, before anything is written.

use std::collections::BTreeSet;

use super::args::Clock;
use super::op::{Change, Decision, Made, Op, Put, apply};
use super::refusal::Refusal;
use crate::agent::sessions::{Entry, Exact, Failure, Ttl};
use crate::cache::Known;
use crate::resp::Reply;

/// The state of a key in the workspace.
#[derive(Default)]
enum Became {
    /// As it was read.
    #[default]
    Same,
    /// There is none.
    Nothing,
    /// Another one.
    Other(Made),
}

/// What the commands have made of a key so far.
#[derive(Default)]
pub(super) struct Slot {
    /// The state.
    became: Became,
    /// What becomes of the timeout.
    ttl: Option<Ttl>,
    /// Whether more than the timeout has changed.
    put: bool,
    /// Whether an answer is right only with the timeout that was read.
    whole: bool,
    /// Whether the client knows all fields then, or which ones: by commands that have shown or changed something.
    knows_all: bool,
    knows: BTreeSet<String>,
    events: Vec<&'static str>,
}

impl Slot {
    /// Decides on one command, and keeps what it changes. `base` is the state that was read.
    pub fn run(&mut self, base: Option<&Entry>, op: &Op, now: &Clock) -> Result<Reply, Refusal> {
        let decided = match &self.became {
            Became::Same => op.decide(base, now),
            Became::Nothing => op.decide(None::<&Made>, now),
            Became::Other(made) => op.decide(Some(made), now),
        };
        let Decision { reply, change, events } = decided?;
        if let Change::Expire(ttl, _) | Change::Put(Put { ttl, .. }) = &change {
            // Found out when the session is written, it would be too late to refuse this command alone.
            ttl.at(now.millis()).map_err(Failure::from)?;
        }
        if let Some(base) = base.filter(|_| op.shows() || change != Change::Nothing) {
            match op.known(base) {
                Known::All => self.knows_all = true,
                Known::Only(fields) => self.knows.extend(fields),
            }
        }
        let after = match (&change, &self.became) {
            (Change::Nothing, _) => return Ok(reply),
            (change, Became::Same) => apply(base, change, now),
            (change, Became::Nothing) => apply(None::<&Made>, change, now),
            (change, Became::Other(made)) => apply(Some(made), change, now),
        };
        self.whole |= matches!(change, Change::Expire(_, Exact::Whole) | Change::Delete(Exact::Whole));
        match &change {
            Change::Nothing => {}
            Change::Expire(ttl, _) => self.ttl = Some(*ttl),
            Change::Delete(_) => {
                self.put = true;
                self.ttl = Some(Ttl::Clear);
            }
            Change::Put(put) => {
                self.put = true;
                if put.ttl != Ttl::Keep {
                    self.ttl = Some(put.ttl);
                }
            }
        }
        self.events.extend(events);
        self.became = after.map_or(Became::Nothing, Became::Other);
        Ok(reply)
    }

    /// What the client knows of what the commands make of it, besides what it had before.
    pub fn known(&self) -> Known {
        if self.knows_all { Known::All } else { Known::Only(self.knows.iter().cloned().collect()) }
    }

    /// Bytes of memory that its state takes.
    pub fn weight(&self) -> usize {
        if let Became::Other(made) = &self.became { made.weight() } else { 0 }
    }

    /// Redis's words for what was done.
    pub fn events(&self) -> &[&'static str] {
        &self.events
    }

    /// The one change that all of it comes to.
    pub fn change(&self, base: Option<&Entry>) -> Change {
        let ttl = self.ttl.unwrap_or(Ttl::Keep);
        let exact = if self.whole { Exact::Whole } else { Exact::Yes };
        match (base, &self.became) {
            (_, Became::Same) => Change::Nothing,
            (_, Became::Nothing) => Change::Delete(exact),
            (Some(_), Became::Other(_)) if !self.put => Change::Expire(ttl, if self.whole { exact } else { Exact::No }),
            (_, Became::Other(made)) => Change::Put(Put { map: made.map.clone(), form: Some(made.form), ttl, exact }),
        }
    }
}
