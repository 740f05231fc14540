//! `beaver`: brings the whole stack up on one host, takes it down, and tells how it is.
//!
//! Exit codes: see [`Exit`].

mod args;
mod ask;
mod binaries;
mod checks;
mod compose;
mod down;
mod engine;
mod envfile;
mod images;
mod init;
mod operator;
mod prepare;
mod process;
mod remembered;
mod render;
mod secrets;
mod stack;
mod status;
mod ui;
mod up;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use ui::Ui;

/// What an exit code means. Scripts rely on these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed on the way; running the command again is safe.
    Failed = 1,
    /// The command line or a setting is unusable.
    Usage = 2,
    /// A check failed before anything was changed.
    Check = 3,
    /// `status` alone: the stack is not, or not wholly, up.
    NotUp = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An unusable command line or setting: one line, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub String);

/// Checks that failed: their lines have been printed already, exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("nothing was changed")]
pub(crate) struct ChecksFailed;

/// The whole command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::from_process();
    if matches!(cli.command, Command::Instance) {
        // A workspace under the process engine: one thread, and the environment is all it is told.
        return service::run::serve_on_one_thread("app-instance", app_instance::run);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("beaver: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let result = runtime.block_on(dispatch(cli, &ui));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("beaver: {error:#}");
            exit_for(&error).into()
        }
    }
}

async fn dispatch(cli: Cli, ui: &Ui) -> anyhow::Result<Exit> {
    let place = cli.place;
    match cli.command {
        Command::Up(options) => up::up(&place, &options, ui).await,
        Command::Down(options) => down::down(&place, &options, ui).await,
        Command::Status { json } => status::status(&place, json, ui).await,
        Command::Doctor(options) => up::doctor(&place, &options, ui).await,
        Command::Init(options) => init::init(&place, &options, ui),
        Command::Render { what } => render::render(&place, what),
        Command::Prepare { secrets } => prepare::prepare(&place, secrets),
        Command::RemoveData => prepare::remove_data(),
        Command::Ask => ask::ask().await,
        Command::Instance => unreachable!("handled before the runtime starts"),
    }
}

fn exit_for(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<ChecksFailed>().is_some() {
        Exit::Check
    } else if error.downcast_ref::<Usage>().is_some() || error.downcast_ref::<settings::Error>().is_some() {
        Exit::Usage
    } else {
        Exit::Failed
    }
}
