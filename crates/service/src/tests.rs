//! The layers together, as a client meets them.

use axum::{Router, body::Body, routing::post};
use contracts::ProblemDetails;
use http::{Request, StatusCode};
use secrecy::SecretString;
use tower::ServiceExt;

use crate::{
    Health, Json, Problem, bearer,
    http::{RequestIds, layers},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[derive(serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Ping {
    number: u32,
}

fn app() -> Router {
    let guarded = Router::new()
        .route("/ping", post(async |Json(ping): Json<Ping>| Json(ping)))
        .route("/panic", post(async || -> Result<(), Problem> { panic!("with a secret") }));
    let health = Health::new().need("fine", async || Ok(())).need("database", async || Err("locked".to_owned()));
    layers(bearer::require(guarded, vec![SecretString::from(TOKEN)]).merge(health.routes()), RequestIds::FromCaller)
}

async fn call(method: &str, path: &str, token: Option<&str>, body: &'static str) -> (StatusCode, String) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response =
        app().oneshot(request.header("x-request-id", "from-the-caller").body(Body::from(body)).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "from-the-caller");
    let status = response.status();
    (status, String::from_utf8(axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn only_the_service_token_opens() {
    assert_eq!(call("POST", "/ping", Some(TOKEN), r#"{"number":1}"#).await, (StatusCode::OK, r#"{"number":1}"#.into()));
    for token in [None, Some(""), Some("0123456789abcdef0123456789abcdee"), Some("x")] {
        let (status, body) = call("POST", "/ping", token, r#"{"number":1}"#).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(serde_json::from_str::<ProblemDetails>(&body).unwrap().code, "service_token_required");
    }
}

#[tokio::test]
async fn bad_bodies_panics_and_strange_paths_are_problems() {
    for (path, body, status, code) in [
        ("/ping", r#"{"number":"x"}"#, StatusCode::BAD_REQUEST, "invalid_request"),
        ("/ping", r#"{"number":1,"password":"p"}"#, StatusCode::BAD_REQUEST, "invalid_request"),
        ("/panic", "", StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        ("/nothing", "", StatusCode::NOT_FOUND, "not_found"),
    ] {
        let (answered, text) = call("POST", path, Some(TOKEN), body).await;
        let details: ProblemDetails = serde_json::from_str(&text).unwrap();
        assert_eq!((answered, details.code.as_str()), (status, code), "{path} {body}");
        assert!(details.request_id.is_some() && !text.contains("secret"));
    }
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let (status, body) = call("GET", "/readyz", None, "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains(r#""database":"locked""#) && body.contains(r#""fine":"ok""#), "{body}");
    assert_eq!(call("GET", "/healthz", None, "").await.0, StatusCode::OK);
}
