//! The header of a proxied stream: one vsock connection carries one TCP connection.
//!
//! ```text
//! request   magic 'E''S' | version u8 | kind u8 | port u16 | name_len u8 | reserved u8 | trace_id u64 | name
//! reply     status u8 | reserved u8 | errno u16
//! ```
//! Integers are big-endian. An egress request names the destination's FQDN and port; an ingress request names
//! the plugin and its container port, both as the manifest declares them. After a reply of status 0 raw bytes
//! follow both ways. Every field is checked before anything is allocated.

/// Version of the header.
pub const VERSION: u8 = 1;
/// Bytes before the name.
pub const FIXED_LEN: usize = 16;
/// Longest name, the limit of DNS.
pub const NAME_MAX: usize = 253;
/// Longest header.
pub const HEADER_MAX: usize = FIXED_LEN + NAME_MAX;
/// Bytes of a reply.
pub const REPLY_LEN: usize = 4;

const MAGIC: [u8; 2] = *b"ES";

/// Which way the stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From a plugin to the world.
    Egress,
    /// From the world to a plugin.
    Ingress,
}

/// A stream's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Direction.
    pub kind: Kind,
    /// The destination's TCP port.
    pub port: u16,
    /// Links the two sides' log lines; no meaning otherwise.
    pub trace_id: u64,
    /// FQDN (egress) or plugin name (ingress): 1–253 bytes of `a-z 0-9 - . _`.
    pub name: String,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not our protocol.
    #[error("bad magic")]
    Magic,
    /// A version this build does not speak.
    #[error("version {0} is not supported")]
    Version(u8),
    /// Unknown direction.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A reserved byte is set.
    #[error("reserved byte is not zero")]
    Reserved,
    /// Port 0.
    #[error("port is zero")]
    Port,
    /// Length zero or above [`NAME_MAX`].
    #[error("name of {0} bytes")]
    NameLength(u8),
    /// A byte that no name has.
    #[error("name has an illegal byte")]
    Name,
}

impl Header {
    /// The header's bytes. `None` when the name is empty, too long or has illegal bytes.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let name = self.name.as_bytes();
        let name_len =
            u8::try_from(name.len()).ok().filter(|len| (1..=NAME_MAX).contains(&usize::from(*len)))?;
        if self.port == 0 || !name.iter().all(|b| is_name_byte(*b)) {
            return None;
        }
        let kind = match self.kind {
            Kind::Egress => 1,
            Kind::Ingress => 2,
        };
        let mut bytes = Vec::with_capacity(FIXED_LEN + name.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, kind]);
        bytes.extend_from_slice(&self.port.to_be_bytes());
        bytes.extend_from_slice(&[name_len, 0]);
        bytes.extend_from_slice(&self.trace_id.to_be_bytes());
        bytes.extend_from_slice(name);
        Some(bytes)
    }

    /// Reads the fixed part; answers the header without its name, and the name's length.
    pub fn decode_fixed(bytes: &[u8; FIXED_LEN]) -> Result<(Self, usize), HeaderError> {
        let [m0, m1, version, kind, p0, p1, name_len, reserved, trace @ ..] = *bytes;
        if [m0, m1] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let kind = match kind {
            1 => Kind::Egress,
            2 => Kind::Ingress,
            other => return Err(HeaderError::Kind(other)),
        };
        if reserved != 0 {
            return Err(HeaderError::Reserved);
        }
        let port = u16::from_be_bytes([p0, p1]);
        if port == 0 {
            return Err(HeaderError::Port);
        }
        let len = usize::from(name_len);
        if !(1..=NAME_MAX).contains(&len) {
            return Err(HeaderError::NameLength(name_len));
        }
        Ok((Self { kind, port, trace_id: u64::from_be_bytes(trace), name: String::new() }, len))
    }

    /// Completes a header with its name's bytes.
    pub fn with_name(mut self, name: &[u8]) -> Result<Self, HeaderError> {
        if !name.iter().all(|b| is_name_byte(*b)) {
            return Err(HeaderError::Name);
        }
        self.name = name.iter().map(|b| char::from(*b)).collect();
        Ok(self)
    }
}

fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_')
}

/// The far side's answer to a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// What became of the request.
    pub status: ReplyStatus,
    /// The errno of a failed connection, else 0.
    pub errno: u16,
}

/// What became of a stream request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplyStatus {
    /// Connected: raw bytes follow.
    Connected,
    /// The header was malformed.
    Malformed,
    /// The far side's own reading of the manifest does not allow it.
    NotAllowed,
    /// The name does not resolve.
    Unresolved,
    /// The name resolves only to addresses of a forbidden class.
    ForbiddenAddress,
    /// Connecting failed; see the errno.
    ConnectFailed,
    /// The far side is at its limit of streams.
    Overloaded,
}

impl ReplyStatus {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Connected,
        Self::Malformed,
        Self::NotAllowed,
        Self::Unresolved,
        Self::ForbiddenAddress,
        Self::ConnectFailed,
        Self::Overloaded,
    ];

    /// The word used in metrics and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Malformed => "malformed",
            Self::NotAllowed => "not_allowed",
            Self::Unresolved => "unresolved",
            Self::ForbiddenAddress => "forbidden_address",
            Self::ConnectFailed => "connect_failed",
            Self::Overloaded => "overloaded",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Connected => 0,
            Self::Malformed => 1,
            Self::NotAllowed => 2,
            Self::Unresolved => 3,
            Self::ForbiddenAddress => 4,
            Self::ConnectFailed => 5,
            Self::Overloaded => 6,
        }
    }
}

impl Reply {
    /// Connected.
    pub const CONNECTED: Self = Self { status: ReplyStatus::Connected, errno: 0 };

    /// A refusal without an errno.
    pub fn refused(status: ReplyStatus) -> Self {
        Self { status, errno: 0 }
    }

    /// A connection that failed.
    pub fn connect_failed(error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
        Self { status: ReplyStatus::ConnectFailed, errno }
    }

    /// The reply's bytes.
    pub fn encode(self) -> [u8; REPLY_LEN] {
        let [e0, e1] = self.errno.to_be_bytes();
        [self.status.code(), 0, e0, e1]
    }

    /// Reads a reply; `None` for an unknown status or a set reserved byte.
    pub fn decode(bytes: [u8; REPLY_LEN]) -> Option<Self> {
        let [code, reserved, e0, e1] = bytes;
        let status = ReplyStatus::ALL.into_iter().find(|status| status.code() == code)?;
        (reserved == 0).then_some(Self { status, errno: u16::from_be_bytes([e0, e1]) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn egress() -> Header {
        Header {
            kind: Kind::Egress,
            port: 443,
            trace_id: 0x0102_0304_0506_0708,
            name: "kms.example.com".into(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let fixed: &[u8; FIXED_LEN] = bytes[..FIXED_LEN].try_into().unwrap();
        let (header, len) = Header::decode_fixed(fixed)?;
        header.with_name(&bytes[FIXED_LEN..FIXED_LEN + len])
    }

    #[test]
    fn the_golden_bytes_do_not_change() {
        let mut golden = b"ES\x01\x01\x01\xbb\x0f\x00\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
        golden.extend_from_slice(b"kms.example.com");
        assert_eq!(egress().encode().unwrap(), golden);
        assert_eq!(decode(&golden).unwrap(), egress());
        assert_eq!(Reply { status: ReplyStatus::ConnectFailed, errno: 111 }.encode(), [5, 0, 0, 111]);
    }

    #[test]
    fn every_broken_field_has_its_own_error() {
        let good = egress().encode().unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes).unwrap_err()
        };
        assert_eq!(with(0, b'X'), HeaderError::Magic);
        assert_eq!(with(2, 2), HeaderError::Version(2));
        assert_eq!(with(3, 9), HeaderError::Kind(9));
        assert_eq!(with(6, 0), HeaderError::NameLength(0));
        assert_eq!(with(6, 254), HeaderError::NameLength(254));
        assert_eq!(with(7, 1), HeaderError::Reserved);
        assert_eq!(with(16, b'A'), HeaderError::Name);
        let mut zero = good.clone();
        zero[4..6].copy_from_slice(&[0, 0]);
        assert_eq!(decode(&zero), Err(HeaderError::Port));
    }

    #[test]
    fn a_name_that_is_too_long_or_foreign_is_not_sent() {
        for name in [String::new(), "a".repeat(254), "exa mple".into(), "é".into()] {
            assert_eq!(Header { name, ..egress() }.encode(), None);
        }
    }

    proptest! {
        #[test]
        fn any_header_survives_the_wire(port in 1u16.., trace_id: u64, name in "[a-z0-9._-]{1,253}", out: bool) {
            let kind = if out { Kind::Egress } else { Kind::Ingress };
            let header = Header { kind, port, trace_id, name };
            prop_assert_eq!(decode(&header.encode().unwrap()).unwrap(), header);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: [u8; FIXED_LEN], name: Vec<u8>, reply: [u8; REPLY_LEN]) {
            if let Ok((header, len)) = Header::decode_fixed(&bytes) {
                prop_assert!(len <= NAME_MAX);
                header.with_name(&name).ok();
            }
            if let Some(decoded) = Reply::decode(reply) {
                prop_assert_eq!(decoded.encode(), reply);
            }
        }
    }
}
