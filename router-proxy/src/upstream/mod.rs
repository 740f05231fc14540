//! The way to an instance: HTTP/1 over `run/<id>/in/http.sock`, with a few connections kept open for each.
//!
//! The instance owns that folder and may put anything there: the path is opened without following a link, and what does
//! not answer is an error that says so. This is the one place that speaks HTTP/1 to instances.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use beneath::Root;
use contracts::InstanceId;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::{body::Body as _, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::Instant};

use crate::body::{Body, Passing, empty};

/// Connections to one instance that are kept while nothing is under way.
const MAX_IDLE: usize = 8;
/// How long they are kept.
const IDLE: Duration = Duration::from_secs(30);
/// How long a full queue of connections is waited for.
const BUSY: Duration = Duration::from_secs(1);
/// How long an instance may take to begin an answer: what the OpenAI SDKs wait for a model.
const FIRST_BYTE: Duration = Duration::from_secs(600);
const MAX_HEAD_BYTES: usize = 64 << 10;

type Sender = http1::SendRequest<Body>;

/// Why an instance gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens, or what is there is no socket.
    #[error("the instance cannot be connected to")]
    Unreachable(#[source] beneath::Error),
    /// It does not speak HTTP, or hung up before it answered.
    #[error("the instance gave no usable answer")]
    Broken(#[source] hyper::Error),
    /// The request's body broke off, or could not be read.
    #[error("the request's body came to no good end")]
    Body(#[source] hyper::Error),
    /// It did not begin an answer in time.
    #[error("the instance did not answer in {} s", FIRST_BYTE.as_secs())]
    Timeout,
}

impl From<hyper::Error> for UpstreamError {
    fn from(error: hyper::Error) -> Self {
        // hyper calls it the user's error when the body it was given fails: here that is the client.
        if error.is_user() { Self::Body(error) } else { Self::Broken(error) }
    }
}

/// The connections to every instance.
#[derive(Clone)]
pub struct Upstream {
    run_dir: PathBuf,
    idle: Arc<Mutex<HashMap<InstanceId, Vec<Idle>>>>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

impl Upstream {
    /// Instances whose folders are in `run_dir`.
    pub fn new(run_dir: PathBuf) -> Self {
        Self { run_dir, idle: Arc::default() }
    }

    /// Sends a request, whose URI is in origin-form, and gives the answer as soon as its head is there.
    ///
    /// A kept connection that turns out to be dead is replaced once: when nothing of the request had gone out, or when
    /// it has no body and is of a method that may be repeated (RFC 9110, section 9.2.2).
    ///
    /// # Errors
    /// Each [`UpstreamError`].
    pub async fn send(&self, id: InstanceId, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        match tokio::time::timeout(FIRST_BYTE, self.send_untimed(id, request)).await {
            Ok(sent) => sent,
            Err(_) => Err(UpstreamError::Timeout),
        }
    }

    async fn send_untimed(&self, id: InstanceId, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        // What will be a tunnel needs a connection that nobody waits to get back.
        let upgrade = request.headers().contains_key(header::UPGRADE);
        let kept = if upgrade { None } else { self.take(id) };
        let request = match kept {
            None => request,
            Some(mut sender) => {
                let spare = (request.method().is_idempotent() && request.body().is_end_stream())
                    .then(|| copy_without_body(&request));
                match sender.try_send_request(request).await {
                    Ok(response) => return Ok(self.give_back(id, sender, response)),
                    Err(mut error) => match (error.take_message(), spare) {
                        (Some(request), _) | (None, Some(request)) => {
                            metrics::counter!("router_upstream_retries_total").increment(1);
                            request
                        }
                        (None, None) => return Err(error.into_error().into()),
                    },
                }
            }
        };
        let mut sender = self.open(id).await?;
        let response = sender.send_request(request).await?;
        Ok(if upgrade {
            response.map(|body| Passing::new(body, || ()).boxed_unsync())
        } else {
            self.give_back(id, sender, response)
        })
    }

    /// Whether the instance can be connected to at present.
    pub async fn is_reachable(&self, id: InstanceId) -> bool {
        self.connect(id).await.is_ok()
    }

    /// Closes what is kept for all others: they are gone.
    pub fn keep_only(&self, there: &HashSet<InstanceId>) {
        self.idle().retain(|id, _| there.contains(id));
    }

    /// Closes what was idle for too long; to be called every few seconds.
    pub fn sweep(&self) {
        self.idle().retain(|_, kept| {
            kept.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE);
            !kept.is_empty()
        });
    }

    fn take(&self, id: InstanceId) -> Option<Sender> {
        let mut idle = self.idle();
        let kept = idle.get_mut(&id)?;
        // The last one put back is the likeliest to be alive.
        while let Some(Idle { sender, since }) = kept.pop() {
            if sender.is_ready() && since.elapsed() < IDLE {
                return Some(sender);
            }
        }
        None
    }

    fn give_back(
        &self,
        id: InstanceId,
        mut sender: Sender,
        response: Response<hyper::body::Incoming>,
    ) -> Response<Body> {
        let this = self.clone();
        let on_end = move || {
            if sender.is_ready() {
                this.keep(id, sender);
            } else if !sender.is_closed() {
                // The last bytes have been read, but the connection's task has not come round to noticing.
                tokio::spawn(async move {
                    if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(1), sender.ready()).await {
                        this.keep(id, sender);
                    }
                });
            }
        };
        response.map(|body| Passing::new(body, on_end).boxed_unsync())
    }

    fn keep(&self, id: InstanceId, sender: Sender) {
        let mut idle = self.idle();
        let kept = idle.entry(id).or_default();
        if kept.len() < MAX_IDLE {
            kept.push(Idle { sender, since: Instant::now() });
        }
    }

    async fn open(&self, id: InstanceId) -> Result<Sender, UpstreamError> {
        let stream = self.connect(id).await.map_err(UpstreamError::Unreachable)?;
        let (sender, connection) = http1::Builder::new()
            .max_header_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Broken)?;
        tokio::spawn(async move {
            // What goes wrong here is told to whoever waits for the answer.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an instance ended");
            }
        });
        Ok(sender)
    }

    async fn connect(&self, id: InstanceId) -> Result<UnixStream, beneath::Error> {
        let give_up = Instant::now() + BUSY;
        loop {
            let connected =
                Root::open(&self.run_dir).and_then(|root| root.dir(id.to_string())?.connect("in/http.sock"));
            match connected {
                Err(beneath::Error::Busy { .. }) if Instant::now() < give_up => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<InstanceId, Vec<Idle>>> {
        // Nothing panics under the lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy_without_body(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

#[cfg(test)]
mod tests;
