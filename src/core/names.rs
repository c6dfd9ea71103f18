//! What objects and namespaces of Kubernetes can be called: DNS subdomains and labels (RFC 1123), as its documentation has it
//! ("Object Names and IDs"). Whatever else is asked for cannot exist, and must not reach the API server as part of a path.

/// Whether an object can have this name.
pub fn is_object_name(name: &str) -> bool {
    // The parts of an object's name may be longer than those of a DNS name.
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Whether a namespace can have this name.
pub fn is_namespace(name: &str) -> bool {
    name.len() <= 63 && is_label(name)
}

/// Not its length.
fn is_label(label: &str) -> bool {
    let (bytes, end) = (label.as_bytes(), |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit());
    bytes.first().is_some_and(end) && bytes.last().is_some_and(end) && bytes.iter().all(|b| end(b) || *b == b'-')
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

    #[test]
    fn only_names_that_a_namespace_can_have() {
        for good in ["a", "0", "team-a", &"x".repeat(63)] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["", "a.b", "-a", "a-", "A", "a/b", "é", &"x".repeat(64)] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }
}
