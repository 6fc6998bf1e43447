//! From a page to its entries.

use std::borrow::Cow;

use super::{
    Dialect, Entry, Exemplar, Kind, LABELS_MAX, Label, ParseError, Sample,
    cursor::{Cursor, unescape},
    number,
};

/// Reads one page.
#[derive(Debug)]
pub(crate) struct Parser<'a> {
    text: &'a str,
    cursor: Cursor<'a>,
    dialect: Dialect,
    labels: Vec<Label<'a>>,
    exemplar_labels: Vec<Label<'a>>,
    finished: bool,
}

type Step<T> = Result<T, &'static str>;

const NO_EOF: &str = "the page does not end with # EOF";
const NO_START: &str = "expected a metric's name or a comment";

impl<'a> Parser<'a> {
    /// A parser at the beginning of `text`.
    pub(crate) fn new(text: &'a str, dialect: Dialect) -> Self {
        let (labels, exemplar_labels) = (Vec::new(), Vec::new());
        Self { text, cursor: Cursor::new(text), dialect, labels, exemplar_labels, finished: false }
    }

    /// The labels of the last sample, in the order of the page; names are unique and not empty.
    pub(crate) fn labels(&self) -> &[Label<'a>] {
        &self.labels
    }

    /// The labels of the last sample, for a caller that changes them.
    pub(crate) fn labels_mut(&mut self) -> &mut Vec<Label<'a>> {
        &mut self.labels
    }

    /// The labels of the last sample's exemplar.
    pub(crate) fn exemplar_labels(&self) -> &[Label<'a>] {
        &self.exemplar_labels
    }

    /// The next entry; `None` at the page's end. After an error there is nothing more.
    pub(crate) fn next(&mut self) -> Result<Option<Entry<'a>>, ParseError> {
        if self.finished {
            return Ok(None);
        }
        let entry = match self.dialect {
            Dialect::Text => self.text_entry(),
            Dialect::OpenMetrics => self.open_metrics_entry(),
        };
        match entry {
            Ok(entry) => {
                self.finished = entry.is_none();
                Ok(entry)
            }
            Err(why) => {
                self.finished = true;
                Err(ParseError { line: line(self.text, self.cursor.at), why })
            }
        }
    }

    fn text_entry(&mut self) -> Step<Option<Entry<'a>>> {
        loop {
            self.cursor.skip_blanks();
            let Some(first) = self.cursor.peek() else { return Ok(None) };
            match first {
                b'\n' => self.cursor.at += 1,
                b'#' => {
                    self.cursor.at += 1;
                    if let Some(entry) = self.text_comment()? {
                        return Ok(Some(entry));
                    }
                }
                _ => return self.sample().map(Some),
            }
        }
    }

    /// What follows a `#`: metadata, or nothing of interest.
    fn text_comment(&mut self) -> Step<Option<Entry<'a>>> {
        let blank = self.cursor.skip_blanks();
        let word = |cursor: &mut Cursor<'a>, word| {
            let mut ahead = *cursor;
            let found = blank && ahead.take_word(word) && ahead.skip_blanks();
            if found {
                *cursor = ahead;
            }
            found
        };
        let is_type = word(&mut self.cursor, "TYPE");
        if !is_type && !word(&mut self.cursor, "HELP") {
            self.cursor.take_line();
            return Ok(None);
        }
        let family = self.family_name()?;
        let line = self.cursor.take_line();
        let text = match line.as_bytes().first() {
            None => "",
            Some(b' ' | b'\t') => &line[1..],
            Some(_) => return Err("expected a space after the metric's name"),
        };
        if is_type {
            return Ok(Some(Entry::Type { family, kind: text_kind(text)? }));
        }
        Ok(Some(Entry::Help { family, text: unescape(text, false) }))
    }

    fn open_metrics_entry(&mut self) -> Step<Option<Entry<'a>>> {
        match self.cursor.peek() {
            None => Err(NO_EOF),
            Some(b'#') => self.open_metrics_comment(),
            Some(_) => self.sample().map(Some),
        }
    }

    fn open_metrics_comment(&mut self) -> Step<Option<Entry<'a>>> {
        if self.cursor.take_word("# EOF") {
            self.cursor.take(b'\n');
            return if self.cursor.peek().is_none() { Ok(None) } else { Err("data after # EOF") };
        }
        let word = ["# TYPE ", "# HELP ", "# UNIT "].iter().position(|word| self.cursor.take_word(word));
        let Some(word) = word else { return Err(NO_START) };
        let family = self.family_name()?;
        if !self.cursor.take(b' ') {
            return Err("expected a space and a text after the metric's name");
        }
        let text = self.cursor.take_line();
        let at = self.cursor.at;
        if !self.cursor.take(b'\n') {
            return Err(NO_EOF);
        }
        // Errors name the line that they are in.
        let end = std::mem::replace(&mut self.cursor.at, at);
        let entry = match word {
            0 => Entry::Type { family, kind: open_metrics_kind(text)? },
            1 => Entry::Help { family, text: unescape(text, true) },
            _ => {
                let before = family.strip_suffix(text);
                if !text.is_empty() && !before.is_some_and(|name| name.ends_with('_')) {
                    return Err("the unit is not the end of the metric's name");
                }
                Entry::Unit { family, unit: text }
            }
        };
        self.cursor.at = end;
        Ok(Some(entry))
    }

    fn family_name(&mut self) -> Step<Cow<'a, str>> {
        let name = match self.cursor.peek() {
            Some(b'"') => self.cursor.take_quoted(false),
            _ => self.cursor.take_name(true).map(Cow::Borrowed),
        };
        name.filter(|name| !name.is_empty()).ok_or("expected a metric's name")
    }

    /// A line with a value.
    fn sample(&mut self) -> Step<Entry<'a>> {
        self.labels.clear();
        let mut name = self.cursor.take_name(true).map(Cow::Borrowed);
        self.skip_blanks();
        if self.cursor.take(b'{') {
            let quoted = self.take_labels(name.is_none())?;
            name = name.or(quoted);
        } else if name.is_none() {
            return Err(NO_START);
        }
        let name = name.filter(|name| !name.is_empty()).ok_or("the metric's name is missing")?;
        if has_duplicates(&self.labels) {
            return Err("a label is given twice");
        }
        let sample = match self.dialect {
            Dialect::Text => self.text_numbers(name)?,
            Dialect::OpenMetrics => self.open_metrics_numbers(name)?,
        };
        Ok(Entry::Sample(sample))
    }

    /// Blanks stand between the words of the text format, not of OpenMetrics.
    fn skip_blanks(&mut self) {
        if self.dialect == Dialect::Text {
            self.cursor.skip_blanks();
        }
    }

    /// Labels up to the closing brace. A quoted word without a value is the metric's name, where one is
    /// wanted.
    fn take_labels(&mut self, name_wanted: bool) -> Step<Option<Cow<'a, str>>> {
        let text = self.dialect == Dialect::Text;
        let mut name = None;
        loop {
            self.skip_blanks();
            let quoted = match self.cursor.peek() {
                Some(b'}') => break,
                Some(b'"') => true,
                _ => false,
            };
            let word = if quoted {
                self.cursor.take_quoted(true)
            } else {
                self.cursor.take_name(false).map(Cow::Borrowed)
            };
            let word = word.ok_or("expected a label's name")?;
            self.skip_blanks();
            match self.cursor.peek() {
                Some(b',' | b'}') if quoted => {
                    if !name_wanted || name.is_some() {
                        return Err("the metric's name is given twice");
                    }
                    name = Some(word);
                    self.cursor.take(b',');
                    continue;
                }
                Some(b'=') => self.cursor.at += 1,
                _ => return Err("expected = after the label's name"),
            }
            self.skip_blanks();
            let value = self.cursor.take_quoted(text).ok_or("expected a quoted value of the label")?;
            push(&mut self.labels, word, value)?;
            self.skip_blanks();
            // The text format does not insist on the comma.
            if !self.cursor.take(b',') && !text && self.cursor.peek() != Some(b'}') {
                return Err("expected a comma or the closing brace after the label's value");
            }
        }
        self.cursor.at += 1;
        Ok(name)
    }

    fn text_numbers(&mut self, name: Cow<'a, str>) -> Step<Sample<'a>> {
        self.cursor.skip_blanks();
        let word = self.cursor.take_while(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'{'));
        if word.is_empty() {
            return Err("expected a value after the metric");
        }
        let value = number::value(word).ok_or("the value is not a number")?;
        self.cursor.skip_blanks();
        let mut time = None;
        if self.cursor.peek().is_some_and(|byte| byte != b'\n') {
            let word = self.cursor.take_while(|byte| byte.is_ascii_digit());
            if word.is_empty() {
                return Err("expected a timestamp or the line's end after the value");
            }
            time = Some(number::milliseconds(word).ok_or("the timestamp is out of range")?);
            self.cursor.skip_blanks();
        }
        if self.cursor.peek().is_some_and(|byte| byte != b'\n') {
            return Err("expected the line's end");
        }
        self.cursor.take(b'\n');
        Ok(Sample { name, value, time, exemplar: None })
    }

    fn open_metrics_numbers(&mut self, name: Cow<'a, str>) -> Step<Sample<'a>> {
        let value = self.word("expected a value after the metric")?;
        let value = number::value(value).ok_or("the value is not a number")?;
        let mut time = None;
        let mut exemplar = None;
        if self.cursor.peek() == Some(b' ') && !self.cursor.rest().starts_with(b" # {") {
            let word = self.word("expected a timestamp after the value")?;
            time = Some(number::seconds(word).ok_or("the timestamp is not a number of seconds")?);
        }
        if self.cursor.take_word(" # {") {
            exemplar = Some(self.exemplar()?);
        }
        if self.cursor.peek().is_none() {
            return Err(NO_EOF);
        }
        if !self.cursor.take(b'\n') {
            return Err("expected the line's end");
        }
        Ok(Sample { name, value, time, exemplar })
    }

    fn exemplar(&mut self) -> Step<Exemplar> {
        self.exemplar_labels.clear();
        while self.cursor.peek() != Some(b'}') {
            let word = match self.cursor.peek() {
                Some(b'"') => self.cursor.take_quoted(false),
                _ => self.cursor.take_name(false).map(Cow::Borrowed),
            };
            let word = word.ok_or("expected a name of an exemplar's label")?;
            if !self.cursor.take(b'=') {
                return Err("expected = after the name of the exemplar's label");
            }
            let value = self.cursor.take_quoted(false).ok_or("expected a value of the exemplar's label")?;
            push(&mut self.exemplar_labels, word, value)?;
            if !self.cursor.take(b',') && self.cursor.peek() != Some(b'}') {
                return Err("expected a comma or the closing brace after the exemplar's label");
            }
        }
        self.cursor.at += 1;
        let value = self.word("expected a value after the exemplar's labels")?;
        let value = number::value(value).ok_or("the exemplar's value is not a number")?;
        let mut time = None;
        if self.cursor.peek() == Some(b' ') {
            let word = self.word("expected a timestamp of the exemplar")?;
            time = Some(number::seconds(word).ok_or("the exemplar's timestamp is not a number of seconds")?);
        }
        Ok(Exemplar { value, time })
    }

    /// One space and the word behind it.
    fn word(&mut self, missing: &'static str) -> Step<&'a str> {
        if !self.cursor.take(b' ') {
            return Err(missing);
        }
        let word = self.cursor.take_while(|byte| !matches!(byte, b' ' | b'\n'));
        if word.is_empty() { Err(missing) } else { Ok(word) }
    }
}

fn push<'a>(labels: &mut Vec<Label<'a>>, name: Cow<'a, str>, value: Cow<'a, str>) -> Step<()> {
    if name.is_empty() {
        return Err("a label's name is empty");
    }
    if labels.len() >= LABELS_MAX {
        return Err("a sample has too many labels");
    }
    labels.push(Label { name, value });
    Ok(())
}

/// Whether a name is there twice. Quadratic in labels of which there are at most [`LABELS_MAX`], and each
/// costs the page at least four bytes.
fn has_duplicates(labels: &[Label<'_>]) -> bool {
    labels.iter().enumerate().any(|(n, label)| labels[..n].iter().any(|other| other.name == label.name))
}

fn text_kind(word: &str) -> Step<Kind> {
    match word {
        "counter" => Ok(Kind::Counter),
        "gauge" => Ok(Kind::Gauge),
        "histogram" => Ok(Kind::Histogram),
        "summary" => Ok(Kind::Summary),
        "untyped" => Ok(Kind::Unknown),
        _ => Err("the type is none of counter, gauge, histogram, summary, untyped"),
    }
}

fn open_metrics_kind(word: &str) -> Step<Kind> {
    let kinds = [
        Kind::Counter,
        Kind::Gauge,
        Kind::Histogram,
        Kind::GaugeHistogram,
        Kind::Summary,
        Kind::Info,
        Kind::StateSet,
        Kind::Unknown,
    ];
    kinds.into_iter().find(|kind| kind.word() == word).ok_or("the type is none that OpenMetrics has")
}

/// The line of byte `at`, from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    let read = &text.as_bytes()[..at.min(text.len())];
    read.split(|byte| *byte == b'\n').count()
}
