//! Talks to one `net` until the link ends. Sending never keeps it from receiving, so that two full queues
//! cannot wait for each other; new work is taken up only when all that was begun is sent, so that a `net`
//! that does not read costs nothing but its own service.

use std::{
    collections::VecDeque,
    future::pending,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use enclave_protocol::{metrics::Family, transport::Stream};
use tokio::sync::{mpsc, watch};

use super::{probes::Probes, sockets::Dispenser};
use crate::net::{
    link::{Link, Message},
    report::Gather,
};

/// A message with its descriptors.
pub(super) type Packet = (Message, Vec<OwnedFd>);

/// One `net`, seen from PID 1.
#[derive(Debug)]
pub(super) struct Attendant {
    pub(super) link: Link,
    /// To be sent, in this order.
    pub(super) outbox: VecDeque<Packet>,
    /// Ingress streams to hand over.
    pub(super) streams: mpsc::Receiver<Stream>,
    /// Reports to ask for.
    pub(super) reports: mpsc::Receiver<u64>,
    /// Questions to plugins, each with its socket.
    pub(super) questions: mpsc::Receiver<Packet>,
    /// Where their answers go.
    pub(super) probes: Arc<Probes>,
    /// Where a whole report goes.
    pub(super) report: watch::Sender<Vec<Family>>,
    /// What answers its questions for sockets.
    pub(super) dispenser: Dispenser,
    /// The report that is asked for.
    pub(super) gather: Option<Gather>,
}

impl Attendant {
    /// Returns when the process is gone.
    pub(super) async fn attend(mut self) -> io::Result<()> {
        loop {
            let idle = self.outbox.is_empty();
            tokio::select! {
                sent = send_first(&self.link, &self.outbox) => {
                    sent?;
                    self.outbox.pop_front();
                }
                received = self.link.recv() => match received? {
                    Some((message, _fds)) => self.take(message),
                    None => return Ok(()),
                },
                Some(stream) = self.streams.recv(), if idle => {
                    self.outbox.push_back((Message::IngressStream, vec![stream.into_fd()?]));
                }
                Some(id) = self.reports.recv(), if idle => {
                    self.gather = Some(Gather::new(id));
                    self.outbox.push_back((Message::ReportRequest { id }, Vec::new()));
                }
                Some(question) = self.questions.recv(), if idle => self.outbox.push_back(question),
                packet = self.dispenser.next(), if idle => self.outbox.push_back(packet),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::SocketsWanted { plugin, count } => self.dispenser.want(plugin, count),
            Message::Report { id, families, last } => {
                let whole = self.gather.as_mut().and_then(|gather| gather.push(id, families, last));
                if let Some(whole) = whole {
                    self.report.send_replace(whole);
                }
            }
            Message::Probed { id, outcome } => self.probes.answer(id, outcome),
            // It has nothing to say.
            Message::Ready => {}
            // What only PID 1 sends is not believed.
            Message::Configure { .. }
            | Message::Egress { .. }
            | Message::Ingress { .. }
            | Message::IngressListener
            | Message::IngressStream
            | Message::Peer { .. }
            | Message::Sockets { .. }
            | Message::Probe { .. }
            | Message::ReportRequest { .. } => {}
        }
    }
}

/// Sends what is first in the queue, if there is anything.
async fn send_first(link: &Link, outbox: &VecDeque<Packet>) -> io::Result<()> {
    match outbox.front() {
        Some((message, fds)) => {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            link.send(message, &fds).await
        }
        None => pending().await,
    }
}
