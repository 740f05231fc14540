//! The whole path on each engine, against the stack that `beaver up` made: two people who have never met sign up, get a
//! workspace each, give it a provider and talk to a model. Then everything is broken once.

mod attack;
mod chaos;
mod data;
mod docker;
mod engine_restart;
mod failing;
mod faults;
mod journey;
mod leaks;
mod looks;
mod neighbours;
mod operating;
mod postgres;
mod process;
mod programs;
mod progress;
mod sdk;
mod shifted_ids;
mod sleep;
mod strangers;
mod tools;

use beaver_tests::{browser::Browser, people::Person, provider::FakeProvider, stack::Stack, steps::Steps};

/// What a run is made of.
struct World<'a> {
    stack: &'a Stack,
    provider: &'a FakeProvider,
    /// Reads English.
    alice: Person,
    /// Reads Chinese.
    bob: Person,
}

/// The browsers of the two.
struct Browsers {
    alice: Browser,
    bob: Browser,
}

impl Browsers {
    async fn start() -> anyhow::Result<Self> {
        let (alice, bob) = tokio::try_join!(Browser::start("en-US,en;q=0.9"), Browser::start("zh-CN,zh;q=0.9"))?;
        Ok(Self { alice, bob })
    }
}

/// Runs the steps on a stack, which goes whatever came of them.
async fn on_stack(name: &'static str, stack: Stack, run: impl AsyncFnOnce(&mut Steps, &Stack) -> anyhow::Result<()>) {
    let mut steps = Steps::new(name);
    let result = run(&mut steps, &stack).await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    steps.end(result.and(purged)).unwrap();
}

/// Where to look when a run failed.
async fn report(stack: &Stack, failed: bool) {
    if failed {
        let kept = stack.keep_logs().await;
        beaver_tests::say(format!("{}: logs are kept in {}", stack.engine().name(), kept.display()));
    }
}
