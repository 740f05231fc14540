//! What the instance answers to Beaver itself, through the router's internal listener.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use contracts::{
    instance::{
        ACTIVITY_PATH, EndSessions, HandOff, HandOffCode, InstanceActivity, OwnerTaken, Readiness, SNAPSHOT, TakeOwner,
        TestProvider,
    },
    provider::ProviderTest,
};
use http::StatusCode;
use serde_json::json;
use service::{Json, Problem};
use token::Purpose;

use crate::{app::App, upstream::trial};

/// The internal endpoints; that the call is Beaver's is checked around them.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/auth/register", post(register))
        .route("/api/auth/login", post(login))
        .route("/api/auth/logout", post(logout))
        .route("/api/auth/snapshot", post(snapshot))
        .route("/api/provider/test", post(test_provider))
        .route("/healthz", get(async || Json(json!({ "status": "ok", "version": service::VERSION }))))
        .route("/readyz", get(ready))
        .route(ACTIVITY_PATH, get(activity))
        .merge(service::health::metrics_route())
}

async fn register(
    State(app): State<Arc<App>>,
    Json(TakeOwner { assertion }): Json<TakeOwner>,
) -> Result<Json<OwnerTaken>, Problem> {
    let claims = app.sign_in.verify(Purpose::Register, &assertion).await?;
    if app.registrar.is_due().await.map_err(Problem::unavailable)? {
        // It gets its identity anew, after it was deleted or its data came from elsewhere: nobody is signed in any more.
        let as_of_ms = claims.extra.at_ms.unwrap_or_else(|| app.clock.now_ms());
        app.sign_in.sessions.end_all(as_of_ms).await.map_err(Problem::unavailable)?;
    }
    let client_id = app.registrar.register().await?;
    Ok(Json(OwnerTaken { client_id }))
}

async fn login(State(app): State<Arc<App>>, Json(hand_off): Json<HandOff>) -> Result<Json<HandOffCode>, Problem> {
    app.sign_in.login(hand_off).await.map(Json)
}

async fn logout(State(app): State<Arc<App>>, Json(end): Json<EndSessions>) -> Result<StatusCode, Problem> {
    app.sign_in.logout(end).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Copies the database as it is now, while it goes on being used, into a file of its own.
async fn snapshot(State(app): State<Arc<App>>) -> Result<StatusCode, Problem> {
    let _turn = app.snapshots.lock().await;
    let path = app.data.join(SNAPSHOT);
    match tokio::fs::remove_file(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Problem::unavailable(error)),
        _ => {}
    }
    let path = path.to_str().ok_or_else(|| Problem::internal(anyhow::anyhow!("the data folder is not UTF-8")))?;
    let copied = sqlx::query("VACUUM INTO $1").bind(path).execute(app.store.pool()).await;
    copied.map_err(Problem::unavailable)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn test_provider(
    State(app): State<Arc<App>>,
    Json(TestProvider { assertion, provider }): Json<TestProvider>,
) -> Result<Json<ProviderTest>, Problem> {
    let claims = app.sign_in.verify(Purpose::ProviderTest, &assertion).await?;
    let provider =
        provider.checked().map_err(|error| Problem::field(error.field(), error.code(), error.to_string()))?;
    app.sign_in.sessions.spend(&claims).await?;
    Ok(Json(trial::run(&app.upstream, &Arc::new(provider)).await))
}

async fn ready(State(app): State<Arc<App>>) -> Result<Json<Readiness>, Problem> {
    app.store.ping().await.map_err(Problem::unavailable)?;
    let registered = app.registrar.client_id().await.map_err(Problem::unavailable)?.is_some();
    Ok(Json(Readiness { registered, config_generation: app.config.generation }))
}

async fn activity(State(app): State<Arc<App>>) -> Json<InstanceActivity> {
    Json(InstanceActivity { busy: app.is_busy(), wake_keys: app.keys.fingerprints() })
}
