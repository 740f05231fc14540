//! What every service is around its own work: starting from the environment, health and metrics, logs with one request
//! id, refusals as problem details, service tokens, calls to the other services, and draining at the end.

pub mod bearer;
pub mod client;
pub mod health;
pub mod http;
pub mod problem;
pub mod run;
pub mod telemetry;

pub use client::{CallError, ServiceClient};
pub use health::Health;
pub use http::{Json, serve, serve_unix};
pub use problem::Problem;
pub use run::{Shutdown, VERSION};

#[cfg(test)]
mod tests;
