//! The host's end of streams, without host-proxy: ingress dialled, egress accepted, header by header.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc,
    thread,
};

use enclave_protocol::{
    control::{EGRESS_PORT, INGRESS_PORT},
    stream::{FIXED_LEN, Header, Kind, REPLY_LEN, Reply, ReplyStatus},
};

use crate::{client::Client, patience::PATIENCE};

/// A stream to a plugin's port, or the refusal.
pub(crate) fn ingress(client: &Client, plugin: &str, port: u16) -> Result<UnixStream, Reply> {
    let mut stream = client.dial(INGRESS_PORT);
    let header = Header { kind: Kind::Ingress, port, trace_id: 7, name: plugin.to_owned() };
    stream.write_all(&header.encode().unwrap()).unwrap();
    let mut bytes = [0; REPLY_LEN];
    stream.read_exact(&mut bytes).expect("the stream is answered");
    let reply = Reply::decode(bytes).expect("a reply");
    if reply.status == ReplyStatus::Connected { Ok(stream) } else { Err(reply) }
}

/// Listens where the enclave dials its egress streams.
pub(crate) struct Egress(UnixListener);

impl Egress {
    pub(crate) fn listen(transport: &Path) -> Self {
        Self(UnixListener::bind(format!("{}_{EGRESS_PORT}", transport.display())).unwrap())
    }

    /// The next stream and its header. The enclave waits for the reply.
    pub(crate) fn accept(&self) -> (UnixStream, Header) {
        let listener = self.0.try_clone().unwrap();
        let (sender, accepted) = mpsc::sync_channel(1);
        // Accepting has no time-out of its own. The thread ends with the process at the latest.
        thread::spawn(move || sender.send(listener.accept().unwrap().0));
        let mut stream = accepted.recv_timeout(PATIENCE).expect("an egress stream");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut fixed = [0; FIXED_LEN];
        stream.read_exact(&mut fixed).unwrap();
        let (header, length) = Header::decode_fixed(&fixed).unwrap();
        let mut name = vec![0; length];
        stream.read_exact(&mut name).unwrap();
        (stream, header.with_name(&name).unwrap())
    }
}

/// Answers a stream's header.
pub(crate) fn reply(stream: &mut UnixStream, status: ReplyStatus) {
    stream.write_all(&Reply { status, errno: 0 }.encode()).unwrap();
}
