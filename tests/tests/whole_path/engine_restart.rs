//! The engine itself is killed under a running stack: one of the test's own, never the host's.

use std::{fs, os::unix::net::UnixStream, path::Path, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    canary, engine,
    own_engine::OwnEngine,
    people::{Person, by_form},
    provider::FakeProvider,
    stack::{Stack, fake_provider_program},
    steps::Steps,
    wait,
    web::{Page, Web},
};
use bollard::{Docker, query_parameters::ListContainersOptions};

use crate::{
    World, faults,
    operating::{container_of, is_in},
    report,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_docker_engine_is_killed() {
    if engine::required_or_none("the kill of a Docker engine").await.is_none() {
        return;
    }
    let prefix = Stack::prefix_for("own");
    let own = OwnEngine::start_that_can_wait(&prefix).await.unwrap();
    let rule = FakeProvider::rule(&prefix);
    let mut stack = Stack::up_on("own", own, &[("BEAVER_EGRESS_ALLOW", &rule)]).await.unwrap();
    let mut steps = Steps::new("docker engine of the test's own");
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
    let before;
    {
        let world = World { stack, provider: &provider, alice: alice.clone(), bob: bob.clone() };
        for person in [&alice, &bob] {
            let signing_up = by_form::settle(stack, person, provider.base_url());
            steps.need(&format!("{} signs up and gives a provider", person.slug), signing_up).await?;
        }
        steps.need("alice chats", world.say_something("canary-prompt-before-the-engine-died")).await?;
        before = world.everything().await?;
    }
    steps
        .check("her page waits for an engine that hangs, while her program has ended, and goes on by itself", async {
            hangs(stack, &alice).await
        })
        .await;
    let carol = Person::new("carol");
    let mut web = Web::new("en")?;
    steps
        .need("SIGKILL to the engine in the middle of a sign-up, and its start", async {
            by_form::sign_up(&mut web, stack, &carol).await?.expect(200)?;
            let own = stack.own_engine().expect("it is the test's own");
            own.kill().await?;
            own.start_again().await
        })
        .await?;
    let world = World { stack, provider: &provider, alice, bob };
    steps.check("everything said before is there", world.whole_again(&before)).await;
    steps.check("one goes on chatting", world.say_something("canary-prompt-after-the-engine-died")).await;
    steps
        .check("the sign-up in its middle comes to its end", async {
            by_form::ready(&mut web, stack).await?;
            by_form::enter(&mut web, stack, "carol").await.map(drop)
        })
        .await;
    let before = world.everything().await?;
    let World { alice, bob, .. } = world;
    steps
        .need("SIGKILL to the engine in the middle of a start, of which it knows nothing afterwards", async {
            killed_in_a_start(stack, &alice).await
        })
        .await?;
    let world = World { stack, provider: &provider, alice, bob };
    steps.check("she is where she was, with everything in it", world.whole_again(&before)).await;
    steps.check("and goes on chatting", world.say_something("canary-prompt-after-a-start-was-forgotten")).await;
    steps.check("no secret, password or prompt is anywhere it does not belong", world.no_leaks(&[])).await;
    steps.check("nothing is doubled", faults::no_doubles(&docker, &prefix, 3)).await;
    Ok(())
}

/// The engine answers nobody, and somebody's program ends meanwhile: nobody is told that it is gone.
async fn hangs(stack: &mut Stack, person: &Person) -> anyhow::Result<()> {
    let mut web = Web::new("en")?;
    by_form::sign_in(&mut web, stack, &person.email, &person.password).await?.expect(200)?;
    by_form::enter(&mut web, stack, &person.slug).await?;
    let (workspace, portal) = (stack.origin(&person.slug), format!("{}/instance", stack.portal()));
    let docker = stack.docker().context("it is on Docker")?.clone();
    let container = container_of(stack, person).await?;
    let state = docker.inspect_container(&container, None).await?.state.context("no state")?;
    let pid = state.pid.filter(|pid| *pid > 1).context("it does not run")?.to_string();
    let own = stack.own_engine().context("it is the test's own")?;
    own.freeze().await?;
    let waits = async {
        let killed = tokio::process::Command::new("kill").args(["-KILL", &pid]).status().await?;
        ensure!(killed.success(), "there is no {pid}");
        let says = |text: &str, page: &Page| page.text.contains(text).then_some(());
        let wait = Duration::from_secs(120);
        wait::until("her page says that the host is restarting", wait, async || {
            let page = web.open(&workspace).await?;
            ensure!(page.status == 503, "it answers {}", page.status);
            anyhow::Ok(says("The host is restarting", &page).and(says("this page continues by itself", &page)))
        })
        .await?;
        wait::until("the portal says so too", wait, async || {
            let page = web.open(&portal).await?.expect(200)?;
            anyhow::Ok(says("The machine that runs workspaces does not answer right now.", &page))
        })
        .await
    }
    .await;
    own.thaw().await?;
    waits?;
    is_in(stack, person, "ready").await?;
    by_form::enter(&mut web, stack, &person.slug).await.map(drop)
}

/// The engine dies when the process of a workspace is about to run. It then runs, and the engine that comes back takes its
/// container for one that never started.
async fn killed_in_a_start(stack: &mut Stack, person: &Person) -> anyhow::Result<()> {
    let mut web = Web::new("en")?;
    by_form::sign_in(&mut web, stack, &person.email, &person.password).await?.expect(200)?;
    web.submit(&format!("{}/instance/stop", stack.portal()), &[]).await?.expect(200)?;
    is_in(stack, person, "stopped").await?;
    let docker = stack.docker().context("it is on Docker")?.clone();
    let forgotten = times_forgotten(stack, &docker).await?;
    let run = stack.data_dir().join("run");
    let up = listening(&run)?;
    stack.own_engine().context("it is the test's own")?.wait_in_a_start()?;
    web.submit(&format!("{}/instance/start", stack.portal()), &[]).await?.expect(200)?;
    let own = stack.own_engine().context("it is the test's own")?;
    own.waits().await?;
    own.kill().await?;
    own.go_on()?;
    wait::until("it runs all the same", Duration::from_secs(60), async || {
        anyhow::Ok((listening(&run)? == up + 1).then_some(()))
    })
    .await?;
    own.start_again().await?;
    is_in(stack, person, "ready").await?;
    let own = stack.own_engine().context("it is the test's own")?;
    let known = docker.list_containers(None::<ListContainersOptions>).await?.into_iter().filter_map(|found| found.id);
    let mut unknown = own.with_programs();
    known.for_each(|id| drop(unknown.remove(&id)));
    ensure!(unknown.is_empty(), "{unknown:?} run unknown to the engine");
    ensure!(times_forgotten(stack, &docker).await? > forgotten, "the engine had not forgotten it");
    Ok(())
}

/// How often deploy-control has come upon something that the engine does not know of.
async fn times_forgotten(stack: &Stack, docker: &Docker) -> anyhow::Result<usize> {
    let logs = canary::logs(docker, &stack.container("deploy-control")).await?;
    Ok(String::from_utf8_lossy(&logs).matches("runs that the engine does not know of").count())
}

/// How many instances take connections.
fn listening(run: &Path) -> anyhow::Result<usize> {
    let folders = fs::read_dir(run)?.flatten();
    Ok(folders.filter(|folder| UnixStream::connect(folder.path().join("in/http.sock")).is_ok()).count())
}
