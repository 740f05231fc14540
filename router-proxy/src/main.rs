//! The router's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run::main("router-proxy", router_proxy::health_url, router_proxy::run)
}
