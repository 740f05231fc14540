//! The chat's API, for the workspace's own page.

use std::{collections::hash_map::Entry, convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, StatusCode};
use locale::Locale;
use serde::Deserialize;
use serde_json::json;
use service::{Json, Problem};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Message, Posted,
    answer::{self, Event},
};
use crate::{app::App, pages::texts};

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 256 * 1024;
/// How many pieces may wait for a slow browser before the provider is read no further.
const PIECES: usize = 16;

/// `/api/chats…`; the session is checked around it.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/chats", get(list).post(create))
        .route("/api/chats/{id}", get(read).delete(delete))
        .route("/api/chats/{id}/messages", post(send))
}

async fn list(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let chats = app.chats.list().await.map_err(Problem::unavailable)?;
    Ok(Json(json!({ "chats": chats })))
}

async fn create(State(app): State<Arc<App>>, locale: Locale) -> Result<impl IntoResponse, Problem> {
    app.disk.has_room(|| texts::text(locale, "chat.disk_full"))?;
    let chat = app.chats.create().await.map_err(Problem::unavailable)?;
    Ok((StatusCode::CREATED, Json(chat)))
}

async fn read(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<impl IntoResponse, Problem> {
    let (chat, messages) = app.chats.read(&id).await.map_err(Problem::unavailable)?.ok_or_else(no_chat)?;
    Ok(Json(json!({
        "id": chat.id,
        "title": chat.title,
        "created_at_ms": chat.created_at_ms,
        "updated_at_ms": chat.updated_at_ms,
        "messages": messages,
    })))
}

async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    if let Some(running) = app.running().remove(&id) {
        running.cancel();
    }
    let deleted = app.chats.delete(&id).await.map_err(Problem::unavailable)?;
    if deleted && app.disk.full().is_some() {
        app.make_smaller();
    }
    if deleted { Ok(StatusCode::NO_CONTENT) } else { Err(no_chat()) }
}

fn no_chat() -> Problem {
    Problem::not_found("chat_not_found")
}

/// Body of `POST /api/chats/{id}/messages`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMessage {
    /// Chosen by the browser, 8 to 64 letters, digits and hyphens: the same id is the same message.
    id: String,
    content: String,
    /// Whether an answer that did not end well is made again.
    #[serde(default)]
    again: bool,
}

async fn send(
    State(app): State<Arc<App>>,
    Path(chat_id): Path<String>,
    locale: Locale,
    Json(message): Json<NewMessage>,
) -> Result<Response, Problem> {
    let id_fits =
        (8..=64).contains(&message.id.len()) && message.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !id_fits {
        return Err(Problem::field("id", "message_id_invalid", "An id has 8 to 64 letters, digits and hyphens."));
    }
    if message.content.trim().is_empty() {
        return Err(Problem::field("content", "message_empty", texts::text(locale, "chat.empty_message")));
    }
    if message.content.len() > MAX_MESSAGE {
        return Err(Problem::field("content", "message_too_long", texts::text(locale, "chat.message_too_long")));
    }
    let provider = app.provider.current().ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "provider_not_configured",
            texts::text(locale, "chat.no_provider"),
        )
    })?;
    app.disk.has_room(|| texts::text(locale, "chat.disk_full"))?;
    // The turn is taken before anything is written, and given back when the answer is over, however it ends.
    let turn = Turn::take(&app, &chat_id)
        .ok_or_else(|| Problem::new(StatusCode::CONFLICT, "chat_busy", texts::text(locale, "chat.busy")))?;
    let posted = app.chats.post(&chat_id, &message.id, &message.content, message.again).await;
    match posted.map_err(Problem::unavailable)? {
        Posted::NoChat => Err(no_chat()),
        Posted::IdTaken => {
            Err(Problem::new(StatusCode::CONFLICT, "message_id_taken", "This id belongs to another message."))
        }
        Posted::NotLast => {
            Err(Problem::new(StatusCode::CONFLICT, "answer_not_last", texts::text(locale, "chat.not_last")))
        }
        Posted::Before(answer) => {
            let events = [accepted(&message.id, &answer.id)].into_iter().chain(replay(&answer, locale));
            Ok(respond(stream::iter(events)))
        }
        Posted::Accepted(posted) => {
            let first = accepted(&message.id, &posted.answer_id);
            let (reader, events) = mpsc::channel(PIECES);
            let (task_app, gone) = (app.clone(), turn.gone.clone());
            app.tasks.spawn(async move {
                answer::make(task_app, provider, posted, reader, gone).await;
                drop(turn);
            });
            let events = ReceiverStream::new(events).map(move |event| wire(event, locale));
            Ok(respond(stream::once(async { first }).chain(events)))
        }
    }
}

/// The right to add to a chat: one answer at a time.
struct Turn {
    app: Arc<App>,
    chat_id: String,
    gone: tokio_util::sync::CancellationToken,
}

impl Turn {
    fn take(app: &Arc<App>, chat_id: &str) -> Option<Self> {
        let gone = tokio_util::sync::CancellationToken::new();
        match app.running().entry(chat_id.to_owned()) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(entry) => entry.insert(gone.clone()),
        };
        Some(Self { app: app.clone(), chat_id: chat_id.to_owned(), gone })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // After a deletion the entry is gone, or another's: ids are never used twice, so it cannot be another's.
        self.app.running().remove(&self.chat_id);
    }
}

fn accepted(message_id: &str, answer_id: &str) -> sse::Event {
    sse::Event::default()
        .event("accepted")
        .data(json!({ "message_id": message_id, "answer_id": answer_id }).to_string())
}

/// What a browser is told of an answer that was made before.
fn replay(answer: &Message, locale: Locale) -> Vec<sse::Event> {
    let mut events = Vec::new();
    if !answer.content.is_empty() {
        events.push(wire(Event::Delta(answer.content.clone()), locale));
    }
    events.push(if answer.status == "done" {
        wire(Event::Done, locale)
    } else {
        let code = answer.error.clone().unwrap_or_else(|| answer.status.clone());
        failed(&code, None, locale)
    });
    events
}

fn wire(event: Event, locale: Locale) -> sse::Event {
    match event {
        Event::Delta(text) => sse::Event::default().event("delta").data(json!({ "text": text }).to_string()),
        Event::Done => sse::Event::default().event("done").data("{}"),
        Event::Failed { code, provider_said } => failed(code, provider_said, locale),
    }
}

fn failed(code: &str, provider_said: Option<String>, locale: Locale) -> sse::Event {
    let message = texts::text(locale, &format!("answer.{code}"));
    let data = json!({ "code": code, "message": message, "provider_said": provider_said });
    sse::Event::default().event("error").data(data.to_string())
}

fn respond(events: impl Stream<Item = sse::Event> + Send + 'static) -> Response {
    let events = events.map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
