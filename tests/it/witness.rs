//! Who must not notice: a plugin beside the one that misbehaves, and the processes of the machine.

use serde_json::{Value, json};

use crate::{
    enclave::{Enclave, End, How},
    process::{command_line, table},
    scene::{Scene, deployment, idle},
};

/// A plugin called app, and a witness beside it.
pub(crate) struct Pair {
    pub(crate) enclave: Enclave,
    pid: u32,
}

impl Pair {
    pub(crate) fn start(app: Value) -> Self {
        Self::start_as(app, How::default())
    }

    pub(crate) fn start_as(app: Value, how: How) -> Self {
        let scene = Scene::with_app();
        scene.busybox("witness", json!({}));
        let mut enclave = scene.start_as(how);
        enclave.run(&deployment(json!([idle("witness"), app])));
        let pid = enclave.started("witness");
        Self { enclave, pid }
    }

    /// Nothing has happened to the witness.
    pub(crate) fn check(&self) {
        let witness = self.enclave.plugin("witness");
        assert_eq!((witness.pid, witness.restarts, witness.ready), (Some(self.pid), 0, true));
    }

    /// The init of app, as the test sees it.
    pub(crate) fn init(&self) -> i32 {
        let command = self.enclave.plugin("app").pid.and_then(|pid| i32::try_from(pid).ok());
        let command = command.expect("it runs");
        table().into_iter().find(|entry| entry.pid == command).expect("it still runs").parent
    }

    /// The same, and the supervisor ends in order.
    pub(crate) fn finish(mut self) -> End {
        self.check();
        self.enclave.drain(2);
        let end = self.enclave.finish();
        assert_eq!(end.exit.code(), Some(0));
        end
    }
}

/// A word that only this process's plugins have in their command lines.
pub(crate) fn marker(number: u32) -> String {
    format!("{number}.{}", std::process::id())
}

/// Living processes whose command line ends with these words.
pub(crate) fn count(words: &[&str]) -> usize {
    let runs = |pid: i32| {
        let mut line = command_line(pid);
        // Each word ends with a NUL, also the last.
        line.pop();
        line.iter().map(String::as_str).collect::<Vec<_>>().ends_with(words)
    };
    table().into_iter().filter(|entry| entry.state != 'Z' && runs(entry.pid)).count()
}
