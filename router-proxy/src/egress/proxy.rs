//! The proxy's HTTP/1.1: CONNECT (RFC 9110, section 9.3.6) and requests in absolute-form, streamed.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use contracts::{InstanceId, egress::MAX_TARGET, routes::SignIn};
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use super::{
    dial::{Dialer, Reached},
    refusal::Refusal,
    target::Target,
    tenant::{Connection, Tenant},
    throttle::Throttled,
};
use crate::{
    activity::{Activity, Watched},
    body::{Body, Passing},
    doors::listen::Place,
    drain::Drain,
    edge::headers,
};

const MAX_HEAD_BYTES: usize = 64 << 10;
/// How long the outside may take to begin an answer: what the OpenAI SDKs wait for a model.
const FIRST_BYTE: Duration = Duration::from_secs(600);

/// The proxy of every instance; which one speaks is known by the socket it speaks on.
#[derive(Clone)]
pub struct Egress {
    dialer: Dialer,
}

/// A connection to the outside, and all that is held and watched as long as it lasts.
struct Line {
    outside: Watched<Throttled<super::network::Outside>>,
    activity: Arc<Activity>,
    id: InstanceId,
    target: Target,
    address: IpAddr,
    connection: Connection,
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
        let named = named(request.uri());
        let tunnel = request.method() == Method::CONNECT;
        let answered = if tunnel {
            self.connect(&tenant, drain, request).await
        } else {
            self.forward(&tenant, drain, request).await
        };
        Ok(answered.unwrap_or_else(|refusal| {
            tenant.refused(&named, &refusal);
            tracing::info!(instance = %tenant.id, code = refusal.code, reason = refusal.reason(), detail = refusal.detail, "not let out");
            refusal.into_response()
        }))
    }

    async fn connect(
        self,
        tenant: &Arc<Tenant>,
        drain: Drain,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let target = Target::of(request.uri(), None)?;
        let line = self.line(tenant, target).await?;
        let upgrade = hyper::upgrade::on(&mut request);
        let place = request.extensions_mut().remove::<Place>();
        let tracker = drain.tracker.clone();
        tracker.spawn(async move {
            let Line { mut outside, activity, id, target, address, connection } = line;
            let _held = (place, connection);
            let tunnel = async {
                let inside = upgrade.await?;
                tokio::io::copy_bidirectional(&mut TokioIo::new(inside), &mut outside).await?;
                anyhow::Ok(())
            };
            tokio::select! {
                () = self.overseen(&activity, &target, address, id) => {}
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

    async fn forward(
        self,
        tenant: &Arc<Tenant>,
        drain: Drain,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        if request.uri().scheme_str() != Some("http") {
            return Err(Refusal::bad_request("This proxy takes CONNECT, and requests in absolute-form for http."));
        }
        let target = Target::of(request.uri(), Some(80))?;
        let authority = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let line = self.line(tenant, target.clone()).await?;
        let (mut parts, body) = request.into_parts();
        parts.extensions.clear();
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::remove_ours(&mut parts.headers, SignIn::Instance);
        parts.headers.remove(header::EXPECT);
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        let host = HeaderValue::from_str(&authority).map_err(|_| Refusal::bad_target())?;
        parts.headers.insert(header::HOST, host);
        let id = tenant.id;
        let broken = |error: hyper::Error| {
            tracing::debug!(instance = %id, %error, "no answer from outside");
            Refusal::no_answer(&target)
        };
        let Line { outside, activity, address, connection: held, .. } = line;
        let (mut sender, connection) = http1::Builder::new()
            .max_header_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(outside))
            .await
            .map_err(broken)?;
        let of_task = target.clone();
        tokio::spawn(async move {
            let _held = held;
            tokio::select! {
                () = self.overseen(&activity, &of_task, address, id) => {}
                () = drain.cut.cancelled() => {}
                // What goes wrong here is told to whoever waits for the answer.
                _ = connection => {}
            }
        });
        let request = Request::from_parts(parts, Passing::new(body, || ()).boxed_unsync());
        let answer = tokio::time::timeout(FIRST_BYTE, sender.send_request(request)).await;
        let response = answer.map_err(|_| Refusal::timeout(&target))?.map_err(broken)?;
        let mut response = response.map(|body| Passing::new(body, || ()).boxed_unsync());
        // Whose cookies these are is the instance's own business.
        headers::clean_response(response.headers_mut(), SignIn::Instance, "");
        Ok(response)
    }

    async fn line(&self, tenant: &Arc<Tenant>, target: Target) -> Result<Line, Refusal> {
        let connection = tenant.connection().map_err(Refusal::too_many)?;
        let dialled = self.dialer.dial(tenant, &target).await;
        let Reached { stream, address } = dialled.map_err(|error| Refusal::from_dial(error, &target))?;
        tenant.opened();
        let activity = Activity::new();
        let outside = Watched::new(Throttled::new(stream, Arc::clone(tenant)), Arc::clone(&activity));
        Ok(Line { outside, activity, id: tenant.id, target, address, connection })
    }

    /// Ends when a connection should, whether or not its two sides are done with each other.
    async fn overseen(&self, activity: &Activity, target: &Target, address: IpAddr, id: InstanceId) {
        tokio::select! {
            reason = self.dialer.refused_later(target, address) => {
                tracing::info!(instance = %id, reason = reason.code(), "cut: the rules have changed");
            }
            () = activity.abandoned() => tracing::info!(instance = %id, "cut: nothing has moved for too long"),
        }
    }
}

/// What a request asks for, as far as it is fit to be shown.
fn named(uri: &Uri) -> String {
    let text = uri.authority().map_or("-", |authority| authority.as_str());
    // A user and a password before the host are nobody's business.
    let text = text.rsplit('@').next().unwrap_or_default();
    text.chars().take(MAX_TARGET).collect()
}
