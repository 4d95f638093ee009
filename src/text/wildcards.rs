//! Patterns of bytes with wildcards, as suppressions have them. Names of functions and files need not be UTF-8 in a
//! file of suppressions. The patterns of the command line are in `globs` and `paths`.

use memchr::memmem::Finder;

/// A pattern of bytes. A match takes at most time in proportion to the pattern's length times that of the text, and no
/// memory: a `*` is never tried again once the part after it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wildcard {
    /// The parts between the `*`, none of them empty.
    parts: Vec<Part>,
    /// Whether the first part must be at the start of the text.
    from_start: bool,
    /// Whether the last part must be at the end of the text.
    to_end: bool,
}

/// Bytes that follow each other.
#[derive(Clone, Debug)]
enum Part {
    /// Without a `?`. The searcher holds the bytes, and what makes a search quick.
    Literal(Box<Finder<'static>>),
    /// `None` is any byte.
    Mixed(Vec<Option<u8>>),
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(one), Self::Literal(other)) => one.needle() == other.needle(),
            (Self::Mixed(one), Self::Mixed(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for Part {}

impl Part {
    fn literal(bytes: &[u8]) -> Self {
        Self::Literal(Box::new(Finder::new(bytes).into_owned()))
    }

    fn len(&self) -> usize {
        match self {
            Self::Literal(finder) => finder.needle().len(),
            Self::Mixed(bytes) => bytes.len(),
        }
    }

    /// Whether the text begins with the part.
    fn begins(&self, text: &[u8]) -> bool {
        match self {
            Self::Literal(finder) => text.starts_with(finder.needle()),
            Self::Mixed(bytes) => {
                text.len() >= bytes.len()
                    && (bytes.iter().zip(text))
                        .all(|(wanted, byte)| wanted.is_none_or(|w| w == *byte))
            }
        }
    }

    /// Where the part is in the text first.
    fn find(&self, text: &[u8]) -> Option<usize> {
        match self {
            Self::Literal(finder) => finder.find(text),
            Self::Mixed(bytes) => (0..(text.len() + 1).saturating_sub(bytes.len()))
                .find(|at| self.begins(&text[*at..])),
        }
    }
}

impl Wildcard {
    /// A pattern of the whole text, as valgrind has it: `*` is any bytes, `?` is one byte.
    pub fn whole(pattern: &[u8]) -> Self {
        let any = |byte: &u8| (*byte != b'?').then_some(*byte);
        let parts = pattern.split(|byte| *byte == b'*');
        let parts = parts.filter(|part| !part.is_empty());
        let parts = parts.map(|part| match part.contains(&b'?') {
            true => Part::Mixed(part.iter().map(any).collect()),
            false => Part::literal(part),
        });
        Self {
            parts: parts.collect(),
            from_start: pattern.first() != Some(&b'*'),
            to_end: pattern.last() != Some(&b'*'),
        }
    }

    /// A pattern of a part of the text, as LeakSanitizer has it: `*` is any bytes, a leading `^` is the start of the
    /// text, `$` is its end. What follows a `$` is ignored, as LeakSanitizer ignores it.
    pub fn within(pattern: &[u8]) -> Self {
        let (pattern, from_start) = match pattern.strip_prefix(b"^") {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        let (pattern, to_end) = match memchr::memchr(b'$', pattern) {
            Some(end) => (&pattern[..end], true),
            None => (pattern, false),
        };
        let parts = pattern.split(|byte| *byte == b'*');
        let parts = parts.filter(|part| !part.is_empty());
        Self {
            parts: parts.map(Part::literal).collect(),
            from_start: from_start && pattern.first() != Some(&b'*'),
            to_end: to_end && pattern.last() != Some(&b'*'),
        }
    }

    /// Whether every text matches, but for an empty one.
    pub fn is_everything(&self) -> bool {
        self.parts.is_empty() && !(self.from_start && self.to_end)
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        let mut rest = text;
        let mut parts = &self.parts[..];
        if self.from_start
            && let Some((first, others)) = parts.split_first()
        {
            if !first.begins(rest) {
                return false;
            }
            rest = &rest[first.len()..];
            parts = others;
            if parts.is_empty() && self.parts.len() == 1 && self.to_end {
                return rest.is_empty();
            }
        }
        let last = match self.to_end {
            true => parts.split_last(),
            false => None,
        };
        let between = last.map_or(parts, |(_, between)| between);
        for part in between {
            let Some(at) = part.find(rest) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        match last {
            Some((last, _)) => {
                rest.len() >= last.len() && last.begins(&rest[rest.len() - last.len()..])
            }
            // Without any part, an empty pattern is left, or `*`.
            None => !(self.parts.is_empty() && self.from_start && self.to_end) || text.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_pattern_matches_the_whole_text() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc", "xabc", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
            ("a*b*c", "a_b_b_c", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "", false),
            ("???", "abc", true),
            ("*.so.?", "libc.so.6", true),
            ("*.so.?", "libc.so.66", false),
            ("*?b*", "ab", true),
            ("*?b*", "b", false),
            ("a**b", "ab", true),
            ("^a$", "^a$", true),
        ] {
            let wildcard = Wildcard::whole(pattern.as_bytes());
            assert_eq!(
                wildcard.matches(text.as_bytes()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_pattern_within_a_text_matches_a_part_unless_it_is_tied_to_an_end() {
        for (pattern, text, matches) in [
            ("b", "abc", true),
            ("B", "abc", false),
            ("^b", "abc", false),
            ("^a", "abc", true),
            ("c$", "abc", true),
            ("b$", "abc", false),
            ("^abc$", "abc", true),
            ("^ab$", "abc", false),
            // LeakSanitizer looks for the first `foo` alone, and does not match this.
            ("foo$", "foofoo", true),
            ("a*c", "xabcx", true),
            ("^*c", "abc", true),
            ("a*$", "xabc", true),
            ("c$b", "abc", true),
            ("a^b", "xa^b", true),
            ("?", "a", false),
            ("*", "a", true),
            ("^a*a$", "a", false),
        ] {
            let wildcard = Wildcard::within(pattern.as_bytes());
            assert_eq!(
                wildcard.matches(text.as_bytes()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_pattern_with_many_stars_takes_no_long_time() {
        let pattern = b"a*".repeat(5_000);
        let pattern = [&pattern[..], b"b"].concat();
        let text = b"a".repeat(20_000);
        let began = std::time::Instant::now();
        assert!(!Wildcard::whole(&pattern).matches(&text));
        assert!(Wildcard::within(&pattern[..10_000]).matches(&text));
        let marks = [&b"?a".repeat(2_000)[..], b"b"].concat();
        assert!(!Wildcard::whole(&[b"*", &marks[..]].concat()).matches(&text));
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    /// The meaning of `whole`, slowly.
    fn means(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, _) => text.is_empty(),
            (Some((b'*', rest)), _) => {
                (0..=text.len()).any(|skipped| means(rest, &text[skipped..]))
            }
            (Some((wanted, rest)), Some((byte, others))) => {
                (*wanted == b'?' || wanted == byte) && means(rest, others)
            }
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn a_match_is_what_the_wildcards_mean(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let wildcard = Wildcard::whole(pattern.as_bytes());
            prop_assert_eq!(wildcard.matches(text.as_bytes()), means(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_match_within_is_one_of_the_whole_between_stars(
            start: bool, pattern in "[ab*]{0,8}", end: bool, text in "[ab]{0,10}"
        ) {
            let within = format!("{}{pattern}{}", if start { "^" } else { "" }, if end { "$" } else { "" });
            let whole = format!("{}{pattern}{}", if start { "" } else { "*" }, if end { "" } else { "*" });
            let within = Wildcard::within(within.as_bytes()).matches(text.as_bytes());
            prop_assert_eq!(within, Wildcard::whole(whole.as_bytes()).matches(text.as_bytes()));
        }
    }
}
