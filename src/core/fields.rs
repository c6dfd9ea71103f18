//! A map of strings that does not change any more, in little memory: what pods keep of `spec.metadata`.
//!
//! A tree of strings takes an allocation for each key and each value and hundreds of bytes for its nodes. Here all of them stand in
//! one text, sorted, and a second piece of memory says where each ends. Mostly that text is the JSON object that the map is, so that
//! who answers with JSON has nothing left to do.

use std::fmt;
use std::sync::Arc;

use serde::ser::{Serialize, Serializer};

use super::digest::Metadata;

/// An immutable map of strings, sorted by the bytes of its keys. Cheap to clone.
///
/// It can hold less than 4 GiB in all; etcd takes a two-thousandth of that. Its `Debug` output shows keys and no values (I6).
#[derive(Clone, PartialEq, Eq)]
pub struct Fields {
    text: Arc<str>,
    /// Of each field, sorted: where its key ends in the text, and where its value does.
    ends: Arc<[[u32; 2]]>,
    /// Whether the text is JSON.
    is_json: bool,
}

/// What stands before the first key of a JSON object, between a key and its value, and between a value and the next key.
const OPENS: &str = "{\"";
const COLON: &str = "\":\"";
const COMMA: &str = "\",\"";

/// Whether a text stands in JSON as it is, and nothing in it needs an escape.
#[inline]
#[allow(clippy::needless_bitwise_bool, reason = "without a way out of the loop, many bytes are looked at at once")]
pub fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'))
}

impl Fields {
    /// The fields of `map`.
    pub fn of(map: &Metadata) -> Self {
        let is_json = map.iter().all(|(key, value)| is_plain(key) && is_plain(value));
        let between = |text| if is_json { text } else { "" };
        let length: usize = map.iter().map(|(key, value)| key.len() + value.len() + between(COLON).len() * 2).sum();
        let mut text = String::with_capacity(length + OPENS.len());
        let end = |text: &String| u32::try_from(text.len()).unwrap_or(u32::MAX);
        let ends = map.iter().enumerate().map(|(at, (key, value))| {
            text.push_str(between(if at == 0 { OPENS } else { COMMA }));
            text.push_str(key);
            let key_ends = end(&text);
            text.push_str(between(COLON));
            text.push_str(value);
            [key_ends, end(&text)]
        });
        let ends = ends.collect();
        text.push_str(between(if map.is_empty() { "{}" } else { "\"}" }));
        Self { text: text.into(), ends, is_json }
    }

    /// How many fields there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The field at this place, of those sorted by key.
    #[inline]
    fn at(&self, place: usize) -> (&str, &str) {
        let gap = |text: &str| if self.is_json { text.len() } else { 0 };
        let begins = match place.checked_sub(1) {
            None => gap(OPENS),
            Some(before) => self.ends[before][1] as usize + gap(COMMA),
        };
        let [key_ends, ends] = self.ends[place].map(|end| end as usize);
        let part = |from, to| self.text.get(from..to).unwrap_or_default();
        (part(begins, key_ends), part(key_ends + gap(COLON), ends))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let (found, value) = self.at(middle);
            match found.cmp(key) {
                std::cmp::Ordering::Equal => return Some(value),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All keys with their values, sorted by key.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        (0..self.len()).map(|place| self.at(place))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }

    /// A map of its own, to be changed.
    pub fn to_map(&self) -> Metadata {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The JSON object that the map is, without spaces; `None` if it would need escapes.
    #[inline]
    pub fn json(&self) -> Option<&str> {
        self.is_json.then_some(&*self.text)
    }

    /// Bytes of memory behind it, roughly and rather more than less.
    pub fn footprint(&self) -> usize {
        /// Reference counts of both pieces, and what an allocator rounds up by; long texts more.
        const OVERHEAD: usize = 64;
        OVERHEAD + self.text.len() + self.text.len() / 8 + size_of_val(&*self.ends)
    }
}

impl From<&Metadata> for Fields {
    fn from(map: &Metadata) -> Self {
        Self::of(map)
    }
}

impl PartialEq<Metadata> for Fields {
    fn eq(&self, map: &Metadata) -> bool {
        self.len() == map.len() && self.iter().eq(map.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys()).finish()
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Maps whose texts need escapes, and maps whose texts need none.
    fn maps() -> impl Strategy<Value = Metadata> {
        prop_oneof![
            proptest::collection::btree_map("[a-c\u{fc}]{0,2}", "[x-z\u{1f600}]{0,3}", 0..6),
            proptest::collection::btree_map("[a-c\"]{0,2}", "[x\\\\\n\"]{0,3}", 0..6),
        ]
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_the_map_is(map in maps(), other in maps(), key in "[a-c\"]{0,2}") {
            let fields = Fields::of(&map);
            prop_assert_eq!(&fields.to_map(), &map);
            prop_assert_eq!((fields.len(), fields.is_empty()), (map.len(), map.is_empty()));
            for key in map.keys().chain([&key]) {
                prop_assert_eq!(fields.get(key), map.get(key).map(String::as_str));
                prop_assert_eq!(fields.contains_key(key), map.contains_key(key));
            }
            prop_assert!(fields.keys().eq(map.keys()));
            prop_assert!(fields == map);
            prop_assert_eq!(fields == other, map == other);
            prop_assert_eq!(fields == Fields::of(&other), map == other);
            let json = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(serde_json::to_string(&fields).unwrap(), json.clone());
            let plain = map.iter().all(|(key, value)| is_plain(key) && is_plain(value));
            prop_assert_eq!(fields.json(), plain.then_some(json.as_str()));
        }

        #[test]
        fn a_text_is_plain_if_json_has_it_as_it_is(text in "[\u{0}-\u{2f}\"\\\\\u{7f}-\u{100}a]{0,3}") {
            prop_assert_eq!(is_plain(&text), serde_json::to_string(&text).unwrap() == format!("\"{text}\""));
        }
    }

    #[test]
    fn no_value_is_shown() {
        let fields = Fields::of(&Metadata::from([("k".into(), "canary".into())]));
        assert_eq!(format!("{fields:?}"), r#"{"k"}"#);
    }
}
