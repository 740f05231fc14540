//! The portal's settings.

use std::net::SocketAddr;

use ipnet::IpNet;
use secrecy::SecretString;
use settings::{Env, Error, PublicAddress};
use url::Url;

use crate::address::TrustedProxy;

/// Everything the portal is told at start.
#[derive(Clone)]
pub struct Config {
    /// Where the public comes in.
    pub listen: SocketAddr,
    /// Where health and metrics are.
    pub internal_listen: SocketAddr,
    /// The addresses browsers see.
    pub public: PublicAddress,
    /// Proxies whose forwarded headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// authz and what it is shown.
    pub authz: (Url, SecretString),
    /// deploy-control and what it is shown.
    pub deploy: (Url, SecretString),
    /// The router's internal listener and what it is shown.
    pub router: (Url, SecretString),
}

impl Config {
    /// Reads the settings.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn from_env(env: &Env) -> Result<Self, Error> {
        Ok(Self {
            listen: env.parse("PORTAL_LISTEN")?,
            internal_listen: env.parse("PORTAL_INTERNAL_LISTEN")?,
            public: env.public_address()?,
            trusted_proxies: env
                .list::<TrustedProxy>("BEAVER_TRUSTED_PROXIES")?
                .into_iter()
                .map(|TrustedProxy(net)| net)
                .collect(),
            authz: (env.url("BEAVER_AUTHZ_URL")?, env.secret("BEAVER_AUTHZ_INTERNAL_TOKEN")?),
            deploy: (env.url("BEAVER_DEPLOY_URL")?, env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?),
            router: (env.url("BEAVER_ROUTER_INTERNAL_URL")?, env.secret("BEAVER_ROUTER_INTERNAL_TOKEN")?),
        })
    }
}
