//! A map of strings that does not change any more, in little memory: what pods keep of `spec.metadata`.
//!
//! A tree of strings takes an allocation for each key and each value and hundreds of bytes for its nodes. Here all of them stand in
//! one text, sorted, and behind them, in the same text, where each ends. Mostly the first part is the JSON object that the map is, so
//! that who answers with JSON has nothing left to do.

use std::fmt;

use serde::ser::{Serialize, Serializer};

use super::digest::Metadata;

/// An immutable map of strings, sorted by the bytes of its keys.
///
/// It can hold less than 4 GiB in all; etcd takes a two-thousandth of that. Its `Debug` output shows keys and no values (I6).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fields {
    /// The fields, and behind them two numbers for each, sorted: where its key ends, and where its value does.
    text: Box<str>,
    /// Where the fields end, and the numbers begin.
    end: u32,
    /// Whether the fields' text is JSON.
    is_json: bool,
}

/// Each number has as many digits as the highest one needs. A digit is an ASCII character, so that it can stand in a text.
const BITS_PER_DIGIT: u32 = 7;

/// How many digits each number has, if none is above `most`.
#[inline]
fn digits(most: u32) -> usize {
    (u32::BITS - most.leading_zeros()).div_ceil(BITS_PER_DIGIT).max(1) as usize
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
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let room: usize = map.iter().map(|(key, value)| key.len() + value.len() + between(COLON).len() * 2).sum();
        let room = room + OPENS.len();
        let mut text = String::with_capacity(room + 2 * map.len() * digits(length(room)));
        let mut numbers = Vec::with_capacity(2 * map.len());
        for (at, (key, value)) in map.iter().enumerate() {
            text.push_str(between(if at == 0 { OPENS } else { COMMA }));
            text.push_str(key);
            numbers.push(length(text.len()));
            text.push_str(between(COLON));
            text.push_str(value);
            numbers.push(length(text.len()));
        }
        text.push_str(between(if map.is_empty() { "{}" } else { "\"}" }));
        let end = length(text.len());
        for number in numbers {
            let digit = |place: usize| number >> (place * BITS_PER_DIGIT as usize) & ((1 << BITS_PER_DIGIT) - 1);
            text.extend((0..digits(end)).rev().filter_map(|place| char::from_u32(digit(place))));
        }
        Self { text: text.into(), end, is_json }
    }

    /// How many fields there are.
    #[inline]
    pub fn len(&self) -> usize {
        (self.text.len() - self.end as usize) / (2 * digits(self.end))
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.text.len() == self.end as usize
    }

    /// Where the key of the field at this place ends, and where its value does.
    #[inline]
    fn ends(&self, place: usize) -> [usize; 2] {
        let digits = digits(self.end);
        let number = |at: usize| {
            let begins = self.end as usize + at * digits;
            let number = self.text.as_bytes().get(begins..begins + digits).unwrap_or_default();
            number.iter().fold(0, |number, digit| number << BITS_PER_DIGIT | usize::from(*digit))
        };
        [number(2 * place), number(2 * place + 1)]
    }

    /// The field at this place, of those sorted by key.
    #[inline]
    fn at(&self, place: usize) -> (&str, &str) {
        let gap = |text: &str| if self.is_json { text.len() } else { 0 };
        let begins = match place.checked_sub(1) {
            None => gap(OPENS),
            Some(before) => self.ends(before)[1] + gap(COMMA),
        };
        let [key_ends, ends] = self.ends(place);
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
        self.text.get(..self.end as usize).filter(|_| self.is_json)
    }

    /// Bytes of memory behind it, roughly and rather more than less.
    pub fn footprint(&self) -> usize {
        /// What an allocator rounds up by; long texts more.
        const OVERHEAD: usize = 24;
        OVERHEAD + self.text.len() + self.text.len() / 8
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

    /// One digit more is needed from 128, from 16,384 and from 2,097,152 bytes on.
    #[test]
    fn numbers_have_as_many_digits_as_they_need() {
        let needed = [(100, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4)];
        for (length, digits) in needed {
            let map = Metadata::from([("a".into(), "x".repeat(length - 17)), ("b".into(), "yz".into())]);
            let fields = Fields::of(&map);
            assert_eq!(fields.json().map(str::len), Some(length));
            assert_eq!((fields.get("b"), fields.len()), (Some("yz"), 2));
            assert!(fields == map);
            assert_eq!(fields.text.len(), length + 4 * digits);
        }
    }

    /// Caches count with it: what is held must not be more than they say, nor much less.
    #[test]
    fn it_takes_as_much_memory_as_it_says() {
        for (keys, length) in [(0, 0), (1, 1), (8, 20), (8, 500), (60, 1), (60, 50), (1, 1 << 20)] {
            let map: Metadata = (0..keys).map(|key| (format!("key-{key:02}"), "x".repeat(length))).collect();
            let mut fields = None;
            let taken = allocation_counter::measure(|| fields = Some(Fields::of(&map))).bytes_current;
            let (taken, said) = (usize::try_from(taken).unwrap(), fields.unwrap().footprint());
            assert!((taken + 16..=taken + taken / 8 + 24).contains(&said), "{keys}, {length}: {taken}, not {said}");
        }
    }

    #[test]
    fn no_value_is_shown() {
        let fields = Fields::of(&Metadata::from([("k".into(), "canary".into())]));
        assert_eq!(format!("{fields:?}"), r#"{"k"}"#);
    }
}
