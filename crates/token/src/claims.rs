//! What a token says.

use serde::{Deserialize, Deserializer, Serialize};

/// The claims of a token: the registered ones of RFC 7519 section 4.1, each of them required, and those of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims<T> {
    /// Who made the token: the issuer's name, compared byte by byte.
    pub iss: String,
    /// Whom it is about.
    pub sub: String,
    /// The one audience it is for. A list of exactly one, which RFC 7519 also allows, is read as that one.
    #[serde(deserialize_with = "one_audience")]
    pub aud: String,
    /// When it was made, in Unix seconds.
    pub iat: i64,
    /// When it ends, in Unix seconds; later than `iat` by at most [`Kind::max_lifetime_s`](crate::Kind::max_lifetime_s).
    pub exp: i64,
    /// A name of its own, so that it can be spent once.
    pub jti: String,
    /// The claims of this kind alone.
    #[serde(flatten)]
    pub extra: T,
}

/// Claims of a [`Kind::Assertion`](crate::Kind::Assertion).
pub type AssertionClaims = Claims<Assertion>;
/// Claims of a [`Kind::AccessToken`](crate::Kind::AccessToken).
pub type AccessClaims = Claims<Access>;
/// Claims of a [`Kind::Edge`](crate::Kind::Edge).
pub type EdgeClaims = Claims<Edge>;
/// Claims of a [`Kind::ClientAssertion`](crate::Kind::ClientAssertion).
pub type ClientAssertionClaims = Claims<NoExtra>;

/// What an assertion adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assertion {
    /// The portal session it came from, by which it can be ended again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// What it may be used for.
    pub purpose: Purpose,
    /// base64url of the SHA-256 of the bind cookie in the browser it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<String>,
    /// When what it says was so, in Unix milliseconds by the issuer's clock: for [`Purpose::Logout`] when the sessions ended,
    /// which may be long before `iat`. Without it, `iat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
}

impl Claims<Assertion> {
    /// When what it says was so, in Unix milliseconds.
    pub fn at_ms(&self) -> i64 {
        self.extra.at_ms.unwrap_or_else(|| self.iat.saturating_mul(1000))
    }
}

/// What an [`Assertion`] may be used for, written in kebab-case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To make its subject the instance's owner.
    Register,
    /// To open a session at the instance.
    Login,
    /// To end the sessions with its `sid`.
    Logout,
    /// To try a provider's key from within the instance.
    ProviderTest,
}

/// What an access token adds (RFC 9068 section 2.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The client that it was issued to.
    pub client_id: String,
    /// The scopes it carries, separated by spaces (RFC 6749 section 3.3).
    #[serde(default)]
    pub scope: String,
}

impl Access {
    /// Whether the token carries this one scope. Where it does not, the answer is 403 `insufficient_scope` (RFC 6750).
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|held| !held.is_empty() && held == scope)
    }
}

/// What an edge token adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The portal session it came from.
    pub sid: String,
}

/// Nothing: a client assertion has the registered claims alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoExtra {}

/// `aud` as RFC 7519 allows it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    /// The audience, when there is exactly one.
    pub(crate) fn single(self) -> Option<String> {
        match self {
            Self::One(audience) => Some(audience),
            Self::Many(list) => <[String; 1]>::try_from(list).ok().map(|[audience]| audience),
        }
    }
}

fn one_audience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Audience::deserialize(deserializer)?
        .single()
        .ok_or_else(|| serde::de::Error::custom("aud must name exactly one audience"))
}
