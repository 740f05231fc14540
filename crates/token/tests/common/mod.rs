//! Tokens made by hand, so that they can be wrong in every way.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clock::Entropy;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Access, Claims, Expected, KeySet, Kind, SigningKey};

pub const ISSUER: &str = "http://beaver-authz-service:19090";
pub const AUDIENCE: &str = "https://alice.apps.example.com";
pub const NOW_S: i64 = 1_767_323_045;
pub const EXPECTED: Expected<'static> = Expected { issuer: ISSUER, audience: AUDIENCE, now_s: NOW_S };

pub fn key(seed: u64) -> SigningKey {
    SigningKey::generate(&Entropy::seeded(seed)).expect("a key")
}

pub fn header(key: &SigningKey, kind: Kind) -> Value {
    json!({"alg": "EdDSA", "typ": kind.typ(), "kid": key.kid()})
}

/// Claims that fit an access token, an assertion and an edge token at once, valid now.
pub fn payload() -> Value {
    json!({
        "iss": ISSUER, "sub": "account-1", "aud": AUDIENCE, "iat": NOW_S, "exp": NOW_S + 60, "jti": "one",
        "client_id": "client-1", "scope": "mail:read mail:send", "sid": "session-1", "purpose": "login",
    })
}

pub fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// A token of these very texts, with a right signature by this key.
pub fn signed(key: &SigningKey, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(payload));
    let pair = Ed25519KeyPair::from_pkcs8(key.to_pkcs8().expose_secret()).expect("the key");
    format!("{message}.{}", encode(pair.sign(message.as_bytes())))
}

pub fn claims() -> Claims<Access> {
    Claims {
        iss: ISSUER.into(),
        sub: "account-1".into(),
        aud: AUDIENCE.into(),
        iat: NOW_S,
        exp: NOW_S + 60,
        jti: "one".into(),
        extra: Access { client_id: "client-1".into(), scope: "mail:read mail:send".into() },
    }
}

pub fn keys(key: &SigningKey) -> KeySet {
    KeySet::new([key.public()])
}
