//! The services that deploy-control calls: authz for an instance's first identity, and instances through the router.

use contracts::{
    InstanceId,
    activity::{self, Activity, ActivityList, activity_path},
    authz::{BackendRegistered, RegisterBackend, RevokeBackend},
    instance::{ACTIVITY_PATH, InstanceActivity, OwnerTaken, Readiness, TakeOwner, internal_path},
};
use http::Method;
use service::{CallError, ServiceClient};
use std::time::Duration;

use crate::{config, registry::Row, strikes::Strikes};

/// How long a look at an instance's health may take: it answers from memory.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

/// How long a copy of a database may take; the router waits no longer for the answer.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(60);

/// Clients of the other services.
#[derive(Clone)]
pub struct Peers {
    authz: ServiceClient,
    router: ServiceClient,
    strikes: Strikes,
}

impl Peers {
    /// Clients of the services at these addresses.
    pub fn new(config: &config::Peers) -> Self {
        Self {
            authz: ServiceClient::new("authz", config.authz_url.clone(), config.authz_token.clone()),
            router: ServiceClient::new("router-proxy", config.router_url.clone(), config.router_token.clone()),
            strikes: Strikes::default(),
        }
    }

    /// The same, with a seam at which tests strike.
    #[must_use]
    pub fn with_strikes(self, strikes: Strikes) -> Self {
        Self { strikes, ..self }
    }

    /// Asks authz for a one-time token and an assertion for an instance. May be repeated; each answer is new.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn register_backend(&self, row: &Row, origin: &str) -> Result<BackendRegistered, CallError> {
        let body = RegisterBackend {
            instance_id: row.id,
            account_id: row.account_id,
            slug: row.slug.clone(),
            redirect_uri: format!("{origin}/auth/callback"),
        };
        self.strikes.pass("peers.register_backend", row.id, self.authz.post("/backends/register", &body)).await
    }

    /// Has an instance's identity taken away. May be repeated.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn revoke_backend(&self, row: &Row) -> Result<(), CallError> {
        let body = RevokeBackend { instance_id: row.id, account_id: row.account_id };
        self.strikes.pass("peers.revoke_backend", row.id, self.authz.post("/backends/revoke", &body)).await
    }

    /// Has an instance make a snapshot of its database.
    ///
    /// # Errors
    ///
    /// Each [`CallError`]; a refusal when it does not answer, or could not.
    pub async fn snapshot(&self, id: InstanceId) -> Result<(), CallError> {
        let path = internal_path(id, "/api/auth/snapshot");
        self.router.json(self.router.request(Method::POST, &path).timeout(SNAPSHOT_LIMIT)).await
    }

    /// Asks an instance whether it is healthy.
    ///
    /// # Errors
    ///
    /// Each [`CallError`]; a refusal when it does not answer or is not ready.
    pub async fn readiness(&self, id: InstanceId) -> Result<Readiness, CallError> {
        let request = self.router.request(Method::GET, &internal_path(id, "/readyz")).timeout(HEALTH_LIMIT);
        self.strikes.pass("peers.readiness", id, self.router.json(request)).await
    }

    /// How the router sees every instance used.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn activities(&self) -> Result<ActivityList, CallError> {
        self.router.json(self.router.request(Method::GET, activity::PATH).timeout(HEALTH_LIMIT)).await
    }

    /// How the router sees one used.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn activity_of(&self, id: InstanceId) -> Result<Activity, CallError> {
        self.router.json(self.router.request(Method::GET, &activity_path(id)).timeout(HEALTH_LIMIT)).await
    }

    /// Whether the router itself answers, whatever it says of this instance.
    pub async fn router_answers(&self, id: InstanceId) -> bool {
        match self.activity_of(id).await {
            Ok(_) => true,
            // It does not know the instance's route yet.
            Err(error) => error.code() == Some("not_found"),
        }
    }

    /// Asks an instance whether it has something to do that the router cannot see.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn own_activity(&self, id: InstanceId) -> Result<InstanceActivity, CallError> {
        let request = self.router.request(Method::GET, &internal_path(id, ACTIVITY_PATH)).timeout(HEALTH_LIMIT);
        self.router.json(request).await
    }

    /// Asks a program that knows nothing of Beaver whether it is there: any answer of its own below 500 says so.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn answers(&self, id: InstanceId, path: &str) -> Result<(), CallError> {
        let request = self.router.request(Method::GET, &internal_path(id, path)).timeout(HEALTH_LIMIT);
        match self.strikes.pass("peers.answers", id, self.router.send(request)).await {
            Ok(_) => Ok(()),
            Err(CallError::Unexpected { status, .. }) if status < 500 => Ok(()),
            // The router's own refusals are about what we ask it for.
            Err(CallError::Refused { problem, .. })
                if problem.status < 500 && !["service_token_required", "not_found"].contains(&&*problem.code) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Tells an instance its owner, and to get its own identity.
    ///
    /// # Errors
    ///
    /// Each [`CallError`].
    pub async fn take_owner(&self, id: InstanceId, assertion: String) -> Result<OwnerTaken, CallError> {
        let (path, body) = (internal_path(id, "/api/auth/register"), TakeOwner { assertion });
        self.strikes.pass("peers.take_owner", id, self.router.post(&path, &body)).await
    }
}
