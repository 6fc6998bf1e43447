//! What a plugin finds around itself, asked from inside: nothing of the others, and no way out. The same as
//! root of a user namespace, which is what a supervisor of a test without root is.

use serde_json::{Value, json};

use expect_test::{Expect, expect};

use crate::{
    client::exchange,
    enclave::Enclave,
    host::ingress,
    scene::{Scene, deployment, idle, image, script, with},
};

/// A plugin that says what it finds, and stays. Both streams are one, so that the order is the script's.
fn asking(text: &str) -> Value {
    script("app", &format!("exec 2>&1\n{text}\necho done\nexec sleep 1000"))
}

/// Runs it, and compares what it says.
fn check(app: Value, expected: Expect) -> Enclave {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([app])));
    expected.assert_eq(&enclave.lines("app", "done").join("\n"));
    enclave
}

fn security(context: Value) -> Value {
    json!({"securityContext": context})
}

#[test]
fn the_process_table_has_the_plugins_own_processes_alone() {
    let text = "for pid in /proc/[0-9]*; do echo $pid $(head -c 12 $pid/cmdline | tr '\\000' ' '); done\n\
                cat /proc/1/environ /proc/1/maps\n\
                for link in exe root fd/3; do readlink /proc/1/$link || echo $link is hidden; done";
    check(
        asking(text),
        expect![[r#"
            /proc/1 enclave-init
            /proc/2 /bin/sh -c e
            cat: can't open '/proc/1/environ': Permission denied
            cat: can't open '/proc/1/maps': Permission denied
            exe is hidden
            root is hidden
            fd/3 is hidden"#]],
    );
}

#[test]
fn another_plugins_files_environment_and_memory_are_not_there() {
    let scene = Scene::with_app();
    scene.busybox("other", json!({}));
    scene.write("plugins/other/rootfs/srv/mine", "mine\n");
    let (plugins, run) = (scene.path("plugins"), scene.path("run"));
    let mut enclave = scene.start();
    let secret =
        json!({"env": [{"name": "SECRET", "value": "of-the-other"}], "supervisorAccess": ["status"]});
    let other = with(script("other", "echo up; exec sleep 1000"), secret);
    // Its own command line and environment do not have the words that it looks for.
    let text = format!(
        "ls -d /plugins /srv/mine /run/enclave {} {} 2>&1 | sort\n\
         grep -l of-the-[o]ther /proc/*/environ /proc/*/cmdline 2>/dev/null\n\
         ls -A /; exec 3</proc/1/mem",
        plugins.display(),
        run.display()
    );
    enclave.run(&deployment(json!([other, with(asking(&text), json!({"dependsOn": ["other"]}))])));
    enclave.line("other", "up");
    let lines = enclave.lines("app", "/bin/sh: ");
    let missing = |path: &str| format!("ls: {path}: No such file or directory");
    let mut expected: Vec<_> = ["/plugins", "/srv/mine", "/run/enclave"].map(missing).to_vec();
    expected.extend([plugins, run].map(|path| missing(&path.display().to_string())));
    expected.sort();
    expected.extend(["bin", "dev", "etc", "proc", "tmp"].map(str::to_owned));
    assert_eq!(lines, expected);
    assert!(enclave.line("app", "/bin/sh: ").ends_with("can't open /proc/1/mem: Permission denied"));
}

#[test]
fn there_are_no_mounts_no_namespaces_and_no_devices_to_be_made() {
    let text = "mount -t tmpfs none /tmp; mount -o remount,rw /dev; umount /proc; unshare -m true\n\
                unshare -U true; mknod /tmp/null c 1 3; mkfifo /tmp/pipe && echo a pipe is none\n\
                mkdir /tmp/new; chroot / pivot_root /tmp /tmp/new; hostname other; nsenter -t 1 -m true";
    check(
        asking(text),
        expect![[r#"
            mount: permission denied (are you root?)
            mount: permission denied (are you root?)
            umount: can't unmount /proc: Operation not permitted
            unshare: unshare(0x20000): Operation not permitted
            unshare: unshare(0x10000000): Operation not permitted
            mknod: /tmp/null: Operation not permitted
            a pipe is none
            pivot_root: (null): Operation not permitted
            hostname: sethostname: Operation not permitted
            nsenter: can't open '/proc/1/ns/mnt': Permission denied"#]],
    );
}

#[test]
fn devices_are_few_and_no_more_are_made() {
    let text = "ls /dev; touch /dev/new; mknod /dev/mem c 1 1; rm /dev/null; echo x > /dev/full\n\
                head -c 4 /dev/zero | od -t x1; head -c 8 /dev/urandom | wc -c; echo lost > /dev/null\n\
                touch /dev/shm/mine && echo shm is mine; : > /dev/ptmx && echo a terminal; ls /dev/pts";
    check(
        asking(text),
        expect![[r#"
            fd
            full
            null
            ptmx
            pts
            random
            shm
            stderr
            stdin
            stdout
            urandom
            zero
            touch: /dev/new: Read-only file system
            mknod: /dev/mem: Read-only file system
            rm: can't remove '/dev/null': Read-only file system
            sh: write error: No space left on device
            0000000 00 00 00 00
            0000004
            8
            shm is mine
            a terminal
            ptmx"#]],
    );
}

#[test]
fn the_kernels_own_switches_are_read_only_or_hidden() {
    let text = "echo 1 > /proc/sys/kernel/panic; echo h > /proc/sysrq-trigger; echo 1 > /proc/sys/vm/drop_caches\n\
                echo 0 > /proc/irq/default_smp_affinity; head -c 4 /proc/kcore | wc -c; ls /sys\n\
                grep -c . /proc/keys /proc/timer_list 2>/dev/null; dmesg | head -n 1";
    check(
        asking(text),
        expect![[r#"
            /bin/sh: can't create /proc/sys/kernel/panic: Read-only file system
            /bin/sh: can't create /proc/sysrq-trigger: nonexistent directory
            /bin/sh: can't create /proc/sys/vm/drop_caches: Read-only file system
            /bin/sh: can't create /proc/irq/default_smp_affinity: Read-only file system
            head: /proc/kcore: No such file or directory
            0
            ls: /sys: No such file or directory
            /proc/keys:0
            /proc/timer_list:0
            dmesg: klogctl: Operation not permitted"#]],
    );
}

#[test]
fn writes_are_the_runs_own_and_gone_at_the_next() {
    let text = "ls /etc/kept /bin/own 2>&1; echo x > /etc/kept; echo x > /bin/own; rm /bin/pwd\n\
                ls /etc/kept /bin/own /bin/pwd; echo written; read line < /tmp/none; exit 1";
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([script("app", &format!("exec 2>&1\n{text}"))])));
    let mut feed = enclave.logs();
    let mut run = || {
        let said = feed.up_to("a run", |record| record.text.as_deref() == Some("written"));
        let own = said.into_iter().filter(|record| record.plugin == "app");
        own.filter_map(|record| record.text).filter(|line| !line.starts_with("/bin/sh:")).collect::<Vec<_>>()
    };
    let first = run();
    assert_eq!(first, run(), "the second finds what the first found");
    expect![[r#"
        ls: /etc/kept: No such file or directory
        ls: /bin/own: No such file or directory
        ls: /bin/pwd: No such file or directory
        /bin/own
        /etc/kept
        written"#]]
    .assert_eq(&first.join("\n"));
    assert!(!enclave.scene.root("app").join("etc/kept").exists());
    assert!(enclave.scene.root("app").join("bin/pwd").exists());
}

#[test]
fn what_is_written_is_bounded() {
    let text = "dd if=/dev/zero of=/fill bs=65536 2>&1 | grep -v records; df -k / | tr -s ' ' | cut -d ' ' -f 1-2\n\
                [ $(stat -c %s /fill) -le 8388608 ] && echo half of the limit; echo more > /more; rm /fill\n\
                i=0; while [ $i -lt 2000 ] && touch /tmp/$i 2>/dev/null; do i=$((i+1)); done\n\
                [ $i -lt 1024 ] && echo few files";
    check(
        with(asking(text), json!({"resources": {"limits": {"memory": "16Mi"}}})),
        expect![[r#"
            dd: error writing '/fill': No space left on device
            Filesystem 1K-blocks
            overlay 8192
            half of the limit
            sh: write error: No space left on device
            few files"#]],
    );
}

#[test]
fn a_read_only_root_refuses_writes_and_a_writable_volume_takes_them() {
    let text = "echo x > /etc/new; echo x > /tmp/new; mkdir /new; cat /own/a; echo changed > /own/a && cat /own/a\n\
                echo x > /fixed/a; touch /dev/shm/new && echo shm is writable; mount -o remount,rw /";
    let volume = |path: &str, read_only: bool| {
        json!({"name": path, "containerPath": format!("/{path}"), "readOnly": read_only,
               "source": {"configMap": {"name": "settings"}}})
    };
    let app = with(asking(text), security(json!({"readOnlyRootFilesystem": true})));
    let app = with(app, json!({"volumes": [volume("own", false), volume("fixed", true)]}));
    let mut enclave = Scene::with_app().start();
    enclave.run_with(&deployment(json!([app])), &json!({"configMaps": {"settings": {"a": "Zmlyc3QK"}}}));
    expect![[r#"
        /bin/sh: can't create /etc/new: Read-only file system
        /bin/sh: can't create /tmp/new: Read-only file system
        mkdir: can't create directory '/new': Read-only file system
        first
        changed
        /bin/sh: can't create /fixed/a: Read-only file system
        shm is writable
        mount: permission denied (are you root?)"#]]
    .assert_eq(&enclave.lines("app", "done").join("\n"));
}

/// What a process may do, by its status.
const POWERS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr '\\t' ' '";

#[test]
fn a_plugin_of_root_has_dockers_capabilities_less_two_and_gains_none() {
    check(
        asking(POWERS),
        expect![[r#"
            Uid: 0 0 0 0
            Gid: 0 0 0 0
            Groups:  
            CapInh: 0000000000000000
            CapPrm: 00000000a00405fb
            CapEff: 00000000a00405fb
            CapBnd: 00000000a00405fb
            CapAmb: 0000000000000000
            NoNewPrivs: 1
            Seccomp: 2"#]],
    );
}

#[test]
fn capabilities_are_dropped_and_added_as_asked_for() {
    let capabilities = json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "SYS_TIME"]});
    check(
        with(
            asking(&format!(
                "{POWERS} | grep Cap; chroot / true; touch /tmp/x && echo root of its own files"
            )),
            security(json!({"capabilities": capabilities})),
        ),
        expect![[r#"
            CapInh: 0000000000000000
            CapPrm: 0000000002000400
            CapEff: 0000000002000400
            CapBnd: 0000000002000400
            CapAmb: 0000000000000000
            chroot: can't change root directory to '/': Operation not permitted
            root of its own files"#]],
    );
}

#[test]
fn another_user_than_root_has_no_capabilities() {
    if !nix::unistd::geteuid().is_root() {
        return crate::not_run("the user namespace of a test without root has one user alone");
    }
    check(
        with(
            asking(&format!("{POWERS}; touch /etc/x; touch /tmp/x && stat -c '%u %g' /tmp/x; kill -9 1")),
            security(json!({"runAsUser": 1234, "runAsGroup": 4321})),
        ),
        expect![[r#"
            Uid: 1234 1234 1234 1234
            Gid: 4321 4321 4321 4321
            Groups:  
            CapInh: 0000000000000000
            CapPrm: 0000000000000000
            CapEff: 0000000000000000
            CapBnd: 00000000a00405fb
            CapAmb: 0000000000000000
            NoNewPrivs: 1
            Seccomp: 2
            touch: /etc/x: Permission denied
            1234 4321"#]],
    );
}

#[test]
fn the_host_name_is_the_plugins_and_resources_are_limited() {
    let text = "hostname; ulimit -n; ulimit -Hn; ulimit -c; umask\n\
                grep -c enclave /proc/self/cgroup; cat /proc/self/oom_score_adj";
    check(
        asking(text),
        expect![[r#"
            app
            20000
            20000
            0
            0022
            0
            0"#]],
    );
}

/// What hello of a plugin answers, asked through its declared port.
fn greeting(enclave: &Enclave, plugin: &str, port: u16) -> String {
    let stream = ingress(&enclave.client, plugin, port).expect("the port is served");
    exchange(stream, "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n", b"").text()
}

fn hello(name: &str, port: u16, host_port: Option<u16>) -> Value {
    let ports: Vec<_> =
        host_port.iter().map(|host| json!({"containerPort": port, "hostPort": host})).collect();
    json!({"name": name, "image": image(name), "ports": ports,
           "env": [{"name": "PORT", "value": port.to_string()}]})
}

#[test]
fn two_plugins_bind_the_same_port_and_each_is_reached_at_its_own() {
    let scene = Scene::new();
    for plugin in ["one", "two", "three", "four"] {
        scene.hello(plugin);
    }
    let mut enclave = scene.start();
    let users = json!([
        hello("one", 8001, Some(4001)),
        hello("two", 8001, Some(4002)),
        hello("three", 9000, None),
        hello("four", 9000, None),
    ]);
    enclave.run(&deployment(users));
    for plugin in ["one", "two", "three", "four"] {
        enclave.line(plugin, "hello: pid");
    }
    for plugin in ["one", "two"] {
        assert!(greeting(&enclave, plugin, 8001).starts_with("hello from pid "), "{plugin}");
    }
    let status = enclave.client.status();
    assert!(status.plugins.iter().all(|plugin| plugin.restarts == 0), "{status:#?}");
}

#[test]
fn a_plugin_reaches_what_another_declares_and_nothing_else() {
    let scene = Scene::with_app();
    for plugin in ["web", "hidden"] {
        scene.hello(plugin);
    }
    scene.busybox("client", json!({}));
    let mut enclave = scene.start();
    let out = |fqdn: &str| json!({"outboundConnections": [{"fqdn": fqdn, "port": 443}]});
    let text = "grep -o '^ *[a-z0-9]*:' /proc/net/dev; grep 127.64 /etc/hosts\n\
                wget -q -O - http://127.0.0.1:8001/ | cut -d ' ' -f 1-2\n\
                wget -q -O - http://127.0.0.1:8002/; nc 127.64.0.1 443 < /dev/null; nc 127.64.0.2 443 < /dev/null\n\
                nc -w 5 198.51.100.1 80 < /dev/null; ping -c 1 127.0.0.1";
    let users = json!([
        hello("web", 8001, Some(4001)),
        hello("hidden", 8002, None),
        with(idle("client"), out("api.example")),
        asking(text),
    ]);
    let users = json!([
        users[0],
        users[1],
        users[2],
        with(users[3].clone(), json!({"dependsOn": ["web", "hidden"]}))
    ]);
    enclave.run(&deployment(users));
    expect![[r#"
            lo:
        hello from
        wget: can't connect to remote host (127.0.0.1): Connection refused
        nc: can't connect to remote host (127.64.0.1): Connection refused
        nc: can't connect to remote host (127.64.0.2): Connection refused
        nc: can't connect to remote host (198.51.100.1): Network is unreachable
        PING 127.0.0.1 (127.0.0.1): 56 data bytes
        ping: permission denied (are you root?)"#]]
    .assert_eq(&enclave.lines("app", "done").join("\n"));
}
