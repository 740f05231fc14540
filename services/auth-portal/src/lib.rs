//! The portal: where people sign up, sign in, give their workspace a provider and see how it is doing, and where
//! operators see every instance.
//!
//! It keeps no state of its own: accounts and sessions are authz's, instances deploy-control's. Any number of portals
//! may run side by side.

mod account;
mod address;
mod agent;
mod assets;
mod config;
mod data;
mod history;
mod instance;
mod language;
mod live;
mod next;
mod onboarding;
mod open;
mod operator;
mod operator_account;
mod origin;
mod own_account;
mod page;
mod security;
mod session;
mod slugs;
mod sse;
mod state;
mod texts;
mod traffic;
mod upload;
mod view;
mod well_known;

rust_i18n::i18n!("locales", fallback = "en");

use anyhow::Context;
use axum::{
    Router, middleware,
    routing::{get, post},
};
use clock::{Clock, Entropy};
use service::{Health, Shutdown, http::RequestIds};
use tokio::net::TcpListener;

pub use config::Config;
pub use state::Portal;

/// Where the portal's own health is asked: `/readyz` of its internal listener.
///
/// # Errors
/// When `PORTAL_INTERNAL_LISTEN` is no socket address.
pub fn health_url(env: &settings::Env) -> anyhow::Result<String> {
    service::run::local_url(&env.string("PORTAL_INTERNAL_LISTEN")?, "/readyz")
}

/// Runs the portal until `stop`.
///
/// # Errors
/// A [`settings::Error`] for an unusable setting; an I/O error when an address cannot be listened on.
pub async fn run(env: settings::Env, stop: Shutdown) -> anyhow::Result<()> {
    let config = Config::from_env(&env)?;
    let public = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on PORTAL_LISTEN {}", config.listen))?;
    let internal = TcpListener::bind(config.internal_listen)
        .await
        .with_context(|| format!("cannot listen on PORTAL_INTERNAL_LISTEN {}", config.internal_listen))?;
    let portal = Portal::new(config, Clock::system(), Entropy::system(), stop.clone());
    tracing::info!(address = %public.local_addr()?, "the portal listens");
    tokio::try_join!(
        service::serve_public(public, router(portal.clone()), stop.clone()),
        service::serve(internal, internal_router(&portal), stop),
    )?;
    Ok(())
}

/// What the public sees.
pub fn router(portal: Portal) -> Router {
    let pages = Router::new()
        .route("/", get(account::welcome))
        .route("/register", get(account::register_page).post(account::register))
        .route("/login", get(account::login_page).post(account::login))
        .route("/logout", post(account::logout))
        .route("/logout/everywhere", post(account::logout_everywhere))
        .route("/account", get(own_account::account))
        .route("/account/sessions/end", post(own_account::end))
        .route("/account/password", get(own_account::password_page).post(own_account::change_password))
        .route("/language", post(language::choose))
        .route("/progress", get(instance::progress))
        .route("/applying", get(instance::applying))
        .route("/instance", get(instance::page))
        .route("/instance/data", get(data::show))
        .route("/instance/export", get(data::export))
        .route("/instance/delete", post(data::delete))
        .route("/instance/new", get(data::new_page).post(data::new))
        .route("/instance/{action}", post(instance::act))
        .route("/onboarding", get(onboarding::page).post(onboarding::submit))
        .route("/open/{slug}", get(open::open))
        .route("/operator", get(operator::console))
        .route("/operator/accounts/{slug}", get(operator_account::account))
        .route("/operator/accounts/{slug}/{action}", post(operator_account::act))
        .route("/operator/setup", get(operator::setup_page).post(operator::setup))
        .route("/events", get(sse::events))
        .route("/api/slugs/{text}", get(slugs::availability))
        .route("/assets/{name}", get(assets::serve))
        .route("/.well-known/jwks.json", get(well_known::jwks))
        .route("/.well-known/oauth-authorization-server", get(well_known::metadata))
        .route("/healthz", get(async || "ok"))
        .layer(middleware::from_fn_with_state(portal.clone(), origin::check))
        .with_state(portal.clone());
    let uploads = Router::new()
        .route("/instance/restore", post(data::restore))
        .layer(middleware::from_fn_with_state(portal.clone(), origin::check))
        .with_state(portal.clone());
    service::public::layers_with_uploads(pages, uploads).layer(middleware::from_fn_with_state(portal, security::dress))
}

/// Health and metrics, for the operator's network alone.
pub fn internal_router(portal: &Portal) -> Router {
    let authz = portal.authz().clone();
    let health = Health::new().need("authz", move || {
        let authz = authz.clone();
        async move {
            let answer = authz.send(authz.request(http::Method::GET, "/healthz")).await;
            answer.map(|_| ()).map_err(|error| error.to_string())
        }
    });
    service::http::layers(health.routes(), RequestIds::FromCaller)
}
