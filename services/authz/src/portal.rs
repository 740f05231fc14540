//! What the portal asks about a session: who it is, its end, and assertions for the person's instance.

use std::sync::Arc;

use axum::extract::State;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{
    ProblemDetails,
    authz::{AssertionIssued, AssertionRequest, Logout, Purpose, Session, SessionToken},
};
use http::StatusCode;
use service::{Json, Problem};

use crate::{app::App, assertions, deliveries, goodbyes, refused::Answer, sessions};

/// The session of a token; looking it up keeps it alive.
#[utoipa::path(post, path = "/portal/session", tag = "portal", request_body = SessionToken,
    responses((status = 200, body = Session), (status = 401, description = "session_ended", body = ProblemDetails)))]
pub(crate) async fn session(State(app): State<Arc<App>>, Json(body): Json<SessionToken>) -> Answer<Json<Session>> {
    let live = sessions::require(&app, &body.session_token).await?;
    Ok(Json(Session { instance_error: deliveries::refusal(&app, &live.account).await?, ..live.view() }))
}

/// Offers the person's instance to deploy-control again, if that refused it. The session tells what became of it.
#[utoipa::path(post, path = "/portal/retry-delivery", tag = "portal", request_body = SessionToken,
    responses((status = 200, body = Session), (status = 401, description = "session_ended", body = ProblemDetails)))]
pub(crate) async fn retry_delivery(
    State(app): State<Arc<App>>,
    Json(body): Json<SessionToken>,
) -> Answer<Json<Session>> {
    let live = sessions::require(&app, &body.session_token).await?;
    deliveries::retry(&app, &live.account).await?;
    Ok(Json(Session { instance_error: deliveries::refusal(&app, &live.account).await?, ..live.view() }))
}

/// Ends a session, or all of that person's, here and in their instance, which hears of it as soon as it can. A token without
/// a session is as good as ended.
#[utoipa::path(post, path = "/portal/logout", tag = "portal", request_body = Logout, responses((status = 204)))]
pub(crate) async fn logout(State(app): State<Arc<App>>, Json(body): Json<Logout>) -> Answer<StatusCode> {
    sessions::sign_out(&app, &body.session_token, body.everywhere).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An assertion about a session's person, for their own instance.
#[utoipa::path(post, path = "/portal/assertion", tag = "portal", request_body = AssertionRequest,
    responses(
        (status = 200, body = AssertionIssued),
        (status = 400, description = "invalid_request: bind or purpose", body = ProblemDetails),
        (status = 401, description = "session_ended", body = ProblemDetails),
        (status = 404, description = "instance_not_found: the slug is not the person's", body = ProblemDetails)))]
pub(crate) async fn assertion(
    State(app): State<Arc<App>>,
    Json(body): Json<AssertionRequest>,
) -> Answer<Json<AssertionIssued>> {
    let purpose = match (body.purpose, &body.bind) {
        (Purpose::Login, Some(bind)) if is_sha256(bind) => token::Purpose::Login,
        (Purpose::Login, _) => {
            return Err(Problem::bad_request("bind must be the base64url of a SHA-256.").on_field("bind").into());
        }
        (Purpose::ProviderTest, None) => token::Purpose::ProviderTest,
        (Purpose::ProviderTest, Some(_)) => {
            return Err(Problem::bad_request("bind is for login alone.").on_field("bind").into());
        }
        // deploy-control gets the first from /backends/register; the second is said by authz itself.
        (Purpose::Register | Purpose::Logout, _) => {
            return Err(Problem::bad_request("This purpose cannot be asked for here.").on_field("purpose").into());
        }
    };
    // Before the session is looked at: one that ends in the meantime takes what is asserted here along.
    let asked_at_ms = app.clock.now_ms();
    let live = match purpose {
        token::Purpose::Login => sessions::require_before_any_end(&app, &body.session_token).await?,
        _ => sessions::require(&app, &body.session_token).await?,
    };
    let (Some(slug), Some(instance_id)) = (&live.account.slug, live.account.instance_id) else {
        return Err(Problem::not_found("instance_not_found").into());
    };
    if *slug != body.slug {
        return Err(Problem::not_found("instance_not_found").into());
    }
    if purpose == token::Purpose::Login {
        goodbyes::say_before_hand_off(&app, instance_id).await?;
    }
    let account = live.account.id;
    let assertion =
        assertions::assertion(&app, account, slug, purpose, Some(live.sid.clone()), body.bind, asked_at_ms)?;
    let edge_token = (purpose == token::Purpose::Login)
        .then(|| assertions::edge_token(&app, account, slug, live.sid.clone(), live.expires_at_ms))
        .transpose()?;
    Ok(Json(AssertionIssued { instance_id, assertion, edge_token }))
}

fn is_sha256(text: &str) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32)
}
