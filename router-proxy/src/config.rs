//! The router's settings.

use std::{net::SocketAddr, num::NonZeroU16, path::PathBuf};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use settings::{Env, PublicAddress};
use url::Url;

use crate::{
    egress::{Rules, chain::Chain, own, tenant::Limits},
    wakes,
};

/// Everything the router is told at start.
#[derive(Clone)]
pub struct Config {
    /// Where the public edge listens; port 0 takes any.
    pub listen: SocketAddr,
    /// Where the other services reach the router.
    pub internal_listen: SocketAddr,
    /// `BEAVER_DATA_DIR`: `run/` and `router/` are in it.
    pub data_dir: PathBuf,
    /// Where browsers find workspaces and the portal.
    pub public: PublicAddress,
    /// The domains that slugs are put before, lower case: the public one, and the one behind it if it differs.
    pub base_domains: Vec<String>,
    /// Proxies in front whose forwarded headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What callers of the internal listener may show.
    pub internal_tokens: Vec<SecretString>,
    /// deploy-control, where the routes come from.
    pub deploy_url: Url,
    /// What the router shows there.
    pub deploy_token: SecretString,
    /// authz, where identity doors lead and keys come from.
    pub authz_url: Url,
    /// The issuer's name in tokens.
    pub issuer: String,
    /// What instances may reach.
    pub egress: Rules,
    /// Where more rules are, which may change while the router runs.
    pub egress_rules_file: PathBuf,
    /// The operator's own proxy, for public addresses.
    pub egress_chain: Option<Chain>,
    /// What each instance may use.
    pub egress_limits: Limits,
    /// Addresses of this host that it cannot see by itself.
    pub own_addresses: Vec<IpNet>,
    /// Names by which people reach this host.
    pub own_names: Vec<String>,
    /// How requests for an instance that is waking are held.
    pub hold: wakes::Limits,
}

impl Config {
    /// Reads the settings.
    ///
    /// # Errors
    /// The first setting that is missing or unusable.
    pub fn from_env(env: &Env) -> Result<Self, settings::Error> {
        let public = env.public_address()?;
        let mut base_domains = vec![public.base_domain().to_owned()];
        let behind = env.string("BEAVER_BASE_DOMAIN")?.trim_end_matches('.').to_ascii_lowercase();
        if !base_domains.contains(&behind) {
            base_domains.push(behind);
        }
        let mut own_addresses: Vec<IpNet> = networks(env, "BEAVER_HOST_ADDRESSES")?;
        let (own_names, written) = own::of_public(&public, &base_domains);
        own_addresses.extend(written);
        let data_dir = PathBuf::from(env.string("BEAVER_DATA_DIR")?);
        Ok(Self {
            listen: env.parse("ROUTER_LISTEN")?,
            internal_listen: env.parse("ROUTER_INTERNAL_LISTEN")?,
            public,
            base_domains,
            trusted_proxies: networks(env, "BEAVER_TRUSTED_PROXIES")?,
            internal_tokens: env.live_secrets("BEAVER_ROUTER_INTERNAL_TOKEN", &[])?,
            deploy_url: env.url("BEAVER_DEPLOY_URL")?,
            deploy_token: env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?,
            authz_url: env.url("BEAVER_AUTHZ_URL")?,
            issuer: env.string("AUTHZ_ISSUER")?,
            egress: Rules {
                default: env.parse("BEAVER_EGRESS_DEFAULT")?,
                allow: env.list("BEAVER_EGRESS_ALLOW")?,
                deny: env.list("BEAVER_EGRESS_DENY")?,
            },
            egress_rules_file: data_dir.join("router").join(env.string("BEAVER_EGRESS_RULES_FILE")?),
            egress_chain: chain(env)?,
            egress_limits: Limits {
                connections: env.parse::<NonZeroU16>("BEAVER_EGRESS_CONNECTIONS")?.get().into(),
                bytes_per_second: env.parse("BEAVER_EGRESS_BYTES_PER_SECOND")?,
            },
            data_dir,
            own_addresses,
            own_names,
            hold: wakes::Limits::default(),
        })
    }
}

fn chain(env: &Env) -> Result<Option<Chain>, settings::Error> {
    const KEY: &str = "BEAVER_EGRESS_UPSTREAM_PROXY";
    let Some(url) = env.sensitive(KEY)? else { return Ok(None) };
    // The value may hold a password: it is not repeated.
    url.expose_secret().parse().map(Some).map_err(|why: &str| settings::Error::Invalid {
        key: KEY.into(),
        why: why.into(),
        cure: "write it as http://[user:password@]host:port".into(),
    })
}

fn networks(env: &Env, key: &str) -> Result<Vec<IpNet>, settings::Error> {
    Ok(env.list::<Network>(key)?.into_iter().map(|network| network.0.trunc()).collect())
}

/// A CIDR, or an address that stands for itself alone.
struct Network(IpNet);

impl std::str::FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| "neither a CIDR nor an address")
    }
}
