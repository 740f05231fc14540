//! authz: accounts, portal sessions, instance identity, and the OAuth 2 issuer.
//!
//! The internal API is [`contracts::authz`]; `GET /openapi.json` describes it. What instances may reach, through their
//! identity socket, is `/oauth/*` and `/.well-known/*` alone.

mod accounts;
mod app;
mod assertions;
mod backends;
mod cleanup;
mod config;
mod deliveries;
mod devices;
mod digest;
mod email;
mod goodbyes;
mod keys;
mod new_instance;
mod oauth;
mod openapi;
mod operator;
mod outbox;
mod own_account;
mod password;
mod portal;
mod refused;
mod seal;
mod sessions;
mod sign_in;
mod sign_up;
mod sign_up_limit;
mod stops;
mod suspension;
#[cfg(test)]
mod tests;
mod throttle;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use clock::{Clock, Entropy};
use service::Shutdown;
use settings::Env;
use store::Store;
use tokio::net::TcpListener;

use crate::{app::App, config::Config};

/// The tables.
pub(crate) static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/authz");

/// How often the signing keys are looked after.
const KEYS_EVERY: Duration = Duration::from_secs(60);

/// Runs authz until `stop`.
///
/// # Errors
/// [`settings::Error`] for a setting that cannot be used; else why it cannot start or go on. A database that is not there
/// yet is waited for.
pub async fn run(env: Env, stop: Shutdown) -> anyhow::Result<()> {
    // Ended when this service must end by itself, without ending the others of its process.
    let stop = stop.child_token();
    let config = Config::from_env(&env)?;
    let listen = config.listen;
    let Some(store) = open(&config, &stop).await? else { return Ok(()) };
    let app = App::new(config, store.clone(), Clock::system(), Entropy::system()).await?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on AUTHZ_LISTEN {listen}"))?;
    tracing::info!(%listen, database = %store.kind(), issuer = app.config.issuer, "ready");
    let mut work = tokio::task::JoinSet::new();
    work.spawn(crate::deliveries::work(Arc::clone(&app), stop.clone()));
    work.spawn(crate::outbox::work::<crate::goodbyes::Goodbye>(Arc::clone(&app), stop.clone()));
    work.spawn(crate::outbox::work::<crate::stops::Stop>(Arc::clone(&app), stop.clone()));
    work.spawn(crate::cleanup::work(Arc::clone(&app), stop.clone()));
    work.spawn(look_after_keys(Arc::clone(&app), stop.clone()));
    let serving = async {
        let served = service::serve(listener, app.router(), stop.clone()).await;
        stop.cancel();
        served.context("serving ended")
    };
    let watching = async {
        let mut outcome = Ok(());
        while let Some(ended) = work.join_next().await {
            if !stop.is_cancelled() {
                // Half a service is worse than one that is started again.
                stop.cancel();
                outcome =
                    ended.context("a background task broke off").and(Err(anyhow!("a background task ended early")));
            }
        }
        outcome
    };
    let (served, watched) = tokio::join!(serving, watching);
    store.close().await;
    served.and(watched)
}

/// Removes the signing keys in the database, if `BEAVER_SEAL_KEY` does not open them: where that was lost, authz makes new keys at
/// its next start. Tokens that the old ones signed are refused from then on, and replaced by themselves within minutes; accounts,
/// sessions and workspaces stay.
///
/// # Errors
/// [`settings::Error`] for a setting that cannot be used; else why the database cannot be read or written.
pub async fn forget_keys(env: Env, stop: Shutdown) -> anyhow::Result<()> {
    let config = Config::from_env(&env)?;
    let Some(store) = open(&config, &stop).await? else { return Ok(()) };
    let seal = Arc::new(seal::Seal::new(&config.seal_key));
    let removed = match keys::KeyRing::open(store.clone(), Clock::system(), Entropy::system(), seal).await {
        Ok(_) => 0,
        Err(keys::Error::Sealed { .. }) => keys::forget(&store).await?,
        Err(error) => return Err(error.into()),
    };
    store.close().await;
    match removed {
        0 => println!("Nothing was removed: BEAVER_SEAL_KEY opens the signing keys."),
        removed => println!("{removed} signing keys were removed. Start authz: it makes new ones."),
    }
    Ok(())
}

/// Where this service says that it is ready.
///
/// # Errors
/// [`settings::Error`] when `AUTHZ_LISTEN` is no address.
pub fn health_url(env: &Env) -> anyhow::Result<String> {
    service::run::local_url(&env.string("AUTHZ_LISTEN")?, "/readyz")
}

/// Opens the database, waiting for one that cannot be reached yet; `None` when `stop` came first.
async fn open(config: &Config, stop: &Shutdown) -> anyhow::Result<Option<Store>> {
    let mut pause = Duration::from_millis(500);
    loop {
        let opening = tokio::select! {
            opening = Store::open(&config.database, &MIGRATOR) => opening,
            () = stop.cancelled() => return Ok(None),
        };
        match opening {
            Ok(store) => return Ok(Some(store)),
            Err(error) if error.is_unavailable() => {
                tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "waiting for the database");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(10)),
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Rotates the signing keys when it is time, and takes over what another process did.
async fn look_after_keys(app: Arc<App>, stop: Shutdown) {
    let mut ticks = tokio::time::interval(KEYS_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = app.keys.maintain().await {
            tracing::error!(
                cause = format!("{:#}", anyhow::Error::from(error)),
                "the signing keys cannot be looked after"
            );
        }
    }
}
