//! Why a command ends without its result, and the exit code that says so.

use std::path::Path;

/// Exit codes of every subcommand but `boot`. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// An internal error, or the machine's: no space, no permission to write.
    Internal = 1,
    /// Bad arguments, a bad manifest or a bad input file.
    Usage = 2,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why there is no result. Shown as it is: one line, or one per mistake of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// What was given cannot be used.
    #[error("{0}")]
    Input(String),
    /// Mistakes in the manifest, each `FILE:LINE:COL: path: message`.
    #[error("{}", .0.join("\n"))]
    Manifest(Vec<String>),
    /// This machine failed.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// A file that was given, and what is wrong with it.
    pub fn input(path: impl AsRef<Path>, cause: impl std::fmt::Display) -> Self {
        Self::Input(format!("{}: {cause}", path.as_ref().display()))
    }

    /// A file of ours, and what is wrong with it.
    pub fn internal(path: impl AsRef<Path>, cause: impl std::fmt::Display) -> Self {
        Self::Internal(format!("{}: {cause}", path.as_ref().display()))
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Input(_) | Self::Manifest(_) => Exit::Usage,
            Self::Internal(_) => Exit::Internal,
        }
    }
}

/// The result of a step of a command.
pub type Outcome<T> = Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_exit_code_and_names_its_file() {
        assert_eq!(Failure::input("/a", "no such file").to_string(), "/a: no such file");
        assert_eq!(Failure::input("/a", "x").exit() as u8, 2);
        assert_eq!(Failure::internal("/a", "x").exit() as u8, 1);
        let mistakes = Failure::Manifest(vec!["f:1:1: a".to_owned(), "f:2:1: b".to_owned()]);
        assert_eq!((mistakes.to_string().lines().count(), mistakes.exit() as u8), (2, 2));
    }
}
