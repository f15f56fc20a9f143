//! Escapes foreign text for terminals: messages of criu, names and contents of a captured tree,
//! bytes of a store.
//!
//! Everything that this crate shows to people is escaped here, when an error, failure, warning or
//! finding is displayed. Code that makes one must not escape.

use std::{
    fmt::{self, Write},
    path::Path,
};

use serde::Serializer;

/// Escapes all that is written to it, as [`plain`] does.
pub(crate) struct Plain<W>(pub(crate) W);

impl<W: Write> Write for Plain<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '\t' => self.0.write_char(' ')?,
                _ if acts(character) => write!(self.0, "{}", character.escape_default())?,
                _ => self.0.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// Escapes every character that does not show itself: control characters and line breaks, and
/// Unicode characters that change the direction of writing or are invisible. A tab becomes a space.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = Plain(String::with_capacity(text.len()));
    let _ = plain.write_str(text); // writing to a string cannot fail
    plain.0
}

/// Serializes a path as text, with replacement characters for what is not UTF-8. Formats escape it.
pub(crate) fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn acts(character: char) -> bool {
    let unseen = matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    character.is_control() || unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_is_left() {
        for (text, expected) in [
            ("a\u{1b}[31mred\u{7}", "a\\u{1b}[31mred\\u{7}"),
            ("two\nlines\r", "two\\nlines\\r"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("\u{202e}desrever\u{2066}\u{200b}", "\\u{202e}desrever\\u{2066}\\u{200b}"),
            ("a\tb ä 漢 \u{1f600} `'\\", "a b ä 漢 \u{1f600} `'\\"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
