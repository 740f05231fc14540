//! The provider itself: its answers, its record, its gate.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Request, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

use super::{BEAT, CHAT, CUT, Ended, GATED, GOOD_KEY, MODELS, Record, Recorded, STEADY, reply_pieces, steady_piece};

/// What the API's and the control's listener share.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    requests: Mutex<Vec<Recorded>>,
    gate: Semaphore,
    waiting: AtomicUsize,
    /// How often what goes on and on was ended.
    finished: AtomicU64,
}

impl Default for State {
    fn default() -> Self {
        Self(Arc::new(Inner {
            requests: Mutex::default(),
            gate: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
        }))
    }
}

impl State {
    fn record(&self, request: Recorded) -> usize {
        let mut requests = self.0.requests.lock().expect("no holder of this lock panics");
        requests.push(request);
        requests.len() - 1
    }

    fn end(&self, index: usize, ended: Ended) {
        let mut requests = self.0.requests.lock().expect("no holder of this lock panics");
        if requests[index].ended == Ended::Open {
            requests[index].ended = ended;
        }
    }

    /// The pieces of what goes on and on, until it is ended.
    fn steadily(&self, said: String) -> impl Iterator<Item = String> + Send + use<> {
        let (state, at_first) = (self.clone(), self.0.finished.load(Ordering::SeqCst));
        let goes_on = move || state.0.finished.load(Ordering::SeqCst) == at_first;
        (0..).map_while(move |n| goes_on().then(|| steady_piece(&said, n)))
    }

    async fn pass_gate(&self) {
        let _waiting = Waiting::new(self);
        if let Ok(permit) = self.0.gate.acquire().await {
            permit.forget();
        }
    }
}

/// Counts itself as waiting while it lives, so also when the caller leaves in the middle.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(state: &'a State) -> Self {
        state.0.waiting.fetch_add(1, Ordering::SeqCst);
        Self(&state.0.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Marks a streamed answer as left when it is dropped before its end.
struct Answer {
    state: State,
    index: usize,
    pieces: Box<dyn Iterator<Item = String> + Send>,
    gated: bool,
    steady: bool,
    cut: bool,
    over: bool,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.state.end(self.index, if self.over { Ended::Whole } else { Ended::Left });
    }
}

/// Serves the API on `api` and the test's own listener on `control`, until one of them fails.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve(state: State, api: TcpListener, control: TcpListener) -> io::Result<()> {
    tokio::try_join!(async { axum::serve(api, api_router(state.clone())).await }, async {
        axum::serve(control, control_router(state.clone())).await
    },)?;
    Ok(())
}

fn control_router(state: State) -> Router {
    Router::new()
        .route(
            "/record",
            get(async |Shared(state): Shared<State>| {
                Json(Record {
                    requests: state.0.requests.lock().expect("no holder of this lock panics").clone(),
                    waiting: state.0.waiting.load(Ordering::SeqCst),
                })
            }),
        )
        .route(
            "/release/{pieces}",
            post(async |Shared(state): Shared<State>, Path(pieces): Path<usize>| {
                state.0.gate.add_permits(pieces);
                StatusCode::NO_CONTENT
            }),
        )
        .route(
            "/finish",
            post(async |Shared(state): Shared<State>| {
                state.0.finished.fetch_add(1, Ordering::SeqCst);
                StatusCode::NO_CONTENT
            }),
        )
        .with_state(state)
}

fn api_router(state: State) -> Router {
    Router::new().fallback(api).with_state(state)
}

async fn api(Shared(state): Shared<State>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 16 << 20).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let answer = decide(parts.method.as_str(), parts.uri.path(), &parts.headers, &body);
    let index = state.record(Recorded {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        headers: parts
            .headers
            .iter()
            .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect(),
        body: body.clone(),
        status: match &answer {
            Decision::Refuse(status, _) => status.as_u16(),
            Decision::Models | Decision::Chat => 200,
        },
        ended: Ended::Open,
    });
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    match answer {
        Decision::Refuse(status, error) => {
            state.end(index, Ended::Whole);
            (status, Json(json!({ "error": error }))).into_response()
        }
        Decision::Models => {
            state.end(index, Ended::Whole);
            let data: Vec<_> = MODELS
                .iter()
                .map(|id| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}))
                .collect();
            Json(json!({"object": "list", "data": data})).into_response()
        }
        Decision::Chat => {
            let said = last_said(&body).unwrap_or_default();
            let answer = Answer {
                pieces: match model == STEADY {
                    true => Box::new(state.steadily(said.to_owned())),
                    false => Box::new(reply_pieces(said).into_iter()),
                },
                gated: model == GATED,
                steady: model == STEADY,
                cut: model == CUT,
                over: false,
                state,
                index,
            };
            if body["stream"] == json!(true) {
                streamed(answer, model, body["stream_options"]["include_usage"] == json!(true))
            } else {
                whole(answer, &model).await
            }
        }
    }
}

enum Decision {
    Refuse(StatusCode, Value),
    Models,
    Chat,
}

fn decide(method: &str, path: &str, headers: &HeaderMap, body: &Value) -> Decision {
    let error = |kind: &str, code: &str, message: String| json!({"message": message, "type": kind, "param": null, "code": code});
    let key = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .unwrap_or_default();
    if !key.starts_with(GOOD_KEY) {
        let shown: String = key.chars().take(4).collect();
        let said = format!("Incorrect API key provided: {shown}****.");
        return Decision::Refuse(StatusCode::UNAUTHORIZED, error("invalid_request_error", "invalid_api_key", said));
    }
    // Under any prefix, so that a test can tell by which of several addresses it was reached.
    let path = path.find("/v1/").map_or(path, |at| &path[at..]);
    match (method, path) {
        ("GET", "/v1/models") => Decision::Models,
        ("POST", "/v1/chat/completions") => match body["model"].as_str() {
            // Whole, it would never be given.
            Some(STEADY) if body["stream"] != json!(true) => Decision::Refuse(
                StatusCode::BAD_REQUEST,
                error("invalid_request_error", "unsupported_value", format!("The model `{STEADY}` only streams.")),
            ),
            Some(CHAT | GATED | STEADY | CUT) => Decision::Chat,
            model => Decision::Refuse(
                StatusCode::NOT_FOUND,
                error(
                    "invalid_request_error",
                    "model_not_found",
                    format!("The model `{}` does not exist.", model.unwrap_or_default()),
                ),
            ),
        },
        _ => Decision::Refuse(
            StatusCode::NOT_FOUND,
            error("invalid_request_error", "unknown_url", format!("Unknown request URL: {method} {path}.")),
        ),
    }
}

/// What the person said last in a chat request; content may be a text or a list of parts.
pub(super) fn last_said(body: &Value) -> Option<&str> {
    let messages = body["messages"].as_array()?;
    let content = &messages.iter().rev().find(|m| m["role"] == "user")?["content"];
    content.as_str().or_else(|| content.as_array()?.iter().find_map(|part| part["text"].as_str()))
}

async fn whole(mut answer: Answer, model: &str) -> Response {
    let mut text = String::new();
    for piece in answer.pieces.by_ref() {
        if answer.gated {
            answer.state.pass_gate().await;
        }
        text.push_str(&piece);
    }
    answer.over = true;
    Json(json!({
        "id": "chatcmpl-fake", "object": "chat.completion", "created": 1_700_000_000, "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18},
        // No API has this member: it must reach the caller all the same.
        "x_fake": {"kept": true},
    }))
    .into_response()
}

fn streamed(answer: Answer, model: String, usage: bool) -> Response {
    let chunk = move |delta: Value, finish: Value| {
        let chunk = json!({
            "id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        format!("data: {chunk}\n\n")
    };
    let body = stream::unfold((answer, 0_usize), move |(mut answer, sent)| {
        let chunk = chunk.clone();
        async move {
            if answer.over {
                return None;
            }
            if answer.cut && sent == 2 {
                answer.over = true;
                // Without a pause the pieces before would still be unsent when the connection ends.
                tokio::task::yield_now().await;
                // An error ends the connection without the last chunk: what a crashed provider looks like.
                return Some((Err(io::Error::other("cut")), (answer, sent)));
            }
            if answer.steady && sent > 0 {
                tokio::time::sleep(BEAT).await;
            }
            let text = match answer.pieces.next() {
                Some(piece) => {
                    if answer.gated {
                        answer.state.pass_gate().await;
                    }
                    chunk(json!({"role": "assistant", "content": piece}), Value::Null)
                }
                None => {
                    answer.over = true;
                    let usage = if usage {
                        let usage = json!({"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18});
                        let last = json!({"id": "chatcmpl-fake", "object": "chat.completion.chunk",
                            "created": 1_700_000_000, "model": "fake", "choices": [], "usage": usage});
                        format!("data: {last}\n\n")
                    } else {
                        String::new()
                    };
                    format!("{}{usage}data: [DONE]\n\n", chunk(json!({}), json!("stop")))
                }
            };
            Some((Ok(Bytes::from(text)), (answer, sent + 1)))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], Body::from_stream(body))
        .into_response()
}
