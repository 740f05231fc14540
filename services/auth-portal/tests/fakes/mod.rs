//! Stand-ins for authz, deploy-control and the router's internal listener, on loopback: they answer as the contracts
//! say, remember what they were sent, and can be told to refuse or to be away.
#![allow(dead_code, missing_docs, reason = "each of the programs that include this uses its own part of it")]

pub mod authz;
pub mod deploy;
pub mod workspace;

use std::sync::{Arc, Mutex, MutexGuard};

use auth_portal::{Config, Portal};
use axum::{Json, Router, response::IntoResponse};
use clock::{Clock, Entropy};
use contracts::ProblemDetails;
use http::{HeaderMap, StatusCode};
use service::Shutdown;
use settings::Env;
use tokio::net::TcpListener;

pub const AUTHZ_TOKEN: &str = "token-of-authz-0123456789abcdef0";
pub const DEPLOY_TOKEN: &str = "token-of-deploy-0123456789abcdef";
pub const ROUTER_TOKEN: &str = "token-of-router-0123456789abcdef";

/// A part that is behind a lock and shared with its server.
pub struct Shared<T>(Arc<Mutex<T>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Shared<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A refusal as the services write it.
pub fn problem(status: u16, code: &str, field: Option<&str>) -> axum::response::Response {
    let body = ProblemDetails {
        kind: "about:blank".into(),
        title: "Refused".into(),
        status,
        code: code.into(),
        detail: "for logs".into(),
        field: field.map(Into::into),
        request_id: None,
    };
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

pub fn shows(headers: &HeaderMap, token: &str) -> bool {
    service::bearer::token(headers) == Some(token)
}

/// Serves until `stop`; the address.
pub async fn serve(router: Router, stop: Shutdown) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(service::serve(listener, router, stop));
    address
}

/// The fakes, and a portal on them.
pub struct House {
    pub authz: authz::Authz,
    pub deploy: deploy::Deploy,
    pub workspace: workspace::Workspace,
    pub portal: Portal,
    pub router: Router,
    pub stop: Shutdown,
    // Cancelled last, so that the fakes outlive the portal's own work.
    fakes: Shutdown,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
        self.fakes.cancel();
    }
}

impl House {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With settings other than the defaults.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let (stop, fakes) = (Shutdown::new(), Shutdown::new());
        let deploy = deploy::Deploy::default();
        let authz = authz::Authz::new(deploy.clone());
        let workspace = workspace::Workspace::default();
        let mut env = Env::from_pairs([
            ("BEAVER_AUTHZ_URL", serve(authz.router(), fakes.clone()).await),
            ("BEAVER_DEPLOY_URL", serve(deploy.router(), fakes.clone()).await),
            ("BEAVER_ROUTER_INTERNAL_URL", serve(workspace.router(), fakes.clone()).await),
            ("BEAVER_AUTHZ_INTERNAL_TOKEN", AUTHZ_TOKEN.into()),
            ("BEAVER_DEPLOY_TOKEN", DEPLOY_TOKEN.into()),
            ("BEAVER_ROUTER_INTERNAL_TOKEN", ROUTER_TOKEN.into()),
        ]);
        for (key, value) in settings {
            env = env.with(key, *value);
        }
        let config = Config::from_env(&env).unwrap();
        let portal = Portal::new(config, Clock::system(), Entropy::system(), stop.clone());
        let router = auth_portal::router(portal.clone());
        Self { authz, deploy, workspace, portal, router, stop, fakes }
    }
}
