//! The `authz` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run::main("authz", authz::health_url, authz::run)
}
