//! One workspace's way in, as the portal and as a browser meet it.

use contracts::{
    AccountId, Slug,
    instance::{EndSessions, HandOff, HandOffCode},
};
use http::{HeaderMap, HeaderValue, header};
use service::Problem;
use token::{AssertionClaims, Purpose};
use url::form_urlencoded::Serializer;

use crate::{
    Session, Sessions, Verifier,
    book::{self, ABSOLUTE_MS},
    cookies, fingerprint, rd,
};

/// `GET`: where a browser without a session begins. `rd` says where it was going.
pub const START: &str = "/auth/start";
/// `GET`: where the portal sends it with a `code`.
pub const FINISH: &str = "/auth/finish";
/// `POST`: the end of its session.
pub const SIGN_OUT: &str = "/auth/signout";
/// `GET`: says that the session has ended.
pub const SIGNED_OUT: &str = "/auth/signed-out";

/// The longest edge token that is made a cookie: a browser keeps 4096 bytes, name and attributes included.
const MAX_EDGE_TOKEN: usize = 3500;

/// The way into one workspace.
#[derive(Clone)]
pub struct SignIn {
    /// The workspace's origin: the audience of every assertion about it.
    pub origin: String,
    /// Its name.
    pub slug: Slug,
    /// Its owner: whom every assertion is about.
    pub owner: AccountId,
    /// The portal's origin.
    pub portal: String,
    /// Verifies what the portal brings.
    pub verifier: Verifier,
    /// Who is signed in.
    pub sessions: Sessions,
}

/// A 303 to a path or a URL that has been checked, and what the browser shall keep of it.
#[derive(Debug)]
pub struct Redirect {
    /// Where to.
    pub location: String,
    /// `Set-Cookie` lines.
    pub cookies: Vec<String>,
}

/// Why a code was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Unknown, expired, used, or another browser's.
    #[error("the code is not valid in this browser, or not any more")]
    Invalid,
    /// The session could not be written down.
    #[error("the session could not be kept")]
    Kept(#[from] anyhow::Error),
}

impl SignIn {
    /// Whether the workspace is served over https.
    pub fn secure(&self) -> bool {
        self.origin.starts_with("https://")
    }

    /// As [`Verifier::assertion`], for this workspace.
    ///
    /// # Errors
    /// As there.
    pub async fn verify(&self, purpose: Purpose, assertion: &str) -> Result<AssertionClaims, Problem> {
        self.verifier.assertion(purpose, assertion, &self.origin, self.owner).await
    }

    /// `POST /api/auth/login`: takes an assertion, once, and gives a code for the browser whose bind is in it.
    ///
    /// # Errors
    /// As [`Verifier::assertion`] and [`Sessions::spend`]; 400 without `bind` or `sid`; 401 when that portal session has ended.
    pub async fn login(&self, hand_off: HandOff) -> Result<HandOffCode, Problem> {
        let claims = self.verify(Purpose::Login, &hand_off.assertion).await?;
        let missing = |what| Problem::bad_request(format!("The assertion has no {what}."));
        let bind = claims.extra.bind.clone().filter(|b| !b.is_empty()).ok_or_else(|| missing("bind"))?;
        let sid = claims.extra.sid.clone().filter(|s| !s.is_empty()).ok_or_else(|| missing("sid"))?;
        let hand_off = book::HandOff {
            sid,
            asserted_at_ms: claims.at_ms(),
            bind,
            rd: rd::checked(hand_off.rd.as_deref(), &self.origin).to_owned(),
            edge: self.edge(hand_off.edge_token).await,
        };
        Ok(HandOffCode { code: self.sessions.begin(&claims, hand_off).await? })
    }

    /// `POST /api/auth/logout`: ends the sessions that the assertion is about.
    ///
    /// # Errors
    /// As [`Verifier::assertion`]; 503 when it could not be written down.
    pub async fn logout(&self, EndSessions { assertion }: EndSessions) -> Result<(), Problem> {
        let claims = self.verify(Purpose::Logout, &assertion).await?;
        // Without a sid it is about everything the owner was signed in to here at that moment.
        let ended = match &claims.extra.sid {
            Some(sid) => self.sessions.end_by_sid(sid).await,
            None => self.sessions.end_all(claims.at_ms()).await,
        };
        ended.map_err(Problem::unavailable)
    }

    /// The session that the request's cookie names, when it is valid.
    pub fn session(&self, headers: &HeaderMap) -> Option<Session> {
        self.sessions.find(cookies::single(headers, cookies::session(self.secure()))?)
    }

    /// Binds this browser to the sign-in that begins, and sends it to the portal.
    pub fn start(&self, rd: Option<&str>) -> Redirect {
        let secret = self.sessions.secret();
        let query = Serializer::new(String::new())
            .append_pair("bind", &fingerprint(&secret))
            .append_pair("rd", rd::checked(rd, &self.origin))
            .finish();
        let bind = cookies::set(cookies::bind(self.secure()), &secret, cookies::BIND_S, self.secure());
        Redirect { location: format!("{}/open/{}?{query}", self.portal, self.slug), cookies: vec![bind] }
    }

    /// Exchanges the code for a session, in the browser that began. A code's second use ends what came of the first.
    ///
    /// # Errors
    /// Each [`FinishError`].
    pub async fn finish(&self, headers: &HeaderMap, code: &str) -> Result<Redirect, FinishError> {
        let secure = self.secure();
        let bind = cookies::single(headers, cookies::bind(secure));
        let (session, hand_off) = self.sessions.finish(code, bind).await?.ok_or(FinishError::Invalid)?;
        // Whatever session this browser had is over: a new one at every sign-in.
        if let Some(before) = self.session(headers) {
            self.sessions.end(&before).await?;
        }
        let mut set = vec![
            cookies::set(cookies::session(secure), &session, ABSOLUTE_MS / 1000, secure),
            cookies::clear(cookies::bind(secure), secure),
        ];
        if let Some((token, until_ms)) = hand_off.edge {
            let left_s = (until_ms - self.sessions.now_ms()) / 1000;
            set.push(cookies::set(cookies::edge(secure), &token, left_s.max(0), secure));
        }
        Ok(Redirect { location: hand_off.rd, cookies: set })
    }

    /// Ends this browser's session.
    ///
    /// # Errors
    /// When it could not be written down.
    pub async fn sign_out(&self, headers: &HeaderMap) -> anyhow::Result<Redirect> {
        if let Some(session) = self.session(headers) {
            self.sessions.end(&session).await?;
        }
        let secure = self.secure();
        let cleared = [cookies::session(secure), cookies::edge(secure)].map(|name| cookies::clear(name, secure));
        Ok(Redirect { location: SIGNED_OUT.into(), cookies: cleared.into() })
    }

    /// The way in for a browser that was going to this path and query.
    pub fn way_in(&self, target: &str) -> Redirect {
        let query = Serializer::new(String::new()).append_pair("rd", rd::checked(Some(target), &self.origin)).finish();
        Redirect { location: format!("{START}?{query}"), cookies: Vec::new() }
    }

    /// The edge token when it is good for a cookie. Signing in works without it.
    async fn edge(&self, edge_token: Option<String>) -> Option<(String, i64)> {
        let token = edge_token?;
        let shape = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if token.len() <= MAX_EDGE_TOKEN
            && token.bytes().all(shape)
            && let Some(until_ms) = self.verifier.edge_until_ms(&token, &self.origin, self.owner).await
        {
            return Some((token, until_ms));
        }
        tracing::warn!("the portal's edge token is not valid here and was left out");
        None
    }
}

impl Redirect {
    /// The answer's headers. A code may be in the address: neither a referrer nor a cache may have it.
    ///
    /// # Errors
    /// When the location does not fit a header.
    pub fn headers(self) -> Result<HeaderMap, http::header::InvalidHeaderValue> {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::try_from(self.location)?);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for cookie in self.cookies {
            headers.append(header::SET_COOKIE, HeaderValue::try_from(cookie)?);
        }
        Ok(headers)
    }
}
