//! A running machine, with the test as its host.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use enclave_protocol::control::Status;
use serde_json::Value;

use crate::{
    client::Client,
    image::{Image, tool},
    not_run,
    patience::eventually,
    process::Process,
    scene::Scene,
};

/// One machine at a time.
static CORES: Mutex<()> = Mutex::new(());

/// Where an image is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bed {
    /// Debian's QEMU and kernel.
    Stock,
    /// QEMU's nitro-enclave machine and a kernel like AWS's.
    Lab,
}

/// The lab's directory; says `not run` where there is none.
pub(crate) fn lab() -> Option<PathBuf> {
    let lab = std::env::var_os("ENCLAVE_TEST_LAB").map(PathBuf::from).filter(|path| path.is_dir());
    if lab.is_none() {
        not_run("no nitro-enclave machine here (ENCLAVE_TEST_LAB)");
    }
    lab
}

/// A booted image. Dropping it ends the machine.
pub(crate) struct Machine {
    pub(crate) boot: Process,
    pub(crate) socket: PathBuf,
    console: PathBuf,
    bed: Bed,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Boots an image. `append` are further words for the kernel, which only the stock machine takes.
    pub(crate) fn boot(scene: &Scene, image: &Image, bed: Bed, append: &str) -> Self {
        let alone = CORES.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, console) = (scene.path("v.sock"), scene.path("console.log"));
        let mut words = vec![
            tool().display().to_string(),
            "boot".to_owned(),
            image.path.display().to_string(),
            format!("--vsock={}", socket.display()),
            format!("--console={}", console.display()),
            "--memory=512M".to_owned(),
            "--timeout=240".to_owned(),
        ];
        match bed {
            Bed::Stock => {
                let vhost = std::env::var("ENCLAVE_TEST_VHOST_DEVICE_VSOCK");
                words.push(format!("--vhost-device-vsock={}", vhost.expect("run `cargo xtask test`")));
                words.push(format!("--append={append}"));
            }
            Bed::Lab => {
                assert_eq!(append, "", "the lab measures the command line");
                words.push(format!("--lab={}", lab().expect("a lab").display()));
                // With more of them QEMU's NSM now and then loses an interrupt and does not answer for two
                // minutes (1 of 10 boots on a busy machine, with a kernel that asks it for randomness).
                words.push("--cpus=1".to_owned());
            }
        }
        let boot = Process::start("the machine", &words);
        Self { boot, socket, console, bed, _alone: alone }
    }

    /// Whether it has a Nitro Secure Module.
    pub(crate) fn is_measured(&self) -> bool {
        self.bed == Bed::Lab
    }

    /// Waits until the enclave answers on its control port.
    pub(crate) fn answers(&self) -> Status {
        Client { path: self.socket.clone(), token: None }.status()
    }

    /// Waits for the end of the machine; why it ended, and the events before.
    pub(crate) fn end(&mut self) -> (String, Vec<Value>) {
        let exit = self.boot.end();
        let events: Vec<Value> =
            self.boot.stdout.to_end().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = events.last().expect("an event");
        assert_eq!(last["event"], "exited", "{last}\n{}", self.console());
        let reason = last["reason"].as_str().unwrap().to_owned();
        assert_eq!(exit.code(), Some(0), "{reason}\n{}", self.console());
        (reason, events)
    }

    /// The console so far.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits for a text on the console.
    pub(crate) fn says(&self, text: &str) {
        eventually(&format!("{text:?} on the console"), || self.console().contains(text).then_some(()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = self.console();
            let lines: Vec<&str> = console.lines().collect();
            eprintln!("--- console:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
