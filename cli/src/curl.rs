//! `beaver curl`: one HTTP request to a workspace, the way the other services take: through the router's internal listener,
//! as a call of Beaver's own. No session is needed, and none is shown.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use contracts::{InstanceId, instance::internal_path};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use service::ServiceClient;
use settings::Env;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::{
    Exit, Usage,
    args::{Curl, Place},
    ask,
    stack::{self, Project, Stack},
    workspace,
};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    instance: InstanceId,
    method: String,
    /// Path and query.
    target: String,
    headers: Vec<(String, String)>,
    /// Base64.
    body: String,
}

/// How it was answered; the body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

/// Asks a workspace, and prints what it answers as it comes.
///
/// # Errors
/// [`Usage`] for what is no request; when there is no such workspace; when it does not answer.
pub async fn curl(place: &Place, options: &Curl) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let (target, headers, body) = (target(&options.path)?, headers(&options.headers)?, body(options)?);
    let method = options.method.clone().unwrap_or_else(|| if body.is_empty() { "GET" } else { "POST" }.into());
    let instance = workspace::find(&stack, &options.workspace).await?;
    let question = Question { instance, method, target, headers, body: STANDARD.encode(body) };
    let compose = match ask::Way::to(&stack).await? {
        ask::Way::Compose(compose) => compose,
        ask::Way::Direct(env) => {
            let mut answer = send(&env, question).await?;
            let head = Head::of(&answer);
            head.print(options.include)?;
            while let Some(piece) = answer.chunk().await? {
                put(&piece)?;
            }
            return Ok(head.exit(options.fail));
        }
    };
    let asked = ["run", "--rm", "--no-deps", "-T", "ask", "ask", "--request"];
    let mut asking = compose.start(&stack, &asked)?;
    let mut stdin = asking.stdin.take().context("the compose tool has no standard input")?;
    stdin.write_all(&serde_json::to_vec(&question)?).await?;
    drop(stdin);
    let mut stdout = BufReader::new(asking.stdout.take().context("the compose tool has no standard output")?);
    let mut line = String::new();
    stdout.read_line(&mut line).await?;
    let Ok(head) = serde_json::from_str::<Head>(&line) else {
        let said = asking.wait_with_output().await?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let why = said.lines().rfind(|line| line.starts_with("beaver: ")).or(said.lines().last());
        anyhow::bail!("{}", why.unwrap_or("the services cannot be asked").trim_start_matches("beaver: "));
    };
    head.print(options.include)?;
    let mut buffer = vec![0; 64 << 10];
    while let count @ 1.. = stdout.read(&mut buffer).await? {
        put(&buffer[..count])?;
    }
    let ended = asking.wait().await?;
    anyhow::ensure!(ended.success(), "the answer broke off");
    Ok(head.exit(options.fail))
}

/// `beaver ask --request`: the question from standard input, and the answer on standard output: a line about it, then its body.
///
/// # Errors
/// When the router cannot be reached, or the answer breaks off.
pub async fn answer() -> anyhow::Result<Exit> {
    let question: Question = serde_json::from_reader(std::io::stdin().lock())?;
    let answer = send(&Env::from_process().with_files()?, question).await?;
    put(format!("{}\n", serde_json::to_string(&Head::of(&answer))?).as_bytes())?;
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        put(&piece?)?;
    }
    Ok(Exit::Ok)
}

async fn send(env: &Env, question: Question) -> anyhow::Result<reqwest::Response> {
    let (url, token) = (env.url("BEAVER_ROUTER_INTERNAL_URL")?, env.secret("BEAVER_ROUTER_INTERNAL_TOKEN")?);
    let router = ServiceClient::new("router-proxy", url, token);
    let method = question.method.parse().map_err(|_| Usage(format!("{} is no method", question.method)))?;
    let mut request = router.request(method, &internal_path(question.instance, &question.target));
    for (name, value) in question.headers {
        request = request.header(name, value);
    }
    request.body(STANDARD.decode(question.body)?).send().await.context("the router does not answer")
}

impl Head {
    fn of(answer: &reqwest::Response) -> Self {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text(value)));
        Self { status: answer.status().as_u16(), headers: headers.collect() }
    }

    fn print(&self, include: bool) -> anyhow::Result<()> {
        if include {
            let reason = http::StatusCode::from_u16(self.status)?.canonical_reason().unwrap_or_default();
            let mut text = format!("HTTP/1.1 {} {reason}\n", self.status);
            self.headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\n")));
            put(format!("{text}\n").as_bytes())?;
        }
        Ok(())
    }

    fn exit(&self, fail: bool) -> Exit {
        if fail && self.status >= 400 { Exit::Failed } else { Exit::Ok }
    }
}

fn put(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn target(path: &str) -> Result<String, Usage> {
    let target = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    match target.parse::<http::uri::PathAndQuery>() {
        Ok(_) if !path.starts_with("//") => Ok(target),
        _ => Err(Usage(format!("{path} is no path, such as /healthz or /v1/models?x=1"))),
    }
}

fn headers(lines: &[String]) -> Result<Vec<(String, String)>, Usage> {
    let mut headers = BTreeMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| Usage(format!("{line} is no header: 'name: value'")))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        let fits = http::HeaderName::from_bytes(name.as_bytes()).is_ok() && http::HeaderValue::from_str(&value).is_ok();
        if !fits {
            return Err(Usage(format!("{name} is no header, or its value has characters that none may have")));
        }
        if name == "authorization" {
            return Err(Usage("Authorization is Beaver's own on this way; the gateway also takes x-api-key".into()));
        }
        headers.insert(name, value);
    }
    Ok(headers.into_iter().collect())
}

fn body(options: &Curl) -> anyhow::Result<Vec<u8>> {
    match options.data.as_deref() {
        None => Ok(Vec::new()),
        Some("@-") => {
            let mut body = Vec::new();
            std::io::stdin().lock().read_to_end(&mut body)?;
            Ok(body)
        }
        Some(data) => match data.strip_prefix('@') {
            Some(file) => std::fs::read(file).with_context(|| format!("cannot read {file}")),
            None => Ok(data.as_bytes().to_vec()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_refused_with_its_name() {
        assert_eq!(target("v1/models").unwrap(), "/v1/models");
        for wrong in ["//elsewhere/x", "/a b", "/\u{0}"] {
            assert!(target(wrong).unwrap_err().to_string().contains("is no path"), "{wrong:?}");
        }
        let all = headers(&["Content-Type: text/plain".into(), "x-a:b".into()]).unwrap();
        assert_eq!(all, [("content-type".into(), "text/plain".into()), ("x-a".into(), "b".into())]);
        for (wrong, why) in
            [("x", "no header"), ("a b: c", "a b"), ("x: \u{1}", "x is"), ("Authorization: x", "x-api-key")]
        {
            assert!(headers(&[wrong.into()]).unwrap_err().to_string().contains(why), "{wrong:?}");
        }
    }
}
