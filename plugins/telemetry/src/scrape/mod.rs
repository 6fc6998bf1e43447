//! Scraping: apps' Prometheus pages become OTLP.
//!
//! ```text
//! config ─▶ plan ─▶ target (one task each) ─▶ fetch ─▶ exposition ─▶ relabel ─▶ mapper ─▶ batch ─▶ sink
//! ```
//! A page is read in one pass into protobuf bytes: no tree of it is ever built. It knows neither the outbox,
//! behind the sink, nor the supervisor, whose identity it is told.

mod batch;
mod exposition;
mod family;
mod fetch;
mod fingerprint;
mod groups;
mod labels;
mod mapper;
mod origin;
mod plan;
mod relabel;
mod target;
mod wire;

pub mod bench;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    path::Path,
    sync::{Arc, Mutex},
};

use enclave_protocol::scrape::Config;
use tokio::{sync::watch, task::JoinSet};

use self::{mapper::Mapper, plan::Planned, target::Target};
pub(crate) use self::{
    plan::{Ports, ports, reach},
    relabel::compile,
    target::Sink,
};
use crate::identity::Identity;

/// All targets of a configuration.
#[derive(Default)]
pub(crate) struct Scraper {
    planned: Vec<Planned>,
}

impl Scraper {
    /// Plans the targets; what is wrong with some of them is told beside.
    pub(crate) fn new(config: &Config, ports: &Ports, hosts: &Path) -> (Self, Vec<String>) {
        let (planned, errors) = plan::plan(config, ports, hosts);
        (Self { planned }, errors)
    }

    /// Targets that will be scraped.
    pub(crate) fn targets(&self) -> usize {
        self.planned.len()
    }

    /// Scrapes from the moment the identity is known until `stop`; then every series has ended.
    pub(crate) async fn run<F>(
        self,
        identity: watch::Receiver<Option<Identity>>,
        sink: Sink,
        stop: impl Fn() -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mapper = Arc::new(Mutex::new(Mapper::new()));
        let mut tasks = JoinSet::new();
        for (number, planned) in (0..).zip(self.planned) {
            let target =
                Target::new(number, planned, Arc::clone(&mapper), identity.clone(), Arc::clone(&sink));
            tasks.spawn(target.run(stop()));
        }
        while tasks.join_next().await.is_some() {}
    }
}
