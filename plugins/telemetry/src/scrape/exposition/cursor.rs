//! A place in a page, and the words that are read from there.

use std::borrow::Cow;

/// A page and how far it was read. `at` always lies on a character's first byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// Takes the ASCII byte `byte` if it is next.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Takes an ASCII word if it is next.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let is_next = self.rest().starts_with(word.as_bytes());
        self.at += if is_next { word.len() } else { 0 };
        is_next
    }

    /// Skips spaces and tabs; whether there were any.
    pub(super) fn skip_blanks(&mut self) -> bool {
        let before = self.at;
        while let Some(b' ' | b'\t') = self.peek() {
            self.at += 1;
        }
        self.at > before
    }

    /// Takes bytes while they are `wanted`, which must say no to no part of a character alone.
    pub(super) fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        let rest = self.rest();
        self.at += rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len());
        &self.text[start..self.at]
    }

    /// The rest of the line, without its end.
    pub(super) fn take_line(&mut self) -> &'a str {
        self.take_while(|byte| byte != b'\n')
    }

    /// A metric's name (with colons) or a label's; `None` when no such character is next.
    pub(super) fn take_name(&mut self, colons: bool) -> Option<&'a str> {
        let table = if colons { &METRIC_NAME } else { &LABEL_NAME };
        if self.peek().is_none_or(|byte| !table[usize::from(byte)] || byte.is_ascii_digit()) {
            return None;
        }
        Some(self.take_while(|byte| table[usize::from(byte)]))
    }

    /// A quoted text, which may go on over lines where `lines` says so; `None` when it does not begin or end.
    pub(super) fn take_quoted(&mut self, lines: bool) -> Option<Cow<'a, str>> {
        if !self.take(b'"') {
            return None;
        }
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut escaped = false;
        loop {
            match bytes.get(self.at)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    // Neither the end nor a line's end can be escaped. Of a longer character the rest
                    // follows.
                    if bytes.get(self.at + 1).is_none_or(|byte| *byte == b'\n') {
                        return None;
                    }
                    self.at += 2;
                }
                b'\n' if !lines => return None,
                _ => self.at += 1,
            }
        }
        let raw = &self.text[start..self.at];
        self.at += 1;
        Some(if escaped { unescape(raw, true) } else { Cow::Borrowed(raw) })
    }
}

/// `\\`, `\n` and, where `quotes` are escaped too, `\"`; another escape stays as it is written.
pub(super) fn unescape(raw: &str, quotes: bool) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut left = raw;
    while let Some(at) = left.find('\\') {
        text.push_str(&left[..at]);
        left = &left[at + 1..];
        let meant = match left.as_bytes().first() {
            Some(b'\\') => '\\',
            Some(b'n') => '\n',
            Some(b'"') if quotes => '"',
            _ => {
                text.push('\\');
                continue;
            }
        };
        text.push(meant);
        left = &left[1..];
    }
    text.push_str(left);
    Cow::Owned(text)
}

static METRIC_NAME: [bool; 256] = name_bytes(true);
static LABEL_NAME: [bool; 256] = name_bytes(false);

const fn name_bytes(colons: bool) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
        byte += 1;
    }
    table
}
