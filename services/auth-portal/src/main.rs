//! The portal's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run::main("auth-portal", auth_portal::health_url, auth_portal::run)
}
