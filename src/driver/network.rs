//! PID 1's side of the `net` process: starts it, tells it everything, starts it again when it ends.
//!
//! The listening sockets stay here; a `net` that dies loses its streams and nothing else, and connections
//! wait in the backlog until the next one has the sockets.

mod attendant;
mod probes;
mod sockets;

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use enclave_protocol::{
    control::{EgressRule, IngressRule, LogStream},
    metrics::Family,
    transport::{Host, Stream},
};
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

pub(crate) use self::sockets::SocketSource;
use self::{
    attendant::{Attendant, Packet},
    probes::Probes,
    sockets::Dispenser,
};
use crate::{
    engine::Moment,
    logs::{
        capture::{Capture, Ends},
        ring::Rings,
    },
    net::{
        limits::Limits,
        link::{Link, Message},
        plan::PeerListener,
        probe::{Outcome, PROBES_MAX, Question},
        report::Totals,
    },
    sys,
};

/// A `net` that ends sooner than this is started again only after it: a broken one must not spin.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Ingress streams that may wait to be handed over.
const STREAMS_WAITING_MAX: usize = 64;
/// The source name of its log records.
pub(crate) const SOURCE: &str = "net";

/// What every `net` is told.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The host.
    pub(crate) host: Host,
    /// The host's port for egress.
    pub(crate) egress_port: u32,
    /// One listener per destination.
    pub(crate) egress: Vec<(EgressRule, TcpListener)>,
    /// One listener per port of a plugin and other plugin; none where all share a network namespace.
    pub(crate) peers: Vec<(PeerListener, TcpListener)>,
    /// Ports that streams from the host may reach.
    pub(crate) ingress: Vec<IngressRule>,
    /// Where ingress streams arrive; over the hybrid transport they come one by one instead.
    pub(crate) ingress_listener: Option<OwnedFd>,
    /// What connections into plugins are made with.
    pub(crate) sockets: SocketSource,
}

/// The `net` process, from the first manifest on.
#[derive(Debug)]
pub(crate) struct Network {
    setup: Setup,
    capture: Capture,
    run: Option<Run>,
    started: Moment,
    due: Option<Moment>,
    reported: watch::Receiver<Vec<Family>>,
    report: watch::Sender<Vec<Family>>,
    totals: Totals,
    probes: Arc<Probes>,
    /// Restarts since the start.
    pub(crate) restarts: u64,
}

#[derive(Debug)]
struct Run {
    pid: i32,
    streams: mpsc::Sender<Stream>,
    reports: mpsc::Sender<u64>,
    questions: mpsc::Sender<Packet>,
    _attending: JoinSet<()>,
}

impl Network {
    /// Not started yet: see [`Network::start`].
    pub(crate) fn new(setup: Setup, rings: Option<Arc<Rings>>) -> Self {
        let (report, reported) = watch::channel(Vec::new());
        Self {
            setup,
            capture: Capture::new(rings, SOURCE, Ends::WithReader),
            run: None,
            started: Moment::default(),
            due: None,
            reported,
            report,
            totals: Totals::default(),
            probes: Arc::default(),
            restarts: 0,
        }
    }

    /// Starts the process. A failure is tried again after the pause.
    pub(crate) fn start(&mut self, now: Moment) {
        self.started = now;
        self.due = None;
        match self.launch() {
            Ok(run) => self.run = Some(run),
            Err(error) => {
                tracing::error!(%error, "cannot start the net process");
                self.due = Some(Moment(now.0 + RESTART_PAUSE));
            }
        }
    }

    fn launch(&mut self) -> io::Result<Run> {
        let (link, theirs) = Link::pair()?;
        let messages = self.setup.messages()?;
        let (pid, stderr) = sys::spawn::net(theirs)?;
        self.capture.add(stderr, LogStream::Stderr)?;
        Ok(self.attended(pid, link, messages))
    }

    /// Serves the process at the other end of `link`, which is told `messages` first.
    fn attended(&self, pid: i32, link: Link, messages: Vec<Packet>) -> Run {
        let (streams, stream_queue) = mpsc::channel(STREAMS_WAITING_MAX);
        let (reports, report_queue) = mpsc::channel(1);
        let (questions, question_queue) = mpsc::channel(PROBES_MAX);
        let attendant = Attendant {
            link,
            outbox: messages.into(),
            streams: stream_queue,
            reports: report_queue,
            questions: question_queue,
            probes: Arc::clone(&self.probes),
            report: self.report.clone(),
            dispenser: Dispenser::new(self.setup.sockets.clone(), self.setup.dialled()),
            gather: None,
        };
        let mut attending = JoinSet::new();
        attending.spawn(async move {
            // An end of the link is the end of the process; the reaper tells. One that breaks the link's
            // rules would live on unattended.
            if let Err(error) = attendant.attend().await
                && error.kind() == io::ErrorKind::InvalidData
            {
                tracing::error!(pid, %error, "the net process breaks the rules and is ended");
                // It may have ended by itself; its pid is its own until it is reaped, and then we are gone.
                sys::reaper::signal(pid, Signal::SIGKILL, false).ok();
            }
        });
        Run { pid, streams, reports, questions, _attending: attending }
    }

    /// Whether `pid` is the process; then it has ended and the next is due.
    pub(crate) fn ended(&mut self, pid: i32, now: Moment) -> bool {
        if self.run.as_ref().is_none_or(|run| run.pid != pid) {
            return false;
        }
        self.run = None;
        self.probes.net_ended();
        self.take_report();
        self.totals.restarted();
        self.restarts += 1;
        self.due = Some(now.max(Moment(self.started.0 + RESTART_PAUSE)));
        true
    }

    /// Ends the process for good.
    pub(crate) fn stop(&mut self) {
        self.due = None;
        if let Some(run) = self.run.take() {
            // It may have ended by itself in this very moment.
            sys::reaper::signal(run.pid, Signal::SIGKILL, false).ok();
        }
        self.probes.net_ended();
    }

    /// When the next start is due.
    pub(crate) fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Hands over an ingress stream; it is dropped, and so reset, while there is no process.
    pub(crate) fn ingress(&self, stream: Stream) {
        if let Some(run) = &self.run {
            // Full: the process does not keep up, and the peer sees its connection closed.
            run.streams.try_send(stream).ok();
        }
    }

    /// Asks a plugin whether it lives. The answer is one of [`Network::probed`]'s, whatever happens, and not
    /// later than a second after `limit`; `id` is the caller's and is not asked twice at the same time.
    pub(crate) fn probe(&self, id: u64, plugin: &str, port: u16, question: Question, limit: Duration) {
        if let Err(why) = self.try_probe(id, plugin, port, question, limit) {
            self.probes.not_asked(id, &why);
        }
    }

    fn try_probe(
        &self,
        id: u64,
        plugin: &str,
        port: u16,
        question: Question,
        limit: Duration,
    ) -> Result<(), String> {
        let Some(run) = &self.run else { return Err("the net process is not running".to_owned()) };
        if !self.probes.has_room() {
            return Err("too many probes at once".to_owned());
        }
        let place = run.questions.try_reserve().map_err(|_| "the net process does not keep up")?;
        let made = self.setup.sockets.make(plugin, 1).map_err(|error| format!("no socket: {error}"))?;
        // The limit of a manifest is a day.
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        place.send((Message::Probe { id, port, question, timeout_ms }, made));
        self.probes.asked(id, limit);
        Ok(())
    }

    /// The next answer to [`Network::probe`]. Cancelling it loses none.
    pub(crate) async fn probed(&self) -> (u64, Outcome) {
        self.probes.next().await
    }

    /// Asks for the counters, for the sample after the next.
    pub(crate) fn request_report(&self, id: u64) {
        if let Some(run) = &self.run {
            // Full: the last request is not answered yet.
            run.reports.try_send(id).ok();
        }
    }

    /// The latest counters, over all runs of the process.
    pub(crate) fn families(&mut self) -> Vec<Family> {
        self.take_report();
        self.totals.families()
    }

    fn take_report(&mut self) {
        if self.reported.has_changed().unwrap_or(false) {
            let report = self.reported.borrow_and_update().clone();
            self.totals.update(report);
        }
    }
}

impl Setup {
    /// Everything a fresh `net` is told, with duplicates of the sockets.
    fn messages(&self) -> io::Result<Vec<Packet>> {
        let configure = Message::Configure {
            host: self.host.clone().into(),
            egress_port: self.egress_port,
            limits: Limits::default(),
        };
        let mut messages = vec![(configure, Vec::new())];
        for (rule, listener) in &self.egress {
            let socket = listener.as_fd().try_clone_to_owned()?;
            messages.push((Message::Egress { rule: rule.clone() }, vec![socket]));
        }
        for (PeerListener { from, to, port, source }, listener) in &self.peers {
            let socket = listener.as_fd().try_clone_to_owned()?;
            let message = Message::Peer { from: from.clone(), to: to.clone(), port: *port, source: *source };
            messages.push((message, vec![socket]));
        }
        for rule in &self.ingress {
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, rule.container_port));
            messages.push((Message::Ingress { rule: rule.clone(), target }, Vec::new()));
        }
        if let Some(listener) = &self.ingress_listener {
            messages.push((Message::IngressListener, vec![listener.try_clone()?]));
        }
        Ok(messages)
    }

    /// The plugins that `net` connects to.
    fn dialled(&self) -> BTreeSet<String> {
        let ingress = self.ingress.iter().map(|rule| &rule.plugin);
        ingress.chain(self.peers.iter().map(|(peer, _)| &peer.to)).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
