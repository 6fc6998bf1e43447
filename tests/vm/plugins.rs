//! What a plugin sees of the machine and may do in it, and what becomes of one that breaks. The same checks
//! on both versions of control groups; as init of the machine here, and as the child of another in
//! [`crate::docker`].

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use enclave_protocol::control::{Event, PluginPhase, PluginStatus, Status};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    client::Client,
    image,
    machine::{Bed, Machine, lab},
    patience::{PATIENCE, eventually},
    proxy::{COLLECTOR, Proxy},
    scene::{Scene, deployment, image, script, with},
};

/// Ports of the plugins `open` and `plain`, and of `hidden`, which does not declare its own.
const OPEN: u16 = 8001;
const PLAIN: u16 = 8002;
const HIDDEN: u16 = 8009;
/// Processes that the plugin `bomb` may have.
const BOMB_PIDS: u32 = 16;
/// Memory of the machine.
const MACHINE_MIB: u32 = 512;
/// Below the ports that the kernel gives to whoever asks for any.
const HOST_PORTS: std::ops::Range<u16> = 20_000..30_000;
/// What the witness finds, by name; all of it or a part.
const FINDINGS: [(&str, &str); 25] = [
    // The small program, not the supervisor's in its stead.
    ("init", "init: enclave-init /bin/sh -c "),
    ("host", "host: witness "),
    ("score", "score: 0 "),
    ("files", "files: 1048576 "),
    ("elsewhere", "/plugins: No such file or directory"),
    ("elsewhere", "/run/enclave: No such file or directory"),
    ("elsewhere", "/enclave-init: No such file or directory"),
    ("elsewhere", "/sys: No such file or directory"),
    ("above", "above: bin dev etc proc tmp "),
    ("devices", "devices: fd full null ptmx pts random shm stderr stdin stdout urandom zero "),
    ("mount", "permission denied"),
    ("remount", "permission denied"),
    ("umount", "Operation not permitted"),
    ("unshare", "Operation not permitted"),
    ("user", "Operation not permitted"),
    ("enter", "Permission denied"),
    ("pivot", "Operation not permitted"),
    ("node", "Operation not permitted"),
    ("raw", "permission denied"),
    ("reset", "Operation not permitted"),
    ("clock", "Operation not permitted"),
    ("setting", "Read-only file system"),
    ("rights", "NoNewPrivs: 1 Seccomp: 2 "),
    ("layer", "layer: overlay / overlay rw,nosuid,nodev,"),
    ("written", "written: kept "),
];

/// Looks around, tries what it must not do, and says what came of it, a line each.
const WITNESS: &str = r#"
say() { echo "$1: $(tr '\n\t' '  ' | head -c 400)"; }
b=/bin/busybox
tr '\0' ' ' < /proc/1/cmdline | head -c 100 | say init
say host < /proc/sys/kernel/hostname
say score < /proc/self/oom_score_adj
ulimit -n | say files
for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline | head -c 40; echo; done 2>/dev/null | say processes
ls -d /plugins /run/enclave /init /enclave-init /sys 2>&1 | say elsewhere
ls /../../.. | say above
ls /dev | say devices
$b mount -t tmpfs none /tmp 2>&1 | say mount
$b mount -o remount,rw /dev 2>&1 | say remount
$b umount /proc 2>&1 | say umount
$b unshare -m /bin/true 2>&1 | say unshare
$b unshare -U /bin/true 2>&1 | say user
$b nsenter -t 1 -m ls / 2>&1 | say enter
$b pivot_root / /tmp 2>&1 | say pivot
$b mknod /tmp/memory c 1 1 2>&1 | say node
$b ping -c 1 -W 1 127.0.0.1 2>&1 | say raw
$b reboot -f 2>&1 | say reset
$b date -s @0 2>&1 | say clock
/bin/sh -c 'echo 1 > /proc/sys/kernel/printk' 2>&1 | say setting
# Of no effect on the init of a namespace.
kill -9 1
grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | say rights
grep -E 'CapEff' /proc/self/status | say capabilities
say groups < /proc/self/cgroup
grep ' / ' /proc/mounts | say layer
say names < /etc/hosts
echo kept > /written; say written < /written
echo witnessed
exec sleep 1000
"#;

/// The plugins of the checks, baked in, and their manifest.
pub(crate) struct Cast {
    pub(crate) scene: Scene,
    pub(crate) manifest: Value,
    /// Where the host reaches the two that declare a port.
    open: u16,
    plain: u16,
}

impl Cast {
    pub(crate) fn new() -> Self {
        let scene = Scene::new();
        for plugin in ["first", "witness", "bomb", "locked"] {
            scene.busybox(plugin, json!({}));
        }
        for plugin in ["open", "plain", "hidden"] {
            scene.hello(plugin);
        }
        let [open, plain] = free_ports();
        let server = |name: &str, port: u16, host_port: Option<u16>| {
            let mut plugin = json!({
                "name": name, "image": image(name), "command": ["/hello", "--port", port.to_string()],
                "restart": {"initialDelay": "2s"},
            });
            if let Some(host_port) = host_port {
                plugin["ports"] = json!([{"containerPort": port, "hostPort": host_port}]);
            }
            plugin
        };
        let first = with(script("first", "echo first ran"), json!({"restartPolicy": "Never"}));
        let probe =
            json!({"httpGet": {"path": "/ready", "port": OPEN}, "periodSeconds": 1, "failureThreshold": 1});
        let open_plugin = with(
            server("open", OPEN, Some(open)),
            json!({
                "dependsOn": ["first"], "readinessProbe": probe,
                "outboundConnections": [{"fqdn": COLLECTOR.0, "port": COLLECTOR.1}],
            }),
        );
        let limited = json!({"resources": {"limits": {"memory": "64Mi"}}});
        let plain_plugin = with(server("plain", PLAIN, Some(plain)), limited);
        let witness = with(script("witness", WITNESS), json!({"dependsOn": ["open", "hidden"]}));
        // What runs in the background counts until it ends, whoever its parent is by then.
        let bomb = "( while :; do sleep 1000 & done ) 2>/tmp/said; read -r said < /tmp/said; \
                    echo bounded by $said; exec sleep 1000";
        let bomb = with(script("bomb", bomb), json!({"resources": {"limits": {"pids": BOMB_PIDS}}}));
        let locked = "/bin/sh -c 'echo > /written' 2>&1; exec sleep 1000";
        let locked =
            with(script("locked", locked), json!({"securityContext": {"readOnlyRootFilesystem": true}}));
        let users =
            json!([first, open_plugin, plain_plugin, server("hidden", HIDDEN, None), witness, bomb, locked]);
        Self { scene, manifest: deployment(users), open, plain }
    }

    /// Plays everything on a machine that was booted with an image of this cast, to its end.
    pub(crate) fn play(&self, mut machine: Machine, kernel: Kernel) -> Machine {
        self.scene.write("manifest.yaml", &self.manifest.to_string());
        let mut proxy = Proxy::start(&self.scene, Some(destination()));
        proxy.until_accepted();
        let stage = Stage { client: client(&self.scene, &machine), health: health(&proxy), cast: self };
        stage.sees_only_itself(&proxy, kernel);
        stage.starts_in_order();
        stage.reaches_what_is_declared();
        stage.is_bounded(&proxy, kernel);
        stage.readiness_is_told();
        if kernel.limits_memory {
            stage.out_of_memory_is_one_plugins_own();
        }
        stage.crash_loop_shows();
        if machine.is_measured() {
            assert!(machine.answers().measurements.contains_key("PCR16"), "measured, whoever is its parent");
        }
        proxy.process.signal(Signal::SIGTERM);
        let (exit, last) = proxy.end();
        assert_eq!((exit.code(), &last["phase"]), (Some(0), &json!("Completed")), "{last:#}");
        machine.end();
        machine
    }
}

/// What differs between the kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    /// How a plugin's `/proc/self/cgroup` begins and what else it names.
    pub(crate) groups: &'static str,
    /// Whether that version has a memory controller.
    pub(crate) limits_memory: bool,
}

/// Version 2 of control groups, on any kernel of today.
const V2: Kernel = Kernel { groups: "0::/ ", limits_memory: true };
/// Version 1, on one that still has its memory controller.
pub(crate) const V1: Kernel = Kernel { groups: ":memory:/ ", limits_memory: true };

struct Stage<'a> {
    client: Client,
    health: u16,
    cast: &'a Cast,
}

impl Stage<'_> {
    fn sees_only_itself(&self, proxy: &Proxy, kernel: Kernel) {
        proxy.line("witness", "witnessed");
        for (name, finding) in FINDINGS {
            let found = proxy.line("witness", &format!("{name}: "));
            assert!(found.contains(finding), "expected {finding:?}: {found:?}");
        }
        let processes = proxy.line("witness", "processes: ");
        for other in ["hello", "sleep", "supervisor", "/init"] {
            assert!(!processes.contains(other), "{processes}");
        }
        let groups = proxy.line("witness", "groups: ");
        assert!(groups.contains(kernel.groups), "{groups}");
        let names = proxy.line("witness", "names: ");
        assert!(!names.contains(COLLECTOR.0), "{names}");
        // None of SYS_ADMIN, SYS_PTRACE, SYS_MODULE, SYS_BOOT, SYS_TIME, NET_ADMIN, NET_RAW, MKNOD.
        let capabilities = proxy.line("witness", "capabilities: ");
        assert_eq!(capabilities.trim(), "capabilities: CapEff: 00000000a00405fb".trim(), "{capabilities}");
        let (status, body) = ask(self.cast.plain, "GET", "/vsock").expect("an answer");
        assert_eq!((status, body.as_str()), (403, "EPERM: Operation not permitted\n"));
    }

    fn starts_in_order(&self) {
        let is = |event: &Event, plugin: &str, reason: &str| {
            event.plugin.as_deref() == Some(plugin) && event.reason == reason
        };
        let events =
            self.client.events(0).up_to("the witness to start", |event| is(event, "witness", "Started"));
        let at = |plugin, reason| {
            let found = events.iter().position(|event| is(event, plugin, reason));
            found.unwrap_or_else(|| panic!("{plugin} {reason}: {events:#?}"))
        };
        assert!(at("first", "Completed") < at("open", "Started"));
        assert!(at("open", "Ready") < at("witness", "Started"));
        assert!(at("hidden", "Started") < at("witness", "Started"));
    }

    fn reaches_what_is_declared(&self) {
        let through = |port: u16, url: &str| {
            ask(port, "GET", &format!("/egress?url={url}")).unwrap_or_else(|| panic!("no answer of {url}"))
        };
        let (open, plain) = (self.cast.open, self.cast.plain);
        let peer = format!("http://127.0.0.1:{OPEN}/ready");
        assert_eq!(through(plain, &peer), (200, "ready\n".to_owned()));
        let refused = |(status, body): (u16, String)| {
            assert!(status == 502 && body.contains("refused"), "{status} {body}");
        };
        refused(through(plain, &format!("http://127.0.0.1:{HIDDEN}/")));
        let destination = format!("http://{}:{}/", COLLECTOR.0, COLLECTOR.1);
        assert_eq!(through(open, &destination), (200, "outside".to_owned()));
        let (status, hosts) = ask(open, "GET", "/files?path=/etc/hosts").unwrap();
        assert_eq!(status, 200);
        let line = hosts.lines().find(|line| line.contains(COLLECTOR.0)).expect("the way out");
        let address = line.split_whitespace().next().unwrap();
        refused(through(plain, &format!("http://{address}:{}/", COLLECTOR.1)));
    }

    fn is_bounded(&self, proxy: &Proxy, kernel: Kernel) {
        assert!(proxy.line("bomb", "bounded by").contains("can't fork"));
        let most = f64::from(BOMB_PIDS);
        self.client.until_sampled("enclave_plugin_processes", &[("plugin", "bomb")], |processes| {
            assert!(processes <= most, "{processes} processes");
            processes > most / 2.0
        });
        assert!(proxy.line("locked", "/bin/sh: ").contains("Read-only file system"));
        let status = self.client.status();
        let limits = status.conditions.iter().find(|condition| condition.kind == "LimitsNotInForce");
        assert_eq!(limits.is_none(), kernel.limits_memory, "{:#?}", status.conditions);
        for kind in ["NoWritableLayer", "NoControlGroups", "MountFailed", "ModuleFailed"] {
            assert!(
                status.conditions.iter().all(|condition| condition.kind != kind),
                "{:#?}",
                status.conditions
            );
        }
    }

    fn readiness_is_told(&self) {
        self.is_ready("ok\n");
        assert_eq!(ask(self.cast.open, "POST", "/ready?is=0").unwrap().0, 200);
        self.is_not_ready("open: ReadinessProbeFailed");
        assert_eq!(ask(self.cast.open, "POST", "/ready?is=1").unwrap().0, 200);
        self.is_ready("ok\n");
    }

    fn out_of_memory_is_one_plugins_own(&self) {
        self.is_alone_in_its_end("plain", self.cast.plain);
        // Without a limit of its own it has what all plugins have together, which is not the whole machine.
        self.is_alone_in_its_end("open", self.cast.open);
        for other in ["hidden", "bomb", "witness"] {
            self.client.until_is("enclave_plugin_oom_kills_total", &[("plugin", other)], 0.0);
        }
    }

    /// Lets a plugin take more memory than it can have.
    fn is_alone_in_its_end(&self, name: &str, port: u16) {
        let before = self.client.status();
        assert_eq!(plugin(&before, name).restarts, 0);
        // There is no answer, and the machine's vsock device does not tell of the end: it is not waited for.
        let _asked = send(port, "GET", &format!("/alloc?mib={MACHINE_MIB}"));
        let after = eventually("a second life", || {
            let status = self.client.status();
            let again = plugin(&status, name);
            (again.restarts == 1 && again.phase == PluginPhase::Running).then_some(status)
        });
        let exit = plugin(&after, name).last_exit.clone().expect("an end");
        assert!(exit.oom, "{exit:?}");
        for other in before.plugins.iter().filter(|plugin| plugin.name != name) {
            let now = plugin(&after, &other.name);
            assert_eq!((now.pid, now.restarts), (other.pid, other.restarts), "{}", other.name);
        }
        let labels = [("plugin", name)];
        self.client.until_is("enclave_plugin_oom_kills_total", &labels, 1.0);
        self.client.until_is("enclave_plugin_restarts_total", &labels, 1.0);
    }

    fn crash_loop_shows(&self) {
        let labels = [("plugin", "plain")];
        eventually("a crash loop", || {
            let status = self.client.status();
            let plain = plugin(&status, "plain");
            if plain.reason.as_deref() == Some("CrashLoopBackOff") {
                assert!(!status.ready, "{status:#?}");
                return Some(());
            }
            if plain.phase == PluginPhase::Running {
                // As above: the answer may be lost with the plugin.
                drop(send(self.cast.plain, "POST", "/exit?code=3"));
            }
            None
        });
        self.is_not_ready("plain: CrashLoopBackOff");
        self.client.until_is("enclave_plugin_crash_loop", &labels, 1.0);
        self.is_ready("ok\n");
        self.client.until_is("enclave_plugin_crash_loop", &labels, 0.0);
        let exit = plugin(&self.client.status(), "plain").last_exit.clone().expect("an end");
        assert_eq!((exit.code, exit.oom), (Some(3), false));
    }

    fn is_ready(&self, body: &str) {
        eventually("host-proxy to be ready", || {
            ask(self.health, "GET", "/readyz").filter(|answer| *answer == (200, body.to_owned()))
        });
    }

    fn is_not_ready(&self, cause: &str) {
        eventually(&format!("/readyz to say {cause:?}"), || {
            let (status, body) = ask(self.health, "GET", "/readyz")?;
            (status == 503 && body.lines().any(|line| line.starts_with(cause))).then_some(())
        });
    }
}

/// A server outside that answers one request.
fn destination() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (mut reader, mut head) = (BufReader::new(&stream), String::new());
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "a whole request: {head:?}");
        }
        write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\noutside").unwrap();
    });
    address
}

/// One request; none where the far side breaks off before it has answered. The answer ends with its last
/// byte: the machine's vsock device does not carry the end of one direction.
fn ask(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let (mut reader, mut head) = (BufReader::new(send(port, method, path)), String::new());
    while !head.ends_with("\r\n\r\n") {
        (reader.read_line(&mut head).ok()? > 0).then_some(())?;
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head.split(' ').nth(1)?.parse().ok()?, String::from_utf8(body).ok()?))
}

fn send(port: u16, method: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").unwrap();
    stream
}

fn plugin<'a>(status: &'a Status, name: &str) -> &'a PluginStatus {
    let found = status.plugins.iter().find(|plugin| plugin.name == name);
    found.unwrap_or_else(|| panic!("no {name}: {status:#?}"))
}

/// The control API with host-proxy's token.
fn client(scene: &Scene, machine: &Machine) -> Client {
    let state: Value =
        serde_json::from_slice(&std::fs::read(scene.path("state/state.json")).unwrap()).unwrap();
    let token = state["session"]["token"].as_str().map(str::to_owned);
    Client { path: machine.socket.clone(), token }
}

/// The port of host-proxy's probes.
fn health(proxy: &Proxy) -> u16 {
    proxy.process.stderr.wait("the health listener", |lines| {
        let record = lines.iter().find(|line| line.contains("\"what\":\"health\""))?;
        let record: Value = serde_json::from_str(record).ok()?;
        record["address"].as_str()?.rsplit_once(':')?.1.parse().ok()
    })
}

/// Ports of the host that nobody has now.
fn free_ports() -> [u16; 2] {
    let mut free = HOST_PORTS.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    [(); 2].map(|()| free.next().expect("a free port"))
}

#[test]
fn plugins_are_apart_bounded_and_watched_with_version_2_of_control_groups() {
    let cast = Cast::new();
    let image = image::build(&cast.scene, &cast.manifest, &["--policy=any"]);
    cast.play(Machine::boot(&cast.scene, &image, Bed::Stock, "enclave.sample-interval=1"), V2);
}

#[test]
fn plugins_are_apart_bounded_and_watched_with_version_1_of_control_groups() {
    let Some(lab) = lab() else { return };
    let cast = Cast::new();
    let kernel = format!("--kernel={}", lab.join("bzImage").display());
    let append = "--append=enclave.cgroup=v1 enclave.sample-interval=1";
    let image = image::build(&cast.scene, &cast.manifest, &[&kernel, append]);
    cast.play(Machine::boot(&cast.scene, &image, Bed::Lab, ""), V1);
}
