//! The tokens by which Beaver's parts prove who they are: JSON Web Tokens (RFC 7519) signed with Ed25519 (RFC 8037), and
//! nothing else.
//!
//! One [`Kind`] of token cannot pass for another, one audience's token cannot be used at another, and none outlives the
//! maximum of its kind: [`verify`] asks for all of it at every call, so that no caller can forget a check. It follows the
//! best current practice of RFC 8725. What stays with the caller is what needs a memory or a meaning: that a `jti` was not
//! spent before, that a scope suffices, and that `iss` and `sub` of a [`Kind::ClientAssertion`] are both the client's id.
//!
//! ```
//! use clock::Entropy;
//! use token::{Access, Claims, Expected, KeySet, Kind, SigningKey};
//!
//! let key = SigningKey::generate(&Entropy::system())?;
//! let claims = Claims {
//!     iss: "https://portal.example.com".into(),
//!     sub: "client-1".into(),
//!     aud: "https://mcp.example.com".into(),
//!     iat: 1_000,
//!     exp: 1_300,
//!     jti: "one-of-its-own".into(),
//!     extra: Access { client_id: "client-1".into(), scope: "mail:read".into() },
//! };
//! let token = key.sign(Kind::AccessToken, &claims)?;
//!
//! let keys = KeySet::new([key.public()]);
//! let expected = Expected { issuer: "https://portal.example.com", audience: "https://mcp.example.com", now_s: 1_010 };
//! assert_eq!(token::verify::<Access>(Kind::AccessToken, &token, &expected, &keys)?, claims);
//! # Ok::<(), token::Error>(())
//! ```

mod cache;
mod claims;
mod error;
mod header;
mod jwk;
mod kind;
mod signing;
mod verify;

pub use cache::{JwksCache, Snapshot};
pub use claims::{
    Access, AccessClaims, Assertion, AssertionClaims, Claims, ClientAssertionClaims, Edge, EdgeClaims, NoExtra, Purpose,
};
pub use error::{BoxError, Error};
pub use jwk::{Jwk, KeySet};
pub use kind::Kind;
pub use signing::SigningKey;
pub use verify::{Expected, unverified_issuer, verify};

/// The longest token that is looked at, in bytes; a longer one is refused before anything is decoded.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// By how many seconds two machines' clocks may differ.
pub const LEEWAY_S: i64 = 5;
