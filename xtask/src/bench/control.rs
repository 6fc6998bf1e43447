//! The host's way to a supervisor's control API.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::Value;

/// The vsock port of the control API.
const CONTROL_PORT: u32 = 100_000;
/// Longest answer that is read, in bytes: the status of a hundred plugins and much more.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// An answer with its body.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// Null if it is no JSON.
    pub(super) body: Value,
}

/// Connects over the hybrid socket. No answer may take longer than `limit`.
pub(super) fn dial(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    writeln!(stream, "CONNECT {CONTROL_PORT}")?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

/// Asks once: `line` is method and path.
pub(super) fn call(
    socket: &Path,
    limit: Duration,
    line: &str,
    token: Option<&str>,
    body: &str,
) -> io::Result<Answer> {
    let mut stream = ask(socket, limit, line, token, body)?;
    let status = read_head(&mut stream)?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or_default() })
}

/// Asks for a body without an end, which is read line by line without a time limit.
pub(super) fn stream(
    socket: &Path,
    limit: Duration,
    line: &str,
    token: &str,
) -> io::Result<BufReader<UnixStream>> {
    let mut stream = ask(socket, limit, line, Some(token), "")?;
    match read_head(&mut stream)? {
        200 => {
            stream.get_ref().set_read_timeout(None)?;
            Ok(stream)
        }
        status => Err(io::Error::other(format!("{line} was answered with {status}"))),
    }
}

fn ask(
    socket: &Path,
    limit: Duration,
    line: &str,
    token: Option<&str>,
    body: &str,
) -> io::Result<BufReader<UnixStream>> {
    let mut stream = dial(socket, limit)?;
    let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    // HTTP/1.0 has no chunks: what follows the head is the body, up to the end of the connection.
    write!(stream, "{line} HTTP/1.0\r\nhost: e\r\n{authorization}content-length: {length}\r\n\r\n{body}")?;
    Ok(BufReader::new(stream))
}

/// Reads up to the empty line; the status.
fn read_head(stream: &mut BufReader<UnixStream>) -> io::Result<u16> {
    let mut first = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        first.get_or_insert_with(|| line.split(' ').nth(1).and_then(|word| word.parse().ok()));
    }
    first.flatten().ok_or_else(|| io::ErrorKind::InvalidData.into())
}
