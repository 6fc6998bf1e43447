//! What a plugin finds: descriptors, signals, session, user, variables, files.

use serde_json::json;

use crate::{
    enclave::How,
    scene::{Scene, deployment, deployment_with, idle, image, script, with},
};

#[test]
fn a_plugin_inherits_no_descriptor_no_signal_setting_and_no_session() {
    // Whoever starts the supervisor is careless: open descriptors, a blocked and an ignored signal.
    let careless = "exec 7</etc/passwd 8>&2; exec env --block-signal=USR1 --ignore-signal=USR2 \"$@\"";
    let through = ["sh", "-c", careless, "--"].map(str::to_owned).to_vec();
    let scene = Scene::new();
    for plugin in ["app", "signals"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start_as(How { through, ..How::default() });
    let status = std::fs::read_to_string(format!("/proc/{}/status", enclave.pid)).unwrap();
    assert!(status.contains("SigBlk:\t0000000000000200"), "the supervisor was started carefully: {status}");
    let run =
        |name: &str, words: &[&str]| with(idle(name), json!({"command": words, "restartPolicy": "Never"}));
    let users = json!([
        script("app", "cat /proc/self/stat; echo done; exec sleep 1000"),
        run("signals", &["/bin/grep", "^Sig...:", "/proc/self/status"]),
    ]);
    enclave.run(&deployment(users));
    let lines = enclave.lines("app", "done");
    let stat: Vec<&str> = lines[0].split(' ').collect();
    // The shell was its init's first child, and leads.
    assert_eq!((stat[4], stat[5]), ("2", "2"), "process group and session: {stat:?}");
    let open = std::fs::read_dir(format!("/proc/{}/fd", enclave.plugin("app").pid.unwrap())).unwrap();
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    enclave.line("signals", "SigCgt");
    let masks = enclave.lines("signals", "SigCgt");
    let zero = "0000000000000000";
    let none = [format!("SigPnd:\t{zero}"), format!("SigBlk:\t{zero}"), format!("SigIgn:\t{zero}")];
    assert_eq!(masks, none);
}

/// Whether plugins can run as different users here. Without root the user namespace has one user alone.
fn has_users() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        crate::not_run("without root the supervisor's user namespace has one user, and this needs several");
    }
    is_root
}

#[test]
fn user_directory_and_variables_come_from_the_image_and_the_manifest() {
    if !has_users() {
        return;
    }
    let scene = Scene::new();
    let config =
        json!({"User": "1000:2000", "WorkingDir": "/srv/data", "Env": ["FROM_IMAGE=1", "BOTH=image"]});
    scene.busybox("app", config.clone());
    scene.busybox("other", config);
    let mut enclave = scene.start();
    let say = "echo id $(id -u) $(id -g) groups $(id -G); echo dir $(pwd); env; echo args $0 $1; echo done; exec sleep 1000";
    let app = with(
        script("app", say),
        json!({"env": [{"name": "BOTH", "value": "manifest"}, {"name": "EXPANDED", "value": "$(BOTH)-$(FROM_IMAGE)"}],
               "args": ["zero", "one=$(EXPANDED)"]}),
    );
    let other = with(
        script("other", say),
        json!({"securityContext": {"runAsUser": 3000, "runAsGroup": 4000}, "workingDir": "/tmp"}),
    );
    enclave.run(&deployment(json!([app, other])));
    let lines = enclave.lines("app", "done");
    for line in
        ["id 1000 2000 groups 2000", "dir /srv/data", "FROM_IMAGE=1", "BOTH=manifest", "EXPANDED=manifest-1"]
    {
        assert!(lines.iter().any(|known| known == line), "{line}: {lines:#?}");
    }
    assert!(lines.iter().any(|line| line == "args zero one=manifest-1"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("ENCLAVE_")), "{lines:#?}");
    let lines = enclave.lines("other", "done");
    for line in ["id 3000 4000 groups 4000", "dir /tmp"] {
        assert!(lines.iter().any(|known| known == line), "{line}: {lines:#?}");
    }
}

#[test]
fn volumes_arrive_with_their_modes_and_read_only_is_enforced() {
    if !has_users() {
        return;
    }
    let scene = Scene::new();
    scene.busybox("app", json!({"User": "1000:2000"}));
    let mut enclave = scene.start();
    let say = "stat -c '%a %u %g %n' /config/a.txt /config/deep/b.txt /keys/key; cat /config/a.txt; cat /keys/key\n\
               touch /config/new || echo config is read-only; echo changed > /own/a.txt; cat /own/a.txt\n\
               echo done; exec sleep 1000";
    let items = json!([{"key": "a", "path": "a.txt"}, {"key": "b", "path": "deep/b.txt"}]);
    let app = with(
        script("app", say),
        json!({"volumes": [
            {"name": "config", "containerPath": "/config", "source": {"configMap": {"name": "settings", "items": items}}},
            {"name": "keys", "containerPath": "/keys", "readOnly": true, "source": {"secret": {"name": "tls"}}},
            {"name": "own", "containerPath": "/own", "readOnly": false,
             "source": {"configMap": {"name": "settings", "items": [{"key": "a", "path": "a.txt"}]}}},
        ]}),
    );
    // "first\n", "second\n" and "secret\n".
    let files = json!({
        "configMaps": {"settings": {"a": "Zmlyc3QK", "b": "c2Vjb25kCg=="}}, "secrets": {"tls": {"key": "c2VjcmV0Cg=="}},
    });
    enclave.run_with(&deployment(json!([app])), &files);
    let mut lines = enclave.lines("app", "done");
    lines.retain(|line| !line.starts_with("touch:"));
    let expected = [
        "644 1000 2000 /config/a.txt",
        "644 1000 2000 /config/deep/b.txt",
        "400 1000 2000 /keys/key",
        "first",
        "secret",
        "config is read-only",
        "changed",
    ];
    assert_eq!(lines, expected);
    // What the plugin changed is its own copy.
    let config = std::fs::read_to_string(enclave.inside("app", "/config/a.txt")).unwrap();
    assert_eq!(config, "first\n");
}

#[test]
fn each_plugin_has_its_own_hosts_file_and_another_ones_destinations_are_not_in_it() {
    let scene = Scene::new();
    for plugin in ["telemetry", "app"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let out = |fqdn: &str| json!({"outboundConnections": [{"fqdn": fqdn, "port": 443}]});
    let telemetry = with(
        json!({"image": image("telemetry"), "command": ["/bin/sleep", "1000"]}),
        out("collector.example"),
    );
    let users = json!([with(idle("app"), out("api.example"))]);
    enclave.run(&deployment_with(users, json!({"plugins": {"telemetry": telemetry}})));
    enclave.started("app");
    let hosts = |plugin| std::fs::read_to_string(enclave.inside(plugin, "/etc/hosts")).unwrap();
    let base = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    assert_eq!(hosts("app"), format!("{base}127.64.0.1\tapi.example\n"));
    assert_eq!(hosts("telemetry"), format!("{base}127.64.0.2\tcollector.example\n"));
}

/// Of a run through `ENCLAVE_TEST_THROUGH` this says that it is one: filters are inherited and never removed.
#[test]
fn the_supervisor_and_all_it_starts_are_behind_the_filter_that_the_run_asks_for() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([idle("app")])));
    let app = enclave.started("app").to_string();
    let field = |pid: &str, name: &str| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let is_filtered = !crate::enclave::through().is_empty();
    let filters = field("self", "Seccomp_filters:").map(|own| own + u32::from(is_filtered));
    // A plugin has a filter of its own beside.
    for (pid, own) in [(enclave.pid.to_string(), 0), (enclave.net().to_string(), 0), (app, 1)] {
        if is_filtered {
            assert_eq!(field(&pid, "Seccomp:"), Some(2), "{pid}");
        }
        // Counted since Linux 5.9.
        assert_eq!(field(&pid, "Seccomp_filters:"), filters.map(|filters| filters + own), "{pid}");
    }
}
