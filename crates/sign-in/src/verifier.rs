//! authz's assertions: verified offline, about one person alone, for one purpose.

use std::sync::Arc;

use contracts::AccountId;
use http::StatusCode;
use service::Problem;
use token::{Assertion, AssertionClaims, Claims, Edge, Error, JwksCache, Kind, Purpose};

/// Verifies what the issuer says, for whichever workspace. Clones share their keys.
#[derive(Clone)]
pub struct Verifier {
    keys: JwksCache,
    issuer: Arc<str>,
}

impl Verifier {
    /// With the keys of the issuer of this name.
    pub fn new(keys: JwksCache, issuer: &str) -> Self {
        Self { keys, issuer: issuer.into() }
    }

    /// The claims of an assertion for the workspace at `origin`, about its owner, for this purpose.
    ///
    /// # Errors
    /// 400 when it is too long, 401 when it proves nothing or is for something else, 403 when it is about somebody else,
    /// 503 when authz's keys cannot be had.
    pub async fn assertion(
        &self,
        purpose: Purpose,
        assertion: &str,
        origin: &str,
        owner: AccountId,
    ) -> Result<AssertionClaims, Problem> {
        let claims: Claims<Assertion> =
            self.keys.verify(Kind::Assertion, assertion, &self.issuer, origin).await.map_err(refusal)?;
        if claims.extra.purpose != purpose {
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "assertion_purpose",
                "This assertion was made for something else.",
            ));
        }
        if claims.sub != owner.to_string() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not_the_owner",
                "This workspace belongs to somebody else.",
            ));
        }
        Ok(claims)
    }

    /// When this edge token of the owner of the workspace at `origin` ends, in Unix milliseconds; `None` when it is none.
    pub async fn edge_until_ms(&self, edge_token: &str, origin: &str, owner: AccountId) -> Option<i64> {
        match self.keys.verify::<Edge>(Kind::Edge, edge_token, &self.issuer, origin).await {
            Ok(claims) => (claims.sub == owner.to_string()).then(|| claims.exp.saturating_mul(1000)),
            Err(error) => {
                tracing::debug!(%error, "an edge token was not accepted");
                None
            }
        }
    }

    /// Fetches the issuer's keys if they are due, so that they are there when authz is not.
    pub async fn refresh(&self) {
        // The cache looks for keys before it looks at the token.
        let _ = self.keys.verify::<Edge>(Kind::Edge, "", &self.issuer, "").await;
    }
}

fn refusal(error: Error) -> Problem {
    match error {
        Error::TooLarge => Problem::bad_request("The assertion is longer than 8 KB."),
        Error::KeysUnavailable(cause) => Problem::unavailable(anyhow::Error::from_boxed(cause)),
        other => Problem::new(
            StatusCode::UNAUTHORIZED,
            "assertion_invalid",
            "The assertion is not valid here, or not any more.",
        )
        .cause(other),
    }
}
