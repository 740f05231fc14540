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

/// The codes with which the chat's API refuses, and the text that says what that means.
const REFUSALS: [(&str, &str); 11] = [
    ("answer_not_last", "chat.not_last"),
    ("chat_busy", "chat.busy"),
    ("chat_not_found", "chat.gone"),
    ("cross_origin", "notice.refused_words"),
    ("internal", "chat.internal"),
    ("message_empty", "chat.empty_message"),
    ("message_id_taken", "chat.id_taken"),
    ("message_too_long", "chat.message_too_long"),
    ("provider_not_configured", "chat.no_provider"),
    ("storage_full", "chat.disk_full"),
    ("unavailable", "chat.unavailable"),
];

#[derive(Template)]
#[template(path = "workspace.html")]
struct Page {
    t: Texts,
    /// The model that answers, when there is a provider.
    model: Option<String>,
    /// How much disk is taken of how much, when that is too much.
    disk: Option<String>,
    /// What each code means, as JSON.
    codes: String,
    /// What each refusal means, as JSON.
    refusals: String,
}

/// The page.
pub async fn page(State(app): State<Arc<App>>, locale: Locale) -> Response {
    let t = Texts::new(&app, locale, "/");
    let codes = CODES.map(|code| (code, t.get(&format!("answer.{code}"))));
    let refusals = REFUSALS.map(|(code, text)| (code, t.get(text)));
    let model = app.provider.current().map(|provider| provider.model.clone());
    let disk = app.disk.full().map(|full| {
        let mb = |bytes: u64| bytes.div_ceil(1 << 20);
        let used = full.used_bytes.map_or_else(|| "?".to_owned(), |bytes| mb(bytes).to_string());
        format!("{used} MB / {} MB", mb(full.limit_bytes))
    });
    html(StatusCode::OK, &Page { codes: json(codes), refusals: json(refusals), disk, t, model })
}

fn json<const N: usize>(texts: [(&str, String); N]) -> String {
    let texts = texts.into_iter().map(|(code, text)| (code.to_owned(), text.into()));
    serde_json::Value::Object(texts.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_chat_refuses_with_has_its_words() {
        let api = include_str!("../chat/api.rs");
        let codes: Vec<_> = api
            .split('"')
            .filter(|word| {
                ["answer_", "chat_", "message_", "provider_"].iter().any(|area| word.starts_with(area))
                    && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                    && !["message_id", "answer_id", "provider_said"].contains(word)
            })
            .collect();
        assert!(codes.len() >= 7, "{codes:?}");
        for code in codes {
            // Its own page never sends such an id.
            let known = REFUSALS.iter().any(|(known, _)| *known == code) || code == "message_id_invalid";
            assert!(known, "{code} is without words");
        }
    }

    #[test]
    fn the_page_shows_no_sentence_that_is_for_programs() {
        let script = include_str!("../../../templates/instance/chat.js");
        assert!(!script.contains("detail"));
    }
}
