//! One session as a client of this pod sees it.

use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ttl::{Deadline, Timeout, expires_at};
use super::value;
use crate::cache::{Beside, Digest, LocalValues, Metadata, Session};

/// Annotation that says how a session was written.
pub const ANNOTATION_FORM: &str = "vmcp.dev/form";

/// How a session was written, which `TYPE` answers. Either can be read both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// By `SET`: a JSON object of strings.
    String,
    /// By `HSET`, or by somebody who does not speak Redis.
    Hash,
}

impl Form {
    /// The form in one word: what `TYPE` answers, and what the annotation holds.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Hash => "hash",
        }
    }
}

/// One state of a session as a client of this pod sees it: `spec.metadata`, with what is true only in this pod merged in.
/// Cheap to clone. Its `Debug` output shows keys and no values.
#[derive(Clone)]
pub struct Entry {
    session: Session,
    local: Option<Arc<LocalValues>>,
    /// When a client of this pod renewed it last, in milliseconds since 1970.
    renewed: Option<u64>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let local: Vec<_> = self.local.iter().flat_map(|local| local.keys()).collect();
        f.debug_struct("Entry")
            .field("session", &self.session)
            .field("local", &local)
            .field("renewed", &self.renewed)
            .finish()
    }
}

impl Entry {
    #[inline]
    pub(super) fn new(session: Session, beside: Beside) -> Self {
        Self { session, local: beside.local, renewed: beside.renewal.map(|renewal| renewal.wall) }
    }

    /// The fields, sorted by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let shared = self.session.metadata().iter();
        let local = self.local.as_deref().map(LocalValues::iter).unwrap_or_default();
        let local = local.map(|(field, value)| (field.as_str(), value.as_str()));
        Merged { shared: shared.peekable(), local: local.peekable() }
    }

    /// The value of a field.
    pub fn get(&self, field: &str) -> Option<&str> {
        let local = self.local.as_ref().and_then(|local| local.get(field));
        local.map(String::as_str).or_else(|| self.session.get(field))
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        if self.local.is_none() { self.session.metadata().len() } else { self.fields().count() }
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.session.metadata().is_empty() && self.local.is_none()
    }

    /// All fields as a map of its own, to change and hand to [`Sessions::replace`](super::Sessions::replace).
    pub fn to_map(&self) -> Metadata {
        self.fields().map(|(field, value)| (field.to_owned(), value.to_owned())).collect()
    }

    /// How it was written.
    pub fn form(&self) -> Form {
        match self.session.facts().annotations.get(ANNOTATION_FORM) {
            Some("string") => Form::String,
            _ => Form::Hash,
        }
    }

    /// The session in the cache: its uid, generation and digest are what `WATCH` compares.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session as a string: a JSON object with its keys sorted, without spaces.
    pub fn json(&self) -> Bytes {
        if let Some(json) = self.ready_json() {
            return Bytes::copy_from_slice(json.as_bytes());
        }
        let mut json = Vec::with_capacity(value::plain_length(self.fields()));
        value::write_object(self.fields(), &mut json);
        json.into()
    }

    /// Bytes of [`Self::json`].
    pub fn json_len(&self) -> usize {
        self.ready_json().map_or_else(|| value::object_length(self.fields()), str::len)
    }

    /// [`Self::json`], if the copy has it so.
    #[inline]
    fn ready_json(&self) -> Option<&str> {
        self.session.metadata().json().filter(|_| self.local.is_none())
    }

    /// When it ends as far as this agent knows, in milliseconds since 1970; `None` if it has no timeout.
    pub fn deadline(&self) -> Option<u64> {
        self.ends().map(|deadline| deadline.at)
    }

    /// How long it still lives at `now` (milliseconds since 1970); `None` if it has no timeout.
    pub fn remaining(&self, now: u64) -> Option<Duration> {
        self.deadline().map(|at| Duration::from_millis(at.saturating_sub(now)))
    }

    pub(super) fn ends(&self) -> Option<Deadline> {
        Deadline::of(self.session.facts(), self.renewed)
    }

    /// The timeout as the object has it.
    pub(super) fn timeout(&self) -> Option<Timeout> {
        let facts = self.session.facts();
        Some(Timeout { idle_seconds: facts.idle_timeout_seconds?, expires_at: expires_at(facts) })
    }

    /// What tells the values that are true only in this pod from others: `WATCH` compares it, too.
    pub fn local_digest(&self) -> Option<Digest> {
        self.local.as_deref().map(Digest::of)
    }

    pub(super) fn local(&self) -> Option<&LocalValues> {
        self.local.as_deref()
    }

    /// The names of the fields that are true only in this pod.
    pub fn local_names(&self) -> impl Iterator<Item = &str> {
        self.local.iter().flat_map(|local| local.keys()).map(String::as_str)
    }

    pub(super) fn with_local(self, local: LocalValues) -> Self {
        Self { local: (!local.is_empty()).then(|| Arc::new(local)), ..self }
    }

    pub(super) fn renewed(self, at: u64) -> Self {
        Self { renewed: Some(at), ..self }
    }
}

/// Two sorted sequences of fields as one. Where both have a field, that of this pod stands.
struct Merged<S: Iterator, L: Iterator> {
    shared: Peekable<S>,
    local: Peekable<L>,
}

impl<'a, S, L> Iterator for Merged<S, L>
where
    S: Iterator<Item = (&'a str, &'a str)>,
    L: Iterator<Item = (&'a str, &'a str)>,
{
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let Some((local, _)) = self.local.peek() else {
            return self.shared.next();
        };
        match self.shared.peek() {
            Some((shared, _)) if shared < local => self.shared.next(),
            Some((shared, _)) if shared == local => {
                self.shared.next();
                self.local.next()
            }
            _ => self.local.next(),
        }
    }

    /// Most sessions have no values of this pod: then there is nothing to compare, field by field.
    fn fold<B, F: FnMut(B, Self::Item) -> B>(mut self, mut folded: B, mut f: F) -> B {
        while self.local.peek().is_some() {
            let Some(field) = self.next() else { break };
            folded = f(folded, field);
        }
        self.shared.fold(folded, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(map: &Metadata) -> impl Iterator<Item = (&str, &str)> {
        map.iter().map(|(field, value)| (field.as_str(), value.as_str()))
    }

    proptest! {
        #[test]
        fn what_is_local_is_merged_in_order_and_stands_before_what_is_shared(
            shared in proptest::collection::btree_map("[a-d]{1,2}", "s", 0..6),
            local in proptest::collection::btree_map("[a-d]{1,2}", "l", 0..6),
        ) {
            let merged = || Merged { shared: fields(&shared).peekable(), local: fields(&local).peekable() };
            let mut folded = Vec::new();
            merged().for_each(|field| folded.push(field));
            let merged: Vec<_> = std::iter::from_fn({
                let mut merged = merged();
                move || merged.next()
            })
            .collect();
            prop_assert_eq!(&folded, &merged);
            let mut expected = shared.clone();
            expected.extend(local.clone());
            let expected: Vec<_> = fields(&expected).collect();
            prop_assert_eq!(merged, expected);
        }
    }
}
