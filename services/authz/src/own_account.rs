//! What people do about their own account: see where they are signed in, end that, change the password.

use std::sync::Arc;

use axum::extract::State;
use contracts::{
    ProblemDetails,
    authz::{ChangePassword, EndSession, SessionList, SessionToken, SignedIn},
};
use http::StatusCode;
use service::{Json, Problem};

use crate::{
    accounts::Account,
    app::App,
    devices::{self, Visitor},
    goodbyes,
    password::{self, Purpose},
    refused::Answer,
    sessions, throttle,
};

/// Where a session's person is signed in: every session that holds, the last used first.
#[utoipa::path(post, path = "/portal/sessions", tag = "portal", request_body = SessionToken,
    responses((status = 200, body = SessionList), (status = 401, description = "session_ended", body = ProblemDetails)))]
pub(crate) async fn list(State(app): State<Arc<App>>, Json(body): Json<SessionToken>) -> Answer<Json<SessionList>> {
    let live = sessions::require(&app, &body.session_token).await?;
    Ok(Json(SessionList { sessions: sessions::list(&app, &live).await? }))
}

/// Ends one of a person's sessions, or all but the one that asks, here and in their instance. One that is not there, or is
/// somebody else's, is as good as ended.
#[utoipa::path(post, path = "/portal/sessions/end", tag = "portal", request_body = EndSession,
    responses((status = 204), (status = 401, description = "session_ended", body = ProblemDetails)))]
pub(crate) async fn end(State(app): State<Arc<App>>, Json(body): Json<EndSession>) -> Answer<StatusCode> {
    let live = sessions::require(&app, &body.session_token).await?;
    let mut transaction = app.store.begin().await?;
    let ended = match &body.sid {
        Some(sid) => sessions::end_by_sid(&mut transaction, &live.account, sid).await?,
        None => sessions::end_others(&mut transaction, &live.account, &live.sid).await?,
    };
    // All others end in the instance by ending all: it may have some whose portal session is long forgotten. Whoever asks is
    // let in again without noticing.
    let goodbye = match (&body.sid, ended) {
        (Some(_), 0) => None,
        (sid, _) => goodbyes::insert(&mut transaction, &app, &live.account, sid.as_deref()).await?,
    };
    transaction.commit().await?;
    tracing::info!(account_id = %live.account.id, sid = body.sid, ended, "sessions ended by their person");
    goodbyes::say_now(&app, goodbye).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes a person's password: whoever asks shows the old one and goes on in a new session; every other session ends, here
/// and in their instance, and no other device stays known.
#[utoipa::path(post, path = "/portal/password", tag = "portal", request_body = ChangePassword,
    responses(
        (status = 200, body = SignedIn),
        (status = 401, description = "session_ended", body = ProblemDetails),
        (status = 422, description = "password_wrong (the old one), password_*", body = ProblemDetails),
        (status = 429, description = "too_many_attempts, with Retry-After", body = ProblemDetails),
        (status = 503, description = "busy, unavailable", body = ProblemDetails)))]
pub(crate) async fn change_password(
    State(app): State<Arc<App>>,
    Json(body): Json<ChangePassword>,
) -> Answer<Json<SignedIn>> {
    let visitor = Visitor::read(&app, &body.browser)?;
    let account = sessions::require(&app, &body.session_token).await?.account;
    let device = visitor.known_to(&app, Some(&account)).await?;
    // Nothing that is typed to sign in has upper case: a counter of its own.
    let counter = format!("PASSWORD {}", account.id);
    throttle::look(&app, &counter, visitor.address, device.as_deref()).await?;
    let place = app.passwords.line_up(Purpose::SignIn).await?;
    let attempt = throttle::begin(&app, &counter, visitor.address, device.as_deref()).await?;
    let fits = app.passwords.verify(place, body.old_password, Some(account.password_hash.clone())).await;
    let mut transaction = app.store.begin().await?;
    match &fits {
        Ok(true) => attempt.succeeded(&mut transaction).await?,
        Ok(false) => {}
        Err(_) => attempt.withdrawn(&mut transaction).await?,
    }
    transaction.commit().await?;
    if !fits? {
        return Err(wrong());
    }
    let own_words = password::own_words(account.slug.as_ref().map(contracts::Slug::as_str), &account.email);
    let password_hash = app.passwords.set(body.new_password, own_words).await?;
    let mut transaction = app.store.begin().await?;
    // Of two at once, one has the old password; the other has what was the old one.
    let changed = sqlx::query("UPDATE accounts SET password_hash = $1 WHERE id = $2 AND password_hash = $3")
        .bind(password_hash.clone())
        .bind(account.id.to_string())
        .bind(account.password_hash.clone())
        .execute(&mut *transaction)
        .await?;
    if changed.rows_affected() == 0 {
        return Err(wrong());
    }
    let account = Account { password_hash, ..account };
    sessions::end_all(&mut transaction, &account).await?;
    devices::forget(&mut transaction, &account).await?;
    let goodbye = goodbyes::insert(&mut transaction, &app, &account, None).await?;
    let signed_in = sessions::begin(&mut transaction, &app, &account, &visitor).await?;
    transaction.commit().await?;
    tracing::info!(account_id = %account.id, "a password was changed");
    goodbyes::say_now(&app, goodbye).await;
    Ok(Json(signed_in))
}

fn wrong() -> crate::refused::Refused {
    Problem::field("old_password", "password_wrong", "The old password is not right.").into()
}
