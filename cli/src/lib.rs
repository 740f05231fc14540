//! `beaver`: brings the whole stack up on one host, takes it down, and tells how it is.
//!
//! Exit codes: see [`Exit`].

mod args;
mod ask;
mod attack;
mod binaries;
mod checks;
mod compose;
mod curl;
mod data;
mod down;
mod engine;
mod envfile;
mod events;
mod image;
mod images;
mod init;
mod operator;
mod plan;
mod prepare;
mod process;
mod remembered;
mod render;
mod secrets;
mod stack;
mod status;
mod ui;
mod up;
mod upgrade;
mod workspace;

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
    /// `attack` alone: an attempt or a control could not be made; [`Exit::Failed`] when something got through.
    NotTried = 5,
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
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("beaver: {error:#}");
            exit_for(&error).into()
        }
    }
}

async fn dispatch(cli: Cli, ui: &Ui) -> anyhow::Result<ExitCode> {
    let place = cli.place;
    let exit = match cli.command {
        Command::Exec(options) => return workspace::exec(&place, &options).await,
        Command::Up(options) => up::up(&place, &options, ui).await,
        Command::Down(options) => down::down(&place, &options, ui).await,
        Command::Status { json } => status::status(&place, json, ui).await,
        Command::Logs(options) => workspace::logs(&place, &options).await,
        Command::Events(options) => events::events(&place, &options, ui).await,
        Command::EventsFromInside(options) => events::from_inside(&options).await,
        Command::Curl(options) => curl::curl(&place, &options).await,
        Command::Attack(options) => attack::attack(&place, &options, ui).await,
        Command::Doctor(options) => up::doctor(&place, &options, ui).await,
        Command::Init(options) => init::init(&place, &options, ui),
        Command::Image { what } => image::image(&place, &what, ui).await,
        Command::Plan { slug, plan } => plan::change(&place, &slug, &plan, ui).await,
        Command::Delete { slug, confirm } => data::delete(&place, &slug, &confirm, ui).await,
        Command::Undelete { slug } => data::undelete(&place, &slug, ui).await,
        Command::Export { slug, output } => data::export(&place, &slug, output.as_deref(), ui).await,
        Command::Restore { slug, file } => data::restore(&place, &slug, &file, ui).await,
        Command::Data { what } => data::from_inside(what).await,
        Command::SetPlan { slug, plan } => plan::from_inside(&slug, &plan).await,
        Command::Upgrade => upgrade::upgrade(&place, ui).await,
        Command::UpgradeFromInside => upgrade::from_inside().await,
        Command::Render { what } => render::render(&place, what),
        Command::Prepare { secrets } => prepare::prepare(&place, secrets),
        Command::RemoveData => prepare::remove_data(),
        Command::Ask { request: false } => ask::ask().await,
        Command::Ask { request: true } => curl::answer().await,
        Command::Instance => unreachable!("handled before the runtime starts"),
    };
    exit.map(ExitCode::from)
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
