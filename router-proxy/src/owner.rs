//! Whether a browser is the owner's: the edge token in its cookie, verified offline.

use std::time::Duration;

use anyhow::Context;
use beneath::Root;
use clock::Clock;
use contracts::routes::Route;
use http::HeaderMap;
use service::Shutdown;
use settings::PublicAddress;
use sign_in::{Verifier, cookies};
use token::{JwksCache, KeySet, Snapshot};
use url::Url;

const FILE: &str = "jwks.json";
const MAX_BYTES: usize = 256 << 10;
/// How often the keys are looked after, so that they are there when authz is not.
const REFRESH: Duration = Duration::from_secs(60);

/// Tells owners from others.
#[derive(Clone)]
pub struct Owners {
    keys: JwksCache,
    verifier: Verifier,
    public: PublicAddress,
}

impl Owners {
    /// With the keys that authz at `authz_url` publishes, and until then those that were kept in `dir`.
    pub fn new(authz_url: &Url, issuer: &str, public: PublicAddress, clock: Clock, dir: &Root) -> Self {
        let url = format!("{}/.well-known/jwks.json", authz_url.as_str().trim_end_matches('/'));
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client without TLS always builds");
        let keys = JwksCache::new(clock, move || fetch(http.clone(), url.clone()));
        match load(dir) {
            Ok(Some(snapshot)) => keys.preload(snapshot),
            Ok(None) => {}
            Err(error) => tracing::warn!(cause = format!("{error:#}"), "the kept keys are not used"),
        }
        let verifier = Verifier::new(keys.clone(), issuer);
        Self { keys, verifier, public }
    }

    /// Whether the request comes from the browser of the route's owner. Without proof it does not.
    pub async fn is_owner(&self, headers: &HeaderMap, route: &Route) -> bool {
        match self.shown(headers) {
            Some(token) => self.is_owners(token, route).await,
            None => false,
        }
    }

    /// What a browser shows to prove itself, whatever it is worth.
    pub fn shown<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        cookies::single(headers, cookies::edge(self.public.workspaces_secure()))
    }

    /// Whether this proves the route's owner.
    pub async fn is_owners(&self, token: &str, route: &Route) -> bool {
        let origin = self.public.workspace_origin(route.slug.as_str());
        self.verifier.edge_until_ms(token, &origin, route.account_id).await.is_some()
    }

    /// Verifies what the portal brings for a workspace.
    pub fn verifier(&self) -> Verifier {
        self.verifier.clone()
    }

    /// Keeps the keys fresh, and on disk, until `stop`.
    pub async fn refresh(self, dir: Root, stop: Shutdown) {
        let mut written: Option<Snapshot> = None;
        loop {
            self.verifier.refresh().await;
            let current = self.keys.current();
            if current.is_some() && current != written {
                let kept = current.as_ref().map(serde_json::to_vec);
                match kept.transpose().map(Option::unwrap_or_default) {
                    Ok(bytes) => match dir.write_atomic(FILE, &bytes, 0o600, None) {
                        Ok(()) => written = current,
                        Err(error) => tracing::warn!(%error, "the keys could not be kept on disk"),
                    },
                    Err(error) => tracing::warn!(%error, "the keys could not be kept on disk"),
                }
            }
            let pause = if written.is_some() { REFRESH } else { REFRESH / 10 };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

async fn fetch(http: reqwest::Client, url: String) -> anyhow::Result<KeySet> {
    let mut response = http.get(url).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= MAX_BYTES, "the key set is too large");
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body)?)
}

fn load(dir: &Root) -> anyhow::Result<Option<Snapshot>> {
    match dir.read(FILE, MAX_BYTES as u64) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("the kept keys are not readable")?)),
        Err(beneath::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
