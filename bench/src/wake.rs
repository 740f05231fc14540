//! How long somebody waits for an instance that sleeps: the first byte of its owner's visit through the router.
//!
//! To one that is frozen, beside the same visit a moment later, when it runs. To one that is stopped, beside the engine's own
//! start of the same container. Both in turns, in a stack of the command's own.

use std::time::Duration;

use anyhow::{Context, ensure};
use beaver_tests::{
    house::House,
    people::{Person, by_form},
    stack::Stack,
    web::Web,
};
use bollard::Docker;
use clap::Args;
use contracts::deploy::Phase;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::stats::Summary;

/// How often it is looked whether it sleeps.
const LOOK: Duration = Duration::from_millis(25);
/// After this, something is wrong.
const LIMIT: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Visits to one that is frozen, each beside one to the same when it runs.
    #[arg(long, default_value_t = 20)]
    paused: usize,
    /// Visits to one that is stopped, each beside a start by the engine alone.
    #[arg(long, default_value_t = 20)]
    stopped: usize,
}

/// Brings a stack up, measures, and removes it.
///
/// # Errors
/// When there is no engine, the stack does not come up, or an instance does not sleep or wake.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    // A second without use, and it sleeps: how deep says the file of plans, which may change meanwhile.
    let stack = Stack::up_with("wake", &[], &[(PLANS, &plan(1, 0))]).await?;
    let measured = tokio::select! {
        measured = measure(&stack, options) => measured,
        // What was made goes all the same.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if measured.is_err() {
        eprintln!("logs: {}", stack.keep_logs().await.display());
    }
    let figures = measured?;
    stack.purge().await?;
    println!("{figures}");
    Ok(())
}

const PLANS: &str = "deploy-control/plans.toml";

fn plan(pause_after: u32, idle_timeout: u32) -> String {
    format!("[workspace]\npause_after = {pause_after}\nidle_timeout = {idle_timeout}\n")
}

/// The one who visits, and the container that is visited.
struct Visitor<'a> {
    web: Web,
    page: Url,
    house: House,
    docker: &'a Docker,
    container: String,
}

async fn measure(stack: &Stack, options: &Options) -> anyhow::Result<Value> {
    let docker = stack.docker().context("a stack without an engine")?;
    let person = Person::new("sleeper");
    let mut web = Web::new("en")?;
    by_form::sign_up(&mut web, stack, &person).await?.expect(200)?;
    by_form::ready(&mut web, stack).await?;
    by_form::enter(&mut web, stack, &person.slug).await?;
    let house = House::of(stack).await?;
    let instances = house.instances().await?;
    let id = instances.first().context("it has an instance")?.id;
    let page = Url::parse(&format!("{}/", stack.origin(&person.slug)))?;
    let visitor = Visitor { web, page, house, docker, container: format!("{}-{id}", stack.prefix()) };

    let (mut running, mut paused) = (Vec::new(), Vec::new());
    // The first round of each warms up.
    for round in 0..=options.paused {
        visitor.until(Phase::Paused).await?;
        let (one, other) = (visitor.visit().await?, visitor.visit().await?);
        println!("paused {round}: {one:?}, running: {other:?}");
        if round > 0 {
            paused.push(one);
            running.push(other);
        }
    }
    std::fs::write(stack.data_dir().join(PLANS), plan(0, 1))?;
    let (mut engine, mut stopped) = (Vec::new(), Vec::new());
    for round in 0..=options.stopped {
        visitor.until(Phase::Asleep).await?;
        let by_engine = visitor.start().await?;
        visitor.until_down().await?;
        let visit = visitor.visit().await?;
        println!("stopped {round}: {visit:?}, the engine's start: {by_engine:?}");
        if round > 0 {
            stopped.push(visit);
            engine.push(by_engine);
        }
    }
    let (running, paused) = (Summary::of(&running)?, Summary::of(&paused)?);
    let (engine, stopped) = (Summary::of(&engine)?, Summary::of(&stopped)?);
    let rounded = |number: f64| json!((number * 1000.0).round() / 1000.0);
    Ok(json!({
        "bench": "wake",
        "engine": "docker",
        "engine_version": docker.version().await?.version,
        "ratio_stopped": rounded(stopped.median_ms / engine.median_ms),
        "added_ms_paused": rounded(paused.median_ms - running.median_ms),
        "stopped": stopped,
        "engine_start": engine,
        "paused": paused,
        "running": running,
    }))
}

impl Visitor<'_> {
    /// The time to the first byte of the page.
    async fn visit(&self) -> anyhow::Result<Duration> {
        let request = self.web.request(Method::GET, &self.page)?;
        let begun = Instant::now();
        let answer = request.send().await?;
        let took = begun.elapsed();
        ensure!(answer.status() == 200, "the visit was answered with {}", answer.status());
        // Its own page, which says that nobody has given it a provider.
        ensure!(answer.text().await?.contains("id=\"no-provider\""), "another page came");
        Ok(took)
    }

    /// The engine's own start, from the call to its answer.
    async fn start(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.docker.start_container(&self.container, None).await.context("the engine's own start")?;
        Ok(begun.elapsed())
    }

    async fn until(&self, phase: Phase) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let instances = self.house.instances().await?;
            let now = instances.first().context("it has an instance")?;
            if now.phase == phase && now.observed_generation == now.generation {
                return Ok(());
            }
            ensure!(begun.elapsed() < LIMIT, "it is {:?} and not {phase:?} after {LIMIT:?}", now.phase);
            sleep(LOOK).await;
        }
    }

    /// Until deploy-control has stopped what was started behind its back.
    async fn until_down(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let state = self.docker.inspect_container(&self.container, None).await?.state.unwrap_or_default();
            if state.running == Some(false) {
                return self.until(Phase::Asleep).await;
            }
            ensure!(begun.elapsed() < LIMIT, "what nobody uses runs after {LIMIT:?}");
            sleep(LOOK).await;
        }
    }
}
