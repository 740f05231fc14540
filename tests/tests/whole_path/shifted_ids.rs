//! On an engine that shifts the user ids of containers (`userns-remap`): one of the test's own.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, ensure};
use beaver_tests::{
    engine,
    own_engine::OwnEngine,
    people::{Person, by_form},
    provider::FakeProvider,
    stack::{Stack, fake_provider_program},
    steps::Steps,
};

use crate::{World, report};

/// Where the ids of containers begin on this host.
const SHIFTED: u32 = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn on_an_engine_that_shifts_user_ids() {
    if engine::required_or_none("an engine that shifts user ids").await.is_none() {
        return;
    }
    let prefix = Stack::prefix_for("ids");
    let own = OwnEngine::start_with_shifted_ids(&prefix).await.unwrap();
    let rule = FakeProvider::rule(&prefix);
    let mut stack = Stack::up_on("ids", own, &[("BEAVER_EGRESS_ALLOW", &rule)]).await.unwrap();
    let mut steps = Steps::new("docker engine that shifts user ids");
    let result = run(&mut steps, &mut stack).await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    steps.end(result.and(purged)).unwrap();
}

async fn run(steps: &mut Steps, stack: &mut Stack) -> anyhow::Result<()> {
    let docker = stack.docker().expect("a stack on Docker has an engine").clone();
    let program = fake_provider_program()?;
    let (prefix, network) = (stack.prefix().to_owned(), stack.network());
    let own = stack.own_engine().expect("it is the test's own");
    let provider = FakeProvider::on_own_engine(own, &docker, &prefix, &network, &program).await?;
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    for person in [&alice, &bob] {
        let signing_up = by_form::settle(stack, person, provider.base_url());
        steps.need(&format!("{} signs up and gives a provider", person.slug), signing_up).await?;
    }
    let world = World { stack, provider: &provider, alice, bob };
    steps.check("alice chats", world.say_something("canary-prompt-shifted")).await;
    steps.check("each has a user id of its own, in its container and outside", ids(stack)).await;
    steps
        .check("doctor says that they are shifted", async {
            let said = String::from_utf8(stack.beaver(&["doctor"]).await?.stdout)?;
            ensure!(said.contains(&format!("by {SHIFTED}")), "{said}");
            Ok(())
        })
        .await;
    Ok(())
}

async fn ids(stack: &Stack) -> anyhow::Result<()> {
    let docker = stack.docker().context("an engine")?;
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(stack.data_dir().join("instances"))? {
        let entry = entry?;
        let on_host = std::fs::metadata(entry.path().join("data"))?.uid();
        let name = format!("{}-{}", stack.prefix(), entry.file_name().display());
        let found = docker.inspect_container(&name, None).await?;
        let pid = found.state.and_then(|state| state.pid).context("it does not run")?;
        let inside = found.config.and_then(|config| config.user).unwrap_or_default();
        ensure!(inside == format!("{0}:{0}", on_host - SHIFTED), "{inside} is {on_host} on the host");
        // The engine's own init is its first process, as the same user.
        let running = std::fs::metadata(format!("/proc/{pid}"))?.uid();
        ensure!(running == on_host, "it runs as {running}, its data is {on_host}'s");
        seen.push(on_host);
    }
    seen.sort_unstable();
    seen.dedup();
    ensure!(seen.len() == 2, "{seen:?}");
    Ok(())
}
