//! The instance's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(contracts::instance::PROBE) {
        return app_instance::probe::main();
    }
    service::run::main_on_one_thread("app-instance", app_instance::health_url, app_instance::run)
}
