//! The browser's way in: the hand-off from the portal, sessions, their cookies, and who may change anything.

pub mod cookies;
pub mod guard;
pub mod handoff;
pub mod rd;
pub mod sessions;

pub use handoff::HandOffs;
pub use sessions::{Session, Sessions};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

/// base64url of the SHA-256 of a secret: the form in which it is kept, and in which a bind is shown.
pub fn fingerprint(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(secret))
}
