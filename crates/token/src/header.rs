//! The header of a compact JWS, read strictly.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::{Error, Kind};

/// The longest `kid` that is looked up, in bytes.
const MAX_KID_BYTES: usize = 128;

/// Is only there or not; what it holds is never looked at. (An `Option` would take `"jwk": null` for absent.)
#[derive(Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

/// What we read of a header. serde refuses a repeated name of these; other names are ignored, as RFC 7515 section 4 asks.
#[derive(Deserialize)]
pub(crate) struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    #[serde(default)]
    crit: Present,
    #[serde(default)]
    jwk: Present,
    #[serde(default)]
    jku: Present,
    #[serde(default)]
    x5u: Present,
    #[serde(default)]
    x5c: Present,
    #[serde(default)]
    x5t: Present,
    #[serde(default, rename = "x5t#S256")]
    x5t_s256: Present,
    #[serde(default)]
    b64: Present,
    #[serde(default)]
    zip: Present,
    #[serde(default)]
    enc: Present,
}

impl Header {
    /// Checks everything the header must be for a token of this kind, and gives the `kid`.
    pub(crate) fn check(self, kind: Kind) -> Result<String, Error> {
        if self.alg != "EdDSA" {
            return Err(Error::Algorithm);
        }
        for (present, name) in [
            (self.crit, "crit"),
            (self.jwk, "jwk"),
            (self.jku, "jku"),
            (self.x5u, "x5u"),
            (self.x5c, "x5c"),
            (self.x5t, "x5t"),
            (self.x5t_s256, "x5t#S256"),
            (self.b64, "b64"),
            (self.zip, "zip"),
            (self.enc, "enc"),
        ] {
            if present.0 {
                return Err(Error::ForbiddenHeader(name));
            }
        }
        if !self.typ.is_some_and(|typ| kind.accepts(&typ)) {
            return Err(Error::WrongType);
        }
        self.kid.filter(|kid| is_kid(kid)).ok_or(Error::OddKid)
    }
}

/// Whether this may name a key: short, and of URL-safe characters alone, so that it is inert wherever it ends up.
pub(crate) fn is_kid(kid: &str) -> bool {
    (1..=MAX_KID_BYTES).contains(&kid.len())
        && kid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte))
}
