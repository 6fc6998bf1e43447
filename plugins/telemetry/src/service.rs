//! Wiring: options become tasks; tasks are joined in the order that the library's header names.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::Ipv4Addr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use enclave_protocol::exporter::Settings;
use prost::Message as _;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal as UnixSignal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    Options, clock, config,
    endpoint::{Endpoint, UrlError},
    identity::Identity,
    ledger::{Dropped, Ledger},
    options::standard_variables,
    otlp,
    outbox::{Batch, Outbox, Outboxes, SUPERVISOR},
    pipeline::Pipeline,
    pump::Pump,
    receiver::{AppSeries, Receiver},
    records,
    reporter::Reporter,
    retry::Pace,
    scrape::{self, Scraper, Sink},
    sender::{Sender, chain},
    signal::Signal,
    source::Source,
};

/// How long the last flush may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the plugin cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// `EXPORTER_URL` is wrong.
    #[error("bad arguments")]
    Url(#[from] UrlError),
    /// The SDK refuses its environment, such as `OTEL_EXPORTER_OTLP_COMPRESSION`.
    #[error("bad OTEL_EXPORTER_OTLP_… variable")]
    Sdk(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// `HOST_PORT` cannot be listened on.
    #[error("listening on 127.0.0.1:{port} (HOST_PORT)")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// The runtime or a signal handler cannot be made.
    #[error("starting")]
    Start(#[source] io::Error),
}

impl ServeError {
    /// 2 for what the arguments say, 1 for the machine.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url(_) | Self::Sdk(_) | Self::Listen { .. } => 2,
            Self::Start(_) => 1,
        }
    }

    /// The error with its sources, on one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Runs until SIGTERM or SIGINT.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Start)?;
    let result = runtime.block_on(async {
        let terminate = signal(SignalKind::terminate()).map_err(ServeError::Start)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Start)?;
        let service = Service::new(options, &standard_variables()?).await?;
        service.run(either(terminate, interrupt)).await;
        Ok(())
    });
    // A name lookup that hangs in the C library must not hold up the exit.
    runtime.shutdown_background();
    result
}

async fn either(mut terminate: UnixSignal, mut interrupt: UnixSignal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Everything checked and bound, nothing running yet.
pub(crate) struct Service {
    endpoints: [Option<Endpoint>; 3],
    resource: BTreeMap<String, String>,
    listener: Option<TcpListener>,
    source: Source,
    reporter: Reporter,
    interval: Duration,
    scraper: Scraper,
    ledger: Arc<Ledger>,
    pace: Pace,
    flush_timeout: Duration,
}

impl Service {
    /// Checks the options, reads the configuration and binds the port.
    pub(crate) async fn new(options: &Options, settings: &Settings) -> Result<Self, ServeError> {
        let ledger = Arc::new(Ledger::new());
        let scraper = configure(options, &ledger);
        // Tried before the first sample, so that it fails at the start or never.
        Pipeline::new(Identity::nobody(), &settings.resource)
            .map_err(|error| ServeError::Sdk(error.into()))?;
        let endpoints = Endpoint::all(options, settings)?;
        if endpoints.iter().all(Option::is_none) {
            tracing::error!("EXPORTER_URL is not set: metrics are counted as dropped, nothing is sent");
        }
        let listener = match options.host_port {
            Some(port) => Some(
                TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                    .await
                    .map_err(|source| ServeError::Listen { port, source })?,
            ),
            None => None,
        };
        let source = Source::new(options.socket.clone());
        Ok(Self {
            endpoints,
            resource: settings.resource.clone(),
            listener,
            source,
            reporter: Reporter::new(options.socket.clone(), options.interval, Arc::clone(&ledger)),
            interval: options.interval,
            scraper,
            ledger,
            pace: Pace::default(),
            flush_timeout: FLUSH_TIMEOUT,
        })
    }

    /// Runs until `stop`, then stops in order.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let Self { endpoints, resource, listener, source, reporter, .. } = self;
        let Self { interval, scraper, ledger, pace, flush_timeout, .. } = self;
        let (identity, told) = watch::channel(None);
        let (receiver_stop, scraper_stop) = (Stop::new(), Stop::new());
        let (pump_stop, reporter_stop, acknowledger_stop) = (Stop::new(), Stop::new(), Stop::new());
        let mut reporting = JoinSet::new();
        reporting.spawn(reporter.run(reporter_stop.told()));
        let (mut receiving, mut pumping, mut sending) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        let (mut scraping, mut acknowledging) = (JoinSet::new(), JoinSet::new());
        let outboxes = Outboxes::new(|signal| {
            let ledger = Arc::clone(&ledger);
            match &endpoints[signal.index()] {
                Some(_) => Outbox::paced(signal, ledger, pace),
                None => Outbox::without_exporter(signal, ledger),
            }
        });
        for (endpoint, outbox) in endpoints.into_iter().zip(outboxes.iter()) {
            let Some(endpoint) = endpoint else { continue };
            let (collector, signal) = (endpoint.authority(), outbox.signal().name());
            tracing::info!(collector, signal, interval = ?interval, "sending telemetry");
            sending.spawn(Sender::new(endpoint, Arc::clone(outbox), Arc::clone(&ledger)).run());
        }
        let series = AppSeries::default();
        if scraper.targets() > 0 {
            let sink = sink(Arc::clone(outboxes.of(Signal::Metrics)));
            let (told, stop) = (told.clone(), scraper_stop.clone());
            scraping.spawn(scraper.run(told, sink, move || stop.told()));
        }
        let logs = Arc::clone(outboxes.of(Signal::Logs));
        if logs.has_exporter() {
            let socket = source.socket().to_owned();
            let (reader, acknowledger) = records::halves(socket, told.clone(), logs, Arc::clone(&ledger));
            // Its end is the pump's: what is left when both are told is sent.
            pumping.spawn(reader.run(pump_stop.told()));
            acknowledging.spawn(acknowledger.run(acknowledger_stop.told()));
        }
        if let Some(listener) = listener {
            let (ledger, series) = (Arc::clone(&ledger), Arc::clone(&series));
            let receiver = Receiver::new(outboxes.clone(), ledger, told, series);
            receiving.spawn(receiver.run(listener, receiver_stop.told()));
        }
        let outbox = Arc::clone(outboxes.of(Signal::Metrics));
        let pump = Pump::new(source, resource, interval, Arc::clone(&ledger), outbox, identity);
        pumping.spawn(pump.run(pump_stop.told()));

        tokio::select! {
            () = stop => {}
            // These run until told; an early end is a panic, and the supervisor starts us again.
            Some(_) = pumping.join_next() => tracing::error!("the pump ended, stopping"),
            Some(_) = sending.join_next() => tracing::error!("the sender ended, stopping"),
            Some(_) = scraping.join_next() => tracing::error!("the scraper ended, stopping"),
            Some(_) = receiving.join_next() => tracing::error!("the receiver ended, stopping"),
        }
        receiver_stop.tell();
        while receiving.join_next().await.is_some() {}
        scraper_stop.tell();
        while scraping.join_next().await.is_some() {}
        pump_stop.tell();
        while pumping.join_next().await.is_some() {}
        end_series(&series, outboxes.of(Signal::Metrics));
        flush(&outboxes, &mut sending, &ledger, flush_timeout).await;
        acknowledger_stop.tell();
        while acknowledging.join_next().await.is_some() {}
        reporter_stop.tell();
        while reporting.join_next().await.is_some() {}
    }
}

/// Queues the end of every series that apps sent. It stands behind what they sent before; where there is no
/// room for it there, among our own.
fn end_series(series: &AppSeries, outbox: &Outbox) {
    let end = series.lock().unwrap_or_else(PoisonError::into_inner).end(clock::now());
    let count = otlp::count(&end);
    if count > 0 {
        let batch = Batch::new(end.encode_to_vec(), count);
        if outbox.offer(batch.clone()).is_err() {
            outbox.push(batch);
        }
    }
}

/// Gives the senders their last seconds, then counts what is left.
async fn flush(outboxes: &Outboxes, sending: &mut JoinSet<()>, ledger: &Ledger, limit: Duration) {
    outboxes.iter().for_each(|outbox| outbox.close());
    let emptied = timeout(limit, async { while sending.join_next().await.is_some() {} }).await;
    if emptied.is_err() {
        // A batch in a sender's hand is counted as it is dropped.
        sending.shutdown().await;
    }
    for outbox in outboxes.iter() {
        outbox.discard(Dropped::Shutdown);
        let signal = outbox.signal();
        let lost = ledger.account(signal).dropped(Dropped::Shutdown);
        if lost > 0 {
            let signal = signal.name();
            tracing::warn!(signal, lost, "the collector did not take the last data in time, it is dropped");
        }
    }
}

/// Puts scraped requests into the outbox, those of one target in their order.
fn sink(outbox: Arc<Outbox>) -> Sink {
    Arc::new(move |target, request| {
        outbox.push(Batch::compressed(request.body, request.items).in_stream(SUPERVISOR + 1 + target));
    })
}

/// Reads the configuration file and plans the scrapes. Whatever is wrong with it, the headline metrics must
/// flow, and then no job is run, as Prometheus refuses a file as a whole.
fn configure(options: &Options, ledger: &Ledger) -> Scraper {
    let ports = options.plugin_ports.as_deref().map(scrape::ports);
    let (scraper, errors) = match config::load(&options.config, &ports) {
        Ok(config) => Scraper::new(&config, &ports, &options.hosts),
        Err(errors) => (Scraper::default(), errors),
    };
    for error in &errors {
        tracing::error!(error, "the configuration has a mistake, nothing is scraped");
    }
    ledger.misconfigured(errors.len());
    if !errors.is_empty() {
        return Scraper::default();
    }
    if scraper.targets() > 0 {
        tracing::info!(targets = scraper.targets(), "scraping");
    }
    scraper
}

/// A word said once, to whom it may concern.
#[derive(Clone)]
struct Stop(watch::Sender<bool>);

impl Stop {
    fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    fn tell(&self) {
        self.0.send_replace(true);
    }

    fn told(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut told = self.0.subscribe();
        async move {
            // An error means that the speaker is gone, which is as good as told.
            told.wait_for(|is_told| *is_told).await.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::metrics::{ATTRIBUTE_INSTANCE, CPU_USAGE, Point};
    use tokio::sync::oneshot;

    use super::*;
    use crate::fake::{Answer, Collector, Supervisor, gauge_export, sample};

    /// For tests in which time must pass.
    const SHORT: Duration = Duration::from_millis(20);

    fn options(supervisor: &Supervisor, url: Option<String>) -> Options {
        Options { socket: supervisor.socket(), exporter_url: url, ..Options::for_tests() }
    }

    struct Running {
        ledger: Arc<Ledger>,
        stop: oneshot::Sender<()>,
        tasks: JoinSet<()>,
    }

    async fn start(options: &Options) -> Running {
        run(Service::new(options, &Settings::default()).await.unwrap())
    }

    fn run(service: Service) -> Running {
        let ledger = Arc::clone(&service.ledger);
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(service.run(async { stopped.await.unwrap() }));
        Running { ledger, stop, tasks }
    }

    impl Running {
        async fn stop(mut self) {
            self.stop.send(()).unwrap();
            self.tasks.join_next().await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn every_point_at_the_collector_carries_the_identity_and_the_samples_time() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        let mut shown = sample(7);
        shown.time = clock::now();
        let time = shown.time.0;
        shown.families[0]
            .points
            .push(Point::labelled([("oblv_deployment_name", "spoof"), ("cpu", "1")], 0.1));
        supervisor.show(&shown);
        let running = start(&options(&supervisor, Some(collector.url()))).await;
        let text = otlp::show(&collector.next().await.export);
        running.stop().await;
        let points: Vec<_> = text.lines().filter(|line| line.starts_with("  {")).collect();
        assert!(points.len() > 10, "{text}");
        for point in points {
            for label in ["oblv_deployment_name=hello", "ned_name=hello", "namespace=default"] {
                assert!(point.contains(label), "{point}");
            }
        }
        assert!(text.contains("exported_oblv_deployment_name=spoof"), "{text}");
        assert!(text.contains(&format!("0..{time} flags=0")), "{text}");
        assert!(
            text.lines().filter(|line| line.contains("unit=")).all(|line| line.ends_with("unit=\"\"")),
            "{text}"
        );
    }

    #[tokio::test]
    async fn the_last_export_marks_every_series_as_ended() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let running = start(&options(&supervisor, Some(collector.url()))).await;
        let before = collector.next().await.export;
        running.stop().await;
        let mut rest = collector.rest();
        let last = rest.pop().unwrap().export;
        let millis = |export| otlp::times(export).map(|nanos| nanos / 1_000_000);
        assert!(millis(&last).min() > millis(&before).max(), "a time of its own, as receivers count");
        assert_eq!(otlp::count(&last), otlp::count(&before));
        let text = otlp::show(&last);
        assert!(text.contains(CPU_USAGE));
        let points: Vec<_> = text.lines().filter(|line| line.starts_with("  {")).collect();
        assert!(
            points.len() > 10 && points.iter().all(|p| p.contains("} None ") && p.ends_with("flags=1")),
            "{text}"
        );
        assert!(rest.is_empty(), "no last export whose times the marker would repeat");
    }

    #[tokio::test]
    async fn the_series_of_apps_end_with_the_plugin() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let mut service =
            Service::new(&options(&supervisor, Some(collector.url())), &Settings::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        service.listener = Some(listener);
        let running = run(service);
        collector.next().await;
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut link = crate::link::Link::open(stream).await.unwrap();
        let request = hyper::Request::post("/v1/metrics")
            .header("host", "telemetry")
            .header("content-type", "application/x-protobuf")
            .body(http_body_util::Full::new(gauge_export("app_queue", 3.0).encode_to_vec().into()))
            .unwrap();
        assert_eq!(link.ask(request, 1 << 10).await.unwrap().0.status, 200);
        running.stop().await;
        let ends: Vec<_> =
            collector.rest().into_iter().map(|received| otlp::show(&received.export)).collect();
        let ends: Vec<_> = ends.iter().filter(|text| text.contains("app_queue")).collect();
        assert_eq!(ends.len(), 2, "{ends:?}");
        assert!(ends[0].contains("Some(AsDouble(3.0))") && ends[0].contains("flags=0"), "{}", ends[0]);
        assert!(ends[1].contains("} None ") && ends[1].contains("flags=1"), "{}", ends[1]);
    }

    #[tokio::test]
    async fn stale_samples_are_not_exported_but_our_own_numbers_are() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let often = Options { interval: SHORT, ..options(&supervisor, Some(collector.url())) };
        let running = start(&often).await;
        assert!(otlp::show(&collector.next().await.export).contains(CPU_USAGE));
        // The second one tells the interval.
        supervisor.show(&sample(2));
        assert!(otlp::show(&collector.next().await.export).contains(CPU_USAGE));
        // The supervisor still answers, always the same old reading; later it is gone.
        let text = otlp::show(&collector.next().await.export);
        let (_, cpu) = text.split_once(CPU_USAGE).unwrap();
        assert!(cpu.lines().nth(1).unwrap().ends_with("flags=1"), "a stale series ends: {text}");
        supervisor.stop().await;
        let text = otlp::show(&collector.next().await.export);
        assert!(text.contains("enclave_telemetry_queue_batches") && !text.contains(CPU_USAGE), "{text}");
        supervisor.listen();
        supervisor.show(&sample(3));
        while !otlp::show(&collector.next().await.export).contains(CPU_USAGE) {}
        running.stop().await;
    }

    #[tokio::test]
    async fn the_supervisor_is_told_how_exports_fare_and_once_more_at_the_end() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let running = start(&options(&supervisor, Some(collector.url()))).await;
        collector.next().await;
        // The first success is a change of state: it does not wait for the interval.
        while supervisor.reports() == 0 {
            tokio::task::yield_now().await;
        }
        running.stop().await;
        assert!(supervisor.reports() >= 2);
    }

    #[tokio::test]
    async fn another_identity_gets_another_resource() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let often = Options { interval: SHORT, ..options(&supervisor, Some(collector.url())) };
        let running = start(&often).await;
        assert!(otlp::show(&collector.next().await.export).contains("service.instance.id=i-1"));
        let mut other = sample(2);
        other.resource.insert(ATTRIBUTE_INSTANCE.to_owned(), "i-2".to_owned());
        supervisor.show(&other);
        let text = loop {
            let text = otlp::show(&collector.next().await.export);
            if text.contains("service.instance.id=i-2") {
                break text;
            }
        };
        let (_, old) = text.split_once("service.instance.id=i-1").unwrap();
        let mut points = old.lines().filter(|line| line.starts_with("  {"));
        assert!(points.all(|point| point.ends_with("flags=1")), "the old series end: {text}");
        running.stop().await;
    }

    #[tokio::test]
    async fn without_an_exporter_points_are_counted_as_dropped() {
        let supervisor = Supervisor::start();
        supervisor.show(&sample(1));
        let running = start(&options(&supervisor, Some(" ".to_owned()))).await;
        while running.ledger.account(Signal::Metrics).dropped(Dropped::NoExporter) == 0 {
            tokio::task::yield_now().await;
        }
        running.stop().await;
    }

    #[tokio::test]
    async fn a_configuration_with_mistakes_is_counted_and_nothing_of_it_runs() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let mut options = options(&supervisor, Some(collector.url()));
        let dir = tempfile::tempdir().unwrap();
        options.config = dir.path().join("config.yaml");
        let target = "static_configs: [{targets: ['localhost:1']}]";
        let text =
            format!("scrape_configs: [{{job_name: a, {target}}}, {{job_name: a, {target}, scheme: ftp}}]");
        std::fs::write(&options.config, text).unwrap();
        let service = Service::new(&options, &Settings::default()).await.unwrap();
        assert_eq!(service.scraper.targets(), 0);
        let running = run(service);
        let text = otlp::show(&collector.next().await.export);
        let (_, after) = text.split_once("enclave_telemetry_config_errors").unwrap();
        assert!(after.lines().nth(1).unwrap().contains("Some(AsDouble(2.0))"), "{text}");
        running.stop().await;
    }

    #[tokio::test]
    async fn scraped_series_go_the_samples_way_and_end_before_them() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        supervisor.show(&sample(1));
        let app = scrape::fake::App::start().await;
        app.show("app_requests_total 5\n");
        let mut options = options(&supervisor, Some(collector.url()));
        let dir = tempfile::tempdir().unwrap();
        options.config = dir.path().join("config.yaml");
        let port = app.port();
        let job = format!(
            "job_name: a, scrape_interval: 100ms, static_configs: [{{targets: ['localhost:{port}']}}]"
        );
        std::fs::write(&options.config, format!("scrape_configs: [{{{job}}}]")).unwrap();
        options.plugin_ports = Some(format!("web={port}"));
        let running = start(&options).await;
        let text = loop {
            let text = otlp::show(&collector.next().await.export);
            if text.contains("app_requests_total") {
                break text;
            }
        };
        for word in ["plugin=web", "scrape_job=a", "oblv_deployment_name=hello", "server.port", "up gauge"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        running.stop().await;
        let rest = collector.rest();
        let ends = |name: &str| {
            let last = |received: &crate::fake::Received| {
                let text = otlp::show(&received.export);
                text.split(name)
                    .nth(1)
                    .is_some_and(|after| after.lines().nth(1).is_some_and(|l| l.ends_with("flags=1")))
            };
            rest.iter().rposition(last).unwrap_or_else(|| panic!("{name} has no end"))
        };
        assert!(ends("app_requests_total") < ends(CPU_USAGE));
        assert_eq!(ends("scrape_series_added"), ends("app_requests_total"));
    }

    #[tokio::test]
    async fn a_collector_that_hangs_does_not_hold_up_the_end_for_longer_than_the_flush() {
        let (supervisor, mut collector) = (Supervisor::start(), Collector::start().await);
        collector.answer_always(Answer::never());
        supervisor.show(&sample(1));
        let mut service =
            Service::new(&options(&supervisor, Some(collector.url())), &Settings::default()).await.unwrap();
        service.flush_timeout = Duration::from_millis(50);
        let running = run(service);
        let ledger = Arc::clone(&running.ledger);
        collector.next().await;
        // Ten seconds, if it waited for the attempt instead.
        timeout(Duration::from_secs(5), running.stop()).await.unwrap();
        let account = ledger.account(Signal::Metrics);
        assert_eq!(account.produced, account.dropped(Dropped::Shutdown));
        assert!(account.produced > 20, "both the batch in hand and those that waited");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_and_a_bad_url_are_bad_arguments() {
        let supervisor = Supervisor::start();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut options = options(&supervisor, None);
        options.host_port = Some(taken.local_addr().unwrap().port());
        assert_eq!(Service::new(&options, &Settings::default()).await.err().unwrap().exit_code(), 2);
        options.host_port = None;
        options.exporter_url = Some("collector:4318".to_owned());
        let error = Service::new(&options, &Settings::default()).await.err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.chain().contains("EXPORTER_URL"));
    }
}
