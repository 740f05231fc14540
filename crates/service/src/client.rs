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
    /// It answered something that is no answer to this call.
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
        let body = self.read(response).await?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|_| CallError::Unexpected { service: self.service, status })
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
        let body = self.read(response).await?;
        match serde_json::from_slice::<ProblemDetails>(&body) {
            Ok(problem) => Err(CallError::Refused { service: self.service, problem: Box::new(problem), retry_after_s }),
            Err(_) => Err(CallError::Unexpected { service: self.service, status: status.as_u16() }),
        }
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, CallError> {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|source| self.unreachable(source))? {
            if body.len() + piece.len() > ANSWER_LIMIT {
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
}
