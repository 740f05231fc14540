//! Reading a token: every check, every time.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::claims::Audience;
use crate::header::Header;
use crate::{Claims, Error, KeySet, Kind, LEEWAY_S, MAX_TOKEN_BYTES};

/// The longest `iss`, `sub`, `aud` or `jti`, in bytes: they end up in database columns and logs.
const MAX_TEXT_BYTES: usize = 512;

/// What the reader of a token expects of it.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The `iss` it must have, byte by byte.
    pub issuer: &'a str,
    /// The only `aud` it may have, byte by byte.
    pub audience: &'a str,
    /// The present, in Unix seconds.
    pub now_s: i64,
}

/// Reads a token and gives its claims if it is of this kind, signed by one of these keys, from the expected issuer, for the
/// expected audience alone, and valid now (RFC 7519 section 7.2, RFC 8725).
///
/// The length is checked before anything is decoded, the header before anything is verified, and the signature before any
/// claim is believed.
///
/// # Errors
///
/// The first thing that is wrong with it: see [`Error`]. [`Error::KeysUnavailable`], [`Error::Key`] and [`Error::Signing`]
/// do not occur here.
pub fn verify<T: DeserializeOwned>(
    kind: Kind,
    token: &str,
    expected: &Expected<'_>,
    keys: &KeySet,
) -> Result<Claims<T>, Error> {
    let parts = Parts::split(token)?;
    let header: Header = parts.header()?;
    let kid = header.check(kind)?;
    let key = keys.get(&kid).ok_or(Error::UnknownKid)?;

    let key = DecodingKey::from_ed_der(key.as_bytes());
    let signed = jsonwebtoken::crypto::verify(parts.signature, parts.message.as_bytes(), &key, Algorithm::EdDSA);
    // An error, such as a signature that is not base64url, proves as little as a wrong signature.
    if !signed.unwrap_or(false) {
        return Err(Error::Signature);
    }

    let payload = parts.payload()?;
    Registered::parse(&payload)?.check(kind, expected)?;
    let claims: Claims<T> = serde_json::from_slice(&payload).map_err(|_| Error::Extra)?;
    claims.check_text()?;
    Ok(claims)
}

/// The `iss` of a token that nobody has verified, to find the client whose keys it must then be verified with (RFC 7523
/// section 3: the issuer of a client assertion is the client's id). It proves nothing by itself.
///
/// # Errors
///
/// [`Error::TooLarge`], [`Error::Malformed`], [`Error::MissingClaim`] or [`Error::MalformedClaim`].
pub fn unverified_issuer(token: &str) -> Result<String, Error> {
    let issuer = Registered::parse(&Parts::split(token)?.payload()?)?.iss.ok_or(Error::MissingClaim("iss"))?;
    check_text("iss", &issuer)?;
    Ok(issuer)
}

/// Refuses a lifetime that no token of this kind may have.
pub(crate) fn check_lifetime(kind: Kind, iat: i64, exp: i64) -> Result<(), Error> {
    match exp.checked_sub(iat) {
        Some(lifetime) if lifetime > 0 && lifetime <= kind.max_lifetime_s() => Ok(()),
        _ => Err(Error::Lifetime),
    }
}

impl<T> Claims<T> {
    pub(crate) fn check_text(&self) -> Result<(), Error> {
        for (name, value) in [("iss", &self.iss), ("sub", &self.sub), ("aud", &self.aud), ("jti", &self.jti)] {
            check_text(name, value)?;
        }
        Ok(())
    }
}

/// Refuses what no name of ours looks like, and what a database (NUL) or a log (line breaks) would stumble over.
fn check_text(name: &'static str, value: &str) -> Result<(), Error> {
    if value.is_empty() || value.len() > MAX_TEXT_BYTES || value.chars().any(char::is_control) {
        return Err(Error::MalformedClaim(name));
    }
    Ok(())
}

/// A compact JWS (RFC 7515 section 7.1), cut but not decoded.
struct Parts<'a> {
    message: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, Error> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Error::TooLarge);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Error::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Error::Malformed)?;
        if payload.contains('.') {
            return Err(Error::Malformed);
        }
        Ok(Self { message, header, payload, signature })
    }

    fn header(&self) -> Result<Header, Error> {
        serde_json::from_slice(&decode(self.header)?).map_err(|_| Error::Malformed)
    }

    fn payload(&self) -> Result<Vec<u8>, Error> {
        decode(self.payload)
    }
}

/// base64url without padding and without leftover bits, so that a token has one spelling only.
fn decode(part: &str) -> Result<Vec<u8>, Error> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Error::Malformed)
}

/// The registered claims as they may arrive; which of them is missing is told apart from which is wrong.
#[derive(Deserialize)]
struct Registered {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    iat: Option<i64>,
    exp: Option<i64>,
    nbf: Option<i64>,
    jti: Option<String>,
}

impl Registered {
    fn parse(payload: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(payload).map_err(|_| Error::Malformed)
    }

    fn check(self, kind: Kind, expected: &Expected<'_>) -> Result<(), Error> {
        if self.iss.ok_or(Error::MissingClaim("iss"))? != expected.issuer {
            return Err(Error::Issuer);
        }
        if self.aud.ok_or(Error::MissingClaim("aud"))?.single().is_none_or(|aud| aud != expected.audience) {
            return Err(Error::Audience);
        }
        self.sub.ok_or(Error::MissingClaim("sub"))?;
        self.jti.ok_or(Error::MissingClaim("jti"))?;
        let iat = self.iat.ok_or(Error::MissingClaim("iat"))?;
        let exp = self.exp.ok_or(Error::MissingClaim("exp"))?;
        check_lifetime(kind, iat, exp)?;
        if exp.saturating_add(LEEWAY_S) < expected.now_s {
            return Err(Error::Expired);
        }
        let latest = expected.now_s.saturating_add(LEEWAY_S);
        if iat > latest || self.nbf.is_some_and(|nbf| nbf > latest) {
            return Err(Error::NotYetValid);
        }
        Ok(())
    }
}
