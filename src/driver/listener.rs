//! Hears of one run: its start, and what its init says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    engine::{PluginId, RunId},
    sys::{
        init::{control::Control, wire::Report},
        spawn::Failure,
    },
};

/// How long a start may take: mounts on a loaded machine, but not for ever.
const START_MAX: Duration = Duration::from_secs(10);

/// What was heard of a run.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) plugin: PluginId,
    pub(super) run: RunId,
    pub(super) said: Said,
}

/// What it was.
#[derive(Debug)]
pub(super) enum Said {
    /// Its command runs, or does not.
    Answer(Result<(), Failure>),
    /// A command beside it has ended.
    Ran { number: u32, success: bool },
    /// Its command has ended, and all that it left behind.
    Over,
}

/// See the module.
pub(super) struct Listener {
    pub(super) plugin: PluginId,
    pub(super) run: RunId,
    /// The name of the plugin's program; none without an init that could tell of it.
    pub(super) program: Option<String>,
    /// Whether there is an init, if that is not known yet.
    pub(super) born: Option<Born>,
    pub(super) control: Arc<Control>,
    /// How the command ended.
    pub(super) told: Arc<Mutex<Option<Report>>>,
    /// Where the driver listens.
    pub(super) speak: mpsc::Sender<Word>,
}

/// Tells whether there is an init.
pub(super) type Born = oneshot::Receiver<Result<(), Failure>>;

impl Listener {
    /// Listens until the end.
    pub(super) async fn listen(mut self) {
        let late = |_| Err(Failure { stage: "wait for the start".to_owned(), errno: libc::ETIMEDOUT });
        let answer = timeout(START_MAX, self.start()).await.unwrap_or_else(late);
        // Where the driver is gone, nobody listens any more.
        let mut heard = self.say(Said::Answer(answer)).await;
        while let Some(report) = self.control.recv().await
            && heard
        {
            match report {
                Report::Exited { .. } | Report::Killed { .. } => {
                    self.told.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(report);
                    self.say(Said::Over).await;
                    return;
                }
                Report::Ran { id: number, success } => heard = self.say(Said::Ran { number, success }).await,
                // Said once, and heard.
                Report::Started | Report::NotStarted { .. } => {}
            }
        }
    }

    async fn say(&self, said: Said) -> bool {
        self.speak.send(Word { plugin: self.plugin, run: self.run, said }).await.is_ok()
    }

    async fn start(&mut self) -> Result<(), Failure> {
        let ended = |stage: &str| Failure { stage: stage.to_owned(), errno: libc::ESRCH };
        if let Some(born) = self.born.take() {
            born.await.unwrap_or_else(|_| Err(ended("start the init")))?;
        }
        let Some(program) = &self.program else { return Ok(()) };
        match self.control.recv().await {
            Some(Report::NotStarted { errno }) => {
                Err(Failure { stage: format!("execute {program:?}"), errno })
            }
            // It overtook `Started` only if a plugin forges it; its end is still its own init's.
            Some(Report::Started | Report::Exited { .. } | Report::Killed { .. } | Report::Ran { .. }) => {
                Ok(())
            }
            None => Err(ended("hear of the init")),
        }
    }
}

/// Whether that is the end of the plugin's command.
pub(super) fn is_end(report: Report) -> bool {
    match report {
        Report::Exited { .. } | Report::Killed { .. } => true,
        Report::Started | Report::NotStarted { .. } | Report::Ran { .. } => false,
    }
}
