//! A session as a string: a JSON object of strings.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::failure::Failure;
use crate::api::{MAX_KEY_CHARS, MAX_KEYS, MAX_METADATA_BYTES, MAX_VALUE_CHARS};
use crate::cache::{Metadata, is_plain};

/// What a value must be.
const RIGHT: &str = r#"the value of a session is a JSON object of strings, as in {"user":"a","backends":"b,c"}"#;

/// Reads the value of a `SET`: a JSON object of strings within the limits of the resource. The error says what would be
/// right, and repeats no value.
pub fn parse_value(value: &[u8]) -> Result<Metadata, Failure> {
    let mut json = serde_json::Deserializer::from_slice(value);
    let parsed = json.deserialize_any(Object).and_then(|map| json.end().map(|()| map));
    let map = parsed.map_err(|error| wrong(&error))?;
    check_limits(&map)?;
    Ok(map)
}

/// Refuses a map that the resource does not allow, before anything is sent.
pub fn check_limits(map: &Metadata) -> Result<(), Failure> {
    let refused = |what: String| Err(Failure::invalid(format!("the session cannot be written: {what}")));
    if map.len() > MAX_KEYS {
        return refused(format!("it would have {} fields, {MAX_KEYS} are allowed", map.len()));
    }
    let mut bytes = 0;
    for (key, value) in map {
        bytes += key.len() + value.len();
        if key.is_empty() || too_long(key, MAX_KEY_CHARS) {
            return refused(format!("the name of a field has 1 to {MAX_KEY_CHARS} characters"));
        }
        if too_long(value, MAX_VALUE_CHARS) {
            return refused(format!("the value of {} has more than {MAX_VALUE_CHARS} characters", shown(key)));
        }
    }
    if bytes > MAX_METADATA_BYTES {
        return refused(format!("fields and values together would have more than {MAX_METADATA_BYTES} bytes"));
    }
    Ok(())
}

/// Whether a text has more than `most` characters. Most texts are so short that nothing need be counted.
fn too_long(text: &str, most: usize) -> bool {
    text.len() > most && text.chars().count() > most
}

/// What is wrong with a text that is no such object. Its place is told, never what stands there (I6).
fn wrong(error: &serde_json::Error) -> Failure {
    use serde_json::error::Category;
    let what: Cow<'_, str> = match error.classify() {
        // Ours, without any value.
        Category::Data => {
            let text = error.to_string();
            text.split_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned()).into()
        }
        Category::Eof => "it ends too early".into(),
        Category::Syntax | Category::Io => {
            format!("it is no JSON from line {}, column {} on", error.line(), error.column()).into()
        }
    };
    Failure::invalid(format!("{RIGHT}: {what}"))
}

/// A field's name for a message: quoted, and not longer than a line.
fn shown(key: &str) -> String {
    const MOST: usize = 64;
    let short: String = key.chars().take(MOST).collect();
    let more = if short.len() < key.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// The object. Nothing that is nested in it is read, so the depth of what comes does not matter.
struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Metadata, A::Error> {
        let mut map = Metadata::new();
        while let Some(key) = fields.next_key::<String>()? {
            if map.len() == MAX_KEYS && !map.contains_key(&key) {
                return Err(A::Error::custom(format!("it has more than {MAX_KEYS} fields")));
            }
            let value = fields.next_value_seed(Text(&key))?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the field {} is there twice", shown(&key))));
            }
            map.insert(key, value);
        }
        Ok(map)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Metadata, E> {
        Err(E::custom("it is a boolean"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Metadata, E> {
        Err(E::custom("it is a number"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Metadata, E> {
        Err(E::custom("it is a number"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Metadata, E> {
        Err(E::custom("it is a number"))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Metadata, E> {
        Err(E::custom("it is a JSON string"))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Metadata, E> {
        Err(E::custom("it is null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Metadata, A::Error> {
        Err(A::Error::custom("it is an array"))
    }
}

/// The value of a field.
struct Text<'a>(&'a str);

impl Text<'_> {
    fn is<E: serde::de::Error>(&self, what: &str) -> E {
        E::custom(format!("the value of {} is {what}, not a string", shown(self.0)))
    }
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<String, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<String, E> {
        Err(self.is("a boolean"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<String, E> {
        Err(self.is("a number"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<String, E> {
        Err(self.is("a number"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<String, E> {
        Err(self.is("a number"))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
        Err(self.is("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        Err(self.is("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        Err(self.is("an object"))
    }
}

/// Appends fields as a JSON object without spaces, in the order in which they come.
pub(super) fn write_object<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>, out: &mut Vec<u8>) {
    out.push(b'{');
    // In a closure: iterators that are made of others go through all of them faster than they are asked for the next.
    fields.enumerate().for_each(|(at, (key, value))| {
        if at > 0 {
            out.push(b',');
        }
        write_string(key, out);
        out.push(b':');
        write_string(value, out);
    });
    out.push(b'}');
}

/// Appends a JSON string, with the escapes that JSON demands and no others.
fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    if is_plain(text) {
        out.extend_from_slice(bytes);
        out.push(b'"');
        return;
    }
    let mut plain = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= b' ' && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain..at]);
        plain = at + 1;
        match *byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let digit = |nibble: u8| HEX[usize::from(nibble & 0xf)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(control >> 4), digit(control)]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
}

/// Bytes that [`write_object`] appends if nothing is to be escaped: found without a look at them.
pub(super) fn plain_length<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> usize {
    // Quotes and a colon for each, a comma between each two, the braces.
    fields.map(|(key, value)| key.len() + value.len() + 6).sum::<usize>().max(1) + 1
}

/// Bytes that [`write_object`] appends.
pub(super) fn object_length<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> usize {
    let fields = fields.map(|(key, value)| string_length(key) + string_length(value) + 2);
    // A colon for each, a comma between each two, the braces.
    fields.sum::<usize>().max(1) + 1
}

fn string_length(text: &str) -> usize {
    if is_plain(text) {
        return text.len() + 2;
    }
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | 0x08 | 0x0c | b'\n' | b'\r' | b'\t' => 1,
        0..b' ' => 5,
        _ => 0,
    };
    text.len() + 2 + text.as_bytes().iter().map(escaped).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(value: impl AsRef<[u8]>) -> String {
        let text = parse_value(value.as_ref()).unwrap_err().text();
        assert!(text.starts_with("ERR ") && !text.contains(['\r', '\n']), "{text}");
        text.into_owned()
    }

    fn map(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn fields(map: &Metadata) -> impl Iterator<Item = (&str, &str)> {
        map.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_serde_json_writes_and_reads_back(map in proptest::collection::btree_map("[^\u{0}]{1,6}", "(?s).{0,8}", 0..5)) {
            let mut out = Vec::new();
            write_object(fields(&map), &mut out);
            prop_assert_eq!(&out, &serde_json::to_vec(&map).unwrap());
            prop_assert_eq!(object_length(fields(&map)), out.len());
            prop_assert!(plain_length(fields(&map)) <= out.len());
            let plain = map.iter().all(|(k, v)| is_plain(k) && is_plain(v));
            prop_assert_eq!(plain_length(fields(&map)) == out.len(), plain);
            prop_assert_eq!(parse_value(&out).unwrap(), map);
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_value(&bytes);
        }

        #[test]
        fn no_value_is_repeated_in_an_error(start in "[\\[{\":a0 ]{0,6}", end in "[\\]}\":,a0 ]{0,6}") {
            // It has one field at most, so what stands after the colon names none.
            let value = format!("{{\"k\":{start}canary{end}");
            if let Err(failure) = parse_value(value.as_bytes()) {
                prop_assert!(!failure.text().contains("canary"), "{}", failure.text());
            }
        }
    }

    #[test]
    fn an_object_of_strings_is_taken_in_whatever_way_it_is_written() {
        assert_eq!(parse_value(b"{}").unwrap(), Metadata::new());
        let spaced = "\n{ \"b\" : \"\\u00e9\\n\" ,\t\"a\":\"\"} ";
        assert_eq!(parse_value(spaced.as_bytes()).unwrap(), map(&[("a", ""), ("b", "é\n")]));
    }

    #[test]
    fn anything_else_is_refused_with_what_would_be_right() {
        for (value, what) in [
            ("canary", "no JSON from line 1, column 1"),
            ("", "ends too early"),
            ("{\"a\":\"canary\"", "ends too early"),
            ("{\"a\":\"canary\"} x", "no JSON from line 1, column 16"),
            ("[\"canary\"]", "it is an array"),
            ("\"canary\"", "it is a JSON string"),
            ("17", "it is a number"),
            ("-1.5e3", "it is a number"),
            ("true", "it is a boolean"),
            ("null", "it is null"),
            ("{\"a\":17}", "the value of \"a\" is a number"),
            ("{\"a\":1.5}", "the value of \"a\" is a number"),
            ("{\"a\":false}", "the value of \"a\" is a boolean"),
            ("{\"a\":null}", "the value of \"a\" is null"),
            ("{\"a\":[\"canary\"]}", "the value of \"a\" is an array"),
            ("{\"a\":{\"b\":\"canary\"}}", "the value of \"a\" is an object"),
            ("{\"a\":\"canary\",\"a\":\"canary\"}", "the field \"a\" is there twice"),
            ("{\"a\\n\":\"\",\"a\\n\":\"\"}", "the field \"a\\n\" is there twice"),
            ("{\"a\":\"\\ud800\"}", "no JSON"),
            ("{\"\":\"canary\"}", "the name of a field has 1 to 253 characters"),
        ] {
            let text = refused(value);
            assert!(text.contains(what), "{value}: {text}");
            assert!(!text.contains("canary"), "{text}");
            assert!(text.contains("{\"user\"") || value.starts_with("{\"\""), "{text}");
        }
        assert!(refused(b"{\"a\":\"\xff\"}").contains("no JSON"));
    }

    #[test]
    fn nesting_however_deep_is_refused_at_its_first_level() {
        assert!(refused("[".repeat(800_000)).contains("array"));
        assert!(refused("{\"a\":".repeat(200_000)).contains("an object"));
    }

    #[test]
    fn the_limits_of_the_resource_hold_before_anything_is_sent() {
        let object = |n: usize| -> Metadata { (0..n).map(|n| (format!("k{n}"), String::new())).collect() };
        assert!(parse_value(&serde_json::to_vec(&object(256)).unwrap()).is_ok());
        assert!(refused(serde_json::to_vec(&object(257)).unwrap()).contains("256 fields"));
        assert!(check_limits(&object(257)).is_err());
        let check = |key: &str, value: &str| check_limits(&map(&[(key, value)]));
        assert!(check(&"é".repeat(253), &"é".repeat(65_536)).is_ok());
        assert!(check(&"é".repeat(254), "").is_err());
        let text = check(&"n".repeat(200), &"v".repeat(65_537)).unwrap_err().text();
        assert!(text.contains("nnn\"…") && !text.contains("vv") && text.len() < 200, "{text}");
        let large: Metadata = (0..17).map(|n| (format!("k{n:02}"), "v".repeat(65_000))).collect();
        assert!(check_limits(&large).unwrap_err().text().contains("1048576 bytes"));
    }
}
