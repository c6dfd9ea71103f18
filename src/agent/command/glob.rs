//! Patterns as Redis matches them: `*`, `?`, `[a-z]`, `[^a]`, and `\` before what stands for itself.

/// Whether all of `text` matches `pattern`.
///
/// Redis's own matcher tries each place for each `*` in turn, and its time grows with the power of their number. Here only
/// the last `*` is ever tried again, which decides the same and takes at most the product of the two lengths.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` is, and up to where it has eaten the text.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        if let Some(next) = one(&pattern[p..], text[t]) {
            p += next;
            t += 1;
            continue;
        }
        let Some((after, eaten)) = star else {
            return false;
        };
        star = Some((after, eaten + 1));
        p = after;
        t = eaten + 1;
    }
}

/// How long the part at the beginning of `pattern` is that stands for one byte, if `byte` is what it stands for.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (length, is_in) = in_class(class, byte);
            is_in.then_some(length + 1)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// The length of a class up to and with its `]`, and whether `byte` is in it. A class that does not end ends with the
/// pattern.
fn in_class(class: &[u8], byte: u8) -> (usize, bool) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    while at < class.len() {
        match &class[at..] {
            [b']', ..] => return (at + 1, found != negated),
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
            [] => break,
        }
    }
    (at, found != negated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        let good = [
            ("", ""),
            ("*", ""),
            ("*", "abc"),
            ("a*c", "abbbc"),
            ("a**c", "ac"),
            ("h?llo", "hello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hallo"),
            ("h[a-b]llo", "hbllo"),
            ("h[b-a]llo", "hallo"),
            (r"\*", "*"),
            (r"a\?b", "a?b"),
            (r"[\]]", "]"),
            ("[a", "a"),
            ("session:*:x", "session:1:2:x"),
            ("*a*b*c", "xxaxxbxxcxxc"),
            ("a[-]b", "a-b"),
        ];
        for (pattern, text) in good {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        let bad = [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("a*c", "abb"),
            ("h[^a]llo", "hallo"),
            ("h?llo", "hllo"),
            (r"\*", "a"),
            ("[a]", "b"),
            ("A", "a"),
            ("[]", "a"),
        ];
        for (pattern, text) in bad {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = "*a".repeat(500);
        assert!(!matches(pattern.as_bytes(), "a".repeat(499).as_bytes()));
        assert!(matches(pattern.as_bytes(), "a".repeat(5_000).as_bytes()));
    }
}
