//! What the router itself answers: pages for people, problem details for programs, and OpenAI's shape for `/v1/*`.

mod text;

use askama::Template;
use contracts::ProblemDetails;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{self, HeaderName},
};
use locale::Locale;

use crate::body::{Body, full};

/// Paths that are the router's own on every host.
pub const OWN: &str = "/.well-known/beaver/";

const CSS: &str = include_str!("../../../templates/shared/base.css");
const WAIT_JS: &str = include_str!("../../../templates/router/wait.js");

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// No workspace has this address.
    NoSuchAddress,
    /// There is nothing under this path.
    NotFound,
    /// The request cannot be understood.
    BadRequest,
    /// The request is refused before it was understood, with this status.
    Refused(StatusCode),
    /// To everybody but the owner: not now, whatever the reason.
    Unavailable,
    /// To the owner: it is starting.
    Starting,
    /// To the owner: it was stopped.
    Stopped,
    /// To the owner: it could not be brought up.
    Failed,
    /// To the owner: it should be there, but gives no usable answer.
    Unreachable,
    /// To the owner: it is not there while the engine is out of reach, so nobody knows more until that is back.
    HostRestarting,
    /// To the owner: it did not answer in time.
    Timeout,
    /// Nobody is signed in here, or not any more.
    NoSession,
    /// A code for signing in that is none, or not in this browser.
    CodeInvalid,
    /// Somebody has signed out.
    SignedOut,
    /// Another origin's page asked for something.
    CrossOrigin,
}

impl Said {
    /// The status it is said with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoSuchAddress | Self::NotFound => StatusCode::NOT_FOUND,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Refused(status) => status,
            Self::Unavailable | Self::Starting | Self::Stopped | Self::Failed | Self::HostRestarting => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Unreachable => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NoSession => StatusCode::UNAUTHORIZED,
            Self::CodeInvalid => StatusCode::BAD_REQUEST,
            Self::SignedOut => StatusCode::OK,
            Self::CrossOrigin => StatusCode::FORBIDDEN,
        }
    }

    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::NoSuchAddress => "no_such_address",
            Self::NotFound => "not_found",
            Self::BadRequest => "bad_request",
            Self::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => "header_too_large",
            Self::Refused(StatusCode::URI_TOO_LONG) => "uri_too_long",
            Self::Refused(StatusCode::METHOD_NOT_ALLOWED) => "method_not_allowed",
            Self::Refused(_) => "bad_request",
            Self::Unavailable => "workspace_unavailable",
            Self::Starting => "workspace_starting",
            Self::Stopped => "workspace_stopped",
            Self::Failed => "workspace_failed",
            Self::Unreachable => "workspace_unreachable",
            Self::HostRestarting => "host_restarting",
            Self::Timeout => "workspace_timeout",
            Self::NoSession => "session_ended",
            Self::CodeInvalid => "code_invalid",
            Self::SignedOut => "signed_out",
            Self::CrossOrigin => "cross_origin",
        }
    }

    /// Whether it passes by itself, so that the page goes on by itself.
    fn waits(self) -> bool {
        matches!(self, Self::Starting | Self::Unreachable | Self::HostRestarting)
    }

    /// Seconds after which asking again makes sense. Everything said to strangers about a name that is taken has the
    /// same, so that it tells nothing.
    fn retry_after(self) -> Option<&'static str> {
        match self {
            // A host takes longer than a workspace.
            Self::Unavailable | Self::HostRestarting => Some("10"),
            Self::Starting | Self::Unreachable => Some("3"),
            _ => None,
        }
    }
}

/// In which form an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A page.
    Page(Locale),
    /// Problem details (RFC 9457).
    Problem,
    /// `{"error": …}`, which OpenAI's SDKs read.
    OpenAi,
}

/// Finds the form: pages go to who accepts `text/html`, unless the path is one of an API.
pub fn form(path: &str, headers: &HeaderMap, locale: Locale) -> Form {
    if path == "/v1" || path.starts_with("/v1/") {
        return Form::OpenAi;
    }
    if accepts_html(headers) && !path.starts_with("/api/") { Form::Page(locale) } else { Form::Problem }
}

/// Whether a page is an answer.
pub fn accepts_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .any(|line| line.to_ascii_lowercase().contains("text/html"))
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    lang: &'a str,
    text: text::Text,
    waits: bool,
    portal: &'a str,
    code: &'a str,
    request_id: &'a str,
}

/// The answer, in the form that is wanted.
pub fn answer(said: Said, form: Form, portal: &str, request_id: &str) -> Response<Body> {
    let (body, media_type) = match form {
        Form::Page(locale) => {
            let page = Page {
                lang: locale.html_lang(),
                text: text::of(said, locale),
                waits: said.waits(),
                portal,
                code: said.code(),
                request_id,
            };
            // Writing into a String does not fail, and the template has nothing else that could.
            (page.render().unwrap_or_default(), "text/html; charset=utf-8")
        }
        Form::Problem => (problem(said, request_id), contracts::problem::MEDIA_TYPE),
        Form::OpenAi => (openai(said), "application/json"),
    };
    let mut response = Response::new(full(body));
    *response.status_mut() = said.status();
    let headers = response.headers_mut();
    put(headers, header::CONTENT_TYPE, media_type);
    put(headers, header::CACHE_CONTROL, "no-store");
    put(headers, header::VARY, "accept, accept-language, cookie");
    if let Some(seconds) = said.retry_after() {
        put(headers, header::RETRY_AFTER, seconds);
    }
    secure(headers);
    response
}

fn problem(said: Said, request_id: &str) -> String {
    let status = said.status();
    let details = ProblemDetails {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or("Error").into(),
        status: status.as_u16(),
        code: said.code().into(),
        detail: sentence(said),
        field: None,
        request_id: Some(request_id.into()),
    };
    serde_json::to_string(&details).unwrap_or_default()
}

fn openai(said: Said) -> String {
    let kind = if said.status().is_server_error() { "server_error" } else { "invalid_request_error" };
    serde_json::json!({
        "error": { "message": sentence(said), "type": kind, "param": null, "code": said.code() }
    })
    .to_string()
}

/// What programs, and the people who read their logs, are told.
fn sentence(said: Said) -> String {
    let text = text::of(said, Locale::En);
    format!("{} {}", text.what, text.cure)
}

/// What the router serves under [`OWN`], besides whether a workspace is there; `None` for everything else.
pub fn asset(name: &str) -> Option<Response<Body>> {
    let (text, media_type) = match name {
        "page.css" => (CSS, "text/css; charset=utf-8"),
        "wait.js" => (WAIT_JS, "text/javascript; charset=utf-8"),
        _ => return None,
    };
    let mut response = Response::new(full(text));
    put(response.headers_mut(), header::CONTENT_TYPE, media_type);
    put(response.headers_mut(), header::CACHE_CONTROL, "public, max-age=300");
    secure(response.headers_mut());
    Some(response)
}

/// A small JSON answer that is nobody's to keep.
pub fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    put(response.headers_mut(), header::CONTENT_TYPE, "application/json");
    put(response.headers_mut(), header::CACHE_CONTROL, "no-store");
    secure(response.headers_mut());
    response
}

fn secure(headers: &mut HeaderMap) {
    put(
        headers,
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    );
    put(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(headers, header::REFERRER_POLICY, "no-referrer");
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}
