//! Names of sessions.

/// Whether an object can have this name: a DNS subdomain. Whatever else is asked for cannot exist, and must not reach the
/// API server as part of a path.
pub fn is_object_name(name: &str) -> bool {
    let ends = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(ends) && bytes.last().is_some_and(ends) && bytes.iter().all(|b| ends(b) || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_an_object_can_have() {
        for good in ["a", "0", "s-1", "a.b-c.d", &"x".repeat(253)] {
            assert!(is_object_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a..b", "-a", "a-", "A", "a/b", "a?b", "a b", "é", &"x".repeat(254)] {
            assert!(!is_object_name(bad), "{bad}");
        }
    }
}
