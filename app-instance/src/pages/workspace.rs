//! The workspace's first page: the chat. What moves on it is `chat.js`.

use std::sync::Arc;

use askama::Template;
use axum::{extract::State, response::Response};
use http::StatusCode;
use locale::Locale;

use super::{html, texts::Texts};
use crate::app::App;

/// The codes that a kept answer may carry.
const CODES: [&str; 10] = [
    "bad_key",
    "cut",
    "no_such_model",
    "not_an_api",
    "not_saved",
    "provider_failed",
    "quota_or_rate",
    "refused",
    "timeout",
    "unreachable",
];

#[derive(Template)]
#[template(path = "workspace.html")]
struct Page {
    t: Texts,
    /// The model that answers, when there is a provider.
    model: Option<String>,
    /// What each code means, as JSON.
    codes: String,
}

/// The page.
pub async fn page(State(app): State<Arc<App>>, locale: Locale) -> Response {
    let t = Texts::new(&app, locale, "/");
    let codes: serde_json::Map<_, _> =
        CODES.into_iter().map(|code| (code.to_owned(), t.get(&format!("answer.{code}")).into())).collect();
    let model = app.provider.current().map(|provider| provider.model.clone());
    html(StatusCode::OK, &Page { t, model, codes: serde_json::Value::Object(codes).to_string() })
}
