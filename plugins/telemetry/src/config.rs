//! `/etc/oblv/config.yaml`, Prometheus' `scrape_configs`. Scraping itself does not exist yet: configured jobs
//! are reported, not run.

use std::{
    io::{self, Read as _},
    path::Path,
};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest configuration. It comes with the manifest, whose files are 8 MiB together.
const CONFIG_BYTES_MAX: u64 = 256 << 10;
/// Most YAML nodes in it.
const NODES_MAX: usize = 20_000;
/// Deepest nesting.
const DEPTH_MAX: usize = 16;

/// What is configured.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Names of the scrape jobs; `job N` for one without a name.
    pub(crate) jobs: Vec<String>,
    /// Other sections, which nothing reads.
    pub(crate) ignored: Vec<String>,
}

/// Why it cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is there and cannot be read.
    #[error("reading it")]
    Read(#[source] io::Error),
    /// Too long.
    #[error("it is longer than {CONFIG_BYTES_MAX} bytes")]
    TooLarge,
    /// Not YAML, or not of this form.
    #[error("{0}")]
    Malformed(String),
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    scrape_configs: Option<Vec<Job>>,
    #[serde(default)]
    global: Option<IgnoredAny>,
    #[serde(default)]
    remote_write: Option<IgnoredAny>,
    #[serde(default)]
    rule_files: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Job {
    job_name: Option<String>,
}

impl Config {
    /// Reads the file; one that is not there is an empty one.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        match std::fs::File::open(path) {
            Ok(file) => {
                file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(ConfigError::Read)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ConfigError::Read(error)),
        };
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge);
        }
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_nodes: NODES_MAX,
                max_events: 4 * NODES_MAX,
                max_depth: DEPTH_MAX,
                max_aliases: 0,
                max_anchors: 0,
                max_documents: 1,
            },
        };
        let file: Option<File> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| ConfigError::Malformed(error.to_string()))?;
        let Some(file) = file else { return Ok(Self::default()) };
        let sections = [
            ("global", file.global.is_some()),
            ("remote_write", file.remote_write.is_some()),
            ("rule_files", file.rule_files.is_some()),
        ];
        let jobs = file.scrape_configs.unwrap_or_default().into_iter().enumerate();
        Ok(Self {
            jobs: jobs.map(|(n, job)| job.job_name.unwrap_or_else(|| format!("job {n}"))).collect(),
            ignored: sections
                .into_iter()
                .filter(|(_, there)| *there)
                .map(|(name, _)| name.to_owned())
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(text: &str) -> Vec<String> {
        Config::parse(text).unwrap().jobs
    }

    #[test]
    fn no_file_an_empty_file_and_an_empty_list_are_valid() {
        assert_eq!(Config::load(Path::new("/nonexistent/config.yaml")).unwrap(), Config::default());
        for text in ["", "\n", "# nothing\n", "scrape_configs: []\n", "scrape_configs:\n", "{}"] {
            assert_eq!(Config::parse(text).unwrap(), Config::default(), "{text:?}");
        }
    }

    #[test]
    fn jobs_are_named() {
        let text = "global: {scrape_interval: 5s}\nscrape_configs:\n- job_name: app\n  static_configs:\n  - targets: ['localhost:8001']\n- metrics_path: /m\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.jobs, ["app", "job 1"]);
        assert_eq!(config.ignored, ["global"]);
        assert_eq!(jobs("scrape_configs: [{job_name: a}]"), ["a"]);
    }

    #[test]
    fn what_is_not_a_configuration_is_an_error() {
        for text in ["scrape_configs: 7", "- a\n- b", "scrape_configs: [", "a: &x 1\nscrape_configs: *x"] {
            assert!(matches!(Config::parse(text), Err(ConfigError::Malformed(_))), "{text:?}");
        }
        assert!(matches!(Config::parse(&"[".repeat(100_000)), Err(ConfigError::Malformed(_))));
        assert!(matches!(Config::parse(&" ".repeat(300_000)), Err(ConfigError::TooLarge)));
    }
}
