//! Turns names from the kernel into safe text.
//!
//! A command name or a path can consist of any bytes. It may contain an escape sequence that would repaint a terminal,
//! a line break that would forge a row, or bytes that are not UTF-8. All code that prints a name uses this module.

use std::borrow::Cow;

/// Whether a character may be printed unchanged. That is so if it is not a control or format character (escape
/// sequences, bidirectional overrides, zero-width characters), and does not combine with the character before it.
pub fn is_printable(c: char) -> bool {
    // `escape_debug` knows Unicode's tables. It escapes quotes and the backslash only for the syntax of Rust.
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1
}

/// The bytes as text for a format that can contain any text (JSON). UTF-8 stays unchanged. In a name that is not UTF-8,
/// each invalid byte becomes `\xNN`, and each backslash becomes `\\`.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(bytes.len() * 4);
    for chunk in bytes.utf8_chunks() {
        shown.push_str(&chunk.valid().replace('\\', r"\\"));
        push_bytes(&mut shown, chunk.invalid());
    }
    Cow::Owned(shown)
}

/// The bytes as one line of printable text (tables, CSV, messages). Different bytes give different texts. A byte that
/// is not UTF-8 or not printable ASCII becomes `\xNN`. Any other character that is not printable becomes `\u{N}`. A
/// backslash becomes `\\`. A space at the beginning or at the end becomes `\x20`, because padding would hide it.
pub fn escaped(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let at_an_end = at == 0 || at + 1 == bytes.len();
            match c {
                '\\' => shown.push_str(r"\\"),
                ' ' if at_an_end => push_bytes(&mut shown, b" "),
                _ if is_printable(c) => shown.push(c),
                _ if c.is_ascii() => push_bytes(&mut shown, c.encode_utf8(&mut [0; 4]).as_bytes()),
                _ => shown.extend(c.escape_unicode()),
            }
            at += c.len_utf8();
        }
        push_bytes(&mut shown, chunk.invalid());
        at += chunk.invalid().len();
    }
    shown
}

/// Each byte as two hexadecimal digits, as build IDs are written.
pub fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits =
        |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
    bytes.iter().flat_map(digits).collect()
}

/// A message as one line on which no terminal acts, even if it contains an unescaped path or argument. Printable
/// characters and tabs stay unchanged.
pub fn line(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            '\t' => shown.push(c),
            _ if is_printable(c) => shown.push(c),
            _ if c.is_ascii() => push_bytes(&mut shown, c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => shown.extend(c.escape_unicode()),
        }
    }
    shown
}

fn push_bytes(shown: &mut String, bytes: &[u8]) {
    for byte in bytes {
        shown.push_str(&format!("\\x{byte:02x}"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_shown_unchanged() {
        for name in [
            "python3",
            "Web Content",
            "(sd-pam)",
            "it's \"so\"",
            "größe",
            "日本語",
        ] {
            assert_eq!(escaped(name.as_bytes()), name);
            assert_eq!(text(name.as_bytes()), name);
        }
    }

    #[test]
    fn characters_on_which_a_terminal_would_act_are_escaped() {
        for (name, shown) in [
            (&b"\x1b[2J"[..], r"\x1b[2J"),
            (b"a\nb\tc\0", r"a\x0ab\x09c\x00"),
            (b"\x7f", r"\x7f"),
            ("\u{9b}31m".as_bytes(), r"\u{9b}31m"),
            ("a\u{202e}b".as_bytes(), r"a\u{202e}b"),
            ("a\u{200b}b".as_bytes(), r"a\u{200b}b"),
            ("e\u{301}".as_bytes(), r"e\u{301}"),
            (b"\xff\xc3(", r"\xff\xc3("),
            (br"\xff", r"\\xff"),
            (b" a b ", r"\x20a b\x20"),
            (b" ", r"\x20"),
        ] {
            assert_eq!(escaped(name), shown);
        }
    }

    #[test]
    fn a_message_becomes_one_line_and_its_own_escapes_stay() {
        assert_eq!(
            line("cannot read /a\x1b[2J\nmemleak: forged\u{9b}: \\x1b, 'größe'\t1"),
            r"cannot read /a\x1b[2J\x0amemleak: forged\u{9b}: \x1b, 'größe'".to_owned() + "\t1"
        );
    }

    #[test]
    fn text_only_changes_names_that_are_not_utf8() {
        assert_eq!(text(br"\xff"), r"\xff");
        assert_eq!(text(b"\x1b[2J"), "\u{1b}[2J");
        assert_eq!(text(b"a\\\xff"), r"a\\\xff");
    }

    /// Reverses `escaped`. Because this is possible, two different names never look the same.
    fn unescaped(shown: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = shown;
        while let Some(c) = rest.chars().next() {
            if c != '\\' {
                bytes.extend(c.to_string().bytes());
                rest = &rest[c.len_utf8()..];
                continue;
            }
            match rest.as_bytes()[1] {
                b'\\' => {
                    bytes.push(b'\\');
                    rest = &rest[2..];
                }
                b'x' => {
                    bytes.push(u8::from_str_radix(&rest[2..4], 16).unwrap());
                    rest = &rest[4..];
                }
                b'u' => {
                    let end = rest.find('}').unwrap();
                    let c = u32::from_str_radix(&rest[3..end], 16).unwrap();
                    bytes.extend(char::from_u32(c).unwrap().to_string().bytes());
                    rest = &rest[end + 1..];
                }
                other => panic!("an escape of another kind: {other}"),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn escaping_loses_nothing_and_leaves_only_printable_characters(
            pieces in prop::collection::vec(
                prop_oneof![
                    any::<Vec<u8>>(),
                    any::<char>().prop_map(|c| c.to_string().into_bytes()),
                    Just(b"\\x41".to_vec()),
                    Just(b" ".to_vec()),
                ],
                0..6,
            )
        ) {
            let bytes = pieces.concat();
            let shown = escaped(&bytes);
            prop_assert!(shown.chars().all(is_printable), "{:?}", shown);
            prop_assert_eq!(shown.trim(), &shown);
            prop_assert_eq!(unescaped(&shown), bytes);
        }
    }
}
