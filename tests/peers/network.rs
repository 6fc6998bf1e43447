//! A network of a test's own: nothing listens there but what the test starts.

use std::{fs::File, process::Command};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. It lasts as long as this value, a process or a thread in it.
#[derive(Debug)]
pub(crate) struct Network(File);

impl Network {
    /// Moves this thread into a new one, with what it starts from now on.
    pub(crate) fn enter_new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run the tests as root");
        let up = Command::new("busybox").args(["ip", "link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success(), "the loopback interface: {up}");
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Moves this thread into it.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }
}
