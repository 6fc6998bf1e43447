//! Questions to a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{patience::eventually, web};

/// A Prometheus on this port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prometheus(pub(crate) u16);

/// A series at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Series {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl Prometheus {
    fn ask(self, path: &str) -> Value {
        let answer = web::get(self.0, path);
        let body: Value = answer.json();
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].clone()
    }

    /// The series that an instant query finds.
    pub(crate) fn query(self, query: &str) -> Vec<Series> {
        let data = self.ask(&format!("/api/v1/query?query={}", web::encode(query)));
        let series = data["result"].as_array().unwrap_or_else(|| panic!("{query}: {data}")).iter();
        let parse = |series: &Value| Series {
            labels: serde_json::from_value(series["metric"].clone()).unwrap(),
            value: series["value"][1].as_str().unwrap().parse().unwrap(),
        };
        series.map(parse).collect()
    }

    /// The one number that an instant query finds.
    pub(crate) fn number(self, query: &str) -> Option<f64> {
        match &self.query(query)[..] {
            [] => None,
            [series] => Some(series.value),
            many => panic!("{query} finds {} series: {many:#?}", many.len()),
        }
    }

    /// Waits for a number that fits.
    pub(crate) fn until(self, query: &str, fits: impl Fn(f64) -> bool) -> f64 {
        eventually(query, || self.number(query).filter(|value| fits(*value)))
    }

    /// The values of the one series that a range selector finds, in the order of their times.
    pub(crate) fn values(self, selector: &str) -> Vec<f64> {
        let data = self.ask(&format!("/api/v1/query?query={}", web::encode(selector)));
        let series = data["result"].as_array().unwrap();
        assert_eq!(series.len(), 1, "{selector}: {data}");
        let samples = series[0]["values"].as_array().unwrap_or_else(|| panic!("{selector}: {data}"));
        samples.iter().map(|sample| sample[1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// The names of all metrics whose series have these labels.
    pub(crate) fn names(self, selector: &str) -> BTreeSet<String> {
        let data = self.ask(&format!("/api/v1/label/__name__/values?match[]={}", web::encode(selector)));
        serde_json::from_value(data).unwrap()
    }
}
