//! Plain HTTP to a program on loopback.

use std::{io, net::TcpStream, time::Duration};

use crate::{
    client::{Answer, exchange},
    patience::{PATIENCE, eventually},
};

/// How long a connection may take: both ends are on this machine.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// One GET. HTTP/1.0, so that the answer is not in chunks and ends with the connection.
pub(crate) fn try_get(port: u16, path: &str) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), CONNECT_MAX)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(exchange(stream, &format!("GET {path} HTTP/1.0\r\nhost: localhost\r\naccept: */*\r\n"), b""))
}

/// One GET of something that is there.
pub(crate) fn get(port: u16, path: &str) -> Answer {
    try_get(port, path).unwrap_or_else(|error| panic!("127.0.0.1:{port}{path}: {error}"))
}

/// Waits until something listens on a port.
pub(crate) fn until_listening(what: &str, port: u16) {
    eventually(&format!("{what} to listen on {port}"), || {
        TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), CONNECT_MAX).ok()
    });
}

/// Waits until a page answers 200.
pub(crate) fn until_ok(what: &str, port: u16, path: &str) {
    until_listening(what, port);
    eventually(&format!("{what} to be ready"), || (try_get(port, path).ok()?.status == 200).then_some(()));
}

/// Text as a query's value.
pub(crate) fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
