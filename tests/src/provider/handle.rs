//! Running the provider: inside the test, or from scratch in a container beside the stack.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::Context;
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum},
    query_parameters::{CreateContainerOptionsBuilder, CreateImageOptionsBuilder},
};
use futures_util::TryStreamExt;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Record, Recorded, State, serve};
use crate::{engine::STACK_LABEL, own_engine::OwnEngine, wait};

/// The port of the API in a container.
const API_PORT: u16 = 8080;
/// The port of the test's own listener in a container.
const CONTROL_PORT: &str = "9090/tcp";

/// A running fake provider. One in a container goes with its stack, by its label.
pub struct FakeProvider {
    base_url: String,
    control: String,
    http: reqwest::Client,
    task: Option<JoinHandle<()>>,
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl FakeProvider {
    /// Inside this process, on loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn here() -> anyhow::Result<Self> {
        let api = TcpListener::bind("127.0.0.1:0").await?;
        let control = TcpListener::bind("127.0.0.1:0").await?;
        let base_url = format!("http://{}/v1", api.local_addr()?);
        let address = format!("http://{}", control.local_addr()?);
        let task = tokio::spawn(async move {
            if let Err(error) = serve(State::default(), api, control).await {
                eprintln!("the fake provider ended: {error}");
            }
        });
        Ok(Self { base_url, control: address, http: client()?, task: Some(task) })
    }

    /// In a container named `<prefix>-fake-provider` on `network`, made of nothing but `program` (a static binary);
    /// its control listener is published on loopback. It carries the stack's label, and so goes when the stack does.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn in_container(docker: &Docker, prefix: &str, network: &str, program: &Path) -> anyhow::Result<Self> {
        Self::in_container_reached(docker, prefix, network, program, async |_| Ok(())).await
    }

    /// As [`FakeProvider::in_container`], on the test's own engine.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn on_own_engine(
        own: &mut OwnEngine,
        docker: &Docker,
        prefix: &str,
        network: &str,
        program: &Path,
    ) -> anyhow::Result<Self> {
        Self::in_container_reached(docker, prefix, network, program, async |port| own.relay(port).await).await
    }

    async fn in_container_reached(
        docker: &Docker,
        prefix: &str,
        network: &str,
        program: &Path,
        reach: impl AsyncFnOnce(u16) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let name = format!("{prefix}-fake-provider");
        let label = format!("LABEL {STACK_LABEL}={prefix}");
        let import =
            CreateImageOptionsBuilder::new().from_src("-").repo(&name).tag("latest").changes(vec![label]).build();
        let root = tar_of(program).context("packing the fake provider")?;
        docker
            .create_image(Some(import), Some(bollard::body_full(root.into())), None)
            .try_collect::<Vec<_>>()
            .await
            .context("importing the fake provider's image")?;
        // One port for good: after a restart of the engine it must be the same.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let publish = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(port.to_string()) };
        let body = ContainerCreateBody {
            image: Some(format!("{name}:latest")),
            cmd: Some(vec!["/fake-provider".into()]),
            labels: Some(HashMap::from([(STACK_LABEL.to_owned(), prefix.to_owned())])),
            exposed_ports: Some(vec![CONTROL_PORT.to_owned()]),
            host_config: Some(HostConfig {
                network_mode: Some(network.to_owned()),
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::ALWAYS),
                    ..RestartPolicy::default()
                }),
                port_bindings: Some(HashMap::from([(CONTROL_PORT.to_owned(), Some(vec![publish]))])),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let named = CreateContainerOptionsBuilder::new().name(&name).build();
        docker.create_container(Some(named), body).await.context("creating the fake provider")?;
        docker.start_container(&name, None).await.context("starting the fake provider")?;
        reach(port).await?;
        let this = Self {
            base_url: format!("http://{name}:{API_PORT}/v1"),
            control: format!("http://127.0.0.1:{port}"),
            http: client()?,
            task: None,
        };
        wait::until("the fake provider answers", Duration::from_secs(20), || async { this.record().await.map(Some) })
            .await?;
        Ok(this)
    }

    /// The base URL to give to an instance.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// What `BEAVER_EGRESS_ALLOW` must say for instances to reach the one of [`FakeProvider::in_container`].
    pub fn rule(prefix: &str) -> String {
        format!("{prefix}-fake-provider:{API_PORT}")
    }

    /// Everything that was asked so far.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn record(&self) -> anyhow::Result<Record> {
        Ok(self.http.get(format!("{}/record", self.control)).send().await?.error_for_status()?.json().await?)
    }

    /// The requests whose last message from the person is `said`.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn asked(&self, said: &str) -> anyhow::Result<Vec<Recorded>> {
        Ok(self.record().await?.requests.into_iter().filter(|r| r.last_said() == Some(said)).collect())
    }

    /// Lets that many pieces through the gate.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn release(&self, pieces: usize) -> anyhow::Result<()> {
        self.http.post(format!("{}/release/{pieces}", self.control)).send().await?.error_for_status()?;
        Ok(())
    }

    /// Ends what goes on and on, to its good end.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn finish(&self) -> anyhow::Result<()> {
        self.http.post(format!("{}/finish", self.control)).send().await?.error_for_status()?;
        Ok(())
    }
}

fn client() -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?)
}

fn tar_of(program: &Path) -> std::io::Result<Vec<u8>> {
    let content = std::fs::read(program)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::with_capacity(content.len() + 4096));
    archive.append_data(&mut header, "fake-provider", content.as_slice())?;
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use serde_json::{Value, json};

    use super::{super::*, *};

    fn chat(provider: &FakeProvider, key: &str, model: &str, said: &str, stream: bool) -> reqwest::RequestBuilder {
        client()
            .unwrap()
            .post(format!("{}/chat/completions", provider.base_url()))
            .bearer_auth(key)
            .json(&json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": said}]}))
    }

    #[tokio::test]
    async fn it_answers_by_rule_and_records() {
        let provider = FakeProvider::here().await.unwrap();
        let good = format!("{GOOD_KEY}1");
        for (key, model, status) in [("sk-bad", CHAT, 401), (&good, "gpt-9", 404), (&good, CHAT, 200)] {
            let answer = chat(&provider, key, model, "hi 你好", false).send().await.unwrap();
            assert_eq!(answer.status(), status, "{key} {model}");
            if status == 200 {
                let body: Value = answer.json().await.unwrap();
                assert_eq!(body["choices"][0]["message"]["content"], reply_to("hi 你好"));
            }
        }
        let asked = provider.asked("hi 你好").await.unwrap();
        assert_eq!(asked.iter().map(|r| r.status).collect::<Vec<_>>(), [401, 404, 200]);
        assert_eq!(asked[2].header("authorization"), Some(format!("Bearer {good}").as_str()));
    }

    #[tokio::test]
    async fn pieces_wait_for_the_gate_and_a_caller_that_leaves_is_noticed() {
        let provider = FakeProvider::here().await.unwrap();
        let key = format!("{GOOD_KEY}1");
        let mut body = chat(&provider, &key, GATED, "slow", true).send().await.unwrap().bytes_stream();
        wait::until("waiting", Duration::from_secs(5), || async {
            provider.record().await.map(|r| (r.waiting == 1).then_some(()))
        })
        .await
        .unwrap();
        provider.release(1).await.unwrap();
        let first = String::from_utf8(body.next().await.unwrap().unwrap().to_vec()).unwrap();
        assert!(first.contains("Heard") && !first.contains("you:"), "{first}");
        drop(body);
        wait::until("left", Duration::from_secs(5), || async {
            provider.asked("slow").await.map(|r| (r[0].ended == Ended::Left).then_some(()))
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn what_goes_on_and_on_ends_when_it_is_told() {
        let provider = FakeProvider::here().await.unwrap();
        let key = format!("{GOOD_KEY}1");
        assert_eq!(chat(&provider, &key, STEADY, "on", false).send().await.unwrap().status(), 400);
        let mut answer = chat(&provider, &key, STEADY, "on", true).send().await.unwrap();
        let mut text = String::new();
        while !text.contains(&steady_piece("on", 3)) {
            text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
        }
        provider.finish().await.unwrap();
        text.push_str(&answer.text().await.unwrap());
        assert!(text.contains("0:on;") && text.contains("1:on;") && text.ends_with("data: [DONE]\n\n"), "{text}");
    }

    #[tokio::test]
    async fn a_cut_stream_has_no_end() {
        let provider = FakeProvider::here().await.unwrap();
        let answer = chat(&provider, &format!("{GOOD_KEY}1"), CUT, "x", true).send().await.unwrap();
        let mut text = String::new();
        let mut body = answer.bytes_stream();
        let cut = loop {
            match body.next().await {
                Some(Ok(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        assert!(cut && text.contains("you:") && !text.contains("[DONE]"), "{cut} {text}");
    }
}
