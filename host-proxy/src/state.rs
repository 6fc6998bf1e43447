//! What survives a restart of this program: the session with the running enclave. One small file, mode 0600.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use enclave_protocol::control::Plan;
use serde::{Deserialize, Serialize};

/// Longest state file: a plan of some thousand rules fits many times over.
const STATE_BYTES_MAX: u64 = 4 << 20;

/// The bearer token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(crate) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct State {
    /// Stays the same for as long as the directory does.
    pub(crate) instance_id: String,
    /// The session, once a manifest was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<Session>,
}

/// What binds this proxy to one boot of the enclave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Session {
    /// The boot that accepted the manifest.
    pub(crate) boot_id: String,
    /// What it answered.
    pub(crate) token: Token,
    /// Digest of the manifest that runs.
    pub(crate) digest: String,
    /// Its `metadata.name`.
    pub(crate) deployment: String,
    /// The vsock port that the enclave was told.
    pub(crate) egress_port: u32,
    /// Log records up to here are on stdout.
    pub(crate) log_seq: u64,
    /// This side's own reading of the manifest that runs: the file may have changed since.
    pub(crate) plan: Plan,
}

/// How much a write must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A crash of the node: for the token, which cannot be had again.
    Disk,
    /// A crash of this process: for the log position, which means nothing after the node, and with it the
    /// enclave, is gone.
    Process,
}

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Opens the directory, making it (0700) where it is missing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The stored state; none when there is none. A damaged file is an error: going on without its token
    /// would lock this proxy out of a running enclave without a word.
    pub(crate) fn load(&self) -> io::Result<Option<State>> {
        let file = match File::open(self.file()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from)
    }

    /// Replaces the state in one step. Blocking.
    pub(crate) fn store(&self, state: &State, durability: Durability) -> io::Result<()> {
        let bytes = serde_json::to_vec(state).map_err(io::Error::from)?;
        let fresh = self.0.join("state.json.new");
        // Removed, not truncated: an old file might have another mode.
        match fs::remove_file(&fresh) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        if durability == Durability::Disk {
            file.sync_all()?;
        }
        fs::rename(&fresh, self.file())?;
        if durability == Durability::Disk {
            File::open(&self.0)?.sync_all()?;
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.json")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn state() -> State {
        State {
            instance_id: "pod-1".into(),
            session: Some(Session {
                boot_id: "b".into(),
                token: Token("secret".into()),
                digest: "d".into(),
                deployment: "hello".into(),
                egress_port: 100_002,
                log_seq: 7,
                plan: Plan::default(),
            }),
        }
    }

    #[test]
    fn the_state_survives_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        let store = StateDir::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), None);
        for durability in [Durability::Disk, Durability::Process] {
            store.store(&state(), durability).unwrap();
            assert_eq!(store.load().unwrap(), Some(state()));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path.join("state.json")), 0o600);
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_damaged_state_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateDir::open(dir.path()).unwrap();
        for damaged in ["", "{", "{\"instanceId\":\"a\",\"surprise\":1}"] {
            fs::write(dir.path().join("state.json"), damaged).unwrap();
            assert!(store.load().is_err(), "{damaged}");
        }
    }

    #[test]
    fn the_token_is_not_in_debug_output() {
        assert!(!format!("{:?}", state()).contains("secret"));
    }
}
