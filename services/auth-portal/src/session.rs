//! Who is asking: the session behind the cookie, looked up at authz once a request.

use std::net::IpAddr;

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Redirect, Response},
};
use contracts::{
    InstanceId, Slug,
    authz::{Browser, Role, Session, SessionToken, SignedIn},
};
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use locale::Locale;
use secrecy::{ExposeSecret, SecretString};
use service::{CallError, Problem};
use sign_in::cookies;

use crate::{Portal, address::Client, next::Next, page::Layout};

/// How long a device is known after a sign-in, in seconds: as authz remembers it.
const DEVICE_LIFE_S: i64 = 90 * 24 * 60 * 60;

/// One request of one browser.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The language it wants.
    pub locale: Locale,
    /// The page it asked for, path and query; the start page when it asked for no page.
    pub here: String,
    /// Its address.
    pub client: IpAddr,
    /// What it calls itself, empty when it does not.
    pub user_agent: String,
    /// The device cookie's value, when there is exactly one.
    pub device: Option<SecretString>,
    /// The cookie's value, when there is exactly one.
    pub token: Option<SecretString>,
    /// The session, when the cookie leads to one.
    pub session: Option<Session>,
}

/// A person with a session and an instance.
#[derive(Debug, Clone)]
pub struct Person {
    /// Their session.
    pub session: Session,
    /// Its token.
    pub token: SecretString,
    /// Their instance's name.
    pub slug: Slug,
    /// Their instance.
    pub instance_id: InstanceId,
}

impl Visit {
    /// What every page of this visit is dressed in.
    pub fn layout(&self) -> Layout {
        Layout::new(self.locale, self.here.clone(), self.session.as_ref())
    }

    /// The same for a page whose address is `here`, whatever was asked for: one that answers a form.
    pub fn layout_at(&self, here: impl Into<String>) -> Layout {
        Layout::new(self.locale, here.into(), self.session.as_ref())
    }

    /// The person; or the way to the sign-in page, which goes on to `next`; or, for operators, to their console.
    pub fn person(&self, next: Next) -> Result<Person, Box<Response>> {
        let (session, token) = self.signed_in(next)?;
        match (session.slug.clone(), session.instance_id) {
            (Some(slug), Some(instance_id)) => Ok(Person { session, token, slug, instance_id }),
            _ => Err(Box::new(see_other("/operator"))),
        }
    }

    /// Whoever is signed in, with the session's token; or the way to the sign-in page, which goes on to `next`.
    pub fn signed_in(&self, next: Next) -> Result<(Session, SecretString), Box<Response>> {
        match (&self.session, &self.token) {
            (Some(session), Some(token)) => Ok((session.clone(), token.clone())),
            _ => Err(Box::new(see_other(&next.login()))),
        }
    }

    /// The browser, as authz is told of it.
    pub fn browser(&self) -> Browser {
        Browser { address: self.client.to_string(), user_agent: self.user_agent.clone(), device: self.device.clone() }
    }

    /// Whether an operator asks.
    pub fn is_operator(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.role == Role::Operator)
    }
}

impl FromRequestParts<Portal> for Visit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, portal: &Portal) -> Result<Self, Problem> {
        let Ok(locale) = Locale::from_request_parts(parts, portal).await;
        let Ok(Client(client)) = Client::from_request_parts(parts, portal).await;
        let secure = portal.public().portal_secure();
        let token = cookie(&parts.headers, cookie_name(secure)).map(SecretString::from);
        let session = match &token {
            Some(token) => look_up(portal, token).await?,
            None => None,
        };
        Ok(Self {
            locale,
            here: here(parts).to_owned(),
            client,
            user_agent: parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned(),
            device: cookie(&parts.headers, device_cookie(secure)).map(SecretString::from),
            token,
            session,
        })
    }
}

/// Where to come back to after the language was changed: the page that was asked for. What only a form asks for is no page.
pub fn here(parts: &Parts) -> &str {
    match parts.method {
        Method::GET | Method::HEAD => parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        _ => "/",
    }
}

async fn look_up(portal: &Portal, token: &SecretString) -> Result<Option<Session>, Problem> {
    let body = SessionToken { session_token: token.clone() };
    match portal.authz().post::<Session>("/portal/session", &body).await {
        Ok(session) => Ok(Some(session)),
        Err(error) if error.code() == Some("session_ended") => Ok(None),
        Err(error) => Err(away(error)),
    }
}

/// 503: another service is away or refuses what it must not refuse.
pub fn away(error: CallError) -> Problem {
    Problem::unavailable(error)
}

/// 303 to a path of the portal.
pub fn see_other(path: &str) -> Response {
    Redirect::to(path).into_response()
}

fn cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-beaver_session" } else { "beaver_session" }
}

fn device_cookie(secure: bool) -> &'static str {
    if secure { "__Host-beaver_device" } else { "beaver_device" }
}

/// The value of the one cookie of this name. Two of a name mean that somebody else may have set one: then there is none.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // What is not of a token's shape needs no question at authz.
    let shape = |value: &&str| value.len() <= 128 && value.bytes().all(|b| b.is_ascii_graphic());
    cookies::single(headers, name).filter(shape)
}

/// Puts a cookie of the portal on a response: HttpOnly, SameSite=Lax, for the whole portal, until `max_age_s`.
pub fn put_cookie(response: &mut Response, name: &str, value: &str, max_age_s: i64, secure: bool) {
    if let Ok(value) = HeaderValue::try_from(cookies::set(name, value, max_age_s, secure)) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

/// Makes the response begin a session, on a device that is known from then on.
pub fn begin(portal: &Portal, response: &mut Response, signed_in: &SignedIn) {
    let life_s = (signed_in.session.expires_at_ms - portal.clock().now_ms()).max(0) / 1000;
    let secure = portal.public().portal_secure();
    put_cookie(response, cookie_name(secure), signed_in.session_token.expose_secret(), life_s, secure);
    put_cookie(response, device_cookie(secure), signed_in.device_token.expose_secret(), DEVICE_LIFE_S, secure);
}

/// Makes the response end it. The device stays known.
pub fn end(portal: &Portal, response: &mut Response) {
    let secure = portal.public().portal_secure();
    put_cookie(response, cookie_name(secure), "", 0, secure);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cookie_is_a_session_two_are_none() {
        for (lines, found) in [
            (&["beaver_session=abc"][..], Some("abc")),
            (&["a=1; beaver_session=abc; b=2"], Some("abc")),
            (&["beaver_session=abc; beaver_session=abc"], None),
            (&["beaver_session=abc", "beaver_session=def"], None),
            (&["xbeaver_session=abc"], None),
            (&["beaver_session="], None),
            (&["beaver_session=a b"], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, line.parse().unwrap());
            }
            assert_eq!(cookie(&headers, "beaver_session"), found, "{lines:?}");
        }
    }
}
