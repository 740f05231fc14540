//! One person's workspace: chat with their model, a model gateway with keys, and settings, behind a Unix socket.
//!
//! It has no network. In comes HTTP from the router on `in/http.sock`; out go the provider's connections through
//! `out/egress.sock` and authz's through `out/identity.sock`. All that lasts is in `/data`.

rust_i18n::i18n!("locales", fallback = "en");

pub mod app;
mod arrival;
mod chat;
mod disk;
mod gateway;
mod guard;
pub mod identity;
mod internal;
mod kept;
mod knock;
mod pages;
pub mod probe;
mod provider;
pub mod settings;
#[cfg(test)]
mod testing;
mod upstream;

pub use upstream::Roots;

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    sync::LazyLock,
    time::Duration,
};

use ::settings::Env;
use anyhow::Context;
use door::Place;
use service::Shutdown;
use sqlx::migrate::Migrator;
use store::{Database, Store};
use tokio::net::UnixListener;

use crate::{
    app::{App, Means},
    settings::Settings,
};

/// The tables. Those of a later release will do too: a workspace whose image is put back goes on with data on which the newer
/// one has run already, and would otherwise be down for good. So a migration only adds what the release before can do without.
/// One that is known and reads otherwise is still refused.
pub(crate) static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("../migrations/app-instance");
    migrator.set_ignore_missing(true);
    migrator
});

/// One writer and one reader: there is one person.
const CONNECTIONS: u32 = 2;
/// How long answers being made may take to be written down at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Runs the instance until `stop`.
///
/// # Errors
/// When it cannot start, or its socket fails.
pub async fn run(env: Env, stop: Shutdown) -> anyhow::Result<()> {
    run_with(Settings::from_env(&env)?, Means::default(), stop).await
}

/// As [`run`], with given means.
///
/// # Errors
/// As [`run`].
pub async fn run_with(settings: Settings, means: Means, stop: Shutdown) -> anyhow::Result<()> {
    if settings.exit_with_parent {
        stop_at_end_of_input(stop.clone());
    }
    let taken = tokio::select! {
        taken = take_place(&settings) => taken?,
        () = stop.cancelled() => return Ok(()),
    };
    let Some((place, _data)) = taken else { return Ok(()) };
    let mut running = std::pin::pin!(run_in_place(settings, means, stop.clone()));
    tokio::select! {
        outcome = &mut running => return outcome,
        () = place.asked_to_end() => {}
    }
    tracing::info!("somebody asks for the place of this process; draining");
    stop.cancel();
    running.await
}

/// The place of the instance's one process, and a lock on its data: what runs there is the only one, also when an engine has
/// lost sight of another, and when its sockets' folder is another than before. `None` when it is asked to end before it has both.
async fn take_place(settings: &Settings) -> anyhow::Result<Option<(Place, File)>> {
    let place =
        Place::take(&settings.inward).await.context("the place of the instance's one process cannot be taken")?;
    let path = settings.data.join("lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = lock.with_context(|| format!("{} cannot be made: the data folder must be writable", path.display()))?;
    tokio::select! {
        locked = door::lock(&lock) => locked.context("the data folder cannot be locked")?,
        () = place.asked_to_end() => return Ok(None),
    }
    Ok(Some((place, lock)))
}

async fn run_in_place(settings: Settings, means: Means, stop: Shutdown) -> anyhow::Result<()> {
    let database = Database::Sqlite(settings.data.join("instance.db"));
    let store = Store::open_with(&database, &MIGRATOR, CONNECTIONS).await?;
    // Made ahead of whoever is to have it: then everything is done up to here, and it listens for the first who asks.
    let early = if settings.has_config()? { None } else { Some(listen(&settings)?) };
    if let Some(listener) = &early
        && !knock::until(listener, || settings.has_config(), &stop).await?
    {
        return Ok(());
    }
    arrival::take_over(&settings.data, settings.read_config()?.generation, &store).await?;
    arrival::revoke(&settings.data, &means.clock, &store).await?;
    let app = App::new(&settings, store.clone(), means, stop.clone()).await?;
    let listener = match early {
        Some(listener) => listener,
        None => listen(&settings)?,
    };
    let sweeping = tokio::spawn(app.clone().sweep());
    let served = service::serve_unix(listener, app.routes(), stop.clone()).await;
    // However serving ended, the rest ends too, and what was being written is written.
    stop.cancel();
    app.tasks.close();
    if tokio::time::timeout(LAST_WRITES, app.tasks.wait()).await.is_err() {
        tracing::warn!("answers were still being written at the end");
    }
    let _ = sweeping.await;
    store.close().await;
    Ok(served?)
}

fn listen(settings: &Settings) -> anyhow::Result<UnixListener> {
    door::listen(&settings.inward, door::HTTP)
        .with_context(|| format!("{} cannot be listened on", settings.http_socket().display()))
}

/// Where `healthcheck` asks.
///
/// # Errors
/// When a setting is unusable.
pub fn health_url(env: &Env) -> anyhow::Result<String> {
    let settings = Settings::from_env(env)?;
    Ok(format!("unix:{}:/healthz", settings.http_socket().display()))
}

/// Cancels `stop` when standard input ends. A thread of its own: a blocked read would hold the runtime up at the end.
fn stop_at_end_of_input(stop: Shutdown) {
    std::thread::spawn(move || {
        let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!(clean = ended.is_ok(), "the parent is gone; draining");
        stop.cancel();
    });
}
