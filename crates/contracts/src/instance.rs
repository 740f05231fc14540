//! What an instance is given, and what it answers to Beaver itself.
//!
//! Files, in its read-only `/config`: `config.json` ([`InstanceConfig`], 0400) and `registration.json`
//! ([`Registration`], 0400, until it has been spent); while its data is over its limit, `disk.json` ([`DiskNotice`]).
//!
//! Calls, only through the router's internal listener (`/instances/{id}/…`, see [`internal_path`]), which is the only one to set
//! [`crate::INTERNAL`]; 404 from the public edge:
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /api/auth/register` | [`TakeOwner`] | 200 [`OwnerTaken`]; 403 for another person than the owner; idempotent |
//! | `POST /api/auth/login` | [`HandOff`] | 200 [`HandOffCode`] |
//! | `POST /api/auth/logout` | [`EndSessions`] | 204 |
//! | `POST /api/auth/snapshot` | – | 204: [`SNAPSHOT`] is a copy of its database as it is now |
//! | `POST /api/provider/test` | [`TestProvider`] | 200 [`crate::provider::ProviderTest`] |
//! | `GET /healthz`, `GET /readyz` | – | 200 [`Readiness`], 503 |
//! | `GET /metrics` | – | 200, Prometheus' text format |
//! | `GET /api/activity` ([`ACTIVITY_PATH`]) | – | 200 [`InstanceActivity`] |
//!
//! Where a route says [`crate::routes::SignIn::Edge`], the router itself answers `login` and `logout`, and there is nothing else
//! below `/api/auth` and at `/api/provider/test`.
//!
//! For browsers, on its own origin: `GET /auth/start?rd=`, `GET /auth/finish?code=`, `POST /auth/signout`, the workspace.

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::{
    AccountId, InstanceId, Slug,
    provider::{ProviderConfig, ProviderKind},
};

/// `config.json`. Members that are not known are passed over, in this and the other files: an image that is put back reads
/// what was written for a newer one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceConfig {
    /// The configuration's generation. The instance takes a newer provider into its own settings once.
    pub generation: i64,
    /// Itself.
    pub instance_id: InstanceId,
    /// Its name.
    pub slug: Slug,
    /// Its owner: the `sub` of every assertion it accepts.
    pub owner: AccountId,
    /// Its own origin: the `aud` of every assertion it accepts.
    pub origin: String,
    /// The issuer's name (`AUTHZ_ISSUER`).
    pub issuer: String,
    /// The portal's origin.
    pub portal: String,
    /// The provider given at the portal; absent before onboarding.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "written_provider")]
    pub provider: Option<ProviderConfig>,
    /// The Outlook MCP server, where the operator has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook_mcp: Option<McpServer>,
}

/// A provider in a file: what of it is known here. A caller, however, is told of a member that is not.
fn written_provider<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ProviderConfig>, D::Error> {
    #[derive(Deserialize)]
    struct Written {
        kind: ProviderKind,
        base_url: String,
        model: String,
        api_key: SecretString,
    }
    let written = Option::<Written>::deserialize(from)?;
    Ok(written.map(|Written { kind, base_url, model, api_key }| ProviderConfig { kind, base_url, model, api_key }))
}

/// An MCP server that every instance may use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct McpServer {
    /// Its name inside the instance.
    pub id: String,
    /// Its address.
    pub url: String,
}

/// `registration.json`: the one-time token for `/oauth/register`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Registration {
    /// The initial access token.
    pub initial_access_token: String,
    /// When it ends.
    pub expires_at_ms: i64,
}

/// `disk.json`: the instance's data takes more disk than it may, and nothing more is to be written. It comes and goes while
/// the instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskNotice {
    /// What it takes, in bytes; absent when it is too many files to be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// What it may take, in bytes.
    pub limit_bytes: u64,
}

/// The argument under which an instance's program does nothing but pass a byte through a socket in each of its two folders:
/// it listens on [`PROBE_SOCKET`] in `in/`, then sends a byte to the one in `out/`, which must come back; then it gives back
/// the byte that it is sent itself, and ends.
pub const PROBE: &str = "probe";
/// The exit code of a probe that could not pass it: its last line says why. Any other says nothing of sockets.
pub const PROBE_FAILED: u8 = 3;
/// The sockets of a probe.
pub const PROBE_SOCKET: &str = "probe.sock";

/// The file in its data folder that a snapshot of its database is; whoever asked for it takes it away.
pub const SNAPSHOT: &str = "snapshot.db";
/// The file in its data folder that says that all of it came from an archive, perhaps another instance's: nobody is signed
/// in, no key of its gateway holds, and it has no identity yet. The instance sees to that and takes the file away. In it is
/// which provider counts: a [`FromArchive`], as text; empty from before there was one, and then the archive's.
pub const FROM_ARCHIVE: &str = ".from-archive";

/// Which provider counts where data came from an archive: that in the data, or that of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromArchive {
    /// As if nothing had happened: nobody has chosen another provider since the archive was made of this very instance. What
    /// the data had not taken yet when it was made, it takes now.
    AsItWas,
    /// The data's own, over every configuration up to this generation, the newest when the archive was put back. What was
    /// chosen after that is taken.
    Over(i64),
}

impl std::fmt::Display for FromArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AsItWas => f.write_str("as it was"),
            Self::Over(generation) => write!(f, "over {generation}"),
        }
    }
}

impl std::str::FromStr for FromArchive {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "it is neither `as it was` nor `over` and a generation";
        match text.trim() {
            "as it was" => Ok(Self::AsItWas),
            text => text.strip_prefix("over ").and_then(|text| text.parse().ok()).map(Self::Over).ok_or(WRONG),
        }
    }
}
/// The file in its data folder that says that it was deleted and that this was taken back: of what was made before, no session
/// and no key of its gateway holds. The instance sees to that at its start and takes the file away.
pub const REVOKED: &str = ".revoked";

/// The path on the router's internal listener that leads to `path` of an instance.
pub fn internal_path(id: InstanceId, path: &str) -> String {
    format!("/instances/{id}{path}")
}

/// Body of `POST /api/auth/register`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeOwner {
    /// An assertion with `purpose: register`.
    pub assertion: String,
}

/// The instance has its owner and its own OAuth client.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OwnerTaken {
    /// Its OAuth client.
    pub client_id: String,
}

/// Body of `POST /api/auth/login`: no password, and no other member.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HandOff {
    /// An assertion with `purpose: login` and `bind`.
    pub assertion: String,
    /// The router's proof of the owner's browser, for the instance to set as a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_token: Option<String>,
    /// Where to go after signing in: a local path, checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rd: Option<String>,
}

/// The code for `/auth/finish`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HandOffCode {
    /// One time, 30 s, only with the bind cookie.
    pub code: String,
}

/// Body of `POST /api/auth/logout`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndSessions {
    /// An assertion with `purpose: logout`; its `sid` says which. Without `sid`: all.
    pub assertion: String,
}

/// Body of `POST /api/provider/test`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestProvider {
    /// An assertion with `purpose: provider-test`.
    pub assertion: String,
    /// What to try; it is not kept.
    pub provider: ProviderConfig,
}

/// Answer of `/readyz` of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether it has its owner.
    pub registered: bool,
    /// The configuration it runs with: `generation` of `config.json`.
    pub config_generation: i64,
}

/// Where an instance says whether it has something to do.
pub const ACTIVITY_PATH: &str = "/api/activity";

/// The most keys that are taken over from one instance.
pub const MAX_WAKE_KEYS: usize = 100;

/// Answer of [`ACTIVITY_PATH`]: what nobody else can know of an instance that is to sleep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceActivity {
    /// Whether something is under way, asked for or not: an answer being made, a gateway's stream, work behind the scenes.
    pub busy: bool,
    /// The fingerprints (SHA-256, base64url) of its live API keys, at most [`MAX_WAKE_KEYS`]: whoever shows one wakes it.
    #[serde(default)]
    pub wake_keys: Vec<String>,
}

/// The cookie that holds the edge token, on the instance's origin: `__Host-beaver_edge` with https.
pub fn edge_cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-beaver_edge" } else { "beaver_edge" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_provider_counts_is_read_as_it_is_written() {
        for mark in [FromArchive::AsItWas, FromArchive::Over(0), FromArchive::Over(i64::MAX)] {
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        assert!(["", "over", "over x", "as"].iter().all(|text| text.parse::<FromArchive>().is_err()));
    }

    #[test]
    fn what_a_newer_service_adds_to_a_file_is_passed_over() {
        let config = serde_json::json!({
            "generation": 3, "instance_id": "i-00000000000000000000000000000001", "slug": "alice", "owner": "a-00000000000000000000000000000001",
            "origin": "http://alice.localhost", "issuer": "http://issuer", "portal": "http://localhost", "later": { "x": 1 },
            "provider": { "kind": "openai-compatible", "base_url": "", "model": "m", "api_key": "k", "later": [] },
            "outlook_mcp": { "id": "outlook", "url": "http://mcp", "later": true },
        });
        assert_eq!(serde_json::from_value::<InstanceConfig>(config).unwrap().generation, 3);
        let registration = serde_json::json!({ "initial_access_token": "t", "expires_at_ms": 1, "later": 2 });
        serde_json::from_value::<Registration>(registration).unwrap();
        serde_json::from_value::<DiskNotice>(serde_json::json!({ "limit_bytes": 1, "later": 3 })).unwrap();
    }
}
