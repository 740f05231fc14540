//! The way to the provider: through `out/egress.sock`, and nowhere else. Redirects are not followed.

mod failure;
pub mod trial;
mod tunnel;
pub mod verdict;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use contracts::provider::{ProviderConfig, ProviderKind};
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use secrecy::ExposeSecret;

pub use failure::{Failure, FailureKind};
pub use tunnel::Roots;

/// How long the provider may take until the head of its answer: a long answer that is not streamed comes all at once.
const HEAD: Duration = Duration::from_secs(300);
/// How long it may be silent in the middle of an answer.
pub const SILENCE: Duration = Duration::from_secs(300);
/// How long an unused connection is kept: less than providers keep theirs, so that none closes under a request.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// How many unused connections are kept.
const POOL_SIZE: usize = 4;

/// A client of providers. Clones share its connections.
#[derive(Clone)]
pub struct Upstream {
    client: Client<tunnel::Connector, Full<Bytes>>,
}

impl Upstream {
    /// Through `egress.sock` in `folder`, trusting `roots` for https.
    ///
    /// # Errors
    /// When the TLS library takes no configuration.
    pub fn new(folder: &Path, roots: Roots) -> anyhow::Result<Self> {
        let connector = tunnel::Connector::new(folder, roots)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .build(connector);
        Ok(Self { client })
    }

    /// Sends a request; the head of the answer, its body not yet read. Dropping the future or the body ends the request
    /// at the provider too.
    ///
    /// # Errors
    /// [`Failure`] when there is no answer; a refusal of the provider is an answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        match tokio::time::timeout(HEAD, self.client.request(request)).await {
            Ok(answer) => answer.map_err(Failure::from_client),
            Err(elapsed) => Err(Failure::new(FailureKind::Timeout, elapsed)),
        }
    }
}

/// The URL of `path` (`/chat/completions`) at this provider.
///
/// # Errors
/// When the two make no URL.
pub fn url(provider: &ProviderConfig, path_and_query: &str) -> Result<http::Uri, http::uri::InvalidUri> {
    format!("{}{path_and_query}", provider.base_url).parse()
}

/// Shows the provider's key as it wants it shown at `path`.
pub fn authorize(provider: &ProviderConfig, path: &str, headers: &mut http::HeaderMap) {
    let key = provider.api_key.expose_secret();
    if key.is_empty() {
        return;
    }
    // Anthropic's OpenAI-compatible endpoint is chat alone; its other endpoints want its own header.
    let own = provider.kind == ProviderKind::Anthropic && path != "/chat/completions";
    let (name, text) = if own {
        (header::HeaderName::from_static("x-api-key"), key.to_owned())
    } else {
        (header::AUTHORIZATION, format!("Bearer {key}"))
    };
    // A checked key fits a header.
    if let Ok(mut value) = HeaderValue::from_str(&text) {
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    if own {
        headers
            .entry(header::HeaderName::from_static("anthropic-version"))
            .or_insert(HeaderValue::from_static("2023-06-01"));
    }
}

/// A chat completion request of our own.
///
/// # Errors
/// When URL and body make no request.
pub fn chat_request(
    provider: &Arc<ProviderConfig>,
    body: &serde_json::Value,
    accept: &'static str,
) -> anyhow::Result<Request<Full<Bytes>>> {
    const PATH: &str = "/chat/completions";
    let mut request = Request::post(url(provider, PATH)?)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, accept)
        .header(header::USER_AGENT, concat!("beaver/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    authorize(provider, PATH, request.headers_mut());
    Ok(request)
}
