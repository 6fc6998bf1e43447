//! `/etc/oblv/config.yaml`, read with the checker that the supervisor has too.

use std::{
    io::{self, Read as _},
    path::Path,
};

use enclave_protocol::scrape::{CONFIG_BYTES_MAX, Config, Context, parse};

use crate::scrape::{Ports, compile, reach};

/// Reads the file; one that is not there is an empty one. Every mistake is a line `FILE:LINE:COLUMN: path:
/// message`.
pub(crate) fn load(path: &Path, ports: &Ports) -> Result<Config, Vec<String>> {
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let text = read(path).map_err(|error| vec![format!("{file}: reading it: {error}")])?;
    let reachable = |address: &_| reach(ports, address);
    let compiles = |text: &str| compile(text).map(drop);
    let context = Context { reach: Some(&reachable), regex: Some(&compiles) };
    parse(&text, &context).map_err(|mistakes| mistakes.iter().map(|m| format!("{file}:{m}")).collect())
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    match std::fs::File::open(path) {
        // One byte more than allowed, for the checker to refuse.
        Ok(file) => file.take(CONFIG_BYTES_MAX as u64 + 1).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, ports: &Ports) -> Result<Config, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        load(&path, ports)
    }

    #[test]
    fn no_file_an_empty_file_and_an_empty_list_are_valid() {
        assert_eq!(load(Path::new("/nonexistent/config.yaml"), &None).unwrap(), Config::default());
        for text in ["", "\n", "# nothing\n", "scrape_configs: []\n", "scrape_configs:\n", "{}", "---\n"] {
            assert_eq!(load_text(text, &None).unwrap(), Config::default(), "{text:?}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_place() {
        let ports = Some(crate::scrape::ports("web=8001"));
        let text = "scrape_configs:\n- job_name: a\n  scrape_intervall: 5s\n  static_configs:\n  - targets: ['localhost:8001', 'localhost:9', '10.0.0.1:80']\n  metric_relabel_configs:\n  - {regex: '(', action: drop}\nremote_write: []\n";
        let errors = load_text(text, &ports).unwrap_err();
        expect_test::expect![[r#"
            config.yaml:3:3: scrape_configs[0].scrape_intervall: unknown field "scrape_intervall"; did you mean scrape_interval?
            config.yaml:5:33: scrape_configs[0].static_configs[0].targets[1]: no other plugin declares the port 9
            config.yaml:5:48: scrape_configs[0].static_configs[0].targets[2]: "10.0.0.1:80" is an address outside of loopback: targets are plugins' ports or names
            config.yaml:7:13: scrape_configs[0].metric_relabel_configs[0].regex: not a valid regular expression: unclosed group
            config.yaml:8:15: remote_write: remote_write is not supported: everything goes to EXPORTER_URL"#]].assert_eq(&errors.join("\n"));
    }

    #[test]
    fn what_is_not_a_configuration_is_an_error() {
        for text in ["scrape_configs: 7", "- a\n- b", "scrape_configs: [", "a: &x 1\nscrape_configs: *x"] {
            assert!(load_text(text, &None).is_err(), "{text:?}");
        }
        assert!(load_text(&"[".repeat(100_000), &None).is_err());
        assert!(load_text(&" ".repeat(300_000), &None).is_err());
    }
}
