//! Devices that an account has signed in on: a random id in a cookie, its SHA-256 here.
//!
//! A known device is spared what strangers do to the account ([`crate::throttle`]); it proves nothing else. The id changes at
//! every sign-in, so one that somebody copied or planted is worth nothing afterwards. What failures on it are counted by, its
//! series with the account, does not: else anybody who signs in on it would begin the others' counters anew.

use std::net::IpAddr;

use contracts::authz::Browser;
use secrecy::{ExposeSecret, SecretString};
use service::Problem;
use sqlx::AnyConnection;

use crate::{accounts::Account, app::App, digest::sha256, refused::Answer};

/// For how long after the last sign-in a device stays known.
pub(crate) const KNOWN_MS: i64 = 90 * 24 * 60 * 60 * 1000;
/// How many devices of an account are remembered; the one that was used longest ago goes first.
const REMEMBERED: i64 = 10;
/// How much of what a browser calls itself is kept, in characters.
const USER_AGENT: usize = 256;

/// The browser that somebody comes with.
pub(crate) struct Visitor {
    pub address: IpAddr,
    pub user_agent: String,
    /// The hash of its device's id, when the cookie is one of ours.
    pub device: Option<String>,
}

impl Visitor {
    /// What the portal says of a browser.
    ///
    /// # Errors
    /// 400 when the address is none.
    pub fn read(app: &App, browser: &Browser) -> Answer<Self> {
        let address = browser
            .address
            .parse()
            .map_err(|_| Problem::bad_request("browser.address is not an IP address.").on_field("browser.address"))?;
        let user_agent = browser.user_agent.chars().filter(|c| !c.is_control()).take(USER_AGENT).collect();
        Ok(Self { address, user_agent, device: browser.device.as_ref().and_then(|shown| opened(app, shown)) })
    }

    /// Whether the account has signed in on this device; the device's series with it then. Somebody who is nobody has not.
    pub async fn known_to(&self, app: &App, account: Option<&Account>) -> Result<Option<String>, sqlx::Error> {
        let Some(device) = self.device.as_deref() else { return Ok(None) };
        sqlx::query_scalar(
            "SELECT series FROM devices WHERE device_hash = $1 AND account_id = $2 AND last_seen_ms > $3",
        )
        .bind(device.to_owned())
        .bind(account.map(|account| account.id.to_string()).unwrap_or_default())
        .bind(app.clock.now_ms() - KNOWN_MS)
        .fetch_optional(app.store.pool())
        .await
    }
}

/// The cookie's value for an id: signed, so that made-up ones are told without a look into the database.
fn sealed(app: &App, id: &str) -> String {
    format!("{id}.{}", app.seal.name(&["device", id]))
}

/// The hash of the id in a cookie's value.
fn opened(app: &App, shown: &SecretString) -> Option<String> {
    let (id, _) = shown.expose_secret().split_once('.')?;
    settings::same_secret(shown, &sealed(app, id)).then(|| sha256(id))
}

/// Makes the visitor's device known to the account, under a new id; what the cookie holds from now on. Whoever else has signed
/// in on this device stays known on it.
pub(crate) async fn remember(
    db: &mut AnyConnection,
    app: &App,
    visitor: &Visitor,
    account: &Account,
) -> Result<SecretString, sqlx::Error> {
    let id = app.entropy.token();
    let (hash, account_id) = (sha256(&id), account.id.to_string());
    if let Some(before) = &visitor.device {
        sqlx::query("UPDATE devices SET device_hash = $1 WHERE device_hash = $2")
            .bind(hash.clone())
            .bind(before.clone())
            .execute(&mut *db)
            .await?;
    }
    sqlx::query(
        "INSERT INTO devices (device_hash, account_id, last_seen_ms, series) VALUES ($1, $2, $3, $4)
         ON CONFLICT (device_hash, account_id) DO UPDATE SET last_seen_ms = $3",
    )
    .bind(hash)
    .bind(account_id.clone())
    .bind(app.clock.now_ms())
    .bind(app.id())
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "DELETE FROM devices WHERE account_id = $1 AND device_hash NOT IN
             (SELECT device_hash FROM devices WHERE account_id = $1 ORDER BY last_seen_ms DESC, device_hash LIMIT $2)",
    )
    .bind(account_id)
    .bind(REMEMBERED)
    .execute(db)
    .await?;
    Ok(sealed(app, &id).into())
}

/// Makes every device a stranger's to the account.
pub(crate) async fn forget(db: &mut AnyConnection, account: &Account) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM devices WHERE account_id = $1").bind(account.id.to_string()).execute(db).await.map(drop)
}
