//! Finds the server name in the first bytes of a TLS connection. Total and bounded: any bytes give an answer,
//! and no more than [`PREFIX_MAX`] of them are ever asked for.
//!
//! It is stricter than a server has to be. What two parsers could read in two ways is refused: an empty
//! record, bytes after the `ClientHello` within its record, a repeated extension, more than one name. An
//! encrypted inner hello (ECH) cannot be looked into; the outer name still is the one that is checked.

/// Longest `ClientHello`, its handshake header included. With post-quantum key shares they have about 2 KiB.
pub(crate) const HELLO_MAX: usize = 16 << 10;
/// Longest prefix looked at: the longest hello with room for the headers of the records it is cut into.
pub(crate) const PREFIX_MAX: usize = 20 << 10;

const RECORD_HEADER: usize = 5;
/// Longest plaintext record (RFC 8446, 5.1).
const RECORD_MAX: usize = 1 << 14;
const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;
/// Longest DNS name.
const NAME_MAX: usize = 253;

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The start of a `ClientHello`; nothing can be said before there are this many bytes.
    More(usize),
    /// A whole `ClientHello` for this server, in lower case.
    Name(String),
}

/// Why bytes are no `ClientHello` that names a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("not a TLS handshake")]
    NotTls,
    #[error("malformed record")]
    Record,
    #[error("handshake does not start with a ClientHello")]
    NotClientHello,
    #[error("ClientHello is too long")]
    TooLong,
    #[error("malformed ClientHello")]
    Malformed,
    #[error("ClientHello names no server")]
    NoName,
}

/// Looks at all bytes received so far, from the first one on.
pub(crate) fn server_name(bytes: &[u8]) -> Result<Progress, HelloError> {
    let mut handshake = Vec::new();
    let mut at = 0;
    loop {
        let end = match record_end(bytes, at)? {
            Ok(end) => end,
            Err(more) => return Ok(Progress::More(more)),
        };
        let Some(body) = bytes.get(at + RECORD_HEADER..end) else { return Ok(Progress::More(end)) };
        handshake.extend_from_slice(body);
        at = end;
        let Some((header, hello)) = handshake.split_first_chunk::<4>() else { continue };
        let [kind, length @ ..] = *header;
        if kind != HANDSHAKE_CLIENT_HELLO {
            return Err(HelloError::NotClientHello);
        }
        let length = u24(length);
        if length > HELLO_MAX - header.len() {
            return Err(HelloError::TooLong);
        }
        if hello.len() > length {
            return Err(HelloError::Malformed);
        }
        if hello.len() == length {
            return name_of(hello).map(Progress::Name);
        }
    }
}

/// Where the record that starts at `at` ends, or (`Err`) how many bytes are needed to say so.
fn record_end(bytes: &[u8], at: usize) -> Result<Result<usize, usize>, HelloError> {
    // Each byte is judged as soon as it is there: plaintext is refused at once, not after a time-out.
    let header = bytes.get(at..).unwrap_or_default();
    if header.first().is_some_and(|kind| *kind != CONTENT_HANDSHAKE) || header.get(1).is_some_and(|v| *v != 3)
    {
        return Err(HelloError::NotTls);
    }
    let Some([_, _, _, high, low]) = header.first_chunk::<RECORD_HEADER>() else {
        return bounded(at + RECORD_HEADER).map(Err);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if !(1..=RECORD_MAX).contains(&length) {
        return Err(HelloError::Record);
    }
    bounded(at + RECORD_HEADER + length).map(Ok)
}

fn bounded(length: usize) -> Result<usize, HelloError> {
    if length <= PREFIX_MAX { Ok(length) } else { Err(HelloError::TooLong) }
}

fn u24([high, middle, low]: [u8; 3]) -> usize {
    usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
}

/// Reads a whole `ClientHello` (RFC 8446, 4.1.2).
fn name_of(hello: &[u8]) -> Result<String, HelloError> {
    let extensions = extensions_of(hello).ok_or(HelloError::Malformed)?;
    let mut rest = Reader(extensions);
    let mut found = None;
    while !rest.0.is_empty() {
        let (kind, body) = rest.extension().ok_or(HelloError::Malformed)?;
        if kind == EXTENSION_SERVER_NAME && found.replace(body).is_some() {
            return Err(HelloError::Malformed);
        }
    }
    let list = found.ok_or(HelloError::NoName)?;
    only_name(list).ok_or(HelloError::Malformed)
}

/// The block of extensions; empty when the hello has none.
fn extensions_of(hello: &[u8]) -> Option<&[u8]> {
    let mut rest = Reader(hello);
    let [major, _minor] = *rest.bytes(2)?.first_chunk::<2>()?;
    let _random = rest.bytes(32)?;
    let session = rest.short_vector()?;
    let suites = rest.vector()?;
    let compression = rest.short_vector()?;
    let sound = major == 3
        && session.len() <= 32
        && !suites.is_empty()
        && suites.len().is_multiple_of(2)
        && !compression.is_empty();
    if !sound {
        return None;
    }
    if rest.0.is_empty() {
        return Some(&[]);
    }
    let extensions = rest.vector()?;
    rest.0.is_empty().then_some(extensions)
}

/// The one host name of a `server_name` extension (RFC 6066, 3).
fn only_name(extension: &[u8]) -> Option<String> {
    let mut rest = Reader(extension);
    let mut list = Reader(rest.vector()?);
    let kind = list.byte()?;
    let name = list.vector()?;
    let sound = kind == NAME_TYPE_HOST
        && rest.0.is_empty()
        && list.0.is_empty()
        && (1..=NAME_MAX).contains(&name.len())
        && name.iter().all(u8::is_ascii_graphic);
    sound.then(|| name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn short(&mut self) -> Option<u16> {
        self.bytes(2)?.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// A vector with one byte of length.
    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.bytes(usize::from(length))
    }

    /// A vector with two bytes of length.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.bytes(usize::from(length))
    }

    fn extension(&mut self) -> Option<(u16, &'a [u8])> {
        Some((self.short()?, self.vector()?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap();
        [&length.to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vector(body)].concat()
    }

    fn server_name_extension(names: &[&str]) -> Vec<u8> {
        let list: Vec<u8> =
            names.iter().flat_map(|name| [vec![NAME_TYPE_HOST], vector(name.as_bytes())].concat()).collect();
        extension(EXTENSION_SERVER_NAME, &vector(&list))
    }

    /// A handshake message with these extensions.
    fn hello(extensions: &[u8]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &[32],
            &[9; 32],
            &vector(&[0x13, 0x01, 0x13, 0x02]),
            &[1, 0],
            &vector(extensions),
        ]
        .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[HANDSHAKE_CLIENT_HELLO], &length[1..], &body].concat()
    }

    fn records(handshake: &[u8], each: usize) -> Vec<u8> {
        handshake
            .chunks(each)
            .flat_map(|part| [vec![CONTENT_HANDSHAKE, 3, 1], vector(part)].concat())
            .collect()
    }

    /// What a client sends first to `name`, cut into records of `each` bytes.
    pub(crate) fn client_hello(name: &str, each: usize) -> Vec<u8> {
        let padding = extension(21, &[0; 300]);
        let versions = extension(43, &[2, 3, 4]);
        records(&hello(&[padding, server_name_extension(&[name]), versions].concat()), each)
    }

    /// Feeds byte by byte; the answer to all, checked to be the answer to no less.
    fn feed(bytes: &[u8]) -> Result<Progress, HelloError> {
        for end in 0..bytes.len() {
            let progress = server_name(&bytes[..end]);
            let Ok(Progress::More(wanted)) = progress else { return progress };
            assert!(wanted > end && wanted <= PREFIX_MAX, "{wanted} wanted after {end}");
        }
        server_name(bytes)
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut_into_records() {
        for each in [1, 2, 3, 5, 64, 300, RECORD_MAX] {
            assert_eq!(
                feed(&client_hello("KMS.Example.com", each)),
                Ok(Progress::Name("kms.example.com".into()))
            );
        }
        let early_data = [client_hello("a.example", RECORD_MAX), vec![23, 3, 3, 0, 1, 0]].concat();
        assert_eq!(server_name(&early_data), Ok(Progress::Name("a.example".into())));
    }

    #[test]
    fn the_hello_of_openssl_is_read() {
        let bytes = include_bytes!("testdata/openssl-3.0-client-hello.bin");
        assert_eq!(feed(bytes), Ok(Progress::Name("kms.eu-west-1.amazonaws.com".into())));
    }

    /// Written out by hand from RFC 8446 and RFC 6066, as a TLS 1.2 client with nothing else to say sends it.
    #[test]
    fn a_hello_written_out_by_hand_is_read() {
        let mut bytes = b"\x16\x03\x01\x00\x45\x01\x00\x00\x41\x03\x03".to_vec();
        bytes.extend_from_slice(&[0xAB; 32]);
        bytes.extend_from_slice(b"\x00\x00\x02\xc0\x2f\x01\x00\x00\x16");
        bytes.extend_from_slice(b"\x00\x00\x00\x12\x00\x10\x00\x00\x0dkms.aws.local");
        assert_eq!(bytes.len(), 5 + 0x45);
        assert_eq!(feed(&bytes), Ok(Progress::Name("kms.aws.local".into())));
    }

    #[test]
    fn what_is_no_hello_is_refused_as_soon_as_it_shows() {
        assert_eq!(server_name(b"G"), Err(HelloError::NotTls));
        assert_eq!(server_name(b"\x16\x02"), Err(HelloError::NotTls));
        assert_eq!(server_name(b"\x16\x03\x01\x00\x00"), Err(HelloError::Record));
        assert_eq!(server_name(b"\x16\x03\x01\x40\x01"), Err(HelloError::Record));
        assert_eq!(server_name(&records(&[2, 0, 0, 1, 0], 9)), Err(HelloError::NotClientHello));
        assert_eq!(server_name(&records(&[1, 1, 0, 0], 9)), Err(HelloError::TooLong));
        assert_eq!(server_name(&records(&[1, 0, 0, 1, 3], 9)), Err(HelloError::Malformed));
        // One-byte records would need six times the room: more than is ever read.
        let padded = hello(&extension(21, &[0; 5000]));
        assert_eq!(server_name(&records(&padded, 1)), Err(HelloError::TooLong));
    }

    #[test]
    fn a_hello_that_could_be_read_in_two_ways_is_refused() {
        let check =
            |extensions: &[u8], expected| assert_eq!(feed(&records(&hello(extensions), 999)), Err(expected));
        let name = server_name_extension(&["a.example"]);
        check(&[], HelloError::NoName);
        check(&extension(43, &[2, 3, 4]), HelloError::NoName);
        check(&[name.clone(), name.clone()].concat(), HelloError::Malformed);
        check(&server_name_extension(&["a.example", "b.example"]), HelloError::Malformed);
        check(&server_name_extension(&[""]), HelloError::Malformed);
        check(&server_name_extension(&["a\0example"]), HelloError::Malformed);
        check(&server_name_extension(&[&"a".repeat(254)]), HelloError::Malformed);
        check(&extension(EXTENSION_SERVER_NAME, &[]), HelloError::Malformed);
        check(&name[..name.len() - 1], HelloError::Malformed);
        let trailing = [hello(&name), vec![0]].concat();
        assert_eq!(server_name(&records(&trailing, 999)), Err(HelloError::Malformed));
    }

    #[test]
    fn a_hello_without_any_extensions_names_nobody() {
        let body = [&[3, 3][..], &[7; 32], &[0], &vector(&[0x13, 0x01]), &[1, 0]].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[HANDSHAKE_CLIENT_HELLO], &length[1..], &body].concat();
        assert_eq!(server_name(&records(&message, 999)), Err(HelloError::NoName));
    }

    proptest! {
        #[test]
        fn any_name_survives_any_cut(name in "[a-z0-9.-]{1,253}", each in 1usize..2000) {
            let bytes = client_hello(&name, each);
            if bytes.len() <= PREFIX_MAX {
                prop_assert_eq!(server_name(&bytes), Ok(Progress::Name(name)));
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_ask_for_more_than_the_bound(bytes: Vec<u8>, at: usize, byte: u8, cut: usize) {
            let mut broken = client_hello("kms.example.com", 100);
            let index = at % broken.len();
            broken[index] = byte;
            broken.truncate(cut % (broken.len() + 1));
            for bytes in [bytes, broken] {
                if let Ok(Progress::More(wanted)) = server_name(&bytes) {
                    prop_assert!(wanted > bytes.len() && wanted <= PREFIX_MAX);
                }
            }
        }
    }
}
