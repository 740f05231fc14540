//! The binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run::main("deploy-control", deploy_control::health_url, deploy_control::run)
}
