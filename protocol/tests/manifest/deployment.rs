//! The manifest as a whole: kind, metadata, host-side fields, plugins among each other, images.

use std::collections::BTreeMap;

use enclave_protocol::manifest::{Context, HostLogs, parse};
use expect_test::{Expect, expect};

use crate::{check, config_maps, outcome, parsed, with_plugin, with_spec, with_telemetry};

const HELLO: &str = include_str!("../../../tests/manifests/hello-fastapi.yaml");
const BROKEN: &str = include_str!("../../../tests/manifests/broken.yaml");

#[test]
fn the_manifest_of_the_autoscaling_guide_is_accepted() {
    let files = config_maps(&[("telemetry-config", "config.yaml", "scrape_configs: []\n")]);
    let manifest = parse(HELLO, &Context { files: Some(&files), ..Context::default() }).unwrap();
    assert_eq!(manifest.conditions(), []);
    expect![[r#"
        (
            "hello-fastapi",
            "default",
            Plan {
                plugins: [
                    "telemetry",
                    "fastapi",
                ],
                egress: [
                    EgressRule {
                        plugin: "telemetry",
                        fqdn: "otel-collector.monitoring.svc.cluster.local",
                        port: 4318,
                        tls: false,
                    },
                ],
                ingress: [
                    IngressRule {
                        host_port: 4455,
                        plugin: "fastapi",
                        container_port: 8001,
                    },
                ],
            },
        )
    "#]]
    .assert_debug_eq(&(&manifest.name, &manifest.namespace, manifest.plan()));
}

#[test]
fn every_mistake_of_a_broken_manifest_is_found_at_once() {
    check(
        BROKEN,
        expect![[r#"
        5:9: metadata.name: "Hello_FastAPI" is no DNS-1123 subdomain: at most 253 lower-case letters, digits, hyphens and dots, each part beginning and ending with a letter or digit
        8:3: spec.replica: unknown field "replica"; did you mean replicas?
        9:20: spec.enclaveCpuCount: expected a whole number, found the string "2"; remove the quotes
        11:7: spec.userPlugins[0]: the field image is required
        12:7: spec.userPlugins[0].imge: unknown field "imge"; did you mean image?
        13:25: spec.userPlugins[0].command[1]: expected a string, found the number 8001; put it in quotes
        16:27: spec.userPlugins[0].ports[1].containerPort: containerPort 8001 is declared twice in this plugin
        16:43: spec.userPlugins[0].ports[1].hostPort: hostPort 59090 is one of host-proxy's own listeners
        16:60: spec.userPlugins[0].ports[1].protocol: "UDP" is not supported: TCP only
        18:32: spec.userPlugins[0].env[0].value: expected a string, found the boolean true; put it in quotes
        19:18: spec.userPlugins[0].env[1].name: "1ST" is no name of an environment variable: letters, digits, '_', '-' and '.', not beginning with a digit
        20:18: spec.userPlugins[0].env[2].name: the variable DEBUG is already set at spec.userPlugins[0].env[0].name
        21:19: spec.userPlugins[0].dependsOn[0]: a dependency cycle: fastapi → worker → fastapi
        22:22: spec.userPlugins[0].restartPolicy: expected one of Always, OnFailure, Never, found "always"; did you mean Always?
        25:7: spec.userPlugins[1].image: the key "image" is given twice
        26:28: spec.userPlugins[1].dependsOn[1]: there is no plugin "wroker"; did you mean worker?
        29:26: spec.userPlugins[1].volumes[0].containerPath: "/etc/../proc" must not hold ".."
        30:67: spec.userPlugins[1].volumes[0].source.configMap.items[0].path: "/abs" must be relative to the volume's containerPath
        31:18: spec.userPlugins[1].volumes[1].name: the volume name data is already used at spec.userPlugins[1].volumes[0].name
        31:39: spec.userPlugins[1].volumes[1].containerPath: "/proc/self" lies in /proc, which is the runtime's own
        31:59: spec.userPlugins[1].volumes[1].source: one of the fields configMap and secret is required
        32:36: spec.userPlugins[1].resources.limits.memory: "12Gb" is no quantity: write for example 2, 500m, 256Mi or 1.5Gi
        32:47: spec.userPlugins[1].resources.limits.cpu: "0.0001" is finer than this field can be: a multiple of 1m
        33:13: spec.userPlugins[2].name: the name "net" is the runtime's own
        35:31: spec.userPlugins[2].ports[0].containerPort: expected a whole number from 1 to 65535, found the number 70000
        35:48: spec.userPlugins[2].ports[0].hostPort: hostPort 4455 is already used at spec.userPlugins[0].ports[0].hostPort
        36:22: spec.userPlugins[2].livenessProbe: exactly one of exec, httpGet and tcpSocket is required, 2 are given
        36:82: spec.userPlugins[2].livenessProbe.periodSeconds: expected a whole number from 1 to 86400, found the number 0
        40:39: spec.plugins.telemetry.env[0].value: no outboundConnection of the telemetry plugin allows collector.example:4318
        43:18: spec.plugins.telemetry.outboundConnections[1].fqdn: "10.0.0.1" is an IP address: egress goes to host names only
        44:18: spec.plugins.telemetry.outboundConnections[2].fqdn: "*.example": wildcards are not supported yet
        45:18: spec.plugins.telemetry.outboundConnections[3].type: connections to attested peers are not supported yet: only type default is
    "#]],
    );
}

#[test]
fn another_kind_or_version_is_the_only_mistake_named() {
    check(
        "apiVersion: v1\nkind: Pod\nspec: {containers: []}",
        expect![[r#"
        1:13: apiVersion: expected k8s.oblv.com/v1alpha1, found "v1"
        2:7: kind: expected NitroEnclaveDeployment, found "Pod"
    "#]],
    );
    check(
        "kind: NitroEnclaveDeployment\nspec: {}",
        expect![[r#"
        1:1: (document): the field apiVersion is required
    "#]],
    );
    check(
        "apiVersion: k8s.oblv.com/v1alpha1\nkind: NitroEnclaveDeployment",
        expect![[r#"
        1:1: (document): the field metadata is required
        1:1: (document): the field spec is required
    "#]],
    );
}

#[test]
fn top_level_fields_are_known_and_status_is_left_alone() {
    let text = with_plugin("");
    assert_eq!(outcome(&format!("{text}status: {{ready: true, x: [1]}}"), &Context::default()), "ok\n");
    check(
        &format!("{text}spce: 1\nmetdata: {{}}\n"),
        expect![[r#"
        8:1: spce: unknown field "spce"; did you mean spec?
        9:1: metdata: unknown field "metdata"; did you mean metadata?
    "#]],
    );
}

#[test]
fn names_of_deployment_and_namespace_are_dns_names() {
    let with = |metadata: &str| {
        let text = with_plugin("").replace("{name: demo}", metadata);
        outcome(&text, &Context::default())
    };
    assert_eq!(
        with("{name: a.b-c, namespace: team-1, labels: {x: y}, uid: 7, managedFields: [{f: {}}]}"),
        "ok\n"
    );
    assert_eq!(parsed(&with_plugin("")).namespace, "default");
    expect![[r#"
        3:18: metadata.name: "A_b" is no DNS-1123 subdomain: at most 253 lower-case letters, digits, hyphens and dots, each part beginning and ending with a letter or digit
        3:34: metadata.namespace: "a.b" is no DNS-1123 label: at most 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit
    "#]].assert_eq(&with("{name: A_b, namespace: a.b}"));
    expect![[r#"
        3:11: metadata: the field name is required
    "#]]
    .assert_eq(&with("{namespace: x}"));
    expect![[r#"
        3:18: metadata.name: expected a string, found the number 7; put it in quotes
    "#]]
    .assert_eq(&with("{name: 7}"));
    expect![[r#"
        3:18: metadata.name: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…" is no DNS-1123 subdomain: at most 253 lower-case letters, digits, hyphens and dots, each part beginning and ending with a letter or digit
    "#]].assert_eq(&with(&format!("{{name: {}}}", "a".repeat(254))));
}

#[test]
fn at_least_one_user_plugin_is_needed_and_not_too_many() {
    check(
        &with_spec("replicas: 1"),
        expect![[r#"
        5:3: spec: the field userPlugins is required
    "#]],
    );
    check(
        &with_spec("userPlugins: []"),
        expect![[r#"
        5:16: spec.userPlugins: at least one user plugin is required
    "#]],
    );
    let many: String = (0..257).map(|i| format!("- {{name: p{i}, image: x}}\n")).collect();
    check(
        &with_spec(&format!("userPlugins:\n{many}")),
        expect![[r#"
        6:5: spec.userPlugins: 257 items are too many: the limit is 256
    "#]],
    );
}

#[test]
fn plugin_names_are_labels_unique_and_not_the_runtimes_own() {
    check(
        &with_spec(
            "userPlugins:\n- {name: a, image: x}\n- {name: a, image: x}\n- {name: logging, image: x}\n- {name: supervisor, image: x}\n- {name: telemetry, image: x}\n- {name: A.b, image: x}\n- {image: x}\nplugins:\n  logging: {image: x}\n  net: {image: x}\n  Bad: {image: x}\n  nothing:",
        ),
        expect![[r#"
            7:12: spec.userPlugins[1].name: the plugin name a is already used at spec.userPlugins[0].name
            8:12: spec.userPlugins[2].name: the plugin name logging is already used at spec.plugins.logging
            9:12: spec.userPlugins[3].name: the name "supervisor" is the runtime's own
            10:12: spec.userPlugins[4].name: the name telemetry belongs to spec.plugins.telemetry
            11:12: spec.userPlugins[5].name: "A.b" is no DNS-1123 label: at most 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit
            12:5: spec.userPlugins[6]: the field name is required
            15:5: spec.plugins.net: the name "net" is the runtime's own
            16:5: spec.plugins.Bad: "Bad" is no DNS-1123 label: at most 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit
            17:12: spec.plugins.nothing: a plugin is a mapping; write {} for one with all defaults
        "#]],
    );
}

#[test]
fn host_side_fields_are_checked_and_kept() {
    let manifest = parsed(&with_spec(
        "userPlugins: [{name: app, image: x, imagePullSecret: regcred}]
replicas: 5
serviceAccount: enclave-sa
hugepages-1Gi: 4Gi
hugepages-2Mi: 512Mi
enclaveCpuCount: 2
ingress: {host: app.example, anything: [1]}
caCertDetails: {enclaveCertType: OTHER, whatever: {a: b}}
imagePullSecret: one
imagePullSecrets: [two, {name: three}]
logs: {host: supervisor}",
    ));
    assert_eq!(manifest.host_logs, HostLogs::Supervisor);
    expect![[r#"
        HostSide {
            replicas: Some(
                5,
            ),
            service_account: Some(
                "enclave-sa",
            ),
            hugepages_1gi: Some(
                4294967296,
            ),
            hugepages_2mi: Some(
                536870912,
            ),
            enclave_cpu_count: Some(
                2,
            ),
            image_pull_secrets: [
                "one",
                "two",
                "three",
            ],
            enclave_cert_type: Some(
                "OTHER",
            ),
        }
    "#]]
    .assert_debug_eq(&manifest.host);
}

#[test]
fn mistakes_in_host_side_fields_are_named() {
    check(
        &with_spec(
            "userPlugins: [{name: app, image: x, imagePullSecret: 7}]
replicas: -1
serviceAccount: A B
hugepages-1Gi: lots
enclaveCpuCount: 0
ingress: app.example
caCertDetails: {enclaveCertType: 7}
imagePullSecret: {nam: one}
imagePullSecrets: [{}, ../x]
logs: {host: some}",
        ),
        expect![[r#"
            5:56: spec.userPlugins[0].imagePullSecret: expected the name of a Secret, found the number 7; put it in quotes
            6:13: spec.replicas: expected a whole number from 0 to 10000, found the number -1
            7:19: spec.serviceAccount: "A B" is no DNS-1123 subdomain: at most 253 lower-case letters, digits, hyphens and dots, each part beginning and ending with a letter or digit
            8:18: spec.hugepages-1Gi: "lots" is no quantity: write for example 2, 500m, 256Mi or 1.5Gi
            9:20: spec.enclaveCpuCount: expected a whole number from 1 to 1024, found the number 0
            10:12: spec.ingress: expected a mapping, found the string "app.example"
            11:36: spec.caCertDetails.enclaveCertType: expected a string, found the number 7; put it in quotes
            12:20: spec.imagePullSecret: the field name is required
            12:21: spec.imagePullSecret.nam: unknown field "nam"; did you mean name?
            13:22: spec.imagePullSecrets[0]: the field name is required
            13:26: spec.imagePullSecrets[1]: "../x" is no name of a ConfigMap or Secret: letters, digits, '-', '_' and '.', not beginning with '.'
            14:16: spec.logs.host: expected one of all, supervisor, none, found "some"
        "#]],
    );
}

#[test]
fn host_ports_are_unique_in_the_pod_and_not_host_proxys_own() {
    let text = with_spec(
        "plugins:
  auth: {image: x, ports: [{containerPort: 1, hostPort: 4455}]}
userPlugins:
- {name: a, image: x, ports: [{containerPort: 1, hostPort: 59090}, {containerPort: 2, hostPort: 59091}]}
- {name: b, image: x, ports: [{containerPort: 1, hostPort: 4455}, {containerPort: 2, hostPort: 9000}]}",
    );
    let context = Context { reserved_host_ports: &[9000], ..Context::default() };
    expect![[r#"
        8:62: spec.userPlugins[0].ports[0].hostPort: hostPort 59090 is one of host-proxy's own listeners
        8:99: spec.userPlugins[0].ports[1].hostPort: hostPort 59091 is one of host-proxy's own listeners
        9:62: spec.userPlugins[1].ports[0].hostPort: hostPort 4455 is already used at spec.plugins.auth.ports[0].hostPort
        9:98: spec.userPlugins[1].ports[1].hostPort: hostPort 9000 is one of host-proxy's own listeners
    "#]].assert_eq(&outcome(&text, &context));
}

fn check_baked(text: &str, baked: &[(&str, &str)], expected: Expect) {
    let baked: BTreeMap<String, String> =
        baked.iter().map(|(plugin, image)| ((*plugin).to_owned(), (*image).to_owned())).collect();
    expected.assert_eq(&outcome(text, &Context { baked: Some(&baked), ..Context::default() }));
}

#[test]
fn an_image_must_be_the_one_that_was_baked_in() {
    let text = with_plugin("");
    check_baked(
        &text,
        &[("app", "app:1")],
        expect![[r#"
        ok
    "#]],
    );
    check_baked(
        &text,
        &[("app", "app:2"), ("other", "app:1")],
        expect![[r#"
        7:14: spec.userPlugins[0].image: "app:1" is not baked in: the image of app here is "app:2"
    "#]],
    );
    check_baked(
        &text,
        &[("other", "app:1"), ("telemetry", "t:1")],
        expect![[r#"
        7:14: spec.userPlugins[0].image: "app:1" is not baked in for app: baked in are other ("app:1"), telemetry ("t:1")
    "#]],
    );
    check_baked(
        &text,
        &[],
        expect![[r#"
        7:14: spec.userPlugins[0].image: "app:1" is not baked in for app: no plugin is
    "#]],
    );
    let many: Vec<String> = (0..12).map(|i| format!("p{i:02}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "x")).collect();
    check_baked(
        &text,
        &many,
        expect![[r#"
        7:14: spec.userPlugins[0].image: "app:1" is not baked in for app: baked in are p00 ("x"), p01 ("x"), p02 ("x"), p03 ("x"), p04 ("x"), p05 ("x"), p06 ("x"), p07 ("x"), 4 more
    "#]],
    );
}

#[test]
fn telemetry_may_run_from_the_base_image() {
    let (without, with) = (with_telemetry("env: []"), with_telemetry("image: t:1"));
    check_baked(
        &without,
        &[("app", "app:1")],
        expect![[r#"
        ok
    "#]],
    );
    check_baked(
        &with,
        &[("app", "app:1")],
        expect![[r#"
        ok
    "#]],
    );
    check_baked(
        &with,
        &[("app", "app:1"), ("telemetry", "t:1")],
        expect![[r#"
        ok
    "#]],
    );
    check_baked(
        &with,
        &[("app", "app:1"), ("telemetry", "t:2")],
        expect![[r#"
        8:14: spec.plugins.telemetry.image: "t:1" is not baked in: the image of telemetry here is "t:2"
    "#]],
    );
    check_baked(
        &with_spec("userPlugins: [{name: a, image: x}]\nplugins: {auth: {}}"),
        &[("a", "x")],
        expect![[r#"
            6:19: spec.plugins.auth: the field image is required
        "#]],
    );
}

#[test]
fn an_image_reference_is_visible_ascii() {
    check(
        &with_spec(&format!(
            "userPlugins:\n- {{name: a, image: ''}}\n- {{name: b, image: 'a b'}}\n- {{name: c, image: 7}}\n- {{name: d, image: {}}}",
            "x".repeat(600)
        )),
        expect![[r#"
            6:22: spec.userPlugins[0].image: "" is no image reference: at most 520 visible ASCII characters
            7:22: spec.userPlugins[1].image: "a b" is no image reference: at most 520 visible ASCII characters
            8:22: spec.userPlugins[2].image: expected a string, found the number 7; put it in quotes
            9:22: spec.userPlugins[3].image: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…" is no image reference: at most 520 visible ASCII characters
        "#]],
    );
}

fn order(spec: &str) -> String {
    parsed(&with_spec(spec)).plan().plugins.join(" ")
}

#[test]
fn plugins_start_by_kind_then_by_name_or_place_after_those_they_depend_on() {
    assert_eq!(
        order(
            "userPlugins:
- {name: z, image: x, dependsOn: [c]}
- {name: b, image: x}
- {name: a, image: x, dependsOn: [telemetry, logging]}
- {name: c, image: x}
plugins:
  logging: {image: x}
  telemetry: {}
  balancing: {image: x, dependsOn: [logging]}
  auth: {image: x}"
        ),
        "telemetry auth logging balancing b a c z"
    );
}

#[test]
fn a_dependency_that_cannot_be_met_is_refused() {
    check(
        &with_spec(
            "userPlugins:
- {name: app, image: x, dependsOn: [worker, wroker, nothing-like-it, worker]}
- {name: worker, image: x}
- {name: self, image: x, dependsOn: [self]}
plugins:
  telemetry: {dependsOn: [auth]}
  auth: {image: x, dependsOn: [app]}",
        ),
        expect![[r#"
            6:47: spec.userPlugins[0].dependsOn[1]: there is no plugin "wroker"; did you mean worker?
            6:55: spec.userPlugins[0].dependsOn[2]: there is no plugin "nothing-like-it"
            6:72: spec.userPlugins[0].dependsOn[3]: "worker" is listed twice
            8:40: spec.userPlugins[2].dependsOn[0]: self depends on itself
            10:29: spec.plugins.telemetry.dependsOn[0]: auth starts later by its kind: telemetry, then spec.plugins, then spec.userPlugins
            11:34: spec.plugins.auth.dependsOn[0]: app starts later by its kind: telemetry, then spec.plugins, then spec.userPlugins
        "#]],
    );
    check(
        &with_spec(
            "userPlugins:
- {name: free, image: x}
- {name: hangs, image: x, dependsOn: [b]}
- {name: a, image: x, dependsOn: [free, b]}
- {name: b, image: x, dependsOn: [c]}
- {name: c, image: x, dependsOn: [a]}",
        ),
        expect![[r#"
            8:43: spec.userPlugins[2].dependsOn[1]: a dependency cycle: a → b → c → a
        "#]],
    );
}

#[test]
fn what_is_accepted_but_not_in_force_is_said() {
    check(
        &with_spec(
            "userPlugins:
- name: app
  image: x
  resources: {limits: {cpu: 1}, requests: {cpu: 1}}
  securityContext: {readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, runAsUser: 1}
  livenessProbe: {httpGet: {port: 80}}
  readinessProbe: {httpGet: {port: 443, scheme: HTTPS}}
- name: plain
  image: x
  resources: {requests: {cpu: 1}}
  securityContext: {readOnlyRootFilesystem: false}
plugins:
  logging: {image: x, logsAccess: true, proxyPort: 8080, spec: {resources: {limits: {cpu: 1}}}}
  other: {image: x, logsAccess: false}
caCertDetails: {enclaveCertType: ENCLAVE_GENERATED}",
        ),
        expect![[r#"
            ok
            NotImplemented: spec.userPlugins[0].readinessProbe.httpGet.scheme: accepted but not in force in this release; a connection that is accepted counts as the answer
            NotImplemented: spec.plugins.logging.logsAccess: accepted but not in force in this release; logs are read through supervisorAccess
            NotImplemented: spec.plugins.logging.proxyPort: accepted but not in force in this release; no traffic is led through the plugin
            NotImplemented: spec.caCertDetails.enclaveCertType: accepted but not in force in this release; TLS does not end in the enclave unless a plugin ends it
        "#]],
    );
}
