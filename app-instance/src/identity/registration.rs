//! The instance's own key and OAuth client (RFC 7591), made once with the one-time token it was given.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use clock::Entropy;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;
use service::Problem;
use sign_in::fingerprint;
use store::Store;
use token::SigningKey;
use tokio::sync::Mutex;

use super::{Door, DoorError};
use crate::{kept, settings::Settings};

/// Registers the instance with authz, and knows whether it has.
pub struct Registrar {
    settings: Settings,
    origin: String,
    door: Door,
    store: Store,
    entropy: Entropy,
    /// Two calls at once would spend the one token twice.
    turn: Mutex<()>,
}

/// What authz answers; the rest of RFC 7591's members is its own affair.
#[derive(Deserialize)]
struct Registered {
    client_id: String,
}

impl Registrar {
    /// A registrar for the instance at `origin`.
    pub fn new(settings: Settings, origin: String, door: Door, store: Store, entropy: Entropy) -> Self {
        Self { settings, origin, door, store, entropy, turn: Mutex::new(()) }
    }

    /// The OAuth client, once there is one.
    ///
    /// # Errors
    /// Any database error.
    pub async fn client_id(&self) -> Result<Option<String>, sqlx::Error> {
        kept::get(self.store.pool(), kept::CLIENT_ID).await
    }

    /// Whether there is a one-time token that has not been used yet: it is to register, also when it did before. Its client
    /// may have been taken away since.
    ///
    /// # Errors
    /// When the token cannot be read, and any database error.
    pub async fn is_due(&self) -> anyhow::Result<bool> {
        let Some(registration) = self.settings.read_registration()? else { return Ok(false) };
        let used = kept::get(self.store.pool(), kept::REGISTERED_WITH).await?;
        Ok(used != Some(fingerprint(&registration.initial_access_token)))
    }

    /// The OAuth client; registers it when that is [due](Self::is_due). The same key gives the same client, where that is
    /// still there.
    ///
    /// # Errors
    /// 409 `registration_token_missing` or `registration_token_refused` when a new one-time token is needed, 503 when
    /// authz cannot be reached.
    pub async fn register(&self) -> Result<String, Problem> {
        let _turn = self.turn.lock().await;
        let is_due = self.is_due().await.map_err(Problem::unavailable)?;
        if let (false, Some(client_id)) = (is_due, self.client_id().await.map_err(Problem::unavailable)?) {
            return Ok(client_id);
        }
        let key = self.key().map_err(Problem::internal)?;
        let registration = self.settings.read_registration().map_err(Problem::internal)?.ok_or_else(|| {
            Problem::new(
                StatusCode::CONFLICT,
                "registration_token_missing",
                "There is no registration.json; write a new one and try again.",
            )
        })?;
        let metadata = json!({
            "client_name": "Beaver workspace",
            "redirect_uris": [format!("{}/auth/callback", self.origin)],
            "grant_types": ["client_credentials"],
            "token_endpoint_auth_method": "private_key_jwt",
            "token_endpoint_auth_signing_alg": "EdDSA",
            "jwks": { "keys": [key.public()] },
        });
        let answer: Result<Registered, _> = self
            .door
            .call(|client, base| {
                client
                    .post(format!("{base}/oauth/register"))
                    .bearer_auth(&registration.initial_access_token)
                    .json(&metadata)
            })
            .await;
        let client_id = match answer {
            Ok(registered) => registered.client_id,
            Err(error @ DoorError::Refused { status: 400..=499, .. }) => {
                return Err(Problem::new(
                    StatusCode::CONFLICT,
                    "registration_token_refused",
                    "authz did not take the one-time token; write a new registration.json and try again.",
                )
                .cause(error));
            }
            Err(error) => return Err(Problem::unavailable(error)),
        };
        let used = fingerprint(&registration.initial_access_token);
        self.keep(&client_id, &used).await.map_err(Problem::unavailable)?;
        tracing::info!(client_id, "registered with authz");
        Ok(client_id)
    }

    async fn keep(&self, client_id: &str, used: &str) -> Result<(), sqlx::Error> {
        let mut transaction = self.store.begin().await?;
        kept::set(&mut *transaction, kept::CLIENT_ID, client_id).await?;
        kept::set(&mut *transaction, kept::REGISTERED_WITH, used).await?;
        transaction.commit().await
    }

    /// The instance's key; made, mode 0600, when there is none.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub fn key(&self) -> anyhow::Result<SigningKey> {
        let path = self.settings.data.join("identity.key");
        match std::fs::read(&path) {
            Ok(bytes) => SigningKey::from_pkcs8(&bytes).context("the instance's key is damaged"),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = SigningKey::generate(&self.entropy)?;
                write_durably(&path, key.to_pkcs8().expose_secret()).context("the instance's key cannot be kept")?;
                Ok(key)
            }
            Err(error) => Err(error).context("the instance's key cannot be read"),
        }
    }
}

/// Writes a file that is there whole or not at all, also after a power cut.
fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
