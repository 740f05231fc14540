//! All of one instance, put together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Router, middleware};
use clock::{Clock, Entropy};
use contracts::instance::InstanceConfig;
use service::{
    Shutdown,
    http::{RequestIds, layers_with_limit},
};
use store::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    chat::{self, Chats},
    disk::Disk,
    gateway::{self, Keys},
    identity::{AccessTokens, Assertions, Door, Registrar},
    internal, pages,
    provider::Provider,
    session::{HandOffs, Sessions, guard},
    settings::Settings,
    upstream::{Roots, Upstream},
};

/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(15 * 60);

/// What time, randomness and trust come from.
#[derive(Debug, Clone)]
pub struct Means {
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Whom to believe who they are, for https to providers.
    pub roots: Roots,
}

impl Default for Means {
    fn default() -> Self {
        Self { clock: Clock::system(), entropy: Entropy::system(), roots: Roots::Public }
    }
}

/// One instance.
pub struct App {
    /// `config.json`.
    pub config: InstanceConfig,
    /// Whether it is served over https.
    pub secure: bool,
    /// The content security policy of its pages.
    pub content_policy: http::HeaderValue,
    /// Its database.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Verifies authz's assertions.
    pub assertions: Assertions,
    /// Its OAuth client.
    pub registrar: Arc<Registrar>,
    /// Access tokens for other services, such as an MCP server.
    pub access_tokens: AccessTokens,
    /// Its owner's sessions.
    pub sessions: Sessions,
    /// Hand-offs from the portal.
    pub hand_offs: HandOffs,
    /// The provider in use.
    pub provider: Provider,
    /// The way to providers.
    pub upstream: Upstream,
    /// The gateway's keys.
    pub keys: Keys,
    /// The chats.
    pub chats: Chats,
    /// Whether there is room for more.
    pub disk: Disk,
    /// Cancelled when it shall end.
    pub stop: Shutdown,
    /// Answers being made: waited for at the end.
    pub tasks: TaskTracker,
    /// Chats whose answer is being made.
    running: Mutex<HashMap<String, CancellationToken>>,
}

impl App {
    /// Puts an instance together from its folders and its open database.
    ///
    /// # Errors
    /// When `config.json` cannot be used, or the database fails.
    pub async fn new(settings: &Settings, store: Store, means: Means, stop: Shutdown) -> anyhow::Result<Arc<Self>> {
        let Means { clock, entropy, roots } = means;
        let config = settings.read_config()?;
        let provider = Provider::load(store.clone(), &config).await?;
        let door = Door::new(&settings.outward);
        let assertions = Assertions::new(
            config.issuer.clone(),
            config.origin.clone(),
            config.owner,
            door.clone(),
            store.clone(),
            clock.clone(),
        )
        .await?;
        let registrar = Arc::new(Registrar::new(
            settings.clone(),
            config.origin.clone(),
            door.clone(),
            store.clone(),
            entropy.clone(),
        ));
        let access_tokens =
            AccessTokens::new(config.issuer.clone(), door, registrar.clone(), clock.clone(), entropy.clone());
        let sessions = Sessions::new(store.clone(), clock.clone(), entropy.clone());
        let hand_offs =
            HandOffs::new(store.clone(), assertions.clone(), sessions.clone(), clock.clone(), entropy.clone());
        let keys = Keys::load(store.clone(), clock.clone(), entropy.clone()).await?;
        let chats = Chats::new(store.clone(), clock.clone(), entropy.clone());
        let interrupted = chats.mark_interrupted().await?;
        if interrupted > 0 {
            tracing::info!(interrupted, "answers were unfinished when the program last ended");
        }
        Ok(Arc::new(Self {
            content_policy: guard::content_policy(&config.portal)?,
            secure: config.origin.starts_with("https://"),
            upstream: Upstream::new(&settings.outward, roots)?,
            config,
            store,
            clock,
            entropy,
            assertions,
            registrar,
            access_tokens,
            sessions,
            hand_offs,
            provider,
            keys,
            chats,
            disk: Disk::new(settings),
            stop,
            tasks: TaskTracker::new(),
            running: Mutex::default(),
        }))
    }

    /// Everything it serves.
    pub fn routes(self: &Arc<Self>) -> Router {
        let workspace = pages::workspace()
            .route_layer(middleware::from_fn_with_state(self.clone(), guard::page))
            .merge(chat::api::routes().route_layer(middleware::from_fn_with_state(self.clone(), guard::api)))
            .merge(pages::open())
            .route_layer(middleware::from_fn_with_state(self.clone(), guard::same_origin))
            .merge(internal::routes().route_layer(middleware::from_fn(guard::internal)))
            .with_state(self.clone());
        // The body extractors have a limit of their own, and the gateway, whose refusals have another shape, too.
        layers_with_limit(workspace.merge(gateway::routes(self.clone())), RequestIds::FromCaller, usize::MAX)
            .layer(middleware::from_fn_with_state(self.clone(), pages::dress))
    }

    /// The chats whose answer is being made.
    pub fn running(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what has expired, now and then, until the end.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            let swept = async {
                self.assertions.sweep().await?;
                self.hand_offs.sweep().await?;
                self.sessions.sweep().await
            };
            if let Err(error) = swept.await {
                tracing::warn!(%error, "what has expired could not be removed");
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }
}
