//! The instance's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run::main_on_one_thread("app-instance", app_instance::health_url, app_instance::run)
}
