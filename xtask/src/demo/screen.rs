//! Shows the board: redrawn in place on a terminal, as timestamped lines elsewhere.

use std::{convert::Infallible, time::Duration};

use super::{board, observed::Record};
use crate::{stopwatch::clock, terminal};

/// Time between two pictures on a terminal: fast enough to look alive.
const REDRAW_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two looks for new events where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two summaries there.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(2);

/// What is on the screen already.
#[derive(Debug)]
pub(crate) struct Screen {
    is_interactive: bool,
    lines_drawn: usize,
    events_said: usize,
    summary_due: Duration,
}

impl Screen {
    /// Nothing shown yet.
    pub(crate) fn new(is_interactive: bool) -> Self {
        Self { is_interactive, lines_drawn: 0, events_said: 0, summary_due: SUMMARY_INTERVAL }
    }

    /// Shows news until it is dropped.
    pub(crate) async fn run(&mut self, record: &Record) -> Infallible {
        let mut ticks =
            tokio::time::interval(if self.is_interactive { REDRAW_INTERVAL } else { LINE_INTERVAL });
        loop {
            ticks.tick().await;
            self.show(record);
        }
    }

    /// Shows what is new.
    pub(crate) fn show(&mut self, record: &Record) {
        let elapsed = record.read(|observed| observed.started.elapsed());
        if self.is_interactive {
            let (width, height) = terminal::size();
            let board = record.read(|observed| board::render(observed, elapsed, width, height));
            terminal::redraw(self.lines_drawn, &board);
            self.lines_drawn = board.lines().count();
            return;
        }
        for (time, event) in record.read(|observed| {
            let new = (observed.events_ever - self.events_said).min(observed.events.len());
            self.events_said = observed.events_ever;
            observed.events.iter().skip(observed.events.len() - new).cloned().collect::<Vec<_>>()
        }) {
            terminal::say(&format!("{}  {event}", clock(time)));
        }
        if elapsed >= self.summary_due {
            self.summary_due = elapsed + SUMMARY_INTERVAL;
            terminal::say(&format!("{}  {}", clock(elapsed), record.read(board::summary)));
        }
    }
}
