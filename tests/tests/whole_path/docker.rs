//! On the Docker engine, with everything.

use beaver_tests::{
    engine,
    people::Person,
    provider::FakeProvider,
    stack::{Engine, Stack, fake_provider_program},
    steps::Steps,
};

use crate::{Browsers, World, faults, journey, report};

#[tokio::test(flavor = "multi_thread")]
async fn on_the_docker_engine() {
    if engine::required_or_none("the whole path on the Docker engine").await.is_none() {
        return;
    }
    let prefix = Stack::prefix_for("docker");
    let rule = FakeProvider::rule(&prefix);
    let stack = Stack::up("docker", Engine::Docker, &[("BEAVER_EGRESS_ALLOW", &rule)]).await.unwrap();
    let mut steps = Steps::new("docker engine");
    let result = run(&mut steps, &stack).await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    steps.end(result.and(purged)).unwrap();
}

async fn run(steps: &mut Steps, stack: &Stack) -> anyhow::Result<()> {
    let docker = stack.docker().expect("a stack on Docker has an engine");
    let (program, network) = (fake_provider_program()?, stack.network());
    let provider = FakeProvider::in_container(docker, stack.prefix(), &network, &program);
    let provider = steps.need("the fake provider runs beside the stack", provider).await?;
    let world = World { stack, provider: &provider, alice: Person::new("alice"), bob: Person::new("bob") };
    let browsers = Browsers::start().await?;
    world.two_people_chat(steps, &browsers).await?;
    steps.check("wrong password, taken name, taken address, in both languages", world.refusals(&browsers)).await;
    steps.check("bob cannot open alice's", world.bob_at_alices()).await;
    steps.check("what is Beaver's own is not on the edge", world.the_edge()).await;
    let mut keys = Vec::new();
    let sdk = async { world.openai_sdk().await.map(|key| keys.push(key)) };
    steps.check("the openai SDK lists models and chats, streaming and not", sdk).await;
    let alice = world.out_and_in(&browsers.alice, &world.alice, "canary-prompt-alice");
    steps.need("alice signs out and in again", alice).await?;
    let bob = world.out_and_in(&browsers.bob, &world.bob, journey::BOB_SAYS);
    steps.need("bob signs out and in again", bob).await?;
    world.pages(steps, &browsers).await?;
    world.operator(steps).await?;
    world.stopped(steps, &browsers).await?;
    world.restarts(steps, docker).await?;
    steps.check("SIGKILL of deploy-control in the middle of sign-ups", world.killed_in_the_middle(docker)).await;
    let carol = Person::new("carol");
    world.cannot_come_up(steps, &browsers.alice, docker, &carol).await?;
    steps.check("no secret, password or prompt is anywhere it does not belong", world.no_leaks(&keys)).await;
    steps.check("nothing is doubled", faults::no_doubles(docker, stack.prefix(), 12)).await;
    Ok(())
}
