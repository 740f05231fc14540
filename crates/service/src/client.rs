//! Calls to the other services: their token, the request id, and their refusals as values.

use std::time::Duration;

use contracts::ProblemDetails;
use http::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use crate::{Problem, telemetry};

/// How long a call may take unless it is a stream.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The longest answer that is read, in bytes: some answers come from a tenant's own program, which may never end one.
const ANSWER_LIMIT: usize = 4 << 20;
/// The longest refusal that is read, in bytes.
const REFUSAL_LIMIT: usize = 16 << 10;
/// The longest code of a refusal, and the longest name of a field, in bytes.
const NAME_LIMIT: usize = 64;
/// As much of a refusal's sentence as is taken over, in characters.
const DETAIL_LIMIT: usize = 500;

/// Why a call did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The other service refused, and says why.
    #[error("{service} refused with {} {}", .problem.status, .problem.code)]
    Refused {
        /// The service called.
        service: &'static str,
        /// Its refusal.
        problem: Box<ProblemDetails>,
        /// Its Retry-After, in seconds.
        retry_after_s: Option<u64>,
    },
    /// It could not be reached, or did not answer in time.
    #[error("{service} cannot be reached")]
    Unreachable {
        /// The service called.
        service: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It answered something that is no answer to this call, nor a refusal as ours are.
    #[error("{service} answered {status} with something unexpected")]
    Unexpected {
        /// The service called.
        service: &'static str,
        /// Its status.
        status: u16,
    },
}

impl CallError {
    /// The refusal's code, when it is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => Some(&problem.code),
            _ => None,
        }
    }

    /// The refusal's status, when it is one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { problem, .. } => Some(problem.status),
            _ => None,
        }
    }
}

impl From<CallError> for Problem {
    /// A refusal below 500 is passed on; everything else is 503: the other service is away, nothing was done here.
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { problem, retry_after_s, .. } if problem.status < 500 && problem.status != 401 => {
                let passed_on = Problem::from(*problem);
                match retry_after_s {
                    Some(seconds) => passed_on.retry_after(seconds),
                    None => passed_on,
                }
            }
            other => Problem::unavailable(other),
        }
    }
}

/// A client of one service.
#[derive(Clone)]
pub struct ServiceClient {
    service: &'static str,
    base: Url,
    token: SecretString,
    http: reqwest::Client,
}

impl ServiceClient {
    /// A client of the service at `base`, showing `token`.
    pub fn new(service: &'static str, base: Url, token: SecretString) -> Self {
        let http = reqwest::Client::builder()
            // Internal calls go straight, whatever HTTP_PROXY says, and nobody redirects them.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("a client without TLS always builds");
        Self { service, base, token, http }
    }

    /// A request to `path` (which begins with `/`) with token and request id, and no time limit.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let request = self.http.request(method, url).bearer_auth(self.token.expose_secret());
        match telemetry::request_id() {
            Some(id) => request.header(contracts::REQUEST_ID, id),
            None => request,
        }
    }

    /// `GET path`, answered with JSON.
    ///
    /// # Errors
    /// Each [`CallError`].
    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, CallError> {
        self.json(self.request(Method::GET, path).timeout(TIMEOUT)).await
    }

    /// `POST path` with JSON, answered with JSON.
    ///
    /// # Errors
    /// Each [`CallError`].
    pub async fn post<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<R, CallError> {
        self.json(self.request(Method::POST, path).timeout(TIMEOUT).json(body)).await
    }

    /// Sends a prepared request; the answer's JSON. An empty body reads as `null`, so `()` fits 204.
    ///
    /// # Errors
    /// Each [`CallError`].
    pub async fn json<R: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<R, CallError> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let body = self.read(response, ANSWER_LIMIT).await?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|_| CallError::Unexpected { service: self.service, status })
    }

    /// Sends a prepared request with a body in pieces as they come; the answer's JSON. When a piece is an error, the body breaks
    /// off.
    ///
    /// # Errors
    /// Each [`CallError`].
    pub async fn json_of_stream<R, S, E>(&self, request: reqwest::RequestBuilder, body: S) -> Result<R, CallError>
    where
        R: DeserializeOwned,
        S: futures_util::Stream<Item = Result<axum::body::Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        self.json(request.body(reqwest::Body::wrap_stream(body))).await
    }

    /// Sends a prepared request; the successful response, its body not yet read.
    ///
    /// # Errors
    /// Each [`CallError`].
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, CallError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after_s =
            response.headers().get(http::header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let body = self.read(response, REFUSAL_LIMIT).await?;
        match refusal(&body, status.as_u16()) {
            Some(problem) => Err(CallError::Refused { service: self.service, problem, retry_after_s }),
            None => Err(CallError::Unexpected { service: self.service, status: status.as_u16() }),
        }
    }

    async fn read(&self, mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, CallError> {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|source| self.unreachable(source))? {
            if body.len() + piece.len() > limit {
                return Err(CallError::Unexpected { service: self.service, status });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn unreachable(&self, source: reqwest::Error) -> CallError {
        CallError::Unreachable { service: self.service, source: source.without_url() }
    }
}

/// The refusal in a body, when it is one as ours are. A tenant's own program may have written it, and what is in it comes
/// into logs and databases: so it says no more than ours do.
fn refusal(body: &[u8], status: u16) -> Option<Box<ProblemDetails>> {
    let mut problem: ProblemDetails = serde_json::from_slice(body).ok()?;
    if !is_name(&problem.code) {
        return None;
    }
    problem.status = status;
    problem.field = problem.field.filter(|field| is_name(field));
    problem.detail = problem.detail.chars().filter(|c| !c.is_control()).take(DETAIL_LIMIT).collect();
    problem.request_id = problem.request_id.filter(|id| telemetry::acceptable_request_id(id));
    problem.kind = "about:blank".into();
    problem.title = http::StatusCode::from_u16(status).ok()?.canonical_reason().unwrap_or("Error").into();
    Some(Box::new(problem))
}

fn is_name(text: &str) -> bool {
    (1..=NAME_LIMIT).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{Router, body::Body, routing::get};

    use super::*;

    #[tokio::test]
    async fn an_answer_that_never_ends_is_given_up() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let endless = move || {
            let counted = Arc::clone(&counted);
            let pieces = futures_util::stream::repeat_with(move || {
                counted.fetch_add(1 << 16, Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(vec![b' '; 1 << 16])
            });
            async move { Body::from_stream(pieces) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let router = Router::new().route("/endless", get(endless)).route("/short", get(async || axum::Json(7)));
        let server = tokio::spawn(async { axum::serve(listener, router).await });

        let client = ServiceClient::new("fake", base, SecretString::from("x"));
        assert!(matches!(client.get::<u8>("/endless").await, Err(CallError::Unexpected { .. })));
        // What the sockets hold comes on top of the limit.
        assert!(sent.load(Ordering::Relaxed) < 16 * ANSWER_LIMIT);
        assert_eq!(client.get::<u8>("/short").await.unwrap(), 7);
        server.abort();
    }

    #[test]
    fn a_refusal_says_no_more_than_ours_do() {
        let body = |code: &str, detail: &str, field: &str| {
            let problem = serde_json::json!({
                "title": detail, "status": 200, "code": code, "detail": detail, "field": field, "request_id": detail,
            });
            serde_json::to_vec(&problem).unwrap()
        };
        let ours = refusal(&body("instance_not_found", "There is none.", "slug"), 404).unwrap();
        assert_eq!((ours.status, &*ours.code, &*ours.detail), (404, "instance_not_found", "There is none."));
        assert_eq!(ours.field.as_deref(), Some("slug"));
        for code in ["", &"a".repeat(65), "two words", "line\nbreak", "Upper", "käse", "a-b"] {
            assert!(refusal(&body(code, "", "slug"), 404).is_none(), "{code:?}");
        }
        let long = refusal(&body(&"a".repeat(64), &"ü\n\u{1b}[2J".repeat(1000), &"f".repeat(65)), 599).unwrap();
        assert_eq!(
            (long.detail.chars().count(), long.field, long.request_id, &*long.title),
            (500, None, None, "Error")
        );
        assert!(!long.detail.contains(['\n', '\u{1b}']));
    }

    #[tokio::test]
    async fn of_a_refusal_that_is_too_long_nothing_is_kept() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let long =
            serde_json::json!({ "title": "", "status": 404, "code": "not_found", "detail": "x".repeat(1 << 20) });
        let answer = move || std::future::ready((http::StatusCode::NOT_FOUND, axum::Json(long.clone())));
        let server = tokio::spawn(async { axum::serve(listener, Router::new().route("/", get(answer))).await });
        let client = ServiceClient::new("fake", base, SecretString::from("x"));
        let refused = client.get::<u8>("/").await.unwrap_err();
        assert!(matches!(refused, CallError::Unexpected { status: 404, .. }), "{refused:?}");
        server.abort();
    }
}
