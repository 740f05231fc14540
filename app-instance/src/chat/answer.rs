//! One answer: asked of the provider, passed to the browser piece by piece, and kept.

use std::{sync::Arc, time::Duration};

use contracts::provider::{ProviderConfig, TestOutcome};
use http::header;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use service::sse;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Accepted, Turn};
use crate::{
    app::App,
    upstream::{Failure, FailureKind, SILENCE, chat_request, verdict},
};

/// How often what has come is written down: what a crash can cost at most.
const SAVE: Duration = Duration::from_secs(1);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 4 << 20;
/// The longest answer that is not a stream, or refusal, in bytes.
const MAX_BODY: usize = 4 << 20;
/// How much of the past is sent to the model, in bytes of text, the newest first.
const MAX_HISTORY: usize = 512 * 1024;

/// What the browser is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of the answer.
    Delta(String),
    /// The answer is whole and committed.
    Done,
    /// It is not whole; what came is kept. The code, and the provider's own words where it had any.
    Failed {
        /// Stable: a [`TestOutcome`]'s code, `cut` or `interrupted`.
        code: &'static str,
        /// Shortened, free of the key.
        provider_said: Option<String>,
    },
}

/// How an answer ended.
enum End {
    Whole,
    ReaderLeft,
    Stopped,
    Failed { code: &'static str, said: Option<String> },
}

/// Makes the answer, telling `reader`; ends early when the reader leaves, the chat is deleted (`gone`), or the program
/// ends.
pub async fn make(
    app: Arc<App>,
    provider: Arc<ProviderConfig>,
    accepted: Accepted,
    reader: mpsc::Sender<Event>,
    gone: CancellationToken,
) {
    let Accepted { answer_id, history } = accepted;
    let mut text = String::new();
    let end = tokio::select! {
        biased;
        () = reader.closed() => End::ReaderLeft,
        () = gone.cancelled() => End::ReaderLeft,
        () = app.stop.cancelled() => End::Stopped,
        outcome = generate(&app, &provider, history, &answer_id, &reader, &mut text) => match outcome {
            Ok(()) => End::Whole,
            Err(Trouble::ReaderLeft) => End::ReaderLeft,
            Err(Trouble::Told { outcome, said }) => End::Failed { code: code(outcome), said },
            Err(Trouble::Failure(failure)) => {
                tracing::warn!(cause = failure.chain(), "an answer was not completed");
                let code = if failure.kind == FailureKind::Cut { "cut" } else { code(failure.kind.outcome()) };
                End::Failed { code, said: None }
            }
        },
    };
    let (status, error, event) = match end {
        End::Whole => ("done", None, Some(Event::Done)),
        End::ReaderLeft => ("partial", None, None),
        End::Stopped => ("interrupted", None, Some(Event::Failed { code: "interrupted", provider_said: None })),
        End::Failed { code, said } => ("failed", Some(code), Some(Event::Failed { code, provider_said: said })),
    };
    metrics::counter!("beaver_answers_total", "status" => status, "code" => error.unwrap_or("")).increment(1);
    let event = match app.chats.save_answer(&answer_id, &text, status, error).await {
        Ok(()) => event,
        Err(error) => {
            tracing::error!(%error, "an answer could not be kept");
            Some(Event::Failed { code: "not_saved", provider_said: None })
        }
    };
    if let Some(event) = event {
        // A reader that left meanwhile reads the chat again when it comes back.
        let _ = reader.send(event).await;
    }
}

enum Trouble {
    ReaderLeft,
    /// The provider said so.
    Told {
        outcome: TestOutcome,
        said: Option<String>,
    },
    Failure(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The code of an outcome on the wire: as serde writes it.
pub fn code(outcome: TestOutcome) -> &'static str {
    match outcome {
        TestOutcome::Ok => "ok",
        TestOutcome::BadKey => "bad_key",
        TestOutcome::NoSuchModel => "no_such_model",
        TestOutcome::NotAnApi => "not_an_api",
        TestOutcome::QuotaOrRate => "quota_or_rate",
        TestOutcome::Unreachable => "unreachable",
        TestOutcome::Refused => "refused",
        TestOutcome::ProviderFailed => "provider_failed",
        TestOutcome::Timeout => "timeout",
    }
}

async fn generate(
    app: &App,
    provider: &Arc<ProviderConfig>,
    history: Vec<Turn>,
    answer_id: &str,
    reader: &mpsc::Sender<Event>,
    text: &mut String,
) -> Result<(), Trouble> {
    let body = json!({ "model": provider.model, "messages": newest(history), "stream": true });
    let request = chat_request(provider, &body, "text/event-stream, application/json")
        .map_err(|error| Failure::new(FailureKind::Unreachable, error))?;
    let response = app.upstream.send(request).await?;
    let (parts, body) = response.into_parts();
    let key = provider.api_key.expose_secret();
    if !parts.status.is_success() {
        let body = Limited::new(body, MAX_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let outcome = verdict::judge(parts.status.as_u16(), &body);
        return Err(Trouble::Told { outcome, said: verdict::said(&body, key) });
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).map(|kind| kind.as_bytes().to_ascii_lowercase());
    if kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
        return read_stream(app, body, key, answer_id, reader, text).await;
    }
    // Some servers do not stream: their answer comes in one piece.
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| Failure::new(FailureKind::Cut, error))?;
    let answer: Option<Value> = serde_json::from_slice(&body.to_bytes()).ok();
    let content = answer.as_ref().and_then(|json| json["choices"][0]["message"]["content"].as_str());
    let Some(content) = content else {
        return Err(Trouble::Told { outcome: TestOutcome::NotAnApi, said: None });
    };
    text.push_str(content);
    reader.send(Event::Delta(content.to_owned())).await.map_err(|_| Trouble::ReaderLeft)
}

/// What is read of a chunk of a streamed completion.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

async fn read_stream(
    app: &App,
    mut body: Incoming,
    key: &str,
    answer_id: &str,
    reader: &mpsc::Sender<Event>,
    text: &mut String,
) -> Result<(), Trouble> {
    let (mut parser, mut finished, mut saved_at) = (sse::Parser::default(), false, Instant::now());
    loop {
        let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            // What goes wrong behind the answer's end takes nothing from it.
            _ if finished => return Ok(()),
            // The end without a word that it is the end is a cut, however cleanly the connection closed.
            Ok(None) => return Err(Failure::new(FailureKind::Cut, "the stream ended before the answer did").into()),
            Ok(Some(Err(error))) => return Err(Failure::new(FailureKind::Cut, error).into()),
            Err(elapsed) => return Err(Failure::new(FailureKind::Timeout, elapsed).into()),
        };
        let Ok(data) = frame.into_data() else { continue };
        // What came before the end, good or bad, in the same frame is passed on first.
        let (mut piece, mut end) = (String::new(), None);
        for sse::Event { data: event, .. } in
            parser.push(&data).map_err(|error| Failure::new(FailureKind::Cut, error))?
        {
            if event == b"[DONE]" {
                end = Some(Ok(()));
                break;
            }
            let Ok(chunk) = serde_json::from_slice::<Chunk>(&event) else {
                end = Some(Err(Trouble::Told { outcome: TestOutcome::NotAnApi, said: None }));
                break;
            };
            if chunk.error.is_some_and(|error| !error.is_null()) {
                let said = verdict::said(&event, key);
                end = Some(Err(Trouble::Told { outcome: TestOutcome::ProviderFailed, said }));
                break;
            }
            if let Some(choice) = chunk.choices.into_iter().next() {
                finished |= choice.finish_reason.is_some();
                piece.push_str(&choice.delta.and_then(|delta| delta.content).unwrap_or_default());
            }
        }
        if !piece.is_empty() {
            text.push_str(&piece);
            if text.len() > MAX_ANSWER {
                return Err(Failure::new(FailureKind::Cut, "the answer is longer than 4 MB").into());
            }
            reader.send(Event::Delta(piece)).await.map_err(|_| Trouble::ReaderLeft)?;
        }
        if let Some(end) = end {
            return end;
        }
        if saved_at.elapsed() >= SAVE {
            saved_at = Instant::now();
            if let Err(error) = app.chats.save_answer(answer_id, text, "streaming", None).await {
                tracing::warn!(%error, "an answer under way could not be kept");
            }
        }
    }
}

/// The newest turns that fit; always the last one.
fn newest(history: Vec<Turn>) -> Vec<Turn> {
    let mut size = 0;
    let fitting = history.iter().rev().take_while(|turn| {
        size += turn.content.len();
        size <= MAX_HISTORY
    });
    let count = fitting.count().max(1).min(history.len());
    history.into_iter().rev().take(count).collect::<Vec<_>>().into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_on_the_wire() {
        use TestOutcome::*;
        for outcome in [Ok, BadKey, NoSuchModel, NotAnApi, QuotaOrRate, Unreachable, Refused, ProviderFailed, Timeout] {
            assert_eq!(serde_json::to_value(outcome).unwrap(), code(outcome));
        }
    }

    #[test]
    fn a_long_past_is_cut_at_its_far_end() {
        let turn = |n: usize| Turn { role: "user".into(), content: n.to_string().repeat(200 * 1024) };
        let kept = newest(vec![turn(1), turn(2), turn(3)]);
        assert_eq!(kept, [turn(2), turn(3)]);
        let huge = Turn { role: "user".into(), content: "x".repeat(MAX_HISTORY + 1) };
        assert_eq!(newest(vec![turn(1), huge.clone()]), [huge]);
    }
}
