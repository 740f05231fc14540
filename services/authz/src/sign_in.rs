//! Signing in: `POST /portal/login`.

use std::sync::Arc;

use axum::extract::State;
use contracts::{
    ProblemDetails,
    authz::{Login, SignedIn},
};
use http::StatusCode;
use service::{Json, Problem};

use crate::{
    accounts, app::App, devices::Visitor, goodbyes, password::Purpose, refused::Answer, sessions, suspension, throttle,
};

/// Checks a password and begins a session. Unknown people and wrong passwords get the same answer in the same time.
#[utoipa::path(post, path = "/portal/login", tag = "portal", request_body = Login,
    responses(
        (status = 200, body = SignedIn),
        (status = 401, description = "bad_credentials", body = ProblemDetails),
        (status = 403, description = "account_suspended, for the right password", body = ProblemDetails),
        (status = 429, description = "too_many_attempts, with Retry-After", body = ProblemDetails),
        (status = 503, description = "busy, unavailable", body = ProblemDetails)))]
pub(crate) async fn login(State(app): State<Arc<App>>, Json(body): Json<Login>) -> Answer<Json<SignedIn>> {
    let visitor = Visitor::read(&app, &body.browser)?;
    let login = accounts::Login::read(&body.login);
    let account = accounts::by_login(app.store.pool(), &login).await?;
    let device = visitor.known_to(&app, account.as_ref()).await?;
    let hash = account.as_ref().map(|account| account.password_hash.clone());
    throttle::look(&app, login.key(), visitor.address, device.as_deref()).await?;
    // Whoever leaves the line has not guessed: it counts once it is their turn.
    let place = app.passwords.line_up(Purpose::SignIn).await?;
    let attempt = throttle::begin(&app, login.key(), visitor.address, device.as_deref()).await?;
    let fits = match app.passwords.verify(place, body.password, hash).await {
        Ok(fits) => fits,
        Err(refused) => {
            let mut transaction = app.store.begin().await?;
            attempt.withdrawn(&mut transaction).await?;
            transaction.commit().await?;
            return Err(refused);
        }
    };
    let Some(account) = account.filter(|_| fits) else {
        return Err(bad_credentials().into());
    };
    let mut transaction = app.store.begin().await?;
    if !accounts::password_holds(&mut transaction, &account).await? {
        transaction.rollback().await?;
        return Err(bad_credentials().into());
    }
    attempt.succeeded(&mut transaction).await?;
    if account.suspended_at_ms > 0 {
        transaction.commit().await?;
        metrics::counter!("authz_sign_ins_total", "outcome" => "suspended").increment(1);
        return Err(suspension::refusal());
    }
    let replaced = match &body.replaces {
        Some(before) => sessions::end(&mut transaction, before).await?,
        None => None,
    };
    // It may have been another person's: theirs is the instance that hears of it.
    let goodbye = match &replaced {
        Some((before, sid)) => goodbyes::insert(&mut transaction, &app, before, Some(sid)).await?,
        None => None,
    };
    let signed_in = sessions::begin(&mut transaction, &app, &account, &visitor).await?;
    transaction.commit().await?;
    goodbyes::say_now(&app, goodbye).await;
    metrics::counter!("authz_sign_ins_total", "outcome" => "ok").increment(1);
    tracing::info!(account_id = %account.id, sid = signed_in.session.sid, "signed in");
    Ok(Json(signed_in))
}

fn bad_credentials() -> Problem {
    metrics::counter!("authz_sign_ins_total", "outcome" => "refused").increment(1);
    Problem::new(StatusCode::UNAUTHORIZED, "bad_credentials", "The name or the password is not right.")
}
