//! What every request handler is given.

use std::sync::Arc;

use clock::{Clock, Entropy};
use ipnet::IpNet;
use service::{ServiceClient, Shutdown};
use settings::PublicAddress;

use crate::{Config, slugs::Limiter, sse::Listeners};

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
}
