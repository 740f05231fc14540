//! The token endpoint: `client_credentials` (RFC 6749, section 4.4) by `private_key_jwt` (RFC 7523) for one `resource`
//! (RFC 8707), answered with an access token in JWT form (RFC 9068).

use std::{collections::BTreeMap, sync::Arc};

use ::token::{Access, Claims, Expected, Jwk, KeySet, Kind, LEEWAY_S, MAX_TOKEN_BYTES, NoExtra};
use axum::{body::Bytes, extract::State, response::IntoResponse};
use http::{HeaderMap, header};
use serde_json::json;
use url::{Host, Url, form_urlencoded};

use super::{SCOPE, error::OauthError};
use crate::{app::App, digest::sha256};

/// How long an access token holds, in seconds.
const LIFETIME_S: i64 = 300;
/// The longest resource, in bytes.
const MAX_RESOURCE_BYTES: usize = 512;
/// How many assertions of one client may be remembered at once: about as many tokens it gets a minute. One that keeps its
/// tokens needs one in five; without a bound a hostile instance could fill the database.
const MAX_REMEMBERED: i64 = 120;
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Gives an access token for one audience.
pub(super) async fn token(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<impl IntoResponse, OauthError> {
    let form = Form::read(&headers, &body)?;
    match form.get("grant_type") {
        Some("client_credentials") => {}
        Some(_) => return Err(OauthError::bad("unsupported_grant_type", "the grant type must be client_credentials")),
        None => return Err(OauthError::bad("invalid_request", "grant_type is missing")),
    }
    let client_id = authenticate(&app, &form).await?;
    let resource = resource(&form)?;
    let scope = scope(&form)?;
    let iat = app.clock.now_s();
    let claims = Claims {
        iss: issuer(&app, &resource).to_owned(),
        sub: client_id.clone(),
        aud: resource.text.to_owned(),
        iat,
        exp: iat + LIFETIME_S,
        jti: app.id(),
        extra: Access { client_id, scope: scope.to_owned() },
    };
    let access_token = app.keys.sign(Kind::AccessToken, &claims).map_err(OauthError::internal)?;
    let answer =
        json!({ "access_token": access_token, "token_type": "Bearer", "expires_in": LIFETIME_S, "scope": scope });
    // RFC 6749, section 5.1.
    Ok(([(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")], axum::Json(answer)))
}

/// The parameters of a request, each of them once.
struct Form(BTreeMap<String, String>);

impl Form {
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, OauthError> {
        let essence = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok()?.split(';').next())
            .map(|essence| essence.trim().to_ascii_lowercase());
        if essence.as_deref() != Some("application/x-www-form-urlencoded") {
            return Err(OauthError::bad("invalid_request", "send application/x-www-form-urlencoded"));
        }
        let mut parameters = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            // RFC 6749, section 3.2: empty ones count as absent, and none may come twice.
            if parameters.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(OauthError::bad("invalid_request", "a parameter comes twice"));
            }
        }
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self(parameters))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The client that proved itself; its assertion is spent.
async fn authenticate(app: &App, form: &Form) -> Result<String, OauthError> {
    if form.get("client_secret").is_some() {
        return Err(OauthError::bad("invalid_request", "clients prove themselves by private_key_jwt alone"));
    }
    match form.get("client_assertion_type") {
        Some(ASSERTION_TYPE) => {}
        Some(_) => return Err(OauthError::bad("invalid_request", "client_assertion_type is unknown")),
        None => return Err(OauthError::invalid_client(anyhow::anyhow!("there is no client assertion"))),
    }
    let assertion = form
        .get("client_assertion")
        .ok_or_else(|| OauthError::bad("invalid_request", "client_assertion is missing"))?;
    if assertion.len() > MAX_TOKEN_BYTES {
        return Err(OauthError::bad("invalid_request", "client_assertion is longer than 8 KB"));
    }
    // Who it claims to be from, only to find the key that must have signed it.
    let client_id = ::token::unverified_issuer(assertion).map_err(OauthError::invalid_client)?;
    if form.get("client_id").is_some_and(|stated| stated != client_id) {
        return Err(OauthError::invalid_client(anyhow::anyhow!("client_id is not the assertion's issuer")));
    }
    let jwk: Option<(String,)> = sqlx::query_as(
        "SELECT clients.jwk FROM clients JOIN accounts ON accounts.id = clients.account_id
         WHERE clients.client_id = $1 AND accounts.suspended_at_ms = 0",
    )
    .bind(client_id.clone())
    .fetch_optional(app.store.pool())
    .await?;
    let (jwk,) = jwk.ok_or_else(|| {
        OauthError::invalid_client(anyhow::anyhow!("there is no such client, or its account is suspended"))
    })?;
    let jwk: Jwk = serde_json::from_str(&jwk).map_err(OauthError::internal)?;
    let expected = Expected { issuer: &client_id, audience: &app.config.issuer, now_s: app.clock.now_s() };
    let claims: Claims<NoExtra> = ::token::verify(Kind::ClientAssertion, assertion, &expected, &KeySet::new([jwk]))
        .map_err(OauthError::invalid_client)?;
    if claims.sub != client_id {
        return Err(OauthError::invalid_client(anyhow::anyhow!("the assertion's subject is not its issuer")));
    }
    spend(app, &claims).await?;
    Ok(client_id)
}

/// Remembers an assertion for as long as it would hold; of many at once, one is the first.
async fn spend(app: &App, claims: &Claims<NoExtra>) -> Result<(), OauthError> {
    let (remembered,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM spent_assertions WHERE client_id = $1 AND expires_at_ms > $2")
            .bind(claims.iss.clone())
            .bind(app.clock.now_ms())
            .fetch_one(app.store.pool())
            .await?;
    if remembered >= MAX_REMEMBERED {
        return Err(OauthError::too_many());
    }
    let spent = sqlx::query(
        "INSERT INTO spent_assertions (client_id, jti_hash, expires_at_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(claims.iss.clone())
    .bind(sha256(&claims.jti))
    .bind((claims.exp + LEEWAY_S + 1) * 1000)
    .execute(app.store.pool())
    .await?;
    match spent.rows_affected() {
        1 => Ok(()),
        _ => Err(OauthError::invalid_client(anyhow::anyhow!("the assertion was used before"))),
    }
}

/// An audience.
struct Resource<'a> {
    /// As it was asked for, byte by byte.
    text: &'a str,
    uri: Url,
}

/// The issuer by the name that an audience knows. A name without a dot is a container's, on the network of the services,
/// where the internal name leads somewhere; everybody else knows the public one.
fn issuer<'a>(app: &'a App, resource: &Resource<'_>) -> &'a str {
    match resource.uri.host() {
        Some(Host::Domain(name)) if !name.trim_end_matches('.').contains('.') && name != "localhost" => {
            &app.config.issuer
        }
        _ => &app.config.public_issuer,
    }
}

/// The one audience asked for: an absolute URI without a fragment (RFC 8707, section 2).
fn resource(form: &Form) -> Result<Resource<'_>, OauthError> {
    let invalid = |what: &str| OauthError::bad("invalid_target", what);
    let text = form.get("resource").ok_or_else(|| invalid("resource must name the one audience of the token"))?;
    let uri = Url::parse(text).map_err(|_| invalid("resource is not an absolute URI"))?;
    let usable = uri.has_host()
        && matches!(uri.scheme(), "http" | "https")
        && uri.fragment().is_none()
        && uri.username().is_empty()
        && uri.password().is_none()
        && text.len() <= MAX_RESOURCE_BYTES
        && text.bytes().all(|b| b.is_ascii_graphic());
    if usable { Ok(Resource { text, uri }) } else { Err(invalid("resource is not a plain http or https address")) }
}

/// The scope asked for; the whole one when none is.
fn scope(form: &Form) -> Result<&'static str, OauthError> {
    match form.get("scope") {
        None => Ok(SCOPE),
        Some(asked) if asked.split(' ').all(|scope| scope == SCOPE) => Ok(SCOPE),
        Some(_) => Err(OauthError::bad("invalid_scope", "the client does not have this scope")),
    }
}
