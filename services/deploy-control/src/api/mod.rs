//! The HTTP API: wishes in, instances and their progress out. Only for services that show the token.

mod archives;
mod egress;
mod instances;
mod openapi;
mod releases;
mod routes;
mod stream;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use contracts::{InstanceId, deploy::By};
use http::StatusCode;
use secrecy::SecretString;
use service::{Problem, Shutdown};

use crate::{
    engine::Engine,
    folders::Folders,
    hub::Hub,
    peers::Peers,
    plans::Plans,
    reconcile::Reconciler,
    registry::{self, Registry, Row, Wish},
    turns::Turns,
};

pub use archives::Archives;

/// The largest body of JSON, in bytes.
const MAX_JSON: usize = 1 << 20;

/// What the handlers work with. Cloning is cheap.
#[derive(Clone)]
pub struct Api {
    /// What is wanted and known.
    pub registry: Registry,
    /// Who is told.
    pub hub: Arc<Hub>,
    /// What runs instances: asked what there is, and nothing else.
    pub engine: Arc<dyn Engine>,
    /// The other services.
    pub peers: Peers,
    /// Where configurations are staged.
    pub folders: Folders,
    /// What instances may be.
    pub plans: Plans,
    /// Who makes it so.
    pub reconciler: Reconciler,
    /// When streams end.
    pub stop: Shutdown,
    /// How long the data of what is deleted is kept, in milliseconds.
    pub delete_after_ms: i64,
    /// One configuration at a time for each instance: two that are staged at once would have the same number.
    pub staging: Turns,
    /// Who works on an archive.
    pub archives: Archives,
}

impl Api {
    /// Writes down a wish for which something was staged, under the turn in which it was. Where nothing comes of the wish, that
    /// goes with it.
    async fn wish_for_staged(&self, id: InstanceId, by: By, wish: Wish) -> Result<Row, Problem> {
        let error = match self.registry.wish_by(id, by, wish).await {
            Ok(row) => return Ok(row),
            Err(error) => error,
        };
        // Where only the answer got lost it may count all the same. The next start can tell.
        if error.is_certain() {
            let removed = async { anyhow::Ok(self.folders.remove_unwished(&self.registry.get(id).await?).await?) };
            if let Err(error) = removed.await {
                tracing::warn!(instance = %id, error = format!("{error:#}"), "what nobody wished stays until the next start");
            }
        }
        Err(error.into())
    }
}

/// Every call of the API, behind the token, with a limit of its own on each body; `/openapi.json` without it, for it tells nothing of anybody.
pub fn router(api: Api, tokens: Vec<SecretString>) -> Router {
    let guarded = Router::new()
        .route("/api/instances", get(instances::list))
        .route("/api/instances/reserve", post(instances::reserve))
        .route("/api/instances/register", post(instances::register))
        .route("/api/instances/resolve", post(instances::resolve))
        .route("/api/instances/configure-provider", post(instances::configure_provider))
        .route("/api/instances/{id}/stop", post(instances::stop))
        .route("/api/instances/{id}/start", post(instances::start))
        .route("/api/instances/{id}/restart", post(instances::restart))
        .route("/api/instances/{id}/retry", post(instances::retry))
        .route("/api/instances/{id}/wake", post(instances::wake))
        .route("/api/instances/{id}/plan", post(instances::change_plan))
        .route("/api/instances/{id}/discard", post(instances::discard))
        .route("/api/instances/{id}/delete", post(instances::delete))
        .route("/api/instances/{id}/undelete", post(instances::undelete))
        .route("/api/instances/{id}/export", get(archives::export))
        .route("/api/instances/{id}/restore", post(archives::restore))
        .route("/api/instances/{id}/events", get(instances::events))
        .route("/api/instances/{id}/events/stream", get(stream::stream))
        .route("/api/releases", get(releases::list))
        .route("/api/upgrade", post(releases::upgrade))
        .route(contracts::egress::REFUSALS_PATH, post(egress::refusals))
        .route(contracts::routes::PATH, get(routes::feed))
        .layer(DefaultBodyLimit::max(MAX_JSON));
    service::bearer::require(guarded, tokens)
        .with_state(api)
        .route("/openapi.json", get(async || axum::Json(openapi::document())))
}

impl From<registry::Error> for Problem {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::NotFound => Problem::not_found("instance_not_found"),
            registry::Error::IdTaken => Problem::new(
                StatusCode::CONFLICT,
                "instance_id_taken",
                "This id belongs to another instance. Choose a new one.",
            ),
            registry::Error::SlugTaken => {
                Problem::new(StatusCode::CONFLICT, "slug_taken", "This name is taken. Choose another.").on_field("slug")
            }
            registry::Error::HadOwner => Problem::new(
                StatusCode::CONFLICT,
                "instance_had_owner",
                "Somebody has, or had, this instance, and its data may be theirs: only one that nobody ever had is discarded.",
            ),
            registry::Error::Deleted => Problem::new(
                StatusCode::CONFLICT,
                "instance_deleted",
                "This instance is deleted. Take that back first, while its data is kept.",
            ),
            registry::Error::DeletionFinal => Problem::new(
                StatusCode::CONFLICT,
                "deletion_final",
                "The time in which this could be taken back is over; the data is being removed.",
            ),
            registry::Error::Down => Problem::new(
                StatusCode::CONFLICT,
                "instance_down",
                "This instance does not sleep: it was stopped, or could not be brought up. Its owner can start it.",
            ),
            registry::Error::Busy => Problem::unavailable(error),
            registry::Error::Database(error) if store::is_unavailable(&error) => Problem::unavailable(error),
            other => Problem::internal(other),
        }
    }
}
