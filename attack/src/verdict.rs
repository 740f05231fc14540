//! What came of an attempt, before it has a number.

use std::io;

use attack::Outcome;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub outcome: Outcome,
    pub what: String,
}

impl Verdict {
    /// It succeeded.
    pub fn done(what: impl Into<String>) -> Self {
        Self { outcome: Outcome::Done, what: what.into() }
    }

    /// It was refused.
    pub fn refused(what: impl ToString) -> Self {
        Self { outcome: Outcome::Refused, what: what.to_string() }
    }

    /// It could not be tried.
    pub fn broken(what: impl ToString) -> Self {
        Self { outcome: Outcome::Broken, what: what.to_string() }
    }

    /// Done, or refused for the operating system's reason.
    pub fn of<T, E: Into<io::Error>>(result: Result<T, E>, done: &str) -> Self {
        match result {
            Ok(_) => Self::done(done),
            Err(error) => Self::refused(reason(&error.into())),
        }
    }
}

/// The operating system's words, without its number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
