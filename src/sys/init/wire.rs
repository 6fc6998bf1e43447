//! What the supervisor and a plugin's init say to one another: one packet of a `SOCK_SEQPACKET` pair each.
//!
//! A packet is an operation, a number in big-endian order, and for a command its words, each ended by a NUL.
//! The init allocates nothing for it, and what it says is believed about its own plugin only.

/// Longest packet, in bytes: a command of a probe. A socket's default send buffer takes three of them.
pub const PACKET_MAX: usize = 64 << 10;
/// Bytes before the words.
pub(super) const HEAD: usize = 5;

/// From the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// Run the plugin's command. Until this the init waits.
    Begin,
    /// Run a command beside the plugin's own. Its output goes to the descriptor that comes with the packet.
    Run {
        /// Comes back with its end.
        id: u32,
        /// The words, each with its NUL.
        words: &'a [u8],
    },
    /// Kill that command, if it still runs.
    Cancel {
        /// Its number.
        id: u32,
    },
}

/// From the init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The plugin's command runs.
    Started,
    /// It cannot be executed.
    NotStarted {
        /// The errno of execve.
        errno: i32,
    },
    /// It ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended it.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// A command that was asked for has ended, or could not be run.
    Ran {
        /// Its number.
        id: u32,
        /// Whether it exited with code 0.
        success: bool,
    },
}

const BEGIN: u8 = b'b';
const RUN: u8 = b'r';
const CANCEL: u8 = b'c';
const STARTED: u8 = b'S';
const NOT_STARTED: u8 = b'N';
const EXITED: u8 = b'E';
const KILLED: u8 = b'K';
const SUCCEEDED: u8 = b'+';
const FAILED: u8 = b'-';

fn packet(operation: u8, number: u32) -> [u8; HEAD] {
    let [a, b, c, d] = number.to_be_bytes();
    [operation, a, b, c, d]
}

fn split(packet: &[u8]) -> Option<(u8, u32, &[u8])> {
    let (head, rest) = packet.split_first_chunk::<HEAD>()?;
    let [operation, a, b, c, d] = *head;
    Some((operation, u32::from_be_bytes([a, b, c, d]), rest))
}

/// The packet that asks for a command; none for a command too long, or with a NUL in it.
pub fn run<'a>(id: u32, words: impl IntoIterator<Item = &'a str>) -> Option<Vec<u8>> {
    let mut bytes = packet(RUN, id).to_vec();
    for word in words {
        if word.contains('\0') || bytes.len() + word.len() >= PACKET_MAX {
            return None;
        }
        bytes.extend_from_slice(word.as_bytes());
        bytes.push(0);
    }
    (bytes.len() > HEAD).then_some(bytes)
}

/// The packet that begins a run.
pub fn begin() -> Vec<u8> {
    packet(BEGIN, 0).to_vec()
}

/// The packet that cancels one.
pub fn cancel(id: u32) -> Vec<u8> {
    packet(CANCEL, id).to_vec()
}

impl<'a> Request<'a> {
    pub(super) fn decode(packet: &'a [u8]) -> Option<Self> {
        match split(packet)? {
            (BEGIN, 0, []) => Some(Self::Begin),
            (RUN, id, words) if words.last() == Some(&0) => Some(Self::Run { id, words }),
            (CANCEL, id, []) => Some(Self::Cancel { id }),
            _ => None,
        }
    }
}

impl Report {
    pub(super) fn encode(self) -> [u8; HEAD] {
        match self {
            Self::Started => packet(STARTED, 0),
            Self::NotStarted { errno } => packet(NOT_STARTED, errno.cast_unsigned()),
            Self::Exited { code } => packet(EXITED, code.cast_unsigned()),
            Self::Killed { signal } => packet(KILLED, signal.cast_unsigned()),
            Self::Ran { id, success } => packet(if success { SUCCEEDED } else { FAILED }, id),
        }
    }

    /// Reads a packet; none for anything that no init says.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        match split(packet)? {
            (STARTED, 0, []) => Some(Self::Started),
            (NOT_STARTED, errno, []) => Some(Self::NotStarted { errno: errno.cast_signed() }),
            // What wait(2) can say, and nothing else.
            (EXITED, code @ 0..=255, []) => Some(Self::Exited { code: code.cast_signed() }),
            (KILLED, signal @ 1..=127, []) => Some(Self::Killed { signal: signal.cast_signed() }),
            (SUCCEEDED, id, []) => Some(Self::Ran { id, success: true }),
            (FAILED, id, []) => Some(Self::Ran { id, success: false }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_survives_its_packet_and_one_too_long_or_with_a_nul_is_refused() {
        let bytes = run(7, ["sh", "", "-c"]).unwrap();
        let Some(Request::Run { id: 7, words }) = Request::decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!(words, b"sh\0\0-c\0");
        assert_eq!(run(7, [&*"x".repeat(PACKET_MAX)]), None);
        assert_eq!(run(7, ["a\0b"]), None);
        assert_eq!(run(7, []), None);
        assert_eq!(Request::decode(&cancel(9)), Some(Request::Cancel { id: 9 }));
        assert_eq!(Request::decode(&begin()), Some(Request::Begin));
    }

    #[test]
    fn every_report_survives_its_packet() {
        let reports = [
            Report::Started,
            Report::NotStarted { errno: 2 },
            Report::Exited { code: 255 },
            Report::Killed { signal: 9 },
            Report::Ran { id: u32::MAX, success: true },
            Report::Ran { id: 0, success: false },
        ];
        for report in reports {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic_and_what_is_accepted_is_in_range(bytes in any::<Vec<u8>>()) {
            if let Some(Report::Exited { code }) = Report::decode(&bytes) {
                prop_assert!((0..256).contains(&code));
            }
            if let Some(Request::Run { words, .. }) = Request::decode(&bytes) {
                prop_assert_eq!(words.last(), Some(&0));
            }
        }
    }
}
