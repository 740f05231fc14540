//! Another instance for somebody whose own is gone for good: under another name, for a name is never given twice.

use std::sync::Arc;

use axum::extract::State;
use contracts::{
    ProblemDetails, Slug,
    authz::{NewInstance, Session},
    deploy::{Instance, Phase, ResolveInstance},
};
use http::StatusCode;
use service::{Json, Problem};

use crate::{
    accounts::Account,
    app::App,
    deliveries,
    refused::{Answer, Refused},
    sessions, sign_up,
};

/// Gives the session's person another instance, when theirs is gone for good.
#[utoipa::path(post, path = "/portal/new-instance", tag = "portal", request_body = NewInstance,
    responses(
        (status = 200, body = Session),
        (status = 401, description = "session_ended", body = ProblemDetails),
        (status = 409, description = "instance_exists, slug_taken, slug_reserved", body = ProblemDetails),
        (status = 422, description = "slug_*", body = ProblemDetails)))]
pub(crate) async fn make(State(app): State<Arc<App>>, Json(body): Json<NewInstance>) -> Answer<Json<Session>> {
    let live = sessions::require(&app, &body.session_token).await?;
    let slug = sign_up::slug_of(&body.slug)?;
    let (Some(old_slug), Some(old_id)) = (&live.account.slug, live.account.instance_id) else {
        return Err(Problem::not_found("instance_not_found").into());
    };
    if !is_gone(&app, &live.account, old_slug).await? {
        return Err(exists());
    }
    let instance_id = deliveries::instance_id(&app).await;
    let account = Account { slug: Some(slug.clone()), instance_id: Some(instance_id), ..live.account };
    let mut transaction = app.store.begin().await?;
    if !sign_up::reserve(&mut transaction, &app, &slug, &account).await? {
        return Err(sign_up::slug_taken());
    }
    // Of two at once, one finds the old one.
    let changed = sqlx::query("UPDATE accounts SET slug = $1, instance_id = $2 WHERE id = $3 AND instance_id = $4")
        .bind(slug.to_string())
        .bind(instance_id.to_string())
        .bind(account.id.to_string())
        .bind(old_id.to_string())
        .execute(&mut *transaction)
        .await?;
    if changed.rows_affected() == 0 {
        return Err(exists());
    }
    // Nobody is there any more to hear it.
    for sql in ["DELETE FROM goodbyes WHERE instance_id = $1", "DELETE FROM stops WHERE instance_id = $1"] {
        sqlx::query(sql).bind(old_id.to_string()).execute(&mut *transaction).await?;
    }
    deliveries::insert(&mut transaction, &app, &account).await?;
    transaction.commit().await?;
    tracing::info!(account_id = %account.id, %slug, "took another name after the instance was gone");
    deliveries::deliver_now(&app, &account).await;
    let live = sessions::require(&app, &body.session_token).await?;
    Ok(Json(Session { instance_error: deliveries::refusal(&app, &live.account).await?, ..live.view() }))
}

/// Whether deploy-control says that the account's instance is gone for good.
async fn is_gone(app: &App, account: &Account, slug: &Slug) -> Answer<bool> {
    let body = ResolveInstance { account_id: account.id, slug: slug.clone() };
    match app.deploy.post::<Instance>("/api/instances/resolve", &body).await {
        Ok(instance) => Ok(instance.phase == Phase::Deleted),
        Err(error) if error.code() == Some("instance_not_found") => Ok(false),
        Err(error) => Err(Problem::unavailable(error).into()),
    }
}

fn exists() -> Refused {
    let words = "There is an instance already, or one that can still be taken back.";
    Problem::new(StatusCode::CONFLICT, "instance_exists", words).into()
}
