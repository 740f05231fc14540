//! Who may make the portal change anything: its own pages. SameSite does not do it, for a workspace is the same *site*.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header};
use service::Problem;

use crate::Portal;

/// Refuses with 403 `wrong_origin` what is no GET or HEAD and does not come from one of the portal's own pages.
pub async fn check(State(portal): State<Portal>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads || is_own(request.headers(), &portal.public().portal_origin(), portal.public().portal_secure()) {
        return next.run(request).await;
    }
    refusal().into_response()
}

/// Whether a page of another origin asked, as far as the browser tells.
pub fn is_foreign_fetch(headers: &HeaderMap) -> bool {
    headers.get_all("sec-fetch-site").iter().any(|value| value != "same-origin")
}

/// The refusal of [`check`].
pub fn refusal() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "wrong_origin", "Only the portal's own pages may ask for this.")
}

/// The origin is exactly ours, or the browser itself says that it is the same. The second holds for whatever name the
/// portal was reached by; no page can set that header.
fn is_own(headers: &HeaderMap, own: &str, secure: bool) -> bool {
    let (Some(origin), Some(site)) = (single(headers, "origin"), single(headers, "sec-fetch-site")) else {
        return false;
    };
    if site == Some("same-origin") {
        return true;
    }
    // A browser that says "same-site" or "cross-site" knows better than a list.
    if matches!(site, Some("same-site" | "cross-site")) {
        return false;
    }
    origin.is_some_and(|origin| origin == own || (!secure && is_local_host_origin(headers, origin)))
}

/// On plain http, the same portal under another name of this machine: an address, or localhost. Not any Host: a name of
/// somebody else's could be made to lead here.
fn is_local_host_origin(headers: &HeaderMap, origin: &str) -> bool {
    let Some(Some(host)) = single(headers, header::HOST.as_str()) else { return false };
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |h| h.0);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let local = name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok();
    local && origin.strip_prefix("http://") == Some(host)
}

/// The one value of a header: `None` when there are several, or one that is no text.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Some(None),
        (Some(value), None) => value.to_str().ok().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(secure: bool, lines: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        is_own(&headers, if secure { "https://portal.example.com" } else { "http://localhost:3081" }, secure)
    }

    #[test]
    fn the_origin_table() {
        const OWN: (&str, &str) = ("origin", "http://localhost:3081");
        for (lines, allowed) in [
            (&[][..], false),
            (&[OWN], true),
            (&[OWN, ("sec-fetch-site", "same-origin")], true),
            (&[OWN, ("sec-fetch-site", "none")], true),
            (&[OWN, ("sec-fetch-site", "same-site")], false),
            (&[OWN, ("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("origin", "null")], false),
            (&[("origin", "http://alice.localhost:8088")], false),
            (&[("origin", "http://evil.localhost:3081")], false),
            (&[("origin", "http://localhost:3081.evil.example")], false),
            (&[("origin", "https://localhost:3081")], false),
            (&[("origin", "http://localhost:3082")], false),
            (&[OWN, ("origin", "http://evil.example")], false),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
            (&[("origin", "http://127.0.0.1:3081"), ("host", "127.0.0.1:3081")], true),
            (&[("origin", "http://[::1]:3081"), ("host", "[::1]:3081")], true),
            (&[("origin", "http://127.0.0.1:3081"), ("host", "localhost:3081")], false),
            (&[("origin", "http://127.0.0.1:9"), ("host", "127.0.0.1:3081")], false),
            (&[("origin", "http://evil.example:3081"), ("host", "evil.example:3081")], false),
            (&[("origin", "http://evil.localhost:3081"), ("host", "evil.localhost:3081")], false),
        ] {
            assert_eq!(own(false, lines), allowed, "{lines:?}");
        }
        for (lines, allowed) in [
            (&[("origin", "https://portal.example.com")][..], true),
            (&[("origin", "http://portal.example.com")], false),
            (&[("origin", "https://evil.example.com")], false),
            (&[("origin", "http://127.0.0.1:3081"), ("host", "127.0.0.1:3081")], false),
        ] {
            assert_eq!(own(true, lines), allowed, "https: {lines:?}");
        }
    }
}
