//! A token that came with a request.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use tonic::metadata::MetadataMap;

const MAX_BYTES: usize = 16 * 1024;

/// A token. It is shown to the API server only.
pub struct Token(String);

/// What of its content is used here, after the API server has accepted it: the answer to a review does not say when it ends.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
}

impl Token {
    /// The token in `authorization: Bearer TOKEN`.
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        Self::bearer(metadata.get("authorization")?.to_str().ok()?)
    }

    /// The token in the header's `value`.
    pub fn bearer(value: &str) -> Option<Self> {
        let token = value.strip_prefix("Bearer ")?;
        (!token.is_empty() && token.len() <= MAX_BYTES).then(|| Self(token.to_owned()))
    }

    /// The token itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// How long it is valid, by its own word; `None` if it does not say.
    pub fn left(&self) -> Option<Duration> {
        let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.claims()?.exp))?;
        Some(expires.duration_since(SystemTime::now()).unwrap_or_default())
    }

    fn claims(&self) -> Option<Claims> {
        let payload = self.0.split('.').nth(1)?;
        let payload = BASE64URL_NOPAD.decode(payload.trim_end_matches('=').as_bytes()).ok()?;
        serde_json::from_slice(&payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(value: &str) -> Option<Token> {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        Token::of(&metadata)
    }

    #[test]
    fn only_a_bearer_token_of_a_sensible_length_is_one() {
        assert_eq!(token("Bearer abc").unwrap().reveal(), "abc");
        let long = format!("Bearer {}", "a".repeat(MAX_BYTES + 1));
        for bad in ["", "Bearer ", "bearer abc", "Basic abc", &long] {
            assert!(token(bad).is_none(), "{bad}");
        }
        assert!(Token::of(&MetadataMap::new()).is_none());
    }

    #[test]
    fn it_says_itself_when_it_ends() {
        let made =
            |claims: &str| token(&format!("Bearer e30.{}.x", BASE64URL_NOPAD.encode(claims.as_bytes()))).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let left = made(&format!("{{\"exp\":{}}}", now + 100)).left().unwrap();
        assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(90));
        assert_eq!(made("{\"exp\":1}").left(), Some(Duration::ZERO));
        for nothing in ["{}", "{\"exp\":-1}", "[]", ""] {
            assert_eq!(made(nothing).left(), None, "{nothing}");
        }
        assert_eq!(made(&format!("{{\"exp\":{}}}", u64::MAX)).left(), None);
        assert_eq!(token("Bearer abc").unwrap().left(), None);
    }
}
