//! The way of a page without its network, to be measured: parse, map, encode, compress.

use std::collections::BTreeMap;

use super::{
    exposition::{Dialect, Entry, Parser},
    mapper::{Mapper, Mode, Settings},
    origin::{Origin, TargetLabels},
};
use crate::identity::Identity;
use enclave_protocol::{metrics::Sample, scrape::Limits, timestamp::Timestamp};

/// What one pass made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Samples in the page.
    pub samples: u64,
    /// Data points in the requests.
    pub points: u64,
    /// Compressed bytes of the requests.
    pub bytes: u64,
}

/// A page that is read again and again.
#[derive(Debug)]
pub struct Bench {
    mapper: Mapper,
    origin: Origin,
    dialect: Dialect,
}

impl Bench {
    /// For pages of text 0.0.4, or of OpenMetrics.
    pub fn new(is_open_metrics: bool) -> Self {
        let labels = ["oblv_deployment_name", "ned_name", "namespace"]
            .map(|name| (name.to_owned(), "bench".to_owned()));
        let sample = Sample {
            time: Timestamp(0),
            started: Timestamp(0),
            interval_millis: 0,
            labels: labels.into(),
            resource: [("service.instance.id".to_owned(), "bench".to_owned())].into(),
            families: Vec::new(),
        };
        let target = TargetLabels {
            job: "app".to_owned(),
            target: "localhost:8001".to_owned(),
            plugin: Some("app".to_owned()),
            ..TargetLabels::default()
        };
        let identity = Identity::of(&sample).unwrap_or_else(Identity::nobody);
        let dialect = if is_open_metrics { Dialect::OpenMetrics } else { Dialect::Text };
        Self { mapper: Mapper::new(), origin: Origin::new(identity, target, false), dialect }
    }

    /// Reads the page without making anything of it; returns its samples.
    pub fn parse(&self, page: &str) -> Result<u64, String> {
        let mut parser = Parser::new(page, self.dialect);
        let mut samples = 0;
        while let Some(entry) = parser.next().map_err(|error| error.to_string())? {
            samples += u64::from(matches!(entry, Entry::Sample(_)));
        }
        Ok(samples)
    }

    /// The samples of a page, a line of JSON each: name, labels, value and time. To be compared with another
    /// parser.
    pub fn dump(&self, page: &str) -> Result<String, String> {
        let mut parser = Parser::new(page, self.dialect);
        let mut out = String::new();
        while let Some(entry) = parser.next().map_err(|error| error.to_string())? {
            let Entry::Sample(sample) = entry else { continue };
            let labels: BTreeMap<_, _> = parser.labels().iter().map(|l| (&l.name, &l.value)).collect();
            let line = serde_json::json!([sample.name, labels, sample.value.to_string(), sample.time]);
            out.push_str(&line.to_string());
            out.push('\n');
        }
        Ok(out)
    }

    /// The whole way.
    pub fn pass(&mut self, page: &str, time: u64) -> Result<Pass, String> {
        let settings = Settings { limits: Limits::MAX, honor_timestamps: true, rules: &[] };
        self.mapper.begin();
        let (origin, mode) = (&mut self.origin, Mode::Points);
        let outcome = self.mapper.page(page, self.dialect, origin, settings, mode, time);
        let outcome = outcome.map_err(|error| error.to_string())?;
        let requests = self.mapper.finish(&self.origin);
        Ok(Pass {
            samples: outcome.scraped,
            points: requests.iter().map(|request| request.items).sum(),
            bytes: requests.iter().map(|request| request.body.len() as u64).sum(),
        })
    }
}
