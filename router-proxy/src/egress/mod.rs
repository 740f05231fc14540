//! An instance's only way out: an HTTP proxy on `out/egress.sock`, which connects to what the rules let out.

pub mod address;
pub mod chain;
pub mod dial;
pub mod network;
pub mod own;
mod proxy;
mod refusal;
pub mod report;
mod resolver;
pub mod rules;
pub mod target;
pub mod tenant;
mod throttle;

pub use network::{Host, Network};
pub use own::Own;
pub use proxy::Egress;
pub use refusal::problem;
pub use rules::Rules;
