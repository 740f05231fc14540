//! What authz says to an instance about a person: assertions and edge tokens.

use contracts::{AccountId, Slug};
use token::{Assertion, Claims, Edge, Kind, Purpose};

use crate::app::App;

/// How long an assertion holds.
const ASSERTION_S: i64 = 60;

/// An assertion about `account` for the instance named `slug`, of what was so at `at_ms`.
///
/// # Errors
/// When signing fails.
pub(crate) fn assertion(
    app: &App,
    account: AccountId,
    slug: &Slug,
    purpose: Purpose,
    sid: Option<String>,
    bind: Option<String>,
    at_ms: i64,
) -> Result<String, token::Error> {
    let iat = app.clock.now_s();
    let extra = Assertion { sid, purpose, bind, at_ms: Some(at_ms) };
    app.keys.sign(Kind::Assertion, &claims(app, account, slug, iat, iat + ASSERTION_S, extra))
}

/// The proof of the owner's browser that the router knows: for as long as the portal session lasts at most, and no longer
/// than its key is published.
///
/// # Errors
/// When signing fails.
pub(crate) fn edge_token(
    app: &App,
    account: AccountId,
    slug: &Slug,
    sid: String,
    session_ends_ms: i64,
) -> Result<String, token::Error> {
    let iat = app.clock.now_s();
    let end = session_ends_ms.min(app.keys.verifiable_until_ms()).div_euclid(1000);
    let exp = end.min(iat + Kind::Edge.max_lifetime_s());
    app.keys.sign(Kind::Edge, &claims(app, account, slug, iat, exp, Edge { sid }))
}

fn claims<T>(app: &App, account: AccountId, slug: &Slug, iat: i64, exp: i64, extra: T) -> Claims<T> {
    Claims {
        iss: app.config.issuer.clone(),
        sub: account.to_string(),
        aud: app.config.address.workspace_origin(slug.as_str()),
        iat,
        exp,
        jti: app.id(),
        extra,
    }
}
