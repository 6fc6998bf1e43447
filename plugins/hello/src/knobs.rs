//! What a test wants a plugin to do: burn CPU, hold memory, write lines.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

/// Most memory that is held, whatever is asked for: more than any enclave of a test has.
pub(crate) const HELD_MIB_MAX: u32 = 16 << 10;

/// Burns CPU on `threads` threads for `time`.
pub(crate) async fn burn(threads: u32, time: Duration) {
    let mut burners = JoinSet::new();
    for _ in 0..threads {
        burners.spawn_blocking(move || {
            let begun = Instant::now();
            let mut number = 1u64;
            while begun.elapsed() < time {
                for _ in 0..10_000 {
                    number =
                        std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
            }
        });
    }
    burners.join_all().await;
}

/// Memory held until it is freed.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<Vec<Vec<u8>>>);

impl Held {
    /// Holds `mib` more; an error says how much is held already.
    pub(crate) fn hold(&self, mib: u32) -> Result<usize, String> {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() + mib as usize > HELD_MIB_MAX as usize {
            return Err(format!("{} MiB are held, at most {HELD_MIB_MAX} can be", blocks.len()));
        }
        // Written, not just reserved: untouched pages cost nothing.
        blocks.extend((0..mib).map(|_| vec![1; 1 << 20]));
        Ok(blocks.len() << 20)
    }

    /// Frees everything.
    pub(crate) fn free(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many bytes are held.
    pub(crate) fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() << 20
    }
}

/// Writes `lines` numbered lines of `bytes` bytes each to `out`.
pub(crate) fn write_lines(mut out: impl io::Write, lines: u32, bytes: usize) -> io::Result<()> {
    for number in 1..=lines {
        let mut line = format!("line {number} of {lines} ");
        line.truncate(bytes);
        writeln!(out, "{line:x<bytes$}")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_held_until_it_is_freed_and_bounded() {
        let held = Held::default();
        assert_eq!(held.hold(2), Ok(2 << 20));
        assert_eq!(held.hold(1), Ok(3 << 20));
        assert!(held.hold(HELD_MIB_MAX).is_err());
        held.free();
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn lines_have_the_length_asked_for() {
        let mut out = Vec::new();
        write_lines(&mut out, 2, 16).unwrap();
        write_lines(&mut out, 1, 4).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "line 1 of 2 xxxx\nline 2 of 2 xxxx\nline\n");
    }

    #[tokio::test]
    async fn burning_lasts_as_long_as_asked_for() {
        let begun = Instant::now();
        burn(2, Duration::from_millis(20)).await;
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
