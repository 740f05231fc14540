//! What every request handler is given.

use std::{sync::Arc, time::Duration};

use clock::{Clock, Entropy};
use contracts::{
    InstanceId,
    authz::LoggedOut,
    instance::{EndSessions, internal_path},
};
use http::Method;
use ipnet::IpNet;
use service::{ServiceClient, Shutdown};
use settings::PublicAddress;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{Config, slugs::Limiter, sse::Listeners};

/// How long one workspace may take to hear that sessions ended.
const GOODBYE: Duration = Duration::from_secs(5);
/// How many workspaces are told so at once, over all people.
const GOODBYES_AT_ONCE: usize = 16;

/// The portal: clients of the other services, and nothing that must outlive it. Cloning is cheap.
#[derive(Clone)]
pub struct Portal(Arc<Inner>);

struct Inner {
    public: PublicAddress,
    trusted_proxies: Vec<IpNet>,
    authz: ServiceClient,
    deploy: ServiceClient,
    router: ServiceClient,
    clock: Clock,
    entropy: Entropy,
    limiter: Limiter,
    listeners: Listeners,
    stop: Shutdown,
    background: TaskTracker,
    goodbyes: Arc<Semaphore>,
}

impl Portal {
    /// A portal that ends its streams at `stop`.
    pub fn new(config: Config, clock: Clock, entropy: Entropy, stop: Shutdown) -> Self {
        let client = |name, (url, token)| ServiceClient::new(name, url, token);
        Self(Arc::new(Inner {
            public: config.public,
            trusted_proxies: config.trusted_proxies,
            authz: client("authz", config.authz),
            deploy: client("deploy-control", config.deploy),
            router: client("router-proxy", config.router),
            limiter: Limiter::new(clock.clone()),
            listeners: Listeners::default(),
            clock,
            entropy,
            stop,
            background: TaskTracker::new(),
            goodbyes: Arc::new(Semaphore::new(GOODBYES_AT_ONCE)),
        }))
    }

    /// The addresses browsers see.
    pub fn public(&self) -> &PublicAddress {
        &self.0.public
    }

    /// The proxies whose forwarded headers are believed.
    pub fn trusted_proxies(&self) -> &[IpNet] {
        &self.0.trusted_proxies
    }

    /// authz.
    pub fn authz(&self) -> &ServiceClient {
        &self.0.authz
    }

    /// deploy-control.
    pub fn deploy(&self) -> &ServiceClient {
        &self.0.deploy
    }

    /// The router's internal listener.
    pub fn router(&self) -> &ServiceClient {
        &self.0.router
    }

    /// The time.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Randomness.
    pub fn entropy(&self) -> &Entropy {
        &self.0.entropy
    }

    /// The limit on name look-ups.
    pub(crate) fn limiter(&self) -> &Limiter {
        &self.0.limiter
    }

    /// Who listens to a stream.
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.0.listeners
    }

    /// Cancelled when the portal ends.
    pub fn stop(&self) -> &Shutdown {
        &self.0.stop
    }

    /// Tells a person's workspace, in the background and once, that sessions ended. What cannot be told is left to the
    /// workspace's own time limits.
    pub fn end_workspace_sessions(&self, ended: LoggedOut) {
        let Some(instance) = ended.instance_id else { return };
        let portal = self.clone();
        self.0.background.spawn(async move {
            for assertion in ended.assertions {
                let Ok(_turn) = portal.0.goodbyes.acquire().await else { return };
                portal.goodbye(instance, assertion).await;
            }
        });
    }

    async fn goodbye(&self, instance: InstanceId, assertion: String) {
        let request = self
            .router()
            .request(Method::POST, &internal_path(instance, "/api/auth/logout"))
            .timeout(GOODBYE)
            .json(&EndSessions { assertion });
        if let Err(error) = self.router().send(request).await {
            tracing::warn!(%instance, cause = format!("{:#}", anyhow::Error::from(error)), "a workspace could not be told that a session ended");
        }
    }

    /// Waits, for a few seconds at most, until the background work is done.
    pub async fn finish_background_work(&self) {
        self.0.background.close();
        if tokio::time::timeout(GOODBYE, self.0.background.wait()).await.is_err() {
            tracing::warn!("some workspaces were not told that sessions ended");
        }
    }
}
