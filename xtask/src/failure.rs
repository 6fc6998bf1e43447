//! The one way a task fails: a text for the person who started it.

/// Why a task ended early, in whole sentences. Nothing branches on it; it is printed once, by `main`.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure with this explanation.
    pub(crate) fn new(explanation: impl Into<String>) -> Self {
        Self(explanation.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Says what was being done when a lower layer failed.
pub(crate) trait While<T> {
    /// Turns the error into a [`Failure`] that starts with `doing`.
    fn while_doing(self, doing: impl std::fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> While<T> for Result<T, E> {
    fn while_doing(self, doing: impl std::fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{doing}: {error}")))
    }
}
