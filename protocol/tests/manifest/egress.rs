//! Destinations: both of the vendor's forms, host names in files, and the collector's URL.

use enclave_protocol::control::Files;
use enclave_protocol::manifest::{Context, Manifest, parse};
use expect_test::expect;

use crate::{check, config_maps, outcome, parsed, with_plugin, with_spec, with_telemetry};

fn rules(manifest: &Manifest) -> String {
    let rule = |r: &enclave_protocol::control::EgressRule| {
        format!("{} {}:{} tls={}\n", r.plugin, r.fqdn, r.port, r.tls)
    };
    manifest.plan().egress.iter().map(rule).collect()
}

#[test]
fn both_forms_of_a_name_are_accepted_and_normalised() {
    let manifest = parsed(&with_plugin(
        "outboundConnections:
- {fqdn: OBLV.com., port: 443, tls: true, redirects: true, type: default}
- {fqdn: {value: example.com}, port: 80}",
    ));
    expect![[r#"
        app example.com:80 tls=false
        app oblv.com:443 tls=true
    "#]]
    .assert_eq(&rules(&manifest));
    assert!(manifest.plugins[0].egress.iter().any(|egress| egress.redirects));
}

#[test]
fn connections_of_spec_are_those_of_every_plugin() {
    let manifest = parsed(&with_spec(
        "outboundConnections: [{fqdn: all.example, port: 443, tls: true}, {fqdn: both.example, port: 1}]
userPlugins:
- {name: a, image: x, outboundConnections: [{fqdn: own.example, port: 1}, {fqdn: both.example, port: 1}]}
- {name: b, image: x}
plugins: {telemetry: {}}",
    ));
    expect![[r#"
        a all.example:443 tls=true
        a both.example:1 tls=false
        a own.example:1 tls=false
        b all.example:443 tls=true
        b both.example:1 tls=false
        telemetry all.example:443 tls=true
        telemetry both.example:1 tls=false
    "#]]
    .assert_eq(&rules(&manifest));
}

#[test]
fn a_destination_stands_once_and_agrees_on_tls() {
    check(
        &with_spec(
            "outboundConnections: [{fqdn: a.example, port: 443, tls: true}]
userPlugins:
- name: app
  image: x
  outboundConnections:
  - {fqdn: a.example, port: 443}
  - {fqdn: b.example, port: 1}
  - {fqdn: B.example., port: 1}
  - {fqdn: b.example, port: 2}",
        ),
        expect![[r#"
            10:7: spec.userPlugins[0].outboundConnections: a.example:443 is also in spec.outboundConnections, with another tls
            12:7: spec.userPlugins[0].outboundConnections[2]: b.example:1 is already allowed at spec.userPlugins[0].outboundConnections[1]
        "#]],
    );
}

#[test]
fn mistakes_in_a_connection_are_named() {
    check(
        &with_plugin(
            "outboundConnections:
- {port: 443}
- {fqdn: a.example}
- {fqdn: 10.1.2.3, port: 0}
- {fqdn: '*.example', port: 443, tls: 'yes'}
- {fqdn: {}, port: 1}
- {fqdn: {value: a, configMap: {}}, port: 1}
- {fqdn: {configMap: {}}, port: 1}
- {fqdn: {configMap: {name: a/b, key: .., type: toml, ref: 'a##b'}}, port: 1}
- {fqdn: {configMap: {name: a, key: b, type: ini, ref: a#b#c}}, port: 1}
- {fqdn: 7, port: 1}
- {fqdn: a_b.example, port: 1}",
        ),
        expect![[r#"
            9:9: spec.userPlugins[0].outboundConnections[0]: the field fqdn is required
            10:9: spec.userPlugins[0].outboundConnections[1]: the field port is required
            11:16: spec.userPlugins[0].outboundConnections[2].fqdn: "10.1.2.3" is an IP address: egress goes to host names only
            11:32: spec.userPlugins[0].outboundConnections[2].port: expected a whole number from 1 to 65535, found the number 0
            12:16: spec.userPlugins[0].outboundConnections[3].fqdn: "*.example": wildcards are not supported yet
            12:45: spec.userPlugins[0].outboundConnections[3].tls: expected true or false, found the string "yes"
            13:16: spec.userPlugins[0].outboundConnections[4].fqdn: one of the fields value and configMap is required
            14:16: spec.userPlugins[0].outboundConnections[5].fqdn: a host name has one origin: either value or configMap
            15:28: spec.userPlugins[0].outboundConnections[6].fqdn.configMap: the field key is required
            15:28: spec.userPlugins[0].outboundConnections[6].fqdn.configMap: the field name is required
            15:28: spec.userPlugins[0].outboundConnections[6].fqdn.configMap: the field ref is required
            15:28: spec.userPlugins[0].outboundConnections[6].fqdn.configMap: the field type is required
            16:35: spec.userPlugins[0].outboundConnections[7].fqdn.configMap.name: "a/b" is no name of a ConfigMap or Secret: letters, digits, '-', '_' and '.', not beginning with '.'
            16:45: spec.userPlugins[0].outboundConnections[7].fqdn.configMap.key: ".." is no key: letters, digits, '-', '_' and '.', not beginning with '..'
            16:55: spec.userPlugins[0].outboundConnections[7].fqdn.configMap.type: expected one of yaml, json, ini, found "toml"
            16:66: spec.userPlugins[0].outboundConnections[7].fqdn.configMap.ref: "a##b" is no reference: write steps joined by '#', as in a#b#0#host
            17:62: spec.userPlugins[0].outboundConnections[8].fqdn.configMap.ref: "a#b#c" goes too deep: an INI file has section#key or key
            18:16: spec.userPlugins[0].outboundConnections[9].fqdn: expected a host name, found the number 7; put it in quotes
            19:16: spec.userPlugins[0].outboundConnections[10].fqdn: "a_b.example" is no host name: "a_b" is no label (1 to 63 letters, digits and hyphens, no hyphen at the ends)
        "#]],
    );
    let many: String = (0..257).map(|i| format!("- {{fqdn: a, port: {}}}\n", i + 1)).collect();
    check(
        &with_plugin(&format!("outboundConnections:\n{many}")),
        expect![[r#"
        9:9: spec.userPlugins[0].outboundConnections: 257 items are too many: the limit is 256
    "#]],
    );
}

#[test]
fn attested_peers_are_read_and_refused() {
    check(
        &with_plugin(
            "outboundConnections:
- {type: proxy, fqdn: a.example, port: 1, proxyUrl: 'https://p.example', attestationPort: 12200, proxyAttestationIntervalSeconds: 60}
- {type: enclave, fqdn: b.example, port: 1, configMap: peer}
- {type: proxy, fqdn: c.example, port: 1, attestationPort: 0, proxyAttestationIntervalSeconds: 14, configMap: peer}
- {type: other, fqdn: d.example, port: 1}
- {fqdn: e.example, port: 1, proxyUrl: x, configMap: y}",
        ),
        expect![[r#"
            9:16: spec.userPlugins[0].outboundConnections[0].type: connections to attested peers are not supported yet: only type default is
            10:16: spec.userPlugins[0].outboundConnections[1].type: connections to attested peers are not supported yet: only type default is
            11:16: spec.userPlugins[0].outboundConnections[2].type: connections to attested peers are not supported yet: only type default is
            11:66: spec.userPlugins[0].outboundConnections[2].attestationPort: expected a whole number from 1 to 65535, found the number 0
            11:102: spec.userPlugins[0].outboundConnections[2].proxyAttestationIntervalSeconds: expected a whole number from 15 to 300, found the number 14
            11:117: spec.userPlugins[0].outboundConnections[2].configMap: belongs to connections of type enclave only; fqdn.configMap names a file to read from
            12:16: spec.userPlugins[0].outboundConnections[3].type: expected one of default, proxy, enclave, found "other"
            13:46: spec.userPlugins[0].outboundConnections[4].proxyUrl: belongs to connections of type proxy only
            13:60: spec.userPlugins[0].outboundConnections[4].configMap: belongs to connections of type enclave only; fqdn.configMap names a file to read from
        "#]],
    );
}

const FLUENT: &str = "pipeline:\n  outputs:\n    - name: es\n      host: ES.example.\n      port: 9200\n";

/// The rules that follow from a reference, or its mistakes.
fn resolved(reference: &str, files: &Files) -> String {
    let text =
        with_plugin(&format!("outboundConnections: [{{fqdn: {{configMap: {reference}}}, port: 443}}]"));
    match parse(&text, &Context { files: Some(files), ..Context::default() }) {
        Ok(manifest) => rules(&manifest),
        Err(mistakes) => mistakes.iter().map(|mistake| format!("{mistake}\n")).collect(),
    }
}

#[test]
fn a_name_can_be_read_from_a_synced_file() {
    let files = config_maps(&[
        ("fluentbitConfigMap", "fluent-bit.yaml", FLUENT),
        ("conf", "app.json", r#"{"a": ["x", {"host": "json.example"}]}"#),
        ("conf", "app.ini", "top = top.example\n; host = no\n[db]\nhost: \"ini.example\"\n[other]\nhost=z\n"),
    ]);
    let shown: String = [
        "{name: fluentbitConfigMap, key: fluent-bit.yaml, type: yaml, ref: 'pipeline#outputs#0#host'}",
        "{name: conf, key: app.json, type: json, ref: 'a#1#host'}",
        "{name: conf, key: app.ini, type: ini, ref: 'db#host'}",
        "{name: conf, key: app.ini, type: ini, ref: top}",
    ]
    .map(|reference| resolved(reference, &files))
    .concat();
    expect![[r#"
        app es.example:443 tls=false
        app json.example:443 tls=false
        app ini.example:443 tls=false
        app top.example:443 tls=false
    "#]]
    .assert_eq(&shown);
}

#[test]
fn a_name_that_is_not_in_the_file_is_refused_with_its_place() {
    let files = config_maps(&[
        ("c", "a.yaml", FLUENT),
        ("c", "bad.yaml", "a: [1\n"),
        ("c", "anchor.yaml", "a: &x 1\nb: *x\n"),
        ("c", "empty.yaml", ""),
        ("c", "a.ini", "[s]\nk=a\nk=b\nip=1.2.3.4"),
    ]);
    let shown: String = [
        ("c, key: a.yaml, type: yaml", "pipeline#outputs#1#host"),
        ("c, key: a.yaml, type: yaml", "pipeline#outputs#0"),
        ("c, key: a.yaml, type: yaml", "pipeline#outputs#0#port"),
        ("c, key: a.yaml, type: yaml", "pipeline#outputs#x"),
        ("c, key: bad.yaml, type: yaml", "a"),
        ("c, key: anchor.yaml, type: yaml", "b"),
        ("c, key: empty.yaml, type: yaml", "b"),
        ("c, key: a.ini, type: ini", "s#k"),
        ("c, key: a.ini, type: ini", "s#ip"),
        ("c, key: a.ini, type: ini", "t#k"),
        ("c, key: none, type: ini", "t#k"),
        ("none, key: k, type: ini", "a"),
    ]
    .map(|(file, path)| resolved(&format!("{{name: {file}, ref: '{path}'}}"), &files))
    .concat();
    expect![[r#"
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.yaml: nothing at "pipeline#outputs#1"
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.yaml: "pipeline#outputs#0" holds a mapping, no host name
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.yaml: "9200" is an IP address in another form: egress goes to host names only
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.yaml: nothing at "pipeline#outputs#x"
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key bad.yaml: 1:4: a[0]: not valid YAML: unclosed bracket '['
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key anchor.yaml: 1:7: a: anchors are not supported: write the value out
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key empty.yaml: 1:1: (document): the document is empty
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.ini: "s#k" stands there twice
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.ini: "1.2.3.4" is an IP address: egress goes to host names only
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c, key a.ini: nothing at "t#k"
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap c has no key none
        8:48: spec.userPlugins[0].outboundConnections[0].fqdn.configMap: ConfigMap none was not delivered with the manifest
    "#]].assert_eq(&shown);
}

#[test]
fn without_files_a_referenced_name_stays_out_of_the_plan() {
    let manifest = parsed(&with_plugin(
        "outboundConnections: [{fqdn: {configMap: {name: c, key: k, type: yaml, ref: a}}, port: 1}, {fqdn: b.example, port: 1}]",
    ));
    assert_eq!(rules(&manifest), "app b.example:1 tls=false\n");
    assert_eq!(manifest.plugins[0].unresolved[0].source.steps, ["a"]);
}

#[test]
fn only_so_many_names_are_read_from_files() {
    let files = config_maps(&[("c", "k", "a: b.example")]);
    let list: String = (1..=33)
        .map(|port| {
            format!("- {{fqdn: {{configMap: {{name: c, key: k, type: yaml, ref: a}}}}, port: {port}}}\n")
        })
        .collect();
    let text = with_plugin(&format!("outboundConnections:\n{list}"));
    expect![[r#"
        41:28: spec.userPlugins[0].outboundConnections[32].fqdn.configMap: more than 32 host names are read from files
    "#]].assert_eq(&outcome(&text, &Context { files: Some(&files), ..Context::default() }));
}

fn with_collector(url: &str, connection: &str) -> String {
    let text = with_telemetry(&format!(
        "outboundConnections: [{connection}]\nenv: [{{name: EXPORTER_URL, value: \"{url}\"}}]"
    ));
    outcome(&text, &Context::default())
}

#[test]
fn the_collector_must_be_an_allowed_destination() {
    let plain = "{fqdn: c.example, port: 4318}";
    let tls = "{fqdn: c.example, port: 443, tls: true}";
    for (url, connection) in [
        ("http://c.example:4318", plain),
        ("http://C.example.:4318/base/", plain),
        ("https://c.example:4318", plain),
        ("https://c.example", tls),
        ("http://c.example", "{fqdn: c.example, port: 80}"),
        ("http://any.example", "{fqdn: {configMap: {name: c, key: k, type: yaml, ref: a}}, port: 80}"),
    ] {
        assert_eq!(with_collector(url, connection), "ok\n", "{url}");
    }
    expect![[r#"
        9:41: spec.plugins.telemetry.env[0].value: "http://c.example:443" is plaintext, but the outboundConnection to c.example:443 demands TLS
    "#]].assert_eq(&with_collector("http://c.example:443", tls));
    let refused = [
        "http://c.example",
        "http://d.example:4318",
        "grpc://c.example:4318",
        "c.example:4318",
        "http://user:secret@c.example:4318",
        "ftp://user:secret@c.example:4318",
        "http://c.example:0",
        "http://c.example:http",
        "http://10.0.0.1:4318",
        "http://[::1]:4318",
        "http://c.example:4318/?x=y",
        "http://c.example:4318/v1/metrics",
        "http://c.example:99999",
        "http://c.example:",
        "http://",
        "",
    ];
    expect![[r#"
        9:41: spec.plugins.telemetry.env[0].value: no outboundConnection of the telemetry plugin allows c.example:80
        9:41: spec.plugins.telemetry.env[0].value: no outboundConnection of the telemetry plugin allows d.example:4318
        9:41: spec.plugins.telemetry.env[0].value: not a URL of a collector, which begins with http:// or https://
        9:41: spec.plugins.telemetry.env[0].value: not a URL of a collector, which begins with http:// or https://
        9:41: spec.plugins.telemetry.env[0].value: a collector's URL must not hold a user name or password
        9:41: spec.plugins.telemetry.env[0].value: not a URL of a collector, which begins with http:// or https://
        9:41: spec.plugins.telemetry.env[0].value: "http://c.example:0" has no valid port, a number from 1 to 65535
        9:41: spec.plugins.telemetry.env[0].value: "http://c.example:http" has no valid port, a number from 1 to 65535
        9:41: spec.plugins.telemetry.env[0].value: "10.0.0.1" is an IP address: egress goes to host names only
        9:41: spec.plugins.telemetry.env[0].value: "::1" is an IP address: egress goes to host names only
        9:41: spec.plugins.telemetry.env[0].value: not a base URL: a path is appended, so it has no query, fragment or space
        9:41: spec.plugins.telemetry.env[0].value: "http://c.example:4318/v1/metrics" ends in /v1/metrics, which is appended: write the URL without /v1/metrics
        9:41: spec.plugins.telemetry.env[0].value: "http://c.example:99999" has no valid port, a number from 1 to 65535
        9:41: spec.plugins.telemetry.env[0].value: "http://c.example:" has no valid port, a number from 1 to 65535
        9:41: spec.plugins.telemetry.env[0].value: "http://" has no valid host
        9:41: spec.plugins.telemetry.env[0].value: not a URL of a collector, which begins with http:// or https://
    "#]].assert_eq(&refused.map(|url| with_collector(url, plain)).concat());
}

#[test]
fn a_standard_variable_is_obeyed_or_a_mistake_where_it_stands() {
    let check = |variable: &str| {
        let text = with_telemetry(&format!(
            "outboundConnections: [{{fqdn: c.example, port: 4318}}]\nenv: [{{name: A, value: b}}, {variable}]"
        ));
        outcome(&text, &Context::default())
    };
    let accepted = [
        "{name: OTEL_EXPORTER_OTLP_ENDPOINT, value: 'http://c.example:4318'}",
        "{name: OTEL_EXPORTER_OTLP_HEADERS, value: 'authorization=Bearer%20x'}",
    ];
    for variable in accepted {
        assert_eq!(check(variable), "ok\n", "{variable}");
    }
    let refused = [
        "{name: OTEL_EXPORTER_OTLP_PROTOCOL, value: grpc}",
        "{name: OTEL_EXPORTER_OTLP_ENDPOINT, value: 'http://c.example:1'}",
        "{name: OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, value: 'http://d.example:4318/x'}",
        "{name: OTEL_SERVICE_NAME, value: x}",
    ];
    expect![[r#"
        9:77: spec.plugins.telemetry.env[1].value: expected http/protobuf, the only protocol that is spoken
        9:77: spec.plugins.telemetry.env[1].value: no outboundConnection of the telemetry plugin allows c.example:1
        9:85: spec.plugins.telemetry.env[1].value: no outboundConnection of the telemetry plugin allows d.example:4318
        9:67: spec.plugins.telemetry.env[1].value: the service's name is the deployment's, metadata.name
    "#]].assert_eq(&refused.map(check).concat());
}

#[test]
fn a_connection_of_spec_allows_the_collector_too() {
    let text = with_spec(
        "outboundConnections: [{fqdn: c.example, port: 4318}]
userPlugins: [{name: app, image: x, env: [{name: EXPORTER_URL, value: anything}]}]
plugins: {telemetry: {env: [{name: EXPORTER_URL, value: 'http://c.example:4318'}, {name: HOST_PORT, value: '4318'}]}}",
    );
    assert_eq!(outcome(&text, &Context::default()), "ok\n");
    check(
        &with_telemetry("env: [{name: HOST_PORT, value: '0'}]"),
        expect![[r#"
        8:38: spec.plugins.telemetry.env[0].value: "0" is no port: a number from 1 to 65535
    "#]],
    );
    check(
        &with_telemetry("env: [{name: HOST_PORT, value: '65536'}]"),
        expect![[r#"
        8:38: spec.plugins.telemetry.env[0].value: "65536" is no port: a number from 1 to 65535
    "#]],
    );
    check(
        &with_telemetry("env: [{name: HOST_PORT, value: http}]"),
        expect![[r#"
        8:38: spec.plugins.telemetry.env[0].value: "http" is no port: a number from 1 to 65535
    "#]],
    );
}
