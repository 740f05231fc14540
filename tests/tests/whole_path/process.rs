//! On the process engine: the same pages and sockets, no Docker.

use beaver_tests::{
    people::Person,
    provider::FakeProvider,
    stack::{Engine, Stack},
    steps::Steps,
};

use crate::{Browsers, World, faults, journey, operating, report};

#[tokio::test(flavor = "multi_thread")]
async fn on_the_process_engine() {
    let provider = FakeProvider::here().await.unwrap();
    let rule = journey::loopback_rule(provider.base_url());
    let mut stack = Stack::up("process", Engine::Process, &[("BEAVER_EGRESS_ALLOW", &rule)]).await.unwrap();
    let mut steps = Steps::new("process engine");
    let result = run(&mut steps, &mut stack, &provider).await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    steps.end(result.and(purged)).unwrap();
}

async fn run(steps: &mut Steps, stack: &mut Stack, provider: &FakeProvider) -> anyhow::Result<()> {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let before;
    let mut keys = Vec::new();
    {
        let world = World { stack, provider, alice: alice.clone(), bob: bob.clone() };
        let browsers = Browsers::start().await?;
        world.two_people_chat(steps, &browsers).await?;
        steps.check("bob cannot open alice's", world.bob_at_alices()).await;
        let sdk = async { world.openai_sdk().await.map(|key| keys.push(key)) };
        steps.check("the openai SDK lists models and chats, streaming and not", sdk).await;
        world.tools(steps).await;
        before = world.everything().await?;
    }
    operating::down_and_up(steps, stack, provider, (alice.clone(), bob.clone())).await?;
    steps.need("SIGKILL to everything, and up again", faults::killed_whole(stack)).await?;
    let world = World { stack, provider, alice, bob };
    steps.check("everything said before is there", world.whole_again(&before)).await;
    steps.check("and one goes on chatting", world.say_something("canary-prompt-after-the-kill")).await;
    steps.check("no secret, password or prompt is anywhere it does not belong", world.no_leaks(&keys)).await;
    Ok(())
}
