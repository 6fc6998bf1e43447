//! `enclave-image boot` without a virtual machine: what it says when it cannot run, and that it hands over.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    process::{Child, ChildStdout, Stdio},
};

use expect_test::expect;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::scene::Scene;

fn script(scene: &Scene, name: &str, text: &str) {
    fs::write(scene.path(name), text).unwrap();
    fs::set_permissions(scene.path(name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn with_a_lab_its_own_program_gets_the_arguments_and_its_exit_code_is_ours() {
    let scene = Scene::new();
    fs::create_dir(scene.path("lab")).unwrap();
    script(&scene, "lab/run-eif", "#!/bin/sh\necho \"$@\"\nexit 3\n");
    let boot = ["boot", "x.eif", "--vsock", "v", "--lab", "lab", "--memory", "1G", "--console", "c"];
    let (code, out, _) = scene.run(&boot);
    assert_eq!(code, 3);
    expect![[r#"
        x.eif --vsock v --memory 1024M --cpus 2 --timeout 120 --console c
    "#]]
    .assert_eq(&out);
    let (code, _, error) = scene.run(&[&boot[..], &["--append", "a"]].concat());
    assert_eq!(code, 2);
    expect![[r#"
        --append has no effect with --lab: its machine boots the image as it is
    "#]]
    .assert_eq(&error);
}

#[test]
fn what_is_missing_is_said_with_how_to_get_it() {
    let scene = Scene::new();
    scene.built(&[]);
    let boot = |more: &[&str]| {
        let (code, out, error) = scene.run(&[&["boot", "x.eif"], more].concat());
        assert_eq!((code, out.as_str()), (2, ""));
        error
    };
    expect![[r#"
        x.eif: its kernel is told pci=off, and an ordinary machine's devices are on PCI: use --lab, or build it with Debian's kernel
    "#]].assert_eq(&boot(&["--vsock", "v", "--qemu", "no-qemu"]));
    scene.built(&["--blobs", &blobs(&scene)]);
    expect![[r#"
        no-qemu: no such program
    "#]]
    .assert_eq(&boot(&["--vsock", "v", "--qemu", "no-qemu"]));
    expect![[r#"
        none: no such program
    "#]]
    .assert_eq(&boot(&["--vsock", "v", "--qemu", "kernel", "--vhost-device-vsock", "none"]));
    expect![[r#"
        a,b: vhost-device-vsock takes no path with a comma
    "#]]
    .assert_eq(&boot(&["--vsock", "a,b"]));
}

/// A kernel for an ordinary machine.
fn blobs(scene: &Scene) -> String {
    fs::create_dir(scene.path("blobs")).unwrap();
    fs::copy(scene.path("kernel"), scene.path("blobs/bzImage")).unwrap();
    fs::write(scene.path("blobs/cmdline"), "console=ttyS0\n").unwrap();
    "blobs".to_owned()
}

/// Stands in for QEMU: writes what a guest's kernel would, once the device is there.
fn qemu(scene: &Scene, words: &str) {
    script(scene, "qemu", &format!("#!/bin/sh\necho \"$@\" > qemu.args\n{words}\n"));
    script(
        scene,
        "vhost",
        "#!/bin/sh\nfor a; do last=$a; done\nsocket=${last#*socket=}\n: > \"${socket%%,*}\"\nexec sleep 60\n",
    );
}

#[test]
fn the_end_that_the_console_tells_is_the_exit_code() {
    let scene = Scene::new();
    scene.built(&["--blobs", &blobs(&scene)]);
    let mut said = String::new();
    for words in [
        "echo reboot: machine restart; exec sleep 60",
        "echo Kernel panic; exec sleep 60",
        "echo no memory >&2; exit 1",
        "exec sleep 60",
    ] {
        qemu(&scene, words);
        let boot = [
            "boot",
            "x.eif",
            "--vsock",
            "v",
            "--qemu",
            "./qemu",
            "--vhost-device-vsock",
            "./vhost",
            "--timeout",
            "1",
        ];
        let (code, out, error) = scene.run(&[&boot[..], &["--console", "c", "--append", "more"]].concat());
        let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap_or("{}")).unwrap();
        said.push_str(&format!("{code} {} {}{error}\n", last["reason"], last["qemu"]));
    }
    expect![[r#"
        0 "reset" null
        3 "panic" null
        2 "died" "no memory"
        1 "timeout" null
    "#]]
    .assert_eq(&said);
    let arguments = fs::read_to_string(scene.path("qemu.args")).unwrap();
    assert!(arguments.contains(
        "console=ttyS0 enclave.init=vm enclave.nsm=required enclave.host-cid=2 enclave.nsm=auto more"
    ));
    assert_eq!(fs::read_to_string(scene.path("c")).unwrap(), "");
}

/// Boots a machine that does nothing; its events line by line.
fn sleeping(scene: &Scene) -> (Child, Lines<BufReader<ChildStdout>>) {
    scene.built(&["--blobs", &blobs(scene)]);
    qemu(scene, "exec sleep 60");
    let boot = ["boot", "x.eif", "--vsock", "v", "--qemu", "./qemu", "--vhost-device-vsock", "./vhost"];
    let mut child = scene.command(&boot).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[test]
fn a_signal_to_boot_ends_what_it_started() {
    let scene = Scene::new();
    let (mut child, mut lines) = sleeping(&scene);
    let started: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(started["event"], "started");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let exited: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(exited["reason"], "stopped");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let qemu = i32::try_from(started["qemu"].as_i64().unwrap()).unwrap();
    assert_eq!(kill(Pid::from_raw(qemu), None), Err(nix::errno::Errno::ESRCH));
    assert!(!scene.path("v_9000").exists());
}

#[test]
fn the_heartbeat_is_answered_and_told() {
    let scene = Scene::new();
    let (mut child, mut lines) = sleeping(&scene);
    lines.next().unwrap().unwrap();
    let mut guest = UnixStream::connect(scene.path("v_9000")).unwrap();
    guest.write_all(&[0xb7]).unwrap();
    let mut byte = [0];
    guest.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [0xb7]);
    assert!(lines.next().unwrap().unwrap().contains("heartbeat"));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    child.wait().unwrap();
}
