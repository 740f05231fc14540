//! Secrets at rest: only what recognises them is kept.

use sha2::{Digest, Sha256};

/// SHA-256 in hexadecimal: how tokens of 32 random bytes are kept. Too fast for anything a person chose.
pub(crate) fn sha256(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}
