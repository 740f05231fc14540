//! authz's API.
//!
//! For the portal and deploy-control (internal token, `Authorization: Bearer`):
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /portal/register`, header `Idempotency-Key` | [`RegisterAccount`] | 201 [`SignedIn`]; 429 `too_many_sign_ups` with Retry-After |
//! | `GET /portal/slugs/{text}` | – | 200 [`SlugAvailability`] |
//! | `POST /portal/login` | [`Login`] | 200 [`SignedIn`]; 401 `bad_credentials`; 403 `account_suspended`; 429 `too_many_attempts` with Retry-After |
//! | `POST /portal/session` | [`SessionToken`] | 200 [`Session`]; 401 `session_ended` |
//! | `POST /portal/logout` | [`Logout`] | 204 |
//! | `POST /portal/sessions` | [`SessionToken`] | 200 [`SessionList`]; 401 `session_ended` |
//! | `POST /portal/sessions/end` | [`EndSession`] | 204; 401 `session_ended` |
//! | `POST /portal/password` | [`ChangePassword`] | 200 [`SignedIn`]; 401 `session_ended`; 422 `password_wrong` and others; 429 `too_many_attempts` with Retry-After |
//! | `POST /portal/retry-delivery` | [`SessionToken`] | 200 [`Session`], after an attempt; 401 `session_ended` |
//! | `POST /portal/new-instance` | [`NewInstance`] | 200 [`Session`] with it; 409 `instance_exists` until the one before is gone for good |
//! | `POST /portal/assertion` | [`AssertionRequest`] | 200 [`AssertionIssued`]; 404 when the slug is not the person's |
//! | `GET /portal/issuer` | – | 200 [`PublicIssuer`] |
//! | `GET /portal/operator` | – | 200 [`OperatorState`] |
//! | `POST /portal/operator` | [`RegisterOperator`] | 201 [`SignedIn`]; 403 `operator_link_invalid`, 409 `operator_exists` |
//! | `POST /portal/operator/account` | [`OperatorQuery`] | 200 [`AccountView`]; 403 `operator_required`, 404 `account_not_found` |
//! | `POST /portal/operator/suspended` | [`SessionToken`] | 200 [`SuspendedList`]; 403 `operator_required` |
//! | `POST /portal/operator/suspend` | [`SuspendAccount`] | 200 [`AccountView`]; 403 `operator_required`, 404 `account_not_found` |
//! | `POST /backends/register` | [`RegisterBackend`] | 201 [`BackendRegistered`] |
//! | `POST /backends/revoke` | [`RevokeBackend`] | 204, also when it has none |
//!
//! For instances, through their identity socket, and for whoever verifies tokens:
//! `POST /oauth/register` (RFC 7591, with the initial access token as Bearer), `POST /oauth/token` (RFC 6749
//! `client_credentials`, RFC 7523 `private_key_jwt`, RFC 8707 `resource`), `GET /.well-known/jwks.json` (RFC 7517),
//! `GET /.well-known/oauth-authorization-server` (RFC 8414).

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::{AccountId, InstanceId, Slug};

fn expose<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

/// The header that makes a repeated [`RegisterAccount`] the same one: 16 to 64 characters the caller chose at random.
/// The same key with another body is 422 `idempotency_key_reused`.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The browser that somebody signs up or in with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Browser {
    /// Its address: what failures and sign-ups are counted by, and what its person knows the session by.
    pub address: String,
    /// What it calls itself (`User-Agent`); may be empty.
    #[serde(default)]
    pub user_agent: String,
    /// The device cookie's value ([`SignedIn::device_token`]), when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose_option")]
    #[schema(value_type = Option<String>)]
    pub device: Option<SecretString>,
}

/// Signs a person up. Refusals name their field: `slug`, `email` or `password`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterAccount {
    /// The name: becomes the slug. As typed; authz checks it.
    pub slug: String,
    /// The e-mail address, as typed.
    pub email: String,
    /// The password, as typed: 15 to 256 characters.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub password: SecretString,
    /// The person's language: `en` or `zh-CN`.
    pub locale: String,
    /// The browser.
    pub browser: Browser,
}

/// Makes the first operator account. An operator has no instance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterOperator {
    /// The one-time link's token (`BEAVER_OPERATOR_TOKEN`).
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub token: SecretString,
    /// The e-mail address, as typed.
    pub email: String,
    /// The password, as typed.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub password: SecretString,
    /// The person's language.
    pub locale: String,
    /// The browser.
    pub browser: Browser,
}

/// An operator asks for a person's account.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorQuery {
    /// The operator's cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// The person's name.
    pub slug: String,
}

/// An operator suspends a person's account, or restores it. Operators' own accounts have no name and cannot be meant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendAccount {
    /// The operator's cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// The person's name.
    pub slug: String,
    /// Whether it is suspended from now on.
    pub suspended: bool,
    /// Why, at most 500 characters; needed when it is suspended.
    #[serde(default)]
    pub reason: String,
}

/// An account, as operators may know it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    /// Its id.
    pub account_id: AccountId,
    /// Its e-mail address.
    pub email: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<Slug>,
    /// Its instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// When it was made.
    pub created_at_ms: i64,
    /// Since when it is suspended, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_at_ms: Option<i64>,
    /// What operators did to it, the last first; at most 50.
    pub actions: Vec<OperatorAction>,
}

/// The accounts that are suspended.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SuspendedList {
    /// Their names, the last suspended first; at most 1,000.
    pub slugs: Vec<Slug>,
}

/// What an operator did to an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperatorAction {
    /// When.
    pub at_ms: i64,
    /// The operator's e-mail address.
    pub actor: String,
    /// What.
    pub action: Actioned,
    /// Why, in the operator's words.
    pub reason: String,
}

/// What can be done to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Actioned {
    /// Suspended.
    Suspended,
    /// Restored.
    Restored,
}

/// Whether the one-time link is still good for anything.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OperatorState {
    /// Whether there is an operator account.
    pub exists: bool,
}

/// The issuer under its public name (RFC 8414), as the portal serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicIssuer {
    /// Its name (`AUTHZ_PUBLIC_ISSUER`): the `iss` of tokens whose audience is outside.
    pub issuer: String,
    /// Where its keys are.
    pub jwks_uri: String,
    /// Required by RFC 8414, and empty: there is no authorization endpoint.
    pub response_types_supported: Vec<String>,
    /// Empty, not absent, which would mean the default: nobody gets a token from outside.
    pub grant_types_supported: Vec<String>,
    /// What tokens may allow.
    pub scopes_supported: Vec<String>,
}

/// Whether a name can be had. Taken and never-given-twice look the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlugAvailability {
    /// Whether it can be had now.
    pub available: bool,
    /// Why not: a code of [`crate::SlugError`], or `slug_taken`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// Signs a person in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The e-mail address or the slug, as typed.
    pub login: String,
    /// The password, as typed.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub password: SecretString,
    /// The browser.
    pub browser: Browser,
    /// The token of a session to end when this one begins: no fixation. What its person's instance made of it ends too.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose_option")]
    #[schema(value_type = Option<String>)]
    pub replaces: Option<SecretString>,
}

fn expose_option<S: Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => to.serialize_some(secret.expose_secret()),
        None => to.serialize_none(),
    }
}

/// A new session.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SignedIn {
    /// What the cookie holds: 32 random bytes, base64url.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// What the device cookie holds from now on, for 90 days: by it the account is known on this device, and nothing that
    /// strangers do to the account locks it out there.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub device_token: SecretString,
    /// The session.
    pub session: Session,
}

/// A session and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// The session's public id; what instances' sessions are ended by.
    pub sid: String,
    /// The person.
    pub account_id: AccountId,
    /// What they may do.
    pub role: Role,
    /// Their e-mail address.
    pub email: String,
    /// Their name, which is their instance's; operators have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<Slug>,
    /// Their instance; there from the moment of sign-up, even while deploy-control has not heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// Why deploy-control refused to take their instance, as its problem's code; `POST /portal/retry-delivery` offers it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_error: Option<String>,
    /// Their language.
    pub locale: String,
    /// When the session ends at the latest.
    pub expires_at_ms: i64,
}

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A person with an instance.
    Person,
    /// Runs the house.
    Operator,
}

/// A session's token, to be looked up. Looking it up keeps it alive.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionToken {
    /// The cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
}

/// Ends a session, or all of that person's, and with it what the person's instance made of it: the instance is told until
/// it has heard it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Logout {
    /// The cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// Whether all of that person's sessions end: here, and every one the instance has, even those whose portal session is
    /// long forgotten.
    #[serde(default)]
    pub everywhere: bool,
}

/// Where somebody is signed in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// The sessions that hold, the last used first; at most 100.
    pub sessions: Vec<SessionEntry>,
}

/// One of somebody's own sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionEntry {
    /// Its public id.
    pub sid: String,
    /// Whether it is the one that asks.
    pub current: bool,
    /// When it began.
    pub began_at_ms: i64,
    /// When it was last used, to the minute.
    pub last_seen_ms: i64,
    /// The address that it began from; empty when that is not known.
    pub address: String,
    /// What the browser called itself then; may be empty.
    pub user_agent: String,
}

/// Ends one of a person's sessions, or all others, and with them what the person's instance made of them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndSession {
    /// The cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// Which; without it, every one but the one that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
}

/// Changes a person's password. Whoever asks gets a new session; every other one ends.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// The cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// The password so far, as typed. A wrong one counts as a failed attempt to sign in does.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub old_password: SecretString,
    /// The new one, as typed.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub new_password: SecretString,
    /// The browser.
    pub browser: Browser,
}

/// Gives a person another instance, under another name, when theirs is gone for good.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInstance {
    /// The cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// The name, as typed.
    pub slug: String,
}

/// Asks for an assertion about the person of a session, for their own instance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssertionRequest {
    /// The cookie's value.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub session_token: SecretString,
    /// The instance's name; must be that person's.
    pub slug: Slug,
    /// What it is for: [`Purpose::Login`] or [`Purpose::ProviderTest`].
    pub purpose: Purpose,
    /// For login: base64url of the SHA-256 of the browser's bind cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<String>,
}

/// What an assertion is for. On the wire also inside the assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The instance takes its owner.
    Register,
    /// The owner's browser gets a session.
    Login,
    /// Sessions made under `sid` end; without `sid`, all.
    Logout,
    /// The owner tries a provider.
    ProviderTest,
}

/// An assertion, and what the router needs in order to know the owner's browser.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AssertionIssued {
    /// The instance to hand it to.
    pub instance_id: InstanceId,
    /// JWT, typ `beaver-assertion+jwt`, 60 s, `aud` = the instance's origin.
    pub assertion: String,
    /// For login: JWT, typ `beaver-edge+jwt`, up to 7 days, `aud` = the instance's origin. The instance makes it a
    /// cookie of its own origin ([`crate::instance::edge_cookie_name`]); by it alone the router tells the owner, and
    /// nobody else, why the instance is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_token: Option<String>,
}

/// deploy-control asks for an instance's first identity.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterBackend {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its owner.
    pub account_id: AccountId,
    /// Its name.
    pub slug: Slug,
    /// Where it may be sent back to: `<origin>/auth/callback`.
    pub redirect_uri: String,
}

/// deploy-control takes an instance's identity away: it is deleted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeBackend {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its owner.
    pub account_id: AccountId,
}

/// What `POST /oauth/register` takes once, and what the instance's `POST /api/auth/register` takes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackendRegistered {
    /// The one-time initial access token (RFC 7591, section 1.2): 10 minutes, bound to instance, owner and redirect URI.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub initial_access_token: SecretString,
    /// When it ends.
    pub expires_at_ms: i64,
    /// An assertion with `purpose: register`.
    pub register_assertion: String,
}
