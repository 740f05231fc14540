//! Streams of tenants, followed piece by piece: nobody may ever read anything but their own.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};

use crate::provider::{STEADY, steady_piece};

/// How long a stream may take to begin.
const BEGINNING: Duration = Duration::from_secs(30);
/// The longest head of an answer.
const MAX_HEAD: usize = 64 << 10;
/// The last words of an answer that came to its end.
const DONE: &str = "data: [DONE]\n\n";

/// A way from a tenant to the provider.
#[derive(Debug, Clone)]
pub enum Way {
    /// Through the workspace's address, with one of its keys: in at the edge, and out of the instance's door.
    Edge {
        /// The router's port on loopback.
        port: u16,
        /// The workspace's host.
        host: String,
        /// A key of the workspace.
        key: String,
    },
    /// Through the instance's own door.
    Door {
        /// Its `egress.sock`.
        socket: PathBuf,
        /// Where the provider is, for the router.
        provider: String,
        /// The provider's key.
        key: String,
    },
}

/// A stream that goes on and on, with one tenant's mark in all of it.
pub struct Stream {
    mark: String,
    heard: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a stream is so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sofar {
    /// Whole pieces that came: each the very one that was due.
    pub pieces: usize,
    /// Whether it came to its good end.
    pub whole: bool,
}

impl Stream {
    /// Opens one on this way, and reads it from then on.
    ///
    /// # Errors
    /// When it does not begin.
    pub async fn open(way: &Way, mark: &str) -> anyhow::Result<Self> {
        let body =
            json!({"model": STEADY, "stream": true, "messages": [{"role": "user", "content": mark}]}).to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let opening = async {
            match way {
                Way::Edge { port, host, key } => through_the_edge(*port, host, key, body, Arc::clone(&heard)).await,
                Way::Door { socket, provider, key } => {
                    through_the_door(socket, provider, key, &body, Arc::clone(&heard)).await
                }
            }
        };
        let task = tokio::time::timeout(BEGINNING, opening).await.context("it does not begin")??;
        Ok(Self { mark: mark.to_owned(), heard, task })
    }

    /// What it must be that no other tenant has.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Whether nothing more comes.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// What came so far, piece by piece.
    ///
    /// # Errors
    /// When anything else came, or not in its order.
    pub fn so_far(&self) -> anyhow::Result<Sofar> {
        read(&lock(&self.heard), &self.mark)
    }

    /// Whether any of these texts is anywhere in what came.
    pub fn mentions(&self, texts: &[String]) -> Option<String> {
        let heard = lock(&self.heard);
        let heard = String::from_utf8_lossy(&heard);
        texts.iter().find(|text| heard.contains(text.as_str())).cloned()
    }
}

fn lock(heard: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What these bytes of a stream of events are.
fn read(heard: &[u8], mark: &str) -> anyhow::Result<Sofar> {
    // A character that is cut in the middle is at the end, in an event that is not whole.
    let heard = String::from_utf8_lossy(heard);
    let (whole, rest) = heard.rsplit_once("\n\n").unwrap_or(("", &heard));
    let mut so_far = Sofar { pieces: 0, whole: false };
    let mut over = false;
    let mut events = whole.split("\n\n").filter(|event| !event.is_empty()).peekable();
    while let Some(event) = events.next() {
        ensure!(!so_far.whole, "something came after the end: {event}");
        if event == DONE.trim_end() {
            ensure!(over, "it ended in the middle of an answer");
            so_far.whole = true;
            continue;
        }
        let Some(chunk) = chunk(event) else {
            // Cut in the middle, where the gateway then says so.
            let next = events.next();
            ensure!(next.and_then(chunk_of_error).is_some(), "no event, and then {next:?}: {event}");
            ensure!(events.next().is_none(), "something came after {next:?}");
            break;
        };
        if chunk.get("error").is_some() {
            ensure!(events.next().is_none(), "something came after {event}");
            break;
        }
        over = chunk["choices"][0]["finish_reason"] == "stop";
        if let Some(piece) = chunk["choices"][0]["delta"]["content"].as_str() {
            let due = steady_piece(mark, so_far.pieces);
            ensure!(piece == due, "{piece:?} came, not {due:?}");
            so_far.pieces += 1;
        }
    }
    ensure!(rest.is_empty() || !so_far.whole, "something came after the end: {rest}");
    Ok(so_far)
}

/// What an event says.
fn chunk(event: &str) -> Option<Value> {
    serde_json::from_str(event.strip_prefix("data: ")?).ok()
}

/// The gateway's word that the provider's stream broke off.
fn chunk_of_error(event: &str) -> Option<Value> {
    chunk(event).filter(|chunk| chunk.get("error").is_some())
}

async fn through_the_edge(
    port: u16,
    host: &str,
    key: &str,
    body: String,
    heard: Arc<Mutex<Vec<u8>>>,
) -> anyhow::Result<JoinHandle<()>> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let request = http
        .post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .header("host", format!("{host}:{port}"))
        .header("content-type", "application/json")
        .bearer_auth(key)
        .body(body);
    let mut answer = request.send().await?;
    ensure!(answer.status() == 200, "{host} answers {}: {}", answer.status(), answer.text().await?);
    Ok(tokio::spawn(async move {
        // Its end, good or not, is in what came.
        while let Ok(Some(piece)) = answer.chunk().await {
            lock(&heard).extend_from_slice(&piece);
        }
    }))
}

async fn through_the_door(
    socket: &std::path::Path,
    provider: &str,
    key: &str,
    body: &str,
    heard: Arc<Mutex<Vec<u8>>>,
) -> anyhow::Result<JoinHandle<()>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {provider} HTTP/1.1\r\nhost: {provider}\r\n\r\n").as_bytes()).await?;
    let head = head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 200"), "the door answers {head}");
    // Of the version before, whose answers are in no chunks and end with the connection.
    let request = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nhost: {provider}\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let head = self::head(&mut stream).await?;
    ensure!(head.split(' ').nth(1) == Some("200"), "the provider answers {head}");
    ensure!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    Ok(tokio::spawn(async move {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            lock(&heard).extend_from_slice(&piece[..length]);
        }
    }))
}

/// Reads to the end of a head, and nothing that follows it.
async fn head(stream: &mut UnixStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        head.push(stream.read_u8().await.context("the head breaks off")?);
    }
    Ok(String::from_utf8(head)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(content: &str, finish: &str) -> String {
        let finish = if finish.is_empty() { Value::Null } else { finish.into() };
        let delta = if content.is_empty() { json!({}) } else { json!({"content": content}) };
        format!("data: {}\n\n", json!({"choices": [{"delta": delta, "finish_reason": finish}]}))
    }

    #[test]
    fn only_its_own_pieces_in_their_order_are_good() {
        let [one, two] = [0, 1].map(|n| event(&steady_piece("mine", n), ""));
        let end = format!("{}{DONE}", event("", "stop"));
        for (heard, pieces, whole) in [
            (String::new(), 0, false),
            (one.clone(), 1, false),
            (format!("{one}{}", &two[..20]), 1, false),
            (format!("{one}{two}data: {{\"error\":{{}}}}\n\n"), 2, false),
            (format!("{one}{}\n\ndata: {{\"error\":{{}}}}\n\n", &two[..20]), 1, false),
            (format!("{one}{two}{end}"), 2, true),
        ] {
            assert_eq!(read(heard.as_bytes(), "mine").unwrap(), Sofar { pieces, whole }, "{heard}");
        }
        let other = event(&steady_piece("other", 1), "");
        for heard in [
            two.clone(),
            format!("{one}{one}"),
            format!("{one}{other}"),
            format!("{one}{two}{end}{one}"),
            format!("{one}{two}{end}x"),
            format!("{one}{DONE}"),
            format!("{one}{}\n\n{two}", &two[..20]),
            format!("{one}data: {{\"error\":{{}}}}\n\n{two}"),
            "HTTP/1.1 200 OK\r\n\n\n".to_owned(),
        ] {
            assert!(read(heard.as_bytes(), "mine").is_err(), "{heard}");
        }
    }
}
