//! A workspace from inside, through its own API: what is in it, to be compared with what was said.

use anyhow::Context;
use reqwest::{Method, Url, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    stack::Places,
    web::{Page, Web},
};

/// A message as the workspace keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// Its id.
    pub id: String,
    /// `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// `done`, or what became of it.
    pub status: String,
}

/// Everything said in a workspace, chat by chat; the chat last used first.
///
/// # Errors
/// When `web` is not signed in to it.
pub async fn everything(web: &mut Web, stack: &Places, slug: &str) -> anyhow::Result<Vec<(String, Vec<Message>)>> {
    let origin = stack.origin(slug);
    let chats: Value = serde_json::from_str(&web.peek(&format!("{origin}/api/chats")).await?.expect(200)?.text)?;
    let mut all = Vec::new();
    for chat in chats["chats"].as_array().context("no list of chats")? {
        let id = chat["id"].as_str().context("a chat without an id")?;
        let page = web.peek(&format!("{origin}/api/chats/{id}")).await?.expect(200)?;
        let chat: Value = serde_json::from_str(&page.text)?;
        all.push((id.to_owned(), serde_json::from_value(chat["messages"].clone())?));
    }
    Ok(all)
}

/// Says something in a new chat and reads the answer to its end; the chat's id and the stream of events.
///
/// # Errors
/// When it is refused.
pub async fn say(web: &mut Web, stack: &Places, slug: &str, message: &str) -> anyhow::Result<(String, Page)> {
    let origin = stack.origin(slug);
    let chat = call(web, Method::POST, &format!("{origin}/api/chats"), &Value::Null).await?.expect(201)?;
    let chat: Value = serde_json::from_str(&chat.text)?;
    let id = chat["id"].as_str().context("a chat without an id")?.to_owned();
    let body = json!({"id": clock::Entropy::system().uuid_v7(&clock::Clock::system()).simple().to_string(), "content": message});
    let answer = call(web, Method::POST, &format!("{origin}/api/chats/{id}/messages"), &body).await?.expect(200)?;
    Ok((id, answer))
}

/// Makes an API key on the settings page.
///
/// # Errors
/// When `web` is not signed in to the workspace.
pub async fn make_key(web: &mut Web, stack: &Places, slug: &str, name: &str) -> anyhow::Result<String> {
    let page = web.submit(&format!("{}/settings/keys", stack.origin(slug)), &[("name", name)]).await?.expect(201)?;
    let tag = page.text.split('<').find(|tag| tag.contains("id=\"new-key\"")).context("no new key is shown")?;
    let key = tag.split_once("value=\"").and_then(|(_, rest)| rest.split_once('"')).context("no value")?.0;
    anyhow::ensure!(key.starts_with("sk-") && key.len() >= 35, "what is shown is no key");
    Ok(key.to_owned())
}

/// A call of the workspace's own page.
async fn call(web: &mut Web, method: Method, url: &str, body: &Value) -> anyhow::Result<Page> {
    let url = Url::parse(url)?;
    let mut request = web
        .request(method, &url)?
        .header(header::ORIGIN, url.origin().ascii_serialization())
        .header("sec-fetch-site", "same-origin");
    if !body.is_null() {
        request = request.json(body);
    }
    web.once(request, &url).await
}
