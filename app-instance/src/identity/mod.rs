//! Who the instance is to authz, and how it tells its owner: its key and OAuth client, authz's assertions, and access
//! tokens. All of it goes through `out/identity.sock`.

pub mod access;
mod door;
mod keys;
pub mod registration;

pub use access::AccessTokens;
pub use door::{Door, DoorError};
pub use keys::verifier;
pub use registration::Registrar;
