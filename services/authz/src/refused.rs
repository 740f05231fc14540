//! A request that cannot be fulfilled, whatever the reason, as the problem the caller sees.

use axum::response::{IntoResponse, Response};
use service::Problem;

/// What handlers of the internal API give instead of an answer. `?` makes it of what goes wrong on the way.
#[derive(Debug)]
pub(crate) struct Refused(pub Problem);

/// A handler's outcome.
pub(crate) type Answer<T> = Result<T, Refused>;

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self(if store::is_unavailable(&error) { Problem::unavailable(error) } else { Problem::internal(error) })
    }
}

impl From<token::Error> for Refused {
    /// Signing with a key of our own failed.
    fn from(error: token::Error) -> Self {
        Self(Problem::internal(error))
    }
}
