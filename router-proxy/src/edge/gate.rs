//! Before a program that knows nothing of Beaver: nothing reaches it without its owner's session.
//!
//! Four paths of such a workspace are the router's and never reach the program: [`sign_in::START`], [`sign_in::FINISH`],
//! [`sign_in::SIGN_OUT`] and [`sign_in::SIGNED_OUT`], exactly as written there. SameSite does not part neighbours, so what
//! another origin's page asks passes only when it is a person going somewhere: GET or HEAD, and no WebSocket.

use http::{HeaderMap, HeaderName, Method, StatusCode, request::Parts};
use sign_in::{FINISH, FinishError, Redirect, SIGN_OUT, SIGNED_OUT, START, Session, SignIn, is_same_origin};
use url::form_urlencoded;

use super::websocket;
use crate::pages::{Said, accepts_html};

/// What becomes of a request.
pub enum Verdict {
    /// It is its owner's.
    Pass(Session),
    /// The browser has to go there.
    Redirect(Redirect),
    /// It goes no further.
    Say(Said),
}

/// Answers what is ours, and finds out whose the rest is.
pub async fn judge(sign_in: &SignIn, parts: &Parts) -> Verdict {
    if let Some(verdict) = own(sign_in, parts).await {
        return verdict;
    }
    match sign_in.session(&parts.headers) {
        None if is_navigation(parts) => {
            Verdict::Redirect(sign_in.way_in(parts.uri.path_and_query().map_or("/", |target| target.as_str())))
        }
        None => Verdict::Say(Said::NoSession),
        Some(_) if is_foreign(parts, &sign_in.origin) => Verdict::Say(Said::CrossOrigin),
        Some(session) => Verdict::Pass(session),
    }
}

/// The way in and out.
async fn own(sign_in: &SignIn, parts: &Parts) -> Option<Verdict> {
    let headers = &parts.headers;
    let wanted = match parts.uri.path() {
        START | FINISH | SIGNED_OUT => Method::GET,
        SIGN_OUT => Method::POST,
        _ => return None,
    };
    if parts.method != wanted {
        return Some(Verdict::Say(Said::Refused(StatusCode::METHOD_NOT_ALLOWED)));
    }
    let asked = |name: &str| {
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        form_urlencoded::parse(query).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    Some(match parts.uri.path() {
        START => Verdict::Redirect(sign_in.start(asked("rd").as_deref())),
        FINISH => match sign_in.finish(headers, &asked("code").unwrap_or_default()).await {
            Ok(redirect) => Verdict::Redirect(redirect),
            Err(FinishError::Invalid) => Verdict::Say(Said::CodeInvalid),
            Err(FinishError::Kept(error)) => unkept(&error),
        },
        SIGNED_OUT => Verdict::Say(Said::SignedOut),
        _ if !is_same_origin(headers, &sign_in.origin) => Verdict::Say(Said::CrossOrigin),
        _ => match sign_in.sign_out(headers).await {
            Ok(redirect) => Verdict::Redirect(redirect),
            Err(error) => unkept(&error),
        },
    })
}

fn unkept(error: &anyhow::Error) -> Verdict {
    tracing::error!(cause = format!("{error:#}"), "a sign-in or its end could not be kept");
    Verdict::Say(Said::Unavailable)
}

/// Whether a person goes to a page, rather than a page or a program to what it needs.
fn is_navigation(parts: &Parts) -> bool {
    let mode = mode(&parts.headers);
    reads(&parts.method) && accepts_html(&parts.headers) && (mode.is_none() || mode == Some(b"navigate"))
}

/// Whether a page of another origin asks for more than to be left for this one.
fn is_foreign(parts: &Parts, origin: &str) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    if !reads(&parts.method) || websocket::is_asked(parts) {
        return !is_same_origin(&parts.headers, origin);
    }
    // Browsers that do not say where a request comes from do not say it of what they only read either.
    let from_elsewhere = parts.headers.get_all(SITE).iter().any(|site| site != "same-origin" && site != "none");
    from_elsewhere && mode(&parts.headers) != Some(b"navigate")
}

fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn mode(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get("sec-fetch-mode").map(|mode| mode.as_bytes())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const ORIGIN: &str = "https://alice.apps.example.com";

    fn parts(method: &str, lines: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/x");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_person_goes_somewhere_and_a_page_asks_for_something() {
        const HTML: (&str, &str) = ("accept", "text/html,*/*;q=0.8");
        for (method, lines, is) in [
            ("GET", &[HTML][..], true),
            ("HEAD", &[HTML, ("sec-fetch-mode", "navigate")], true),
            ("GET", &[HTML, ("sec-fetch-mode", "cors")], false),
            ("GET", &[("accept", "*/*"), ("sec-fetch-mode", "navigate")], false),
            ("GET", &[], false),
            ("POST", &[HTML, ("sec-fetch-mode", "navigate")], false),
        ] {
            assert_eq!(is_navigation(&parts(method, lines)), is, "{method} {lines:?}");
        }
    }

    #[test]
    fn another_origins_page_may_only_be_left_for_this_one() {
        const WEBSOCKET: [(&str, &str); 2] = [("connection", "upgrade"), ("upgrade", "websocket")];
        for (method, lines, foreign) in [
            ("GET", vec![], false),
            ("GET", vec![("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")], false),
            ("GET", vec![("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], false),
            ("GET", vec![("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], false),
            ("GET", vec![("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], true),
            ("GET", vec![("sec-fetch-site", "cross-site")], true),
            ("GET", vec![("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-site")], true),
            ("POST", vec![], true),
            ("POST", vec![("origin", ORIGIN)], false),
            ("POST", vec![("origin", "https://bob.apps.example.com")], true),
            ("POST", vec![("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], true),
            ("DELETE", vec![("sec-fetch-site", "same-origin")], false),
            ("OPTIONS", vec![], true),
            ("GET", WEBSOCKET.to_vec(), true),
            ("GET", [&WEBSOCKET[..], &[("origin", ORIGIN)]].concat(), false),
            ("GET", [&WEBSOCKET[..], &[("origin", "https://bob.apps.example.com")]].concat(), true),
            (
                "GET",
                [&WEBSOCKET[..], &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")]].concat(),
                true,
            ),
        ] {
            assert_eq!(is_foreign(&parts(method, &lines), ORIGIN), foreign, "{method} {lines:?}");
        }
    }
}
