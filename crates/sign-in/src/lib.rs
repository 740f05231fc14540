//! Letting a workspace's owner in, on the workspace's own origin, without a password: by the portal's hand-off.
//!
//! 1. [`SignIn::start`]: a bind cookie, and the way to the portal.
//! 2. [`SignIn::login`]: the portal hands in an assertion about who is signed in there; a one-time code comes back.
//! 3. [`SignIn::finish`]: the code becomes a session, in the browser that has the bind cookie.
//!
//! An instance that knows Beaver does this itself; before one that does not, the router does. What they keep is small and
//! one workspace's alone: it is all in memory, and whoever holds it says where a change is written before it counts.

mod book;
pub mod cookies;
mod origin;
mod rd;
mod sessions;
mod sign_in;
mod verifier;

pub use origin::is_same_origin;
pub use rd::checked as checked_rd;
pub use sessions::{Session, Sessions};
pub use sign_in::{FINISH, FinishError, Redirect, SIGN_OUT, SIGNED_OUT, START, SignIn};
pub use verifier::Verifier;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

/// base64url of the SHA-256 of a secret: the form in which it is kept, and in which a bind is shown.
pub fn fingerprint(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(secret))
}
