//! Names are judged as readers build them: examples, and properties over names made of our own pieces.

use proptest::prelude::*;

use super::*;
use crate::fake::sample;

#[test]
fn a_reserved_label_is_known_by_what_readers_make_of_it() {
    let identity = Identity::of(&sample(1)).unwrap();
    for key in [
        "oblv_deployment_name",
        "oblv.deployment.name",
        "oblv:deployment:name",
        "Oblv-Deployment_NAME",
        "_ned__name_",
        "namespace",
        "instance",
        "job",
        "Job",
        "otel_scope_name",
        "otel.scope.anything",
        "__name__",
        "__a.b__",
        "k8s.pod.name",
        "k8s_namespace_name",
    ] {
        assert!(identity.reserves(key), "{key}");
    }
    for key in ["deployment", "service.name", "exported_instance", "le", "name", "jobs", "key_instance", ""] {
        assert!(!identity.reserves(key), "{key}");
    }
    for key in ["service.instance.id", "service_namespace", "Service:Instance:Id"] {
        assert!(identity.reserves_on_resource(key) && !identity.reserves(key), "{key}");
    }
    assert!(names_origin("k8s.container.name") && names_origin("plugin") && !names_origin("plugins"));
}

#[test]
fn a_metric_that_would_pass_for_the_supervisors_is_known() {
    for name in [
        "nitro_enclave_cpu_usage",
        "nitro.enclave.cpu_usage",
        "nitro:enclave:cpu_usage",
        "__nitro__enclave_x",
        "nitro_total_enclave_x",
        "enclave_up",
        "enclave",
        "ratio.enclave",
        "k8s.node.memory.usage",
        "k8s_pod_cpu_time",
        "k8s.container.restart.count",
        "container.cpu.time",
        "Container_cpu_time",
        "up",
        "scrape_duration_seconds",
        "target_info",
        "target",
        "otel_scope_info",
        "ALERTS_FOR_STATE",
    ] {
        let expected = (name != "target").then_some(Forgery::Name);
        assert_eq!(forgery(name, ""), expected, "{name}");
    }
    for name in
        ["enclaves_total", "app_nitro_enclave_cpu_usage", "http.server.duration", "", "k8s.x", "alerts"]
    {
        assert_eq!(forgery(name, "By"), None, "{name}");
    }
}

#[test]
fn the_unit_is_a_part_of_the_name() {
    for (name, unit) in [
        ("nitro", "enclave_cpu_usage"),
        ("nitro", "enclave/cpu"),
        ("nitro_total", "enclave cpu"),
        ("", "nitro_enclave_cpu_usage"),
        ("", "enclave"),
        ("k8s", "node_memory_usage_bytes"),
        ("k8s", "node.memory/By"),
        ("target", "info"),
        ("otel", "scope_info"),
        ("", "up"),
    ] {
        assert_eq!(forgery(name, unit), Some(Forgery::Unit), "{name} {unit}");
    }
    for (name, unit) in
        [("nitro", "By"), ("ups", "s"), ("up_total", "{up}"), ("k8s", "{node}x"), ("a", "enclave")]
    {
        let is_false_alarm = unit == "{node}x";
        assert_eq!(forgery(name, unit).is_some(), is_false_alarm, "{name} {unit}");
    }
    // There are readers that append no unit.
    assert_eq!(forgery("up", "s"), Some(Forgery::Name));
}

#[test]
fn a_moved_label_never_lands_on_another_one() {
    assert_eq!(exported("instance", |_| false), "exported_instance");
    assert_eq!(exported("instance", |key| key == "exported_instance"), "exported_exported_instance");
}

/// Texts of the pieces that our names are made of, and of what readers fold away.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "nitro",
        "enclave",
        "k8s",
        "node",
        "pod",
        "container",
        "up",
        "scrape",
        "target",
        "info",
        "otel",
        "scope",
        "ALERTS",
        "cpu",
        "usage",
        "total",
        "ratio",
        "per",
        "s",
        "By",
        "1",
        "%",
        "oblv",
        "deployment",
        "name",
        "ned",
        "namespace",
        "instance",
        "job",
        "plugin",
        "exported",
        "key",
        "_",
        "__",
        ".",
        ":",
        "/",
        " ",
        "-",
        "{",
        "}",
        "é",
        "0",
    ]);
    prop::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

/// The names that readers are known to build, with the parts that they append to a histogram's.
fn reader_forms(name: &str, unit: &str) -> Vec<String> {
    let mut forms =
        vec![name.to_owned(), name.replace(|c: char| !c.is_ascii_alphanumeric() && c != ':', "_")];
    for shape in [Shape::Gauge, Shape::MonotonicSum, Shape::Other] {
        for unit in [unit, ""] {
            forms.push(prometheus::metric_name(name, unit, shape));
        }
    }
    // UTF-8 with suffixes.
    forms.push(format!("{name}_{unit}"));
    forms.push(format!("{name}_{unit}_total"));
    let parts: Vec<String> = forms
        .iter()
        .flat_map(|form| ["_bucket", "_sum", "_count"].map(|part| format!("{form}{part}")))
        .collect();
    forms.extend(parts);
    forms
}

fn is_owned(form: &str) -> bool {
    let own =
        ["nitro_enclave_", "enclave_", "k8s_node_", "k8s_pod_", "k8s_container_", "container_", "scrape_"];
    let dotted = ["nitro.enclave.", "enclave.", "k8s.node.", "k8s.pod.", "k8s.container.", "container."];
    let exact =
        ["up", "target_info", "otel_scope_info", "ALERTS", "ALERTS_FOR_STATE", "enclave", "container"];
    own.iter().chain(&dotted).any(|own| form.starts_with(own)) || exact.contains(&form)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_reader_makes_one_of_our_names_of_an_apps(name in pieces(), unit in pieces()) {
        let (name, unit) = match forgery(&name, &unit) {
            None => (name, unit),
            Some(Forgery::Name) => (exported(&name, |_| false), unit),
            Some(Forgery::Unit) => (exported(&name, |_| false), String::new()),
        };
        prop_assert_eq!(forgery(&name, &unit), None);
        for form in reader_forms(&name, &unit) {
            prop_assert!(!is_owned(&form), "{} with unit {:?} is read as {}", name, unit, form);
        }
    }

    #[test]
    fn no_reader_makes_one_of_our_labels_of_an_apps(key in pieces()) {
        let identity = Identity::of(&sample(1)).unwrap();
        let key = if identity.reserves(&key) || names_origin(&key) { exported(&key, |_| false) } else { key };
        prop_assert!(!identity.reserves(&key) && !names_origin(&key));
        let strict = key.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let old = if key.starts_with('_') { format!("key{strict}") } else { strict.clone() };
        for form in [key.clone(), strict, old, prometheus::label_name(&key)] {
            for label in [LABEL_DEPLOYMENT, LABEL_NED, LABEL_NAMESPACE, "instance", "job", "plugin", "__name__"] {
                prop_assert_ne!(&form, label);
            }
            prop_assert!(!form.starts_with("otel_scope_"));
        }
    }
}
