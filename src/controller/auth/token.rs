//! A token that came with a request.

use tonic::metadata::MetadataMap;

const MAX_BYTES: usize = 16 * 1024;

/// A token. It is shown to the API server only.
pub struct Token(String);

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
}
