//! The proxy's HTTP/1.1: CONNECT (RFC 9110, section 9.3.6) and requests in absolute-form, streamed.

use std::{convert::Infallible, sync::Arc};

use contracts::{InstanceId, ProblemDetails};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::io::{InspectReader, InspectWriter};

use super::{
    dial::{DialError, Dialer},
    rules::Reason,
    target::{Target, TargetError},
    tenant::Tenant,
};
use crate::{
    activity::{Activity, Watched},
    body::{Body, Passing, full},
    doors::listen::Place,
    drain::Drain,
    edge::headers,
};

const MAX_HEAD_BYTES: usize = 64 << 10;

/// The proxy of every instance; which one speaks is known by the socket it speaks on.
#[derive(Clone)]
pub struct Egress {
    dialer: Dialer,
}

/// A refusal of the proxy's own.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Egress {
    /// A proxy that connects with this dialer.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer }
    }

    /// Answers one request of an instance.
    pub async fn handle(
        self,
        tenant: Arc<Tenant>,
        drain: Drain,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let id = tenant.id;
        let tunnel = request.method() == Method::CONNECT;
        let answered =
            if tunnel { self.connect(&tenant, drain, request).await } else { self.forward(&tenant, request).await };
        Ok(answered.unwrap_or_else(|refusal| {
            metrics::counter!("router_egress_refused_total", "instance" => id.to_string(), "code" => refusal.code)
                .increment(1);
            tracing::info!(instance = %id, code = refusal.code, detail = refusal.detail, "not let out");
            refusal.into_response()
        }))
    }

    async fn connect(
        &self,
        tenant: &Tenant,
        drain: Drain,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let target = target(request.uri(), None)?;
        let stream = self.dial(tenant, &target).await?;
        let id = tenant.id;
        let upgrade = hyper::upgrade::on(&mut request);
        let place = request.extensions_mut().remove::<Place>();
        let tracker = drain.tracker.clone();
        tracker.spawn(async move {
            let _place = place;
            let activity = Activity::new();
            let mut outside = Watched::new(counted(id, stream), Arc::clone(&activity));
            let tunnel = async {
                let inside = upgrade.await?;
                tokio::io::copy_bidirectional(&mut TokioIo::new(inside), &mut outside).await?;
                anyhow::Ok(())
            };
            tokio::select! {
                () = drain.cut.cancelled() => {}
                // Clients keep tunnels open for their next request: at the end of the router nobody waits for those.
                () = async { drain.stop.cancelled().await; activity.settled().await } => {}
                ended = tunnel => if let Err(error) = ended {
                    tracing::debug!(instance = %id, cause = format!("{error:#}"), "a tunnel ended");
                }
            }
        });
        Ok(Response::new(crate::body::empty()))
    }

    async fn forward(&self, tenant: &Tenant, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        if request.uri().scheme_str() != Some("http") {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "egress_bad_request",
                "This proxy takes CONNECT, and requests in absolute-form for http.",
            ));
        }
        let target = target(request.uri(), Some(80))?;
        let authority = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let stream = self.dial(tenant, &target).await?;
        let id = tenant.id;
        let (mut parts, body) = request.into_parts();
        parts.extensions.clear();
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::remove_ours(&mut parts.headers);
        parts.headers.remove(header::EXPECT);
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        let host = HeaderValue::from_str(&authority).map_err(|_| Refusal::bad_target())?;
        parts.headers.insert(header::HOST, host);
        let broken = |error: hyper::Error| {
            tracing::debug!(instance = %id, %error, "no answer from outside");
            Refusal::new(StatusCode::BAD_GATEWAY, "egress_unreachable", format!("{target} gave no usable answer."))
        };
        let (mut sender, connection) = http1::Builder::new()
            .max_header_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(counted(id, stream)))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::from_parts(parts, Passing::new(body, || ()).boxed_unsync());
        let response = sender.send_request(request).await.map_err(broken)?;
        let mut response = response.map(|body| Passing::new(body, || ()).boxed_unsync());
        headers::clean_response(response.headers_mut());
        Ok(response)
    }

    async fn dial(&self, tenant: &Tenant, target: &Target) -> Result<TcpStream, Refusal> {
        self.dialer.dial(tenant, target).await.map_err(|error| {
            let (status, code, detail) = match &error {
                DialError::Refused(reason) => {
                    let host = target.host.to_string();
                    metrics::counter!("router_egress_rules_total", "reason" => reason.code()).increment(1);
                    return Refusal::new(StatusCode::FORBIDDEN, "egress_refused", reason.sentence(&host));
                }
                DialError::Unresolvable(_) => {
                    (StatusCode::BAD_GATEWAY, "egress_unresolvable", format!("{} has no address.", target.host))
                }
                DialError::Unreachable(_) => {
                    (StatusCode::BAD_GATEWAY, "egress_unreachable", format!("{target} cannot be connected to."))
                }
                DialError::Timeout => {
                    (StatusCode::GATEWAY_TIMEOUT, "egress_timeout", format!("{target} did not answer in time."))
                }
            };
            tracing::debug!(cause = format!("{:#}", anyhow::Error::from(error)), "no connection to the outside");
            Refusal::new(status, code, detail)
        })
    }
}

fn target(uri: &Uri, default_port: Option<u16>) -> Result<Target, Refusal> {
    let authority = uri.authority().ok_or_else(Refusal::bad_target)?;
    Target::parse(authority, default_port).map_err(|error| match error {
        TargetError::Number => {
            Refusal::new(StatusCode::FORBIDDEN, "egress_refused", Reason::Number.sentence(authority.host()))
        }
        TargetError::Host | TargetError::Port => Refusal::bad_target(),
    })
}

/// Counts what an instance sends and receives.
fn counted(id: InstanceId, stream: TcpStream) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let bytes = |direction: &'static str| metrics::counter!("router_egress_bytes_total", "instance" => id.to_string(), "direction" => direction);
    let (sent, received) = (bytes("out"), bytes("in"));
    InspectReader::new(InspectWriter::new(stream, move |b| sent.increment(b.len() as u64)), move |b| {
        received.increment(b.len() as u64)
    })
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    fn bad_target() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "egress_bad_request", "The target is not a host and a port.")
    }

    fn into_response(self) -> Response<Body> {
        problem(self.status, self.code, self.detail)
    }
}

/// Problem details, as every door answers its refusals.
pub fn problem(status: StatusCode, code: &str, detail: String) -> Response<Body> {
    let details = ProblemDetails {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or("Error").into(),
        status: status.as_u16(),
        code: code.into(),
        detail,
        field: None,
        request_id: None,
    };
    let mut response = Response::new(full(serde_json::to_vec(&details).unwrap_or_default()));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static(contracts::problem::MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}
