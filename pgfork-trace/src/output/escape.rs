//! Text that others can choose: process names, paths, cgroups, units, containers.
//!
//! Whoever names a process or a cgroup must not be able to move the cursor of
//! the terminal that shows it, or to make text look like other text.

use std::{borrow::Cow, fmt::Write};

/// Longest name shown in text, in characters.
pub const NAME_LIMIT: usize = 200;
/// Longest sentence or command shown in text; a cgroup path alone may have 4096 bytes.
pub const SENTENCE_LIMIT: usize = 1000;

/// A name, safe to print and of bounded length.
#[must_use]
pub fn name(text: &str) -> Cow<'_, str> {
    limited(text, NAME_LIMIT)
}

/// A sentence or a command that contains names.
#[must_use]
pub fn sentence(text: &str) -> Cow<'_, str> {
    limited(text, SENTENCE_LIMIT)
}

/// At most `limit` characters of a text, without any that act on a terminal or
/// cannot be seen: those become `\x1b` or `\u{202e}`. A backslash stays as it
/// is, as unit names contain it (`a\x2db.slice`) and are to be copied.
#[must_use]
pub fn limited(text: &str, limit: usize) -> Cow<'_, str> {
    let fits = text.len() <= limit || text.chars().nth(limit).is_none();
    if fits && !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(limit.saturating_mul(4)));
    for c in text.chars().take(limit) {
        match c {
            _ if !is_unsafe(c) => out.push(c),
            '\0'..='\x7f' => push(&mut out, format_args!("\\x{:02x}", u32::from(c))),
            _ => push(&mut out, format_args!("\\u{{{:x}}}", u32::from(c))),
        }
    }
    if !fits {
        out.push_str("...");
    }
    Cow::Owned(out)
}

/// Bytes of the kernel as text: those that are not UTF-8 become `\xNN`, all
/// else stays as it is.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            push(&mut out, format_args!("\\x{byte:02x}"));
        }
    }
    out
}

fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(arguments);
}

/// Whether a character acts on a terminal (C0, C1), reorders text, or is not to be seen.
pub(super) const fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        // Soft hyphen, fillers, variation selectors, tags.
        | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e0fff}'
        // Zero width, line separators, bidirectional controls, byte order mark, annotations.
        | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_stays() {
        for text in [
            "",
            "postgres",
            "/srv/pg 17/Käse",
            r"system-a\x2db.slice",
            "日本語",
        ] {
            assert!(matches!(name(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn what_acts_on_a_terminal_is_shown_as_a_code() {
        assert_eq!(
            name("\x1b[2J\x07\r\n\t\x7f"),
            r"\x1b[2J\x07\x0d\x0a\x09\x7f"
        );
        assert_eq!(name("\u{9b}31m\u{85}"), r"\u{9b}31m\u{85}");
        assert_eq!(
            name("a\u{202e}b\u{200b}c\u{2066}\u{feff}"),
            r"a\u{202e}b\u{200b}c\u{2066}\u{feff}"
        );
        assert_eq!(name("\u{e0041}\u{ad}\u{2028}"), r"\u{e0041}\u{ad}\u{2028}");
    }

    #[test]
    fn length_is_limited_in_characters() {
        let long = "é".repeat(NAME_LIMIT + 1);
        let shown = name(&long);
        assert_eq!(shown.chars().count(), NAME_LIMIT + 3);
        assert!(shown.ends_with("é..."));
        let fits = "é".repeat(NAME_LIMIT);
        assert_eq!(name(&fits), fits);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_kept_as_codes() {
        assert_eq!(from_bytes(b"pg\xff\xc3\xa9\xc3"), "pg\\xff\u{e9}\\xc3");
        // Other characters are left to whoever prints them.
        assert_eq!(from_bytes(b"\x1b[2J"), "\x1b[2J");
    }
}
