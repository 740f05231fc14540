//! Access tokens by `client_credentials` (RFC 6749, section 4.4) with `private_key_jwt` (RFC 7523), one audience each
//! (RFC 8707).

use std::{collections::HashMap, sync::Arc};

use clock::{Clock, Entropy};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use token::{ClientAssertionClaims, Kind, NoExtra};
use tokio::sync::Mutex;

use super::{Door, DoorError, Registrar};

/// How long before its end a token is not used any more.
const MARGIN_MS: i64 = 30_000;
/// The life of a client assertion, in seconds: half of what is allowed.
const ASSERTION_S: i64 = 30;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The instance has no OAuth client yet.
    #[error("the instance is not registered with authz yet")]
    NotRegistered,
    /// The database, the key, or signing failed.
    #[error("the client assertion could not be made")]
    Local(#[source] anyhow::Error),
    /// authz gave none.
    #[error(transparent)]
    Door(#[from] DoorError),
}

/// Gets access tokens and keeps them until shortly before they end.
pub struct AccessTokens {
    issuer: String,
    door: Door,
    registrar: Arc<Registrar>,
    clock: Clock,
    entropy: Entropy,
    /// By resource. Held across the call to authz, so that callers at once cause one request.
    held: Mutex<HashMap<String, Held>>,
}

struct Held {
    token: SecretString,
    until_ms: i64,
}

/// RFC 6749, section 5.1.
#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    token_type: String,
    expires_in: i64,
}

impl AccessTokens {
    /// Tokens of this issuer.
    pub fn new(issuer: String, door: Door, registrar: Arc<Registrar>, clock: Clock, entropy: Entropy) -> Self {
        Self { issuer, door, registrar, clock, entropy, held: Mutex::default() }
    }

    /// A token whose only audience is `resource`, an absolute URI.
    ///
    /// # Errors
    /// Each [`AccessError`].
    pub async fn get_token(&self, resource: &str) -> Result<SecretString, AccessError> {
        let mut held = self.held.lock().await;
        let now_ms = self.clock.now_ms();
        held.retain(|_, token| token.until_ms > now_ms);
        if let Some(token) = held.get(resource) {
            return Ok(token.token.clone());
        }
        let assertion = self.assertion().await?;
        let form = [
            ("grant_type", "client_credentials"),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", &assertion),
            ("resource", resource),
        ];
        let granted: Granted =
            self.door.call(|client, base| client.post(format!("{base}/oauth/token")).form(&form)).await?;
        if !granted.token_type.eq_ignore_ascii_case("bearer") || granted.access_token.expose_secret().is_empty() {
            return Err(DoorError::Unexpected(200).into());
        }
        let until_ms = now_ms + granted.expires_in.clamp(0, 3600) * 1000 - MARGIN_MS;
        held.insert(resource.to_owned(), Held { token: granted.access_token.clone(), until_ms });
        Ok(granted.access_token)
    }

    async fn assertion(&self) -> Result<String, AccessError> {
        let client_id = self.registrar.client_id().await.map_err(|e| AccessError::Local(e.into()))?;
        let client_id = client_id.ok_or(AccessError::NotRegistered)?;
        let now_s = self.clock.now_s();
        let claims = ClientAssertionClaims {
            iss: client_id.clone(),
            sub: client_id,
            aud: self.issuer.clone(),
            iat: now_s,
            exp: now_s + ASSERTION_S,
            jti: self.entropy.token(),
            extra: NoExtra {},
        };
        let key = self.registrar.key().map_err(AccessError::Local)?;
        key.sign(Kind::ClientAssertion, &claims).map_err(|e| AccessError::Local(e.into()))
    }
}
