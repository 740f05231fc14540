//! Why a provider gave no answer.

use std::error::Error as StdError;

use contracts::provider::TestOutcome;

/// What kept the answer away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The router's address rules refuse the address.
    Refused,
    /// The name, the connection or the certificate does not work, or the router is away.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The connection ended in the middle.
    Cut,
}

impl FailureKind {
    /// What a live test says of it.
    pub fn outcome(self) -> TestOutcome {
        match self {
            Self::Refused => TestOutcome::Refused,
            Self::Unreachable => TestOutcome::Unreachable,
            Self::Timeout => TestOutcome::Timeout,
            Self::Cut => TestOutcome::ProviderFailed,
        }
    }
}

/// A failure with its cause, for the log.
#[derive(Debug, thiserror::Error)]
#[error("the provider gave no answer ({kind:?})")]
pub struct Failure {
    /// What kept the answer away.
    pub kind: FailureKind,
    #[source]
    source: Box<dyn StdError + Send + Sync>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, source: source.into() }
    }

    /// What the HTTP client says, with the connector's own failure when that is behind it.
    pub(super) fn from_client(error: hyper_util::client::legacy::Error) -> Self {
        let mut next: Option<&(dyn StdError + 'static)> = Some(&error);
        let mut kind = if error.is_connect() { FailureKind::Unreachable } else { FailureKind::Cut };
        while let Some(cause) = next {
            if let Some(failure) = cause.downcast_ref::<Failure>() {
                kind = failure.kind;
                break;
            }
            next = cause.source();
        }
        Self::new(kind, error)
    }

    /// The whole chain on one line, for the log: URLs and hosts, never a key or a body.
    pub fn chain(&self) -> String {
        let (mut text, mut next) = (self.to_string(), self.source());
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}
