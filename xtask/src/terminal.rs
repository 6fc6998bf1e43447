//! All that xtask prints. No other module writes to standard output or standard error.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talking to the person who started it is xtask's purpose"
)]

use std::io::{IsTerminal as _, Write as _};

/// Whether standard output is a terminal, where text may be redrawn in place.
pub(crate) fn is_interactive() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard error is a terminal, where cargo draws its own progress bar.
pub(crate) fn shows_cargo_progress() -> bool {
    std::io::stderr().is_terminal()
}

/// Columns and rows of the terminal; 80 × 24 where that is unknown.
pub(crate) fn size() -> (usize, usize) {
    terminal_size::terminal_size()
        .map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)))
}

/// One line of progress.
pub(crate) fn say(text: &str) {
    println!("{text}");
    flush();
}

/// The beginning of a part of a longer task.
pub(crate) fn heading(text: &str) {
    say(&format!("\n==> {text}"));
}

/// Why the task failed.
pub(crate) fn complain(text: &str) {
    eprintln!("xtask: {text}");
}

/// Replaces the `above` lines before the cursor by `text`.
pub(crate) fn redraw(above: usize, text: &str) {
    if above > 0 {
        print!("\x1b[{above}A\r");
    }
    // Erasing line by line instead of the whole block first: no flicker.
    for line in text.lines() {
        println!("{line}\x1b[K");
    }
    print!("\x1b[J");
    flush();
}

/// A pipe's reader should see a line when it is said. That it is gone shows at the next `println!`.
fn flush() {
    std::io::stdout().flush().ok();
}
