//! On the Docker engine, with everything.

use beaver_tests::{
    engine,
    people::Person,
    provider::FakeProvider,
    stack::{Engine, Stack, fake_provider_program},
    steps::Steps,
};

use crate::{Browsers, World, faults, journey, operating, report};

#[tokio::test(flavor = "multi_thread")]
async fn on_the_docker_engine() {
    if engine::required_or_none("the whole path on the Docker engine").await.is_none() {
        return;
    }
    let prefix = Stack::prefix_for("docker");
    let rule = FakeProvider::rule(&prefix);
    let mut stack = Stack::up("docker", Engine::Docker, &[("BEAVER_EGRESS_ALLOW", &rule)]).await.unwrap();
    let mut steps = Steps::new("docker engine");
    let result = run(&mut steps, &mut stack).await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    steps.end(result.and(purged)).unwrap();
}

async fn run(steps: &mut Steps, stack: &mut Stack) -> anyhow::Result<()> {
    let docker = stack.docker().expect("a stack on Docker has an engine").clone();
    let docker = &docker;
    let (program, network, prefix) = (fake_provider_program()?, stack.network(), stack.prefix().to_owned());
    let provider = FakeProvider::in_container(docker, &prefix, &network, &program);
    let provider = steps.need("the fake provider runs beside the stack", provider).await?;
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (carol, more) = (Person::new("carol"), [Person::new("dave"), Person::new("erin")]);
    let mut keys = Vec::new();
    {
        let world = World { stack, provider: &provider, alice: alice.clone(), bob: bob.clone() };
        let browsers = Browsers::start().await?;
        world.two_people_chat(steps, &browsers).await?;
        steps.check("wrong password, taken name, taken address, in both languages", world.refusals(&browsers)).await;
        steps.check("bob cannot open alice's", world.bob_at_alices()).await;
        steps.check("nor in his browser", world.bob_s_browser_at_alices(&browsers.bob)).await;
        steps.check("what is Beaver's own is not on the edge", world.the_edge()).await;
        let sdk = async { world.openai_sdk().await.map(|key| keys.push(key)) };
        steps.check("the openai SDK lists models and chats, streaming and not", sdk).await;
        let out_and_in = world.out_and_in(&browsers.alice, &alice, "canary-prompt-alice");
        steps.need("alice signs out and in again", out_and_in).await?;
        let out_and_in = world.out_and_in(&browsers.bob, &bob, journey::BOB_SAYS);
        steps.need("bob signs out and in again", out_and_in).await?;
        world.pages(steps, &browsers).await?;
        world.operator(steps).await?;
        world.tools(steps).await;
        world.stopped(steps, &browsers).await?;
        world.watched(steps, docker, &more).await?;
        world.changes(steps, &browsers.alice).await?;
        steps.check("an instance's image and memory", world.sizes(docker)).await;
        world.restarts(steps, docker).await?;
        steps.check("SIGKILL of deploy-control in the middle of sign-ups", world.killed_in_the_middle(docker)).await;
        // Before containers go, and their logs with them.
        steps.check("no secret, password or prompt is anywhere it does not belong", world.no_leaks(&keys)).await;
        world.cannot_come_up(steps, &browsers.alice, docker, &carol).await?;
        world.up_again(steps, docker).await?;
        steps.check("still none", world.no_leaks(&keys)).await;
    }
    // Like a proxy of the operator's, the provider stays in the stack's network through `down`.
    operating::down_and_up(steps, stack, &provider, (alice, bob)).await?;
    engine::remove(docker, &stack.container("fake-provider")).await?;
    steps.check("nothing is doubled", faults::no_doubles(docker, &prefix, 14)).await;
    Ok(())
}
