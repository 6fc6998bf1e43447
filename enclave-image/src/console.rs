//! How a guest's end is seen: in the kernel's last words on the console.

use serde::Serialize;

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// It powered off.
    Shutdown,
    /// It reset itself, which is how an enclave ends.
    Reset,
    /// Its kernel panicked.
    Panic,
    /// It was still running when its time was over.
    Timeout,
    /// The virtual machine monitor ended without a word from the guest.
    Died,
    /// It was stopped by a signal to this program.
    Stopped,
}

/// The kernel's words, the worst first: a panic is followed by a restart.
const WORDS: [(&[u8], Ending); 3] = [
    (b"Kernel panic", Ending::Panic),
    (b"reboot: machine restart", Ending::Reset),
    (b"reboot: Power down", Ending::Shutdown),
];
/// No words are longer.
const WORDS_BYTES_MAX: usize = 32;

/// Looks for the kernel's last words in what comes from the console.
#[derive(Debug, Default)]
pub struct Console {
    tail: Vec<u8>,
}

impl Console {
    /// Takes the next bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Ending> {
        self.tail.extend_from_slice(bytes);
        let tail = &self.tail;
        let found = WORDS.iter().find(|(words, _)| tail.windows(words.len()).any(|window| window == *words));
        let found = found.map(|(_, ending)| *ending);
        let keep = self.tail.len().saturating_sub(WORDS_BYTES_MAX);
        self.tail.drain(..keep);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_seen_even_in_two_pieces() {
        let mut console = Console::default();
        assert_eq!(console.take(&[b'x'; 4096]), None);
        assert_eq!(console.take(b"\r\n[    3.1] reboot: Pow"), None);
        assert_eq!(console.take(b"er down\r\n"), Some(Ending::Shutdown));
        assert_eq!(Console::default().take(b"reboot: machine restart"), Some(Ending::Reset));
        let both = b"Kernel panic - not syncing\nreboot: machine restart";
        assert_eq!(Console::default().take(both), Some(Ending::Panic));
    }
}
