//! How long a person waits for a workspace: from the POST of the sign-up form to the first 200 of the instance through
//! the router. Beside it, in the same rounds, the engine's own create + start of the same image on an ordinary bridge
//! network: what a container costs here when nobody does anything else for it.

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use beaver_tests::{
    engine::STACK_LABEL,
    stack::{Engine, Stack},
    wait,
    web::Web,
};
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig, NetworkCreateRequest},
    query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder},
};
use clap::Args;
use futures_util::future::try_join_all;
use reqwest::{Method, Url};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::stats::Summary;

/// How often the workspace is asked whether it is there: finer than what is measured.
const POLL: Duration = Duration::from_millis(4);
/// After this, something is wrong.
const LIMIT: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds of one at a time.
    #[arg(long, default_value_t = 20)]
    ones: usize,
    /// Rounds of ten at once.
    #[arg(long, default_value_t = 5)]
    tens: usize,
    /// Rounds of one at a time, where one is made ahead.
    #[arg(long, default_value_t = 10)]
    pool: usize,
    /// How many "ten" are.
    #[arg(long, default_value_t = 10)]
    at_once: usize,
}

/// Brings a stack up, measures, and removes it.
///
/// # Errors
/// When there is no engine, the stack does not come up, or a workspace does not.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut figures = on_a_stack("0", async |stack| measure(stack, options).await).await?;
    if options.pool > 0 {
        let (raw, beaver) = on_a_stack("1", async |stack| measure_pool(stack, options.pool).await).await?;
        tell(&mut figures, "pool", &raw, &beaver)?;
    }
    println!("{figures}");
    Ok(())
}

/// Measures on a stack that makes so many workspaces ahead, and removes it.
async fn on_a_stack<T>(pool_size: &str, measure: impl AsyncFnOnce(&Stack) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let settings = [("BEAVER_SIGN_UPS_PER_HOUR", "0"), ("BEAVER_POOL_SIZE", pool_size)];
    let stack = Stack::up("bench", Engine::Docker, &settings).await?;
    let result = measure(&stack).await;
    if result.is_err() {
        eprintln!("logs: {}", stack.keep_logs().await.display());
    }
    let measured = result?;
    if let Some(docker) = stack.docker() {
        docker.remove_network(&format!("{}-ordinary", stack.prefix())).await?;
    }
    stack.purge().await?;
    Ok(measured)
}

/// What it takes when a workspace is made ahead, beside the engine's own: each time once it waits, and so rests.
async fn measure_pool(stack: &Stack, rounds: usize) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let docker = stack.docker().context("a stack without an engine")?;
    let raw = Raw::new(docker, stack.prefix()).await?;
    raw.batch(&["warm".to_owned()]).await?;
    let (mut alone, mut ahead) = (Vec::new(), Vec::new());
    // The first pays for what is then warm.
    for round in 0..=rounds {
        let label = format!("{STACK_LABEL}={}", stack.prefix());
        let frozen = HashMap::from([("label", vec![label]), ("status", vec!["paused".to_owned()])]);
        wait::until("one that waits", LIMIT, async || {
            let list = ListContainersOptionsBuilder::new().filters(&frozen).build();
            anyhow::Ok((!docker.list_containers(Some(list)).await?.is_empty()).then_some(()))
        })
        .await?;
        let names = [format!("pool-{round}")];
        let (raw, beaver) = (raw.batch(&names).await?, batch(stack, &names).await?);
        println!("pool {round}: engine {:?}, beaver {:?}", raw[0], beaver[0]);
        if round > 0 {
            alone.extend(raw);
            ahead.extend(beaver);
        }
    }
    Ok((alone, ahead))
}

/// Adds a ratio, and what it is made from.
fn tell(figures: &mut serde_json::Value, name: &str, raw: &[Duration], beaver: &[Duration]) -> anyhow::Result<()> {
    let (raw, beaver) = (Summary::of(raw)?, Summary::of(beaver)?);
    println!("{name}: engine {raw:?}\n{name}: beaver {beaver:?}");
    figures[format!("ratio_{name}")] = json!((beaver.median_ms / raw.median_ms * 1000.0).round() / 1000.0);
    figures[format!("engine_{name}")] = json!(raw);
    figures[format!("beaver_{name}")] = json!(beaver);
    Ok(())
}

async fn measure(stack: &Stack, options: &Options) -> anyhow::Result<serde_json::Value> {
    let docker = stack.docker().context("a stack without an engine")?;
    let raw = Raw::new(docker, stack.prefix()).await?;
    let version = docker.version().await?.version.unwrap_or_default();
    // The first of each pays for what is then warm: the image's layers, the router's and the services' first calls.
    raw.batch(&["warm".to_owned()]).await?;
    batch(stack, &["warm".to_owned()]).await?;

    let (mut raw_one, mut beaver_one) = (Vec::new(), Vec::new());
    for round in 0..options.ones {
        let names = [format!("one-{round}")];
        let (raw, beaver) = (raw.batch(&names).await?, batch(stack, &names).await?);
        println!("one {round}: engine {:?}, beaver {:?}", raw[0], beaver[0]);
        raw_one.extend(raw);
        beaver_one.extend(beaver);
    }
    let (mut raw_ten, mut beaver_ten) = (Vec::new(), Vec::new());
    for round in 0..options.tens {
        let names: Vec<_> = (0..options.at_once).map(|n| format!("ten-{round}-{n}")).collect();
        let (raw, beaver) = (raw.batch(&names).await?, batch(stack, &names).await?);
        let medians = (Summary::of(&raw)?.median_ms, Summary::of(&beaver)?.median_ms);
        println!("{} at once {round}: engine {:.0} ms, beaver {:.0} ms (medians)", names.len(), medians.0, medians.1);
        raw_ten.extend(raw);
        beaver_ten.extend(beaver);
    }
    let mut figures = json!({"bench": "spawn", "engine": "docker", "engine_version": version});
    for (name, raw, beaver) in [("one", raw_one, beaver_one), ("ten", raw_ten, beaver_ten)] {
        if !raw.is_empty() {
            tell(&mut figures, name, &raw, &beaver)?;
        }
    }
    Ok(figures)
}

/// The engine alone.
struct Raw<'a> {
    docker: &'a Docker,
    prefix: &'a str,
    network: String,
}

impl<'a> Raw<'a> {
    async fn new(docker: &'a Docker, prefix: &'a str) -> anyhow::Result<Self> {
        let network = format!("{prefix}-ordinary");
        let labels = HashMap::from([(STACK_LABEL.to_owned(), prefix.to_owned())]);
        let request = NetworkCreateRequest {
            name: network.clone(),
            driver: Some("bridge".into()),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        docker.create_network(request).await.context("creating an ordinary bridge network")?;
        Ok(Self { docker, prefix, network })
    }

    /// As many at once as there are names. They go when all are measured.
    async fn batch(&self, names: &[String]) -> anyhow::Result<Vec<Duration>> {
        let measured = try_join_all(names.iter().map(|name| self.spawn(name))).await?;
        for (id, _) in &measured {
            let force = RemoveContainerOptionsBuilder::new().force(true).build();
            self.docker.remove_container(id, Some(force)).await?;
        }
        Ok(measured.into_iter().map(|(_, took)| took).collect())
    }

    /// Create + start, as long as the engine takes to say that it is done.
    async fn spawn(&self, name: &str) -> anyhow::Result<(String, Duration)> {
        let body = ContainerCreateBody {
            image: Some(format!("{}/app-instance:latest", self.prefix)),
            labels: Some(HashMap::from([(STACK_LABEL.to_owned(), self.prefix.to_owned())])),
            host_config: Some(HostConfig { network_mode: Some(self.network.clone()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let begun = Instant::now();
        let id = self.docker.create_container(None, body).await.with_context(|| format!("creating {name}"))?.id;
        self.docker.start_container(&id, None).await.with_context(|| format!("starting {name}"))?;
        Ok((id, begun.elapsed()))
    }
}

/// As many people at once as there are names. Their workspaces are stopped when all are measured.
async fn batch(stack: &Stack, names: &[String]) -> anyhow::Result<Vec<Duration>> {
    let mut measured = try_join_all(names.iter().map(|name| sign_up(stack, name))).await?;
    for (web, _) in &mut measured {
        web.submit(&format!("{}/instance/stop", stack.portal()), &[]).await?.expect(200)?;
    }
    Ok(measured.into_iter().map(|(_, took)| took).collect())
}

/// One person: the form, then a page of the workspace that needs no session, through the router, until it is 200.
async fn sign_up(stack: &Stack, name: &str) -> anyhow::Result<(Web, Duration)> {
    let slug = format!("bench-{name}");
    let mut web = Web::new("en")?;
    let form = format!("{}/register", stack.portal());
    let page = web.open(&form).await?.expect(200)?;
    let key = page.hidden("key").context("the form has no key")?;
    let open = Url::parse(&format!("{}/auth/signed-out", stack.origin(&slug)))?;
    let password = format!("{slug} correct horse battery staple");
    let fields =
        [("slug", slug.as_str()), ("email", &format!("{slug}@example.com")), ("password", &password), ("key", &key)];
    let request = web.form(&Url::parse(&form)?, &fields)?;
    let begun = Instant::now();
    web.once(request, &Url::parse(&form)?).await?.expect(303)?;
    loop {
        let answer = web.request(Method::GET, &open)?.send().await?;
        if answer.status() == 200 {
            return Ok((web, begun.elapsed()));
        }
        anyhow::ensure!(begun.elapsed() < LIMIT, "{slug} is not there after {LIMIT:?}: {}", answer.status());
        sleep(POLL).await;
    }
}
