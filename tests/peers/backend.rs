//! The ways from an enclave's OTLP to Prometheus, each with real programs on the files of
//! `examples/autoscaling`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{process::Process, programs, prometheus::Prometheus, web};

/// A way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The Collector's Prometheus exporter, scraped.
    Page,
    /// The same, with `resource_to_telemetry_conversion`.
    PageWithResource,
    /// The Collector's remote write.
    RemoteWrite,
    /// Prometheus' own OTLP receiver, with no Collector before it.
    Otlp,
}

/// Ports beneath which nobody else listens in a test's network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports(pub(crate) u16);

impl Ports {
    /// Of the Collector's OTLP/HTTP receiver.
    pub(crate) fn otlp(self) -> u16 {
        self.0
    }

    fn page(self) -> u16 {
        self.0 + 1
    }

    /// Of Prometheus.
    pub(crate) fn prometheus(self) -> u16 {
        self.0 + 2
    }
}

/// What an enclave exports to, and where it arrives.
pub(crate) struct Backend {
    pub(crate) way: Way,
    pub(crate) ports: Ports,
    pub(crate) prometheus: Prometheus,
    collector: Option<Process>,
    with_all_signals: bool,
    _prometheus: Process,
    directory: PathBuf,
}

impl Backend {
    /// Starts the programs of a way, with what they keep in `directory`, and waits until they are ready.
    pub(crate) fn start(way: Way, ports: Ports, directory: &Path) -> Self {
        Self::start_for(way, ports, directory, false)
    }

    /// The same with a Collector that takes logs and traces too, into the file of [`Backend::arrived`].
    pub(crate) fn start_with_all_signals(way: Way, ports: Ports, directory: &Path) -> Self {
        Self::start_for(way, ports, directory, true)
    }

    fn start_for(way: Way, ports: Ports, directory: &Path, with_all_signals: bool) -> Self {
        fs::create_dir_all(directory).unwrap();
        let process = start_prometheus(way, ports, directory);
        let mut backend = Self {
            way,
            ports,
            prometheus: Prometheus(ports.prometheus()),
            collector: None,
            with_all_signals,
            _prometheus: process,
            directory: directory.to_owned(),
        };
        backend.start_collector();
        backend
    }

    /// Starts the Collector, where the way has one.
    pub(crate) fn start_collector(&mut self) {
        let Some(file) = config(self.way) else { return };
        let mut words = vec!["env".to_owned()];
        words.extend([
            format!("OTLP_LISTEN=127.0.0.1:{}", self.ports.otlp()),
            format!("PROMETHEUS_PAGE_LISTEN=127.0.0.1:{}", self.ports.page()),
            format!("PROMETHEUS=127.0.0.1:{}", self.ports.prometheus()),
        ]);
        words.push(programs::word("otelcol"));
        words.push(format!("--config={}", example(file).display()));
        // Beside the example's own exporters, for the tests that look at what arrived.
        words.push(format!("--config=yaml:exporters::file::path: {}", self.arrived().display()));
        words.push("--config=yaml:exporters::file::append: true".to_owned());
        words.push("--config=yaml:exporters::file::flush_interval: 100ms".to_owned());
        let exporter = if self.way == Way::RemoteWrite { "prometheus_remote_write" } else { "prometheus" };
        words.push(format!("--config=yaml:service::pipelines::metrics::exporters: [{exporter}, file]"));
        for signal in ["logs", "traces"].iter().filter(|_| self.with_all_signals) {
            words.push(format!("--config=yaml:service::pipelines::{signal}::receivers: [otlp]"));
            words.push(format!("--config=yaml:service::pipelines::{signal}::exporters: [file]"));
        }
        if self.way == Way::PageWithResource {
            let setting = "exporters::prometheus::resource_to_telemetry_conversion::enabled";
            words.push(format!("--config=yaml:{setting}: true"));
        }
        self.collector = Some(Process::start("otelcol", &words));
        web::until_listening("otelcol", self.ports.otlp());
    }

    /// Ends the Collector.
    pub(crate) fn stop_collector(&mut self) {
        let mut collector = self.collector.take().expect("a collector");
        collector.signal(nix::sys::signal::Signal::SIGTERM);
        collector.end();
    }

    /// The file with all that the Collector received, as OTLP JSON, a request a line.
    pub(crate) fn arrived(&self) -> PathBuf {
        self.directory.join("arrived.jsonl")
    }

    /// The `EXPORTER_URL` of an enclave, by the name that host-proxy resolves to [`Backend::destination`].
    pub(crate) fn exporter_url(&self) -> String {
        let path = if self.way == Way::Otlp { "/api/v1/otlp" } else { "" };
        format!("http://{}:4318{path}", crate::deployment::COLLECTOR)
    }

    /// The port that the name of the exporter stands for.
    pub(crate) fn destination(&self) -> u16 {
        if self.way == Way::Otlp { self.ports.prometheus() } else { self.ports.otlp() }
    }
}

/// A file of `examples/autoscaling`.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/autoscaling").join(name)
}

/// The Collector's configuration for a way.
fn config(way: Way) -> Option<&'static str> {
    match way {
        Way::Page | Way::PageWithResource => Some("collector.yaml"),
        Way::RemoteWrite => Some("collector-remote-write.yaml"),
        Way::Otlp => None,
    }
}

fn start_prometheus(way: Way, ports: Ports, directory: &Path) -> Process {
    let (file, flags): (_, &[&str]) = match way {
        Way::Page | Way::PageWithResource => ("prometheus.yml", &[]),
        Way::RemoteWrite => ("prometheus-otlp.yml", &["--web.enable-remote-write-receiver"]),
        Way::Otlp => ("prometheus-otlp.yml", &["--web.enable-otlp-receiver"]),
    };
    // The addresses are all that a test changes.
    let config = fs::read_to_string(example(file)).unwrap();
    let page = format!("127.0.0.1:{}", ports.page());
    let config = config.replace("otel-collector.observability.svc.cluster.local:8889", &page);
    let path = directory.join("prometheus.yml");
    fs::write(&path, config).unwrap();
    let mut words = vec![
        programs::word("prometheus"),
        format!("--config.file={}", path.display()),
        format!("--storage.tsdb.path={}", directory.join("tsdb").display()),
        format!("--web.listen-address=127.0.0.1:{}", ports.prometheus()),
    ];
    words.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let process = Process::start("prometheus", &words);
    web::until_ok("prometheus", ports.prometheus(), "/-/ready");
    process
}
