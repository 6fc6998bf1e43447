//! A run of a plugin that has been asked for: its process is made, takes the plugin's steps, executes the
//! init, and waits there for the word.
//!
//! Every run begins as one. Most of a start is namespaces and mounts, so a plugin that has been up for a
//! while has its next run stand by already, when the engine sees a use for it
//! ([`Engine::standby_from`](crate::engine::Engine::standby_from)): a restart is then a word to a process
//! that waits. It is confined as the plugin is, in namespaces and with a file system of its own, so that a
//! plugin and its successor do not see each other; the control group is one.
//!
//! Dropping it closes the socket, which ends the init wherever it is by then.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

use super::listener::Born;
use crate::sys::{
    init::{control::Control, wire},
    spawn::{Ends, Failure, Recipe, Spawner},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Standby {
    /// Zero before there is a process.
    pub(super) place: Arc<AtomicI32>,
    pub(super) control: Control,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// Tells whether there is an init. None once that is known.
    pub(super) born: Option<Born>,
}

impl Standby {
    /// Asks for one.
    pub(super) fn ask(spawner: &Spawner, recipe: &Arc<Recipe>) -> Result<Self, Failure> {
        let made = || -> io::Result<_> { Ok((io::pipe()?, io::pipe()?, Control::pair()?)) };
        let ((stdout, stdout_end), (stderr, stderr_end), (control, socket)) =
            made().map_err(|error| Failure::of("make the pipes", &error))?;
        let ends = Ends { stdout: stdout_end.into(), stderr: stderr_end.into(), socket };
        let birth = spawner.spawn(recipe, ends)?;
        let (place, born) = (birth.place(), Some(birth.born));
        Ok(Self { place, control, stdout: stdout.into(), stderr: stderr.into(), born })
    }

    /// Gives it the word, if it waits for it. One that is late is as good as none: what holds it up may hold
    /// it for long.
    pub(super) fn begin_if_there(&mut self) -> bool {
        if let Some(born) = &mut self.born {
            match born.try_recv() {
                Ok(Ok(())) => self.born = None,
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        self.begin()
    }

    /// Gives it the word, wherever it is by now; false when its init is gone.
    pub(super) fn begin(&self) -> bool {
        self.control.send(&wire::begin(), None).is_ok()
    }

    /// Its process, once there is one.
    pub(super) fn pid(&self) -> Option<i32> {
        Some(self.place.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }

    /// Whether this is its process.
    pub(super) fn is(&self, pid: i32) -> bool {
        self.pid() == Some(pid)
    }
}
