//! An instance's only way out: an HTTP proxy on `out/egress.sock`, which connects to what the rules let out.

pub mod address;
pub mod dial;
mod proxy;
pub mod rules;
pub mod target;

pub use dial::{Host, Network};
pub use proxy::{Egress, problem};
pub use rules::Rules;
