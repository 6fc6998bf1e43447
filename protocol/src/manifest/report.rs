//! Collects mistakes until all are known, within a bound.

use std::cell::RefCell;

use super::node::Position;
use crate::control::Diagnostic;

/// How many mistakes one answer names; the rest is counted.
pub const DIAGNOSTICS_MAX: usize = 100;
/// How many are kept before sorting: enough that the first hundred by position are the true first hundred of
/// every manifest a person wrote, small enough for one that wants to cost memory.
const KEPT_MAX: usize = 2000;

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: RefCell<Found>,
}

#[derive(Debug, Default)]
struct Found {
    diagnostics: Vec<Diagnostic>,
    dropped: usize,
}

impl Report {
    /// Adds one mistake.
    pub(crate) fn add(&self, position: Position, path: &str, message: impl Into<String>) {
        let mut found = self.found.borrow_mut();
        if found.diagnostics.len() >= KEPT_MAX {
            found.dropped += 1;
            return;
        }
        found.diagnostics.push(Diagnostic {
            line: position.line,
            column: position.column,
            path: path.to_owned(),
            message: message.into(),
        });
    }

    /// Whether further mistakes are only counted, so that costly hints need not be made.
    pub(crate) fn is_full(&self) -> bool {
        self.found.borrow().diagnostics.len() >= KEPT_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.borrow().diagnostics.is_empty()
    }

    /// All mistakes, sorted by position and cut to [`DIAGNOSTICS_MAX`].
    pub(crate) fn finish(self) -> Vec<Diagnostic> {
        let Found { mut diagnostics, dropped } = self.found.into_inner();
        diagnostics.sort();
        diagnostics.dedup();
        let more = diagnostics.len().saturating_sub(DIAGNOSTICS_MAX) + dropped;
        diagnostics.truncate(DIAGNOSTICS_MAX);
        if let Some(last) = diagnostics.last().filter(|_| more > 0) {
            let (line, column) = (last.line, last.column);
            let message = format!("and {more} more mistakes after this line");
            diagnostics.push(Diagnostic { line, column, path: String::new(), message });
        }
        diagnostics
    }
}
