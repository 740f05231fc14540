//! Everything a request needs, and the routes.

use std::sync::Arc;

use anyhow::Context;
use axum::{
    Router,
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clock::{Clock, Entropy};
use contracts::Slug;
use http::{HeaderValue, header};
use service::{
    Health, ServiceClient, bearer,
    http::{RequestIds, layers},
};
use store::Store;
use tokio::sync::Notify;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::{
    backends,
    config::Config,
    keys::{self, KeyRing},
    new_instance, oauth, openapi, operator, own_account,
    password::Passwords,
    portal,
    seal::Seal,
    sign_in, sign_up, suspension,
};

/// What every handler and every background task works with.
pub(crate) struct App {
    pub config: Config,
    pub store: Store,
    pub clock: Clock,
    pub entropy: Entropy,
    pub seal: Arc<Seal>,
    pub keys: KeyRing,
    pub passwords: Passwords,
    pub deploy: ServiceClient,
    /// The router's internal listener: the way to an instance.
    pub router: ServiceClient,
    /// Wakes the worker of [`crate::deliveries`].
    pub deliveries_nudge: Notify,
    /// Wakes the worker of [`crate::goodbyes`].
    pub goodbyes_nudge: Notify,
    /// Wakes the worker of [`crate::stops`].
    pub stops_nudge: Notify,
}

impl App {
    /// Opens the signing keys and prepares the rest.
    ///
    /// # Errors
    /// [`settings::Error`] when `BEAVER_SEAL_KEY` does not open the keys in the database; else what went wrong.
    pub async fn new(config: Config, store: Store, clock: Clock, entropy: Entropy) -> anyhow::Result<Arc<Self>> {
        let seal = Arc::new(Seal::new(&config.seal_key));
        let keys = match KeyRing::open(store.clone(), clock.clone(), entropy.clone(), Arc::clone(&seal)).await {
            Err(error @ keys::Error::Sealed { .. }) => {
                return Err(settings::Error::Invalid {
                    key: "BEAVER_SEAL_KEY".into(),
                    why: format!("{:#}", anyhow::Error::from(error)),
                    cure:
                        "set it to what it was when this database was made; where that is lost, run `authz forget-keys`"
                            .into(),
                }
                .into());
            }
            outcome => outcome.context("cannot open the signing keys")?,
        };
        let deploy = ServiceClient::new("deploy-control", config.deploy_url.clone(), config.deploy_token.clone());
        let router = ServiceClient::new("router-proxy", config.router_url.clone(), config.router_token.clone());
        let passwords = Passwords::new(entropy.clone())?;
        Ok(Arc::new(Self {
            config,
            store,
            clock,
            entropy,
            seal,
            keys,
            passwords,
            deploy,
            router,
            deliveries_nudge: Notify::new(),
            goodbyes_nudge: Notify::new(),
            stops_nudge: Notify::new(),
        }))
    }

    /// An id that nobody can guess: 16 random bytes in base64url.
    pub fn id(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.entropy.bytes::<16>())
    }

    /// Where the instance of this name may be sent back to.
    pub fn redirect_uri(&self, slug: &Slug) -> String {
        format!("{}/auth/callback", self.config.address.workspace_origin(slug.as_str()))
    }

    /// Every route, with the layers around them.
    pub fn router(self: &Arc<Self>) -> Router {
        let internal = Router::new()
            .route("/portal/register", post(sign_up::register))
            .route("/portal/slugs/{text}", get(sign_up::slug))
            .route("/portal/login", post(sign_in::login))
            .route("/portal/session", post(portal::session))
            .route("/portal/logout", post(portal::logout))
            .route("/portal/sessions", post(own_account::list))
            .route("/portal/sessions/end", post(own_account::end))
            .route("/portal/password", post(own_account::change_password))
            .route("/portal/retry-delivery", post(portal::retry_delivery))
            .route("/portal/new-instance", post(new_instance::make))
            .route("/portal/assertion", post(portal::assertion))
            .route("/portal/issuer", get(oauth::metadata::public))
            .route("/portal/operator", get(operator::state).post(operator::register))
            .route("/portal/operator/account", post(suspension::account))
            .route("/portal/operator/suspend", post(suspension::suspend))
            .route("/portal/operator/suspended", post(suspension::suspended))
            .route("/backends/register", post(backends::register))
            .route("/backends/revoke", post(backends::revoke))
            // Nearly every answer holds a secret.
            .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
        let internal = bearer::require(internal, self.config.internal_tokens.clone());
        let store = self.store.clone();
        let health = Health::new().need("database", move || {
            let store = store.clone();
            async move {
                store.ping().await.map_err(|error| {
                    tracing::warn!(%error, "the database does not answer");
                    "the database does not answer".to_owned()
                })
            }
        });
        let routes = internal
            .merge(oauth::routes())
            .with_state(Arc::clone(self))
            .route("/openapi.json", get(openapi::serve))
            .merge(health.routes());
        layers(routes, RequestIds::FromCaller)
    }
}
