//! What every service is around its own work: starting from the environment, health and metrics, logs with one request
//! id, refusals as problem details, service tokens, calls to the other services, and draining at the end.

pub mod address;
pub mod bearer;
pub mod client;
pub mod health;
pub mod http;
pub mod places;
pub mod problem;
pub mod public;
pub mod run;
pub mod sse;
pub mod stall;
pub mod telemetry;

pub use client::{CallError, ServiceClient};
pub use health::Health;
pub use http::{Json, serve, serve_unix};
pub use problem::Problem;
pub use public::serve_public;
pub use run::{Shutdown, VERSION};

#[cfg(test)]
mod tests;
