//! The `authz` program; `authz forget-keys` is for when `BEAVER_SEAL_KEY` is lost.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("forget-keys") => service::run::serve_on_one_thread("authz", authz::forget_keys),
        _ => service::run::main("authz", authz::health_url, authz::run),
    }
}
