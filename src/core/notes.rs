//! What the events on a session say. Key names, counts and times; never a value.

use std::time::Duration;

/// The API server counts the note's bytes, although its message speaks of characters.
pub const NOTE_LIMIT: usize = 1024;
/// At most so many keys are named.
pub const MAX_KEYS: usize = 16;
const MAX_MANAGERS: usize = 8;
/// At most so many pods are named.
const MAX_PODS: usize = 16;
/// A key may have 253 characters: one that is longer than this many bytes is cut in a note.
const MAX_NAME: usize = 64;

/// Whether an event is about something that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventType {
    /// As the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What one event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Normal or warning.
    pub kind: EventType,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// What was done or tried, in one CamelCase word.
    pub action: &'static str,
    /// The sentence for people.
    pub text: String,
}

impl Note {
    /// The map has changed, and every pod that held a copy has dropped it: that many, of which so many were `silent` until their
    /// leases had ended. `keys` are names.
    pub fn metadata_changed<'a>(
        keys: impl IntoIterator<Item = &'a str>,
        pods: usize,
        silent: usize,
        took: Duration,
    ) -> Self {
        let mut evicted = match pods {
            0 => "no pod held a copy".to_owned(),
            1 => format!("1 pod dropped its copy in {}", human(took)),
            _ => format!("{pods} pods dropped their copies in {}", human(took)),
        };
        if silent > 0 {
            evicted = format!("{evicted}, {silent} of them because the lease has ended");
        }
        let keys = list(keys, MAX_KEYS, NOTE_LIMIT - 256);
        Self {
            kind: EventType::Normal,
            reason: "MetadataChanged",
            action: "Evict",
            text: format!("{evicted}; changed keys: {keys}"),
        }
    }

    /// The same session is evicted again and again. `managers` are the field managers that write its map.
    pub fn eviction_storm<'a>(
        evictions: u64,
        window: Duration,
        keys: impl IntoIterator<Item = &'a str>,
        managers: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let keys = list(keys, MAX_KEYS, 500);
        let managers = list(managers, MAX_MANAGERS, 300);
        let window = human(window);
        Self {
            kind: EventType::Warning,
            reason: "EvictionStorm",
            action: "Evict",
            text: format!("evicted {evictions} times in {window}; changed keys: {keys}; written by: {managers}"),
        }
    }

    /// Pods that may hold a copy have not confirmed that they dropped it.
    pub fn pods_unreachable<'a>(
        pods: impl IntoIterator<Item = &'a str>,
        waited: Duration,
        lease_left: Duration,
    ) -> Self {
        let mut pods = pods.into_iter().peekable();
        let first = pods.next();
        let (who, have, lease, ends, has) = match pods.peek() {
            None => ("pod", "has", "its lease", "ends", "has"),
            Some(_) => ("pods", "have", "their leases", "end", "have"),
        };
        let names = list(first.into_iter().chain(pods), MAX_PODS, NOTE_LIMIT - 192);
        let after = human(waited);
        let text = if lease_left.is_zero() {
            format!("{who} {names} {have} not confirmed an eviction after {after}; {lease} {has} ended")
        } else {
            let left = human(lease_left);
            format!("{who} {names} {have} not confirmed an eviction after {after}; {lease} {ends} within {left}")
        };
        Self { kind: EventType::Warning, reason: "PodUnreachable", action: "Evict", text }
    }
}

/// The first `limit` bytes of `text`, or a little less: characters stay whole.
pub fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// Names in a row: at most `count` of them and about `budget` bytes, then how many more there are.
fn list<'a>(names: impl IntoIterator<Item = &'a str>, count: usize, budget: usize) -> String {
    let mut text = String::new();
    let mut listed = 0_usize;
    let mut more = 0_usize;
    for next in names {
        let next = name(next, MAX_NAME);
        if more > 0 || listed == count || text.len() + next.len() + 2 > budget {
            more += 1;
            continue;
        }
        if listed > 0 {
            text.push_str(", ");
        }
        text.push_str(&next);
        listed += 1;
    }
    match (listed, more) {
        (0, 0) => "none".to_owned(),
        (_, 0) => text,
        (_, more) => format!("{text} and {more} more"),
    }
}

/// A name as it may be shown: short, and without characters that move a terminal's cursor or turn its text around.
fn name(name: &str, limit: usize) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
    };
    let mut shown = String::new();
    for c in name.chars() {
        let c = if hidden(c) { '\u{fffd}' } else { c };
        if shown.len() + c.len_utf8() > limit - '…'.len_utf8() && name.len() > limit {
            shown.push('…');
            break;
        }
        shown.push(c);
    }
    shown
}

/// A duration as people read it: three digits or so, and a unit.
fn human(duration: Duration) -> String {
    let micros = duration.as_micros();
    let tenths = |unit: u128| {
        let tenths = micros * 10 / unit;
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{} ms", tenths(1_000)),
        1_000_000..60_000_000 => format!("{} s", tenths(1_000_000)),
        _ => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metadata_changed_reads_well() {
        let took = Duration::from_micros(1940);
        let note = Note::metadata_changed(["a", "b"], 3, 0, took);
        assert_eq!(note.text, "3 pods dropped their copies in 1.9 ms; changed keys: a, b");
        let note = Note::metadata_changed(["a"], 3, 1, Duration::from_secs(15));
        assert_eq!(
            note.text,
            "3 pods dropped their copies in 15.0 s, 1 of them because the lease has ended; changed keys: a"
        );
        assert_eq!((note.kind, note.reason), (EventType::Normal, "MetadataChanged"));
        let note = Note::metadata_changed(["a"], 1, 0, took);
        assert_eq!(note.text, "1 pod dropped its copy in 1.9 ms; changed keys: a");
        let note = Note::metadata_changed([], 0, 0, took);
        assert_eq!(note.text, "no pod held a copy; changed keys: none");
    }

    #[test]
    fn sixteen_keys_and_then_how_many_more() {
        let keys: Vec<String> = (0..20).map(|number| format!("k{number:02}")).collect();
        let note = Note::metadata_changed(keys.iter().map(String::as_str), 1, 0, Duration::ZERO);
        assert!(note.text.ends_with("k14, k15 and 4 more"), "{}", note.text);
    }

    #[test]
    fn eviction_storm_names_who_writes() {
        let note = Note::eviction_storm(12, Duration::from_mins(1), ["a"], ["kubectl-edit", "agent"]);
        assert_eq!(note.text, "evicted 12 times in 60 s; changed keys: a; written by: kubectl-edit, agent");
        assert_eq!(note.kind, EventType::Warning);
    }

    #[test]
    fn pods_unreachable_says_who_and_until_when() {
        let note = Note::pods_unreachable(["p-0"], Duration::from_secs(5), Duration::from_millis(9999));
        assert_eq!(note.text, "pod p-0 has not confirmed an eviction after 5.0 s; its lease ends within 9.9 s");
        let note = Note::pods_unreachable(["p-0"], Duration::from_secs(15), Duration::ZERO);
        assert_eq!(note.text, "pod p-0 has not confirmed an eviction after 15.0 s; its lease has ended");
        let note = Note::pods_unreachable(["p-0", "p-1"], Duration::from_secs(5), Duration::from_secs(9));
        assert_eq!(
            note.text,
            "pods p-0, p-1 have not confirmed an eviction after 5.0 s; their leases end within 9.0 s"
        );
        let many: Vec<String> = (0..100).map(|n| format!("{n}-{}", "p".repeat(250))).collect();
        let note = Note::pods_unreachable(many.iter().map(String::as_str), Duration::from_secs(15), Duration::ZERO);
        assert!(note.text.len() < NOTE_LIMIT && note.text.ends_with("their leases have ended"), "{}", note.text);
    }

    #[test]
    fn times_are_short() {
        let cases = [(0, "0 µs"), (999, "999 µs"), (1_000, "1.0 ms"), (999_999, "999.9 ms")];
        for (micros, text) in cases {
            assert_eq!(human(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn a_name_cannot_write_lines_of_its_own() {
        assert_eq!(name("a\nb\u{1b}[31m\u{202e}", 64), "a\u{fffd}b\u{fffd}[31m\u{fffd}");
    }

    #[test]
    fn one_long_name_leaves_room_for_others() {
        let text = list(["é".repeat(253).as_str(), "b"], 16, 500);
        assert_eq!(text, format!("{}…, b", "é".repeat(30)));
        assert_eq!(name(&"a".repeat(64), 64), "a".repeat(64));
    }

    proptest! {
        // Long texts in every alphabet take their time to make.
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However many and however long the names are, the note fits with room for its suffix, and its end is there.
        #[test]
        fn notes_fit(
            names in prop::collection::vec("(\\PC|[\\x00-\\x1f]){1,253}", 0..40),
            managers in prop::collection::vec("\\PC{0,128}", 0..20),
        ) {
            let names = || names.iter().map(String::as_str);
            let changed = Note::metadata_changed(names(), usize::MAX, usize::MAX, Duration::MAX);
            prop_assert!(changed.text.len() <= NOTE_LIMIT - 64, "{}", changed.text.len());
            let managers = managers.iter().map(String::as_str);
            let storm = Note::eviction_storm(u64::MAX, Duration::from_mins(10), names(), managers);
            prop_assert!(storm.text.len() <= NOTE_LIMIT - 64, "{}", storm.text.len());
            prop_assert!(storm.text.contains("; written by: "));
            for text in [changed.text, storm.text] {
                prop_assert!(!text.contains(char::is_control));
            }
        }
    }
}
