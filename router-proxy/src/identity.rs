//! `out/identity.sock`: authz's `/oauth/*` and `/.well-known/*`, and nothing else of it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use url::Url;

use crate::{
    body::{Body, full},
    egress::problem,
};

/// The largest request and the largest answer, in bytes; both are small documents.
const MAX_REQUEST: usize = 64 << 10;
const MAX_ANSWER: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(15);

/// What of a request's header authz is told. Nothing else passes, so nothing can be forged by it.
const REQUEST_HEADERS: [HeaderName; 3] = [header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION];
/// What of an answer's header the instance is told.
const ANSWER_HEADERS: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::CACHE_CONTROL, header::PRAGMA, header::WWW_AUTHENTICATE, header::RETRY_AFTER];

/// The way to authz for instances.
#[derive(Clone)]
pub struct Identity {
    base: Arc<str>,
    http: reqwest::Client,
}

impl Identity {
    /// The way to the authz at this address.
    pub fn new(authz: &Url) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("a client without TLS always builds");
        Self { base: authz.as_str().trim_end_matches('/').into(), http }
    }

    /// Answers one request of an instance.
    pub async fn handle(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        if !is_open(request.uri().path()) {
            return Ok(problem(StatusCode::NOT_FOUND, "not_found", "There is nothing here.".into()));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE) {
            return Ok(problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Not this method.".into()));
        }
        Ok(self.pass(request).await.unwrap_or_else(|error| {
            tracing::warn!(cause = format!("{error:#}"), "authz gave no answer for an instance");
            let detail = "The identity service cannot be reached. Try again shortly.";
            let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail.into());
            response.headers_mut().insert(header::RETRY_AFTER, 5.into());
            response
        }))
    }

    async fn pass(&self, request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let body = match tokio::time::timeout(TIMEOUT, Limited::new(body, MAX_REQUEST).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => {
                let detail = "The body is too large, or did not come.".to_owned();
                return Ok(problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
            }
        };
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let mut out = self.http.request(parts.method, format!("{}{path}", self.base)).body(body);
        out = out.header(contracts::REQUEST_ID, service::telemetry::new_request_id());
        for name in REQUEST_HEADERS {
            for value in parts.headers.get_all(&name) {
                out = out.header(&name, value);
            }
        }
        let mut answer = out.send().await?;
        let mut kept = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            anyhow::ensure!(kept.len() + chunk.len() <= MAX_ANSWER, "authz answered with too much");
            kept.extend_from_slice(&chunk);
        }
        let mut response = Response::new(full(kept));
        *response.status_mut() = answer.status();
        for name in ANSWER_HEADERS {
            for value in answer.headers().get_all(&name) {
                response.headers_mut().append(&name, value.clone());
            }
        }
        Ok(response)
    }
}

/// Whether a path is one of those that are open: written plainly, since authz's own paths are, so that there is nothing
/// in it that authz could read otherwise.
fn is_open(path: &str) -> bool {
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b));
    let mut segments = path.split('/').skip(1);
    plain
        && matches!(segments.next(), Some("oauth" | ".well-known"))
        && segments.clone().next().is_some()
        && segments.all(|s| !s.is_empty() && s != "." && s != "..")
}

#[cfg(test)]
mod tests {
    use super::is_open;

    #[test]
    fn only_what_is_written_plainly() {
        for path in ["/oauth/token", "/oauth/register", "/oauth/register/abc", "/.well-known/jwks.json"] {
            assert!(is_open(path), "{path}");
        }
        for path in [
            "/",
            "/oauth",
            "/oauth/",
            "/portal/login",
            "/backends/register",
            "/metrics",
            "/oauth/../portal/login",
            "/oauth/./token",
            "/oauth//token",
            "//oauth/token",
            "/oauth/%2e%2e/portal/login",
            "/oauth/%74oken",
            "/oauth\\..\\portal",
            "/oauth/token;x",
            "/OAuth/token",
            "/oauthx/token",
        ] {
            assert!(!is_open(path), "{path}");
        }
    }
}
