//! The proxy's refusals, in words that reach a person: as problem details, in the status line's reason, which is all that
//! most HTTP clients show of a refused CONNECT, and as `Proxy-Status` (RFC 9209) for programs.

use contracts::{ProblemDetails, egress::RefusalReason};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;

use super::{
    chain::ChainError,
    dial::DialError,
    rules::Reason,
    target::{Target, TargetError},
};
use crate::body::{Body, full};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// A refusal of the proxy's own.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    /// The problem's code.
    pub code: &'static str,
    /// Which of the rules it was, when it was one.
    pub rule: Option<RefusalReason>,
    /// RFC 9209, section 2.3.
    error: &'static str,
    /// A few words, for the status line.
    brief: String,
    /// A sentence.
    pub detail: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, error: &'static str, brief: &str, detail: String) -> Self {
        Self { status, code, rule: None, error, brief: brief.to_owned(), detail }
    }

    /// What was asked for is not what this proxy does.
    pub fn bad_request(detail: &str) -> Self {
        let (code, error) = ("egress_bad_request", "http_request_denied");
        Self::new(StatusCode::BAD_REQUEST, code, error, "Bad Request", detail.to_owned())
    }

    /// What was asked for is no place.
    pub fn bad_target() -> Self {
        Self::bad_request("The target is not a host and a port.")
    }

    /// The rules, or the kind of address it leads to.
    pub fn by_rule(reason: Reason, host: &str) -> Self {
        let detail = reason.sentence(host);
        let brief = format!("Refused: {}", reason.words());
        let status = StatusCode::FORBIDDEN;
        Self { rule: Some(reason.told()), ..Self::new(status, "egress_refused", reason.error(), &brief, detail) }
    }

    /// The instance has as many connections as it may.
    pub fn too_many(limit: usize) -> Self {
        let detail = format!(
            "This workspace has {limit} connections to the outside, which is as many as it may. Close some, or try again later."
        );
        let (code, error) = ("egress_too_many", "connection_limit_reached");
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, error, "Too many connections of this workspace", detail)
    }

    /// Who is there speaks no HTTP, or hung up.
    pub fn no_answer(target: &Target) -> Self {
        let detail = format!("{target} gave no usable answer.");
        let (code, error) = ("egress_unreachable", "http_protocol_error");
        Self::new(StatusCode::BAD_GATEWAY, code, error, "No usable answer", detail)
    }

    /// Nobody answered in time.
    pub fn timeout(target: &Target) -> Self {
        let detail = format!("{target} did not answer in time.");
        let (code, error) = ("egress_timeout", "connection_timeout");
        Self::new(StatusCode::GATEWAY_TIMEOUT, code, error, "No answer in time", detail)
    }

    /// There is no connection.
    pub fn from_dial(error: DialError, target: &Target) -> Self {
        let refusal = match &error {
            DialError::Refused(reason) => return Self::by_rule(*reason, &target.host.to_string()),
            DialError::Unresolvable(_) => {
                let detail = format!("{} has no address.", target.host);
                Self::new(
                    StatusCode::BAD_GATEWAY,
                    "egress_unresolvable",
                    "dns_error",
                    "The name has no address",
                    detail,
                )
            }
            DialError::Unreachable(_) => {
                let detail = format!("{target} cannot be connected to.");
                let (code, kind) = ("egress_unreachable", "destination_unavailable");
                Self::new(StatusCode::BAD_GATEWAY, code, kind, "It cannot be connected to", detail)
            }
            DialError::Chain(ChainError::Refused(status)) => {
                let detail = format!("The proxy of this server's operator did not lead to {target}: {status}.");
                let (code, kind) = ("egress_unreachable", "proxy_internal_response");
                Self::new(StatusCode::BAD_GATEWAY, code, kind, "The operator's proxy did not lead there", detail)
            }
            DialError::Chain(ChainError::Broken(_)) | DialError::NoProxy(_) => {
                let detail = "The proxy of this server's operator does not work at present.".to_owned();
                let (code, kind) = ("egress_unreachable", "destination_unavailable");
                Self::new(StatusCode::BAD_GATEWAY, code, kind, "The operator's proxy does not work", detail)
            }
            DialError::Timeout => Self::timeout(target),
            DialError::NotYet => {
                let detail = "This server has just started and is finding out which addresses are its own. Try again in a minute.";
                let (code, kind) = ("egress_not_yet", "proxy_internal_error");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, kind, "Not yet, try again in a minute", detail.into())
            }
        };
        tracing::debug!(cause = format!("{:#}", anyhow::Error::from(error)), "no connection to the outside");
        refusal
    }

    /// Which of the rules it was, or the code again.
    pub fn reason(&self) -> &'static str {
        self.rule.map_or(self.code, RefusalReason::as_str)
    }

    /// As it is answered.
    pub fn into_response(self) -> Response<Body> {
        let mut response = problem(self.status, self.code, self.detail);
        // Words of our own: no control character is in them.
        if let Ok(reason) = ReasonPhrase::try_from(self.brief.as_bytes()) {
            response.extensions_mut().insert(reason);
        }
        if let Ok(value) = HeaderValue::try_from(format!("beaver; error={}", self.error)) {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        response
    }
}

impl From<(TargetError, &str)> for Refusal {
    fn from((error, host): (TargetError, &str)) -> Self {
        match error {
            TargetError::Number => Self::by_rule(Reason::Number, host),
            TargetError::Host | TargetError::Port => Self::bad_target(),
        }
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
