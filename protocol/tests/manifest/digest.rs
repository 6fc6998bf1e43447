//! The digest: golden vectors, what makes no difference to it, and what does.

use std::collections::{BTreeMap, BTreeSet};

use enclave_protocol::control::{FileBytes, Files};
use enclave_protocol::digest::{Digest, canonical_json, digest};
use enclave_protocol::manifest::{Context, parse};
use expect_test::{ExpectFile, expect_file};

const HELLO: &str = include_str!("../../testdata/digest/hello.yaml");
const EVERYTHING: &str = include_str!("../../testdata/digest/everything.yaml");
const EVERYTHING_FILES: &str = include_str!("../../testdata/digest/everything.files.json");

fn files() -> Files {
    serde_json::from_str(EVERYTHING_FILES).unwrap()
}

fn digest_of(text: &str, files: &Files) -> Digest {
    let context = Context { files: Some(files), ..Context::default() };
    let manifest = parse(text, &context).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{text}"));
    digest(&manifest, files)
}

fn check_golden(text: &str, files: &str, canonical: ExpectFile, expected: ExpectFile) {
    let files: Files = serde_json::from_str(files).unwrap();
    let manifest = parse(text, &Context { files: Some(&files), ..Context::default() }).unwrap();
    canonical.assert_eq(&canonical_json(&manifest, &files));
    expected.assert_eq(&format!("{}\n", digest(&manifest, &files)));
}

#[test]
fn the_golden_vectors_hold() {
    check_golden(
        HELLO,
        include_str!("../../testdata/digest/hello.files.json"),
        expect_file!["../../testdata/digest/hello.canonical.json"],
        expect_file!["../../testdata/digest/hello.digest"],
    );
    check_golden(
        EVERYTHING,
        EVERYTHING_FILES,
        expect_file!["../../testdata/digest/everything.canonical.json"],
        expect_file!["../../testdata/digest/everything.digest"],
    );
}

/// `text` with the one place that reads `from` changed.
fn changed(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} stands once");
    text.replace(from, to)
}

#[test]
fn host_side_fields_and_the_way_of_writing_make_no_difference() {
    let original = digest_of(EVERYTHING, &files());
    for (from, to) in [
        ("replicas: 1", "replicas: 5"),
        ("replicas: 1", "hugepages-1Gi: 4Gi"),
        ("replicas: 1", "imagePullSecrets: [a]\n  serviceAccount: b\n  ingress: {host: c}"),
        ("replicas: 1", "caCertDetails: {enclaveCertType: OTHER}\n  enclaveCpuCount: 4"),
        ("hostPort: 4455", "hostPort: 4456"),
        ("requests: {cpu: 500m}", "requests: {cpu: 250m}"),
        ("kind: AuthPlugin", "name: Authentication"),
        ("# Every", "# Any"),
        ("name: app\n", "\"name\": 'app' # the workload\n"),
        (
            "image: registry.example/worker:1",
            "image: registry.example/worker:1\n      restart: {factor: 2.0}\n      command: []\n      notifyReady: false",
        ),
        ("cpu: 750m", "cpu: 0.75"),
        ("memory: 64Mi", "memory: 67108864"),
        ("maxDelay: 30s", "maxDelay: 30000ms"),
        ("fqdn: own.example", "fqdn: {value: OWN.example.}"),
        ("workingDir: /srv", "workingDir: /srv/./"),
        ("supervisorAccess: [metrics, status, logs]", "supervisorAccess: [logs, metrics, status]"),
        (
            "    - {fqdn: shared.example, port: 443, tls: true}\n",
            "    - {tls: true, port: 443, fqdn: shared.example, type: default}\n",
        ),
        (
            "        - {containerPort: 8001, hostPort: 4455}\n        - {containerPort: 8002}\n",
            "        - {containerPort: 8002, protocol: TCP}\n        - {hostPort: 1, containerPort: 8001}\n",
        ),
    ] {
        assert_eq!(digest_of(&changed(EVERYTHING, from, to), &files()), original, "{from:?} → {to:?}");
    }
}

#[test]
fn every_enclave_relevant_change_makes_another_digest() {
    let mut digests = BTreeSet::from([digest_of(EVERYTHING, &files()).to_string()]);
    for (from, to) in [
        ("name: everything", "name: something"),
        ("namespace: team-1", "namespace: team-2"),
        ("host: supervisor", "host: none"),
        ("fqdn: shared.example, port: 443, tls: true", "fqdn: shared.example, port: 443"),
        ("fqdn: shared.example", "fqdn: other.example"),
        ("shared.example, port: 443", "shared.example, port: 444"),
        ("redirects: true", "redirects: false"),
        ("image: registry.example/app@sha256:0000", "image: registry.example/app@sha256:0001"),
        ("command: [/app,", "command: [/bpp,"),
        ("args: [--flag]", "args: [--flag, --flag]"),
        ("args: [--flag]", "args: []"),
        ("workingDir: /srv", "workingDir: /"),
        ("value: \"1\"", "value: \"2\""),
        ("name: B", "name: C"),
        ("containerPort: 8002}\n", "containerPort: 8003}\n"),
        ("containerPort: 8001, hostPort: 4455", "containerPort: 8001"),
        ("containerPath: /etc/app", "containerPath: /etc/bpp"),
        ("readOnly: false", "readOnly: true"),
        ("path: conf/app.json", "path: app.json"),
        (
            "source: {secret: {name: keys}}",
            "source: {secret: {name: keys, items: [{key: public.pem, path: x}]}}",
        ),
        ("source: {secret: {name: keys}}", "source: {configMap: {name: files}}"),
        ("restartPolicy: OnFailure", "restartPolicy: Never"),
        ("initialDelay: 2s", "initialDelay: 3s"),
        ("factor: 1.5", "factor: 1.501"),
        ("maxDelay: 30s", "maxDelay: 31s"),
        ("resetAfter: 5m", "resetAfter: 6m"),
        ("maxRestarts: 4", "maxRestarts: unlimited"),
        ("jitter: 0.25", "jitter: 0"),
        ("terminationGracePeriodSeconds: 12", "terminationGracePeriodSeconds: 13"),
        ("command: [test, -e, /ready]", "command: [test, -f, /ready]"),
        ("periodSeconds: 3", "periodSeconds: 4"),
        ("failureThreshold: 5", "failureThreshold: 6"),
        ("terminationGracePeriodSeconds: 3}", "terminationGracePeriodSeconds: 4}"),
        ("tcpSocket: {port: 8001}", "tcpSocket: {port: 8002}"),
        ("path: /ready,", "path: /live,"),
        ("scheme: HTTPS", "scheme: HTTP"),
        ("name: X-Probe", "name: X-Other"),
        ("successThreshold: 2", "successThreshold: 3"),
        ("notifyReady: true", "notifyReady: false"),
        ("command: [/stop]", "command: [/halt]"),
        ("cpu: 750m", "cpu: 751m"),
        ("memory: 64Mi", "memory: 65Mi"),
        ("pids: 32", "pids: 33"),
        ("runAsUser: 1000", "runAsUser: 0"),
        ("runAsGroup: 1001", "runAsGroup: 0"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("add: [NET_BIND_SERVICE]", "add: [NET_RAW]"),
        ("drop: [ALL]", "drop: [KILL]"),
        ("supervisorAccess: [status]", "supervisorAccess: []"),
        ("dependsOn: [worker]", "dependsOn: [worker, auth]"),
        ("supervisorAccess: [metrics, status, logs]", "supervisorAccess: [metrics]"),
        ("    auth:", "    auth2:"),
    ] {
        let digest = digest_of(&changed(EVERYTHING, from, to), &files()).to_string();
        assert!(digests.insert(digest), "{from:?} → {to:?}");
    }
}

#[test]
fn the_order_of_user_plugins_is_their_start_order_and_enters() {
    let of = |list: &str| digest_of(&crate::with_spec(&format!("userPlugins: [{list}]")), &Files::default());
    let (a, b) = ("{name: a, image: x}", "{name: b, image: x}");
    assert_ne!(of(&format!("{a}, {b}")), of(&format!("{b}, {a}")));
}

#[test]
fn named_files_enter_by_bytes_and_secrets_by_key_alone() {
    let original = digest_of(EVERYTHING, &files());
    let with = |change: fn(&mut Files)| {
        let mut files = files();
        change(&mut files);
        digest_of(EVERYTHING, &files)
    };
    let same: [fn(&mut Files); 4] = [
        |files| {
            *files.secrets.get_mut("keys").unwrap().get_mut("private.pem").unwrap() =
                FileBytes(b"other".into());
        },
        |files| drop(files.config_maps.remove("unnamed")),
        |files| drop(files.config_maps.get_mut("files").unwrap().remove("unnamed")),
        |files| drop(files.secrets.insert("unnamed".to_owned(), BTreeMap::new())),
    ];
    for (i, change) in same.into_iter().enumerate() {
        assert_eq!(with(change), original, "change {i} makes no difference");
    }
    let other: [fn(&mut Files); 2] = [
        |files| files.config_maps.get_mut("files").unwrap().get_mut("app.json").unwrap().0.push(b' '),
        |files| drop(files.secrets.get_mut("keys").unwrap().remove("private.pem")),
    ];
    for (i, change) in other.into_iter().enumerate() {
        assert_ne!(with(change), original, "change {i} makes a difference");
    }
}

#[test]
fn without_files_the_digest_covers_the_manifest_alone() {
    let manifest = parse(EVERYTHING, &Context::default()).unwrap();
    let alone = digest(&manifest, &Files::default());
    assert_ne!(alone, digest_of(EVERYTHING, &files()));
    let five = parse(&changed(EVERYTHING, "replicas: 1", "replicas: 5"), &Context::default()).unwrap();
    assert_eq!(digest(&five, &Files::default()), alone);
    // A manifest that names no file has one digest.
    let plain = crate::with_plugin("");
    assert_eq!(digest(&crate::parsed(&plain), &Files::default()), digest_of(&plain, &files()));
}

#[test]
fn a_digest_is_written_and_read_as_lower_case_hexadecimal() {
    let digest = digest_of(HELLO, &crate::config_maps(&[("telemetry-config", "config.yaml", "")]));
    assert_eq!(digest.to_string().parse(), Ok(digest));
    assert_eq!(digest.as_bytes().len(), 48);
    for wrong in [
        "",
        "0",
        &digest.to_string()[2..],
        &format!("{digest}00"),
        &digest.to_string().to_uppercase(),
        &"é".repeat(48),
    ] {
        assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
    }
}
