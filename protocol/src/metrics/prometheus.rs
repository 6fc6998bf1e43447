//! The names that Prometheus gives to OpenTelemetry metrics, by the rules of its OTLP translation
//! (prometheus/otlptranslator 1.0, "underscore escaping with suffixes"): the Collector's exporters and
//! Prometheus' own OTLP receiver build the same ones.

use super::Kind;

/// What the translation distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A gauge: the unit `1` becomes `_ratio`.
    Gauge,
    /// A sum that only goes up: `_total` comes last.
    MonotonicSum,
    /// Every other sum, histogram or summary.
    Other,
}

impl From<Kind> for Shape {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Gauge => Self::Gauge,
            Kind::Counter => Self::MonotonicSum,
            Kind::UpDownCounter => Self::Other,
        }
    }
}

/// UCUM units and the words that Prometheus has for them.
const UNITS: [(&str, &str); 24] = [
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("GiBy", "gibibytes"),
    ("TiBy", "tibibytes"),
    ("KBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("TBy", "terabytes"),
    ("m", "meters"),
    ("V", "volts"),
    ("A", "amperes"),
    ("J", "joules"),
    ("W", "watts"),
    ("g", "grams"),
    ("Cel", "celsius"),
    ("Hz", "hertz"),
];
/// The same behind a `/`.
const PER_UNITS: [(&str, &str); 7] = [
    ("s", "second"),
    ("m", "minute"),
    ("h", "hour"),
    ("d", "day"),
    ("w", "week"),
    ("mo", "month"),
    ("y", "year"),
];

/// The Prometheus name of a metric. Linear in the lengths of `name` and `unit`; empty when `name` and `unit`
/// have no legal character.
pub fn metric_name(name: &str, unit: &str, shape: impl Into<Shape>) -> String {
    let shape = shape.into();
    let mut tokens: Vec<&str> = tokens(name).collect();
    let (main, per) = unit.split_once('/').map_or((unit, ""), |(main, per)| (main, per));
    let (main, per) = (unit_words(main, &UNITS), unit_words(per, &PER_UNITS));
    let per = if per.is_empty() { per } else { format!("per_{per}") };
    let main = if tokens.contains(&main.as_str()) { "" } else { main.as_str() };
    let per = per.trim_end_matches('_');
    let per = if per == "per" || tokens.contains(&per) { "" } else { per };
    let main = if per.is_empty() { main } else { main.trim_end_matches('_') };
    tokens.extend([main, per].into_iter().filter(|suffix| !suffix.is_empty()));
    let suffix = match shape {
        Shape::MonotonicSum => Some("total"),
        Shape::Gauge if unit == "1" => Some("ratio"),
        Shape::Gauge | Shape::Other => None,
    };
    if let Some(suffix) = suffix {
        tokens.retain(|token| *token != suffix);
        tokens.push(suffix);
    }
    let joined = tokens.join("_");
    if joined.starts_with(|c: char| c.is_ascii_digit()) { format!("_{joined}") } else { joined }
}

/// The Prometheus name of a label: characters that are not legal become `_`, runs of them one.
pub fn label_name(key: &str) -> String {
    if let Some(inner) = key.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && key.len() >= 4
    {
        return format!("__{}__", collapsed(inner, |c| c.is_ascii_alphanumeric()));
    }
    let name = collapsed(key, |c| c.is_ascii_alphanumeric());
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("key_{name}") } else { name }
}

/// The parts of a metric's name between the characters that a name cannot have.
fn tokens(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !is_name_character(c)).filter(|token| !token.is_empty())
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == ':'
}

/// A unit in Prometheus' words; empty for an annotation in braces and for `1`.
fn unit_words(unit: &str, known: &[(&str, &str)]) -> String {
    let unit = unit.trim();
    if unit.contains(['{', '}']) {
        return String::new();
    }
    let word = match unit {
        "1" if known.len() == UNITS.len() => "",
        "%" if known.len() == UNITS.len() => "percent",
        unit => known.iter().find(|(ucum, _)| *ucum == unit).map_or(unit, |(_, word)| word),
    };
    collapsed(word, is_name_character).trim_start_matches('_').to_owned()
}

/// `text` with each run of characters that are not `legal` as one `_`.
fn collapsed(text: &str, legal: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if legal(c) {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_gets_the_name_that_prometheus_translation_gives_it() {
        for (name, unit, shape, expected) in [
            ("k8s.node.memory.usage", "By", Shape::Gauge, "k8s_node_memory_usage_bytes"),
            ("k8s.node.cpu.time", "s", Shape::MonotonicSum, "k8s_node_cpu_time_seconds_total"),
            ("k8s.node.cpu.usage", "{cpu}", Shape::Gauge, "k8s_node_cpu_usage"),
            ("nitro_enclave_cpu_usage", "", Shape::Gauge, "nitro_enclave_cpu_usage"),
            ("nitro_enclave_cpu_usage", "1", Shape::Gauge, "nitro_enclave_cpu_usage_ratio"),
            ("nitro", "enclave_cpu_usage", Shape::Gauge, "nitro_enclave_cpu_usage"),
            ("nitro", "enclave/cpu usage", Shape::Gauge, "nitro_enclave_per_cpu_usage"),
            ("total_a_total", "", Shape::MonotonicSum, "a_total"),
            ("a_seconds", "s", Shape::Other, "a_seconds"),
            ("__a..b__", "", Shape::Gauge, "a_b"),
            ("a:b", "", Shape::Gauge, "a:b"),
            ("1a", "%", Shape::Gauge, "_1a_percent"),
            ("speed", "m/s", Shape::Gauge, "speed_meters_per_second"),
            ("", "", Shape::Gauge, ""),
        ] {
            assert_eq!(metric_name(name, unit, shape), expected, "{name} {unit} {shape:?}");
        }
    }

    #[test]
    fn a_label_gets_the_name_that_prometheus_translation_gives_it() {
        for (key, expected) in [
            ("k8s.container.name", "k8s_container_name"),
            ("oblv:deployment:name", "oblv_deployment_name"),
            ("oblv__deployment..name", "oblv_deployment_name"),
            ("1a", "key_1a"),
            ("__name__", "__name__"),
            ("_a", "_a"),
        ] {
            assert_eq!(label_name(key), expected, "{key}");
        }
    }
}
