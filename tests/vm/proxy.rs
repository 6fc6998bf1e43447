//! host-proxy as the machine's host.

use std::{net::SocketAddr, process::ExitStatus};

use serde_json::Value;

use crate::{process::Process, scene::Scene};

/// The name and port under which the manifests here know the collector.
pub(crate) const COLLECTOR: (&str, u16) = ("collector.test", 4318);

/// host-proxy beside a machine.
pub(crate) struct Proxy {
    pub(crate) process: Process,
    words: Vec<String>,
}

impl Proxy {
    /// Starts it for the scene's manifest.
    pub(crate) fn start(scene: &Scene, collector: Option<SocketAddr>) -> Self {
        std::fs::create_dir_all(scene.path("config")).unwrap();
        let mut words = scene.proxy_words();
        if let Some(address) = collector {
            words.push(format!("--resolve={}:{}:{address}", COLLECTOR.0, COLLECTOR.1));
        }
        Self { process: Process::start("host-proxy", &words), words }
    }

    /// Waits until the enclave runs the manifest.
    pub(crate) fn until_accepted(&self) {
        self.process.stderr.wait("the manifest to be accepted", |lines| {
            lines.iter().any(|line| line.contains("the enclave accepted the manifest")).then_some(())
        });
    }

    /// Kills it and starts another one; what the killed one had printed.
    pub(crate) fn replace(&mut self) -> Vec<String> {
        self.process.kill();
        let said = self.process.stdout.to_end();
        self.process = Process::start("host-proxy", &self.words);
        said
    }

    /// Waits for a log line of a plugin that starts so; all of it.
    pub(crate) fn line(&self, plugin: &str, start: &str) -> String {
        self.process.stdout.wait(&format!("{plugin} to say {start:?}"), |lines| {
            lines.iter().find_map(|line| {
                let record: Value = serde_json::from_str(line).ok()?;
                let text = record["text"].as_str().filter(|_| record["plugin"] == plugin)?;
                text.starts_with(start).then(|| text.to_owned())
            })
        })
    }

    /// Waits for its end; its exit and its last line.
    pub(crate) fn end(&mut self) -> (ExitStatus, Value) {
        let exit = self.process.end();
        let lines = self.process.stdout.to_end();
        (exit, serde_json::from_str(lines.last().expect("a last line")).unwrap())
    }
}
