//! Who the instance is to authz, and how it tells its owner: its key and OAuth client, authz's assertions, and access
//! tokens. All of it goes through `out/identity.sock`.

pub mod access;
pub mod assertion;
mod door;
pub mod registration;

pub use access::AccessTokens;
pub use assertion::Assertions;
pub use door::{Door, DoorError};
pub use registration::Registrar;
