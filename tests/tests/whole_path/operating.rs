//! What an operator does: stops everything and brings it up again, brings it up when it is up, exchanges an image.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    engine,
    people::{Person, by_form},
    provider::FakeProvider,
    stack::Stack,
    steps::Steps,
    wait,
    web::Web,
};
use bollard::{
    Docker,
    models::{ContainerConfig, ContainerCreateBody},
    query_parameters::{
        CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder,
    },
};

use crate::{World, journey};

/// How long a workspace may take to be as it is wanted.
const PATIENCE: Duration = Duration::from_secs(90);

/// An image may have this many bytes, and an idle instance this many of memory for itself.
const IMAGE_BYTES: i64 = 25_000_000;
const IDLE_BYTES: u64 = 15 << 20;

/// `down` keeps what is said and what people wanted: alice's workspace comes back by itself, bob's stays stopped.
pub async fn down_and_up(
    steps: &mut Steps,
    stack: &mut Stack,
    provider: &FakeProvider,
    (alice, person): (Person, Person),
) -> anyhow::Result<()> {
    let before = World { stack, provider, alice: alice.clone(), bob: person.clone() }.everything().await?;
    let mut bob = Web::new("en")?;
    by_form::sign_in(&mut bob, stack, &person.email, &person.password).await?.expect(200)?;
    let bob_wants = async |web: &mut Web, stack: &Stack, wish: &str, phase: &str| {
        web.submit(&format!("{}/instance/{wish}", stack.portal()), &[]).await?.expect(200)?;
        is_in(stack, &person, phase).await
    };
    steps.need("bob stops his workspace", bob_wants(&mut bob, stack, "stop", "stopped")).await?;
    let data = stack.data_dir();
    steps
        .need("down: nothing runs, and the data is there", async {
            stack.down().await?;
            if let Some(docker) = stack.docker() {
                let running = running(docker, stack.prefix()).await?;
                ensure!(running.is_empty(), "still running: {:?}", running.keys());
            }
            let kept = std::fs::read_dir(data.join("instances"))?.count();
            ensure!(kept >= 2, "{kept} instances are left in the data folder");
            Ok(())
        })
        .await?;
    steps.need("up", stack.start()).await?;
    let world = World { stack, provider, alice, bob: person.clone() };
    let resumed = async {
        journey::answers_again(world.stack, &world.alice.slug).await?;
        world.still_said(&world.alice, &before).await?;
        is_in(world.stack, &world.bob, "stopped").await
    };
    steps.check("alice's workspace is back with everything in it, and bob's is still stopped", resumed).await;
    steps.need("bob starts his workspace", bob_wants(&mut bob, world.stack, "start", "ready")).await?;
    steps.check("everything is there", world.whole_again(&before)).await;
    Ok(())
}

impl World<'_> {
    /// `up` of what is up changes nothing; one that finds an image exchanged replaces what runs on it.
    pub async fn up_again(&self, steps: &mut Steps, docker: &Docker) -> anyhow::Result<()> {
        let before = self.everything().await?;
        let (prefix, at_first) = (self.stack.prefix(), running(docker, self.stack.prefix()).await?);
        let up = async |arguments: &[&str]| {
            let output = self.stack.beaver(arguments).await?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            anyhow::Ok(())
        };
        let again = async {
            up(&["up"]).await?;
            let now = running(docker, prefix).await?;
            ensure!(now == at_first, "replaced: {:?}", replaced(&at_first, &now));
            Ok(())
        };
        steps.check("up again: everything runs on", again).await;

        let portal = self.stack.container("auth-portal");
        let one = async {
            exchange(docker, prefix, "auth-portal").await?;
            up(&["up", "--no-build"]).await?;
            let now = running(docker, prefix).await?;
            let replaced = replaced(&at_first, &now);
            ensure!(
                replaced == [portal.as_str()],
                "the portal's image is another, and these were replaced: {replaced:?}"
            );
            self.whole_again(&before).await
        };
        steps.check("up with another image of the portal: it alone is replaced", one).await;

        let instances = async {
            exchange(docker, prefix, "app-instance").await?;
            up(&["up", "--no-build"]).await?;
            wait::until("every workspace runs on the new image", PATIENCE, || async {
                let now = running(docker, prefix).await?;
                let instance = |name: &&str| name.starts_with(&format!("{prefix}-i-"));
                let before = at_first.keys().map(String::as_str).filter(instance).count();
                let new = replaced(&at_first, &now).into_iter().filter(instance).count();
                ensure!(new == before, "{new} of {before}");
                Ok(Some(()))
            })
            .await?;
            self.whole_again(&before).await
        };
        steps.check("up with another image of the workspaces: they go on with everything in them", instances).await;
        Ok(())
    }

    /// What an instance's image and an idle instance take.
    pub async fn sizes(&self, docker: &Docker) -> anyhow::Result<()> {
        let image = docker.inspect_image(&format!("{}/app-instance:latest", self.stack.prefix())).await?;
        let bytes = image.size.context("the engine does not say how big the image is")?;
        ensure!(bytes < IMAGE_BYTES, "the image has {bytes} bytes");
        let container = container_of(self.stack, &self.bob).await?;
        let state = docker.inspect_container(&container, None).await?.state.context("no state")?;
        let init = state.pid.context("it does not run")?;
        // The engine's own init is the first process of the container; the instance is its child.
        let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
        let pid = children.split_whitespace().next().context("its init has no child")?;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kilobytes = |field: &str| -> anyhow::Result<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let (clean, dirty) = (kilobytes("Private_Clean:")?, kilobytes("Private_Dirty:")?);
        let anonymous = kilobytes("Anonymous:")?;
        beaver_tests::say(format!(
            "docker engine: the image of instances has {bytes} bytes; an idle instance has {anonymous} kB anonymous and \
             {} kB private",
            clean + dirty
        ));
        // What several instances run from is in memory once: an alone one would be charged for the program itself.
        ensure!((anonymous.max(dirty) << 10) < IDLE_BYTES && ((clean + dirty) << 10) < IDLE_BYTES, "{rollup}");
        Ok(())
    }
}

/// Waits until somebody's workspace is in a phase.
pub async fn is_in(stack: &Stack, person: &Person, phase: &str) -> anyhow::Result<()> {
    wait::until(format!("{}'s workspace is {phase}", person.slug), PATIENCE, || async {
        let instance = instance_of(stack, person).await?;
        let now = instance["phase"].as_str().context("it has no phase")?;
        ensure!(now == phase, "it is {now}");
        Ok(Some(()))
    })
    .await
}

/// The container of somebody's instance. On the engine it is known by the instance's id alone.
pub async fn container_of(stack: &Stack, person: &Person) -> anyhow::Result<String> {
    let instance = instance_of(stack, person).await?;
    Ok(stack.container(instance["id"].as_str().context("it has no id")?))
}

/// Somebody's instance, as `status` tells of it.
async fn instance_of(stack: &Stack, person: &Person) -> anyhow::Result<serde_json::Value> {
    let status = stack.beaver(&["status", "--json"]).await?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let mut instances = status["instances"].as_array().into_iter().flatten();
    let instance = instances.find(|instance| instance["slug"] == person.slug.as_str());
    instance.cloned().context("status does not tell of it")
}

/// What runs for a stack: names and ids of containers, without those that run once.
async fn running(docker: &Docker, prefix: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let filters = [("label".to_owned(), vec![format!("{}={prefix}", engine::STACK_LABEL)])].into_iter().collect();
    let options = ListContainersOptionsBuilder::new().filters(&filters).build();
    let containers = docker.list_containers(Some(options)).await?;
    let named = containers.into_iter().filter_map(|c| {
        let name = c.names?.first()?.trim_start_matches('/').to_owned();
        (!name.ends_with("-fake-provider")).then_some((name, c.id?))
    });
    Ok(named.collect())
}

/// Names of containers that are others than they were.
fn replaced<'a>(before: &'a BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<&'a str> {
    before.iter().filter(|(name, id)| now.get(*name) != Some(id)).map(|(name, _)| name.as_str()).collect()
}

/// Gives an image's name to another one, which differs by a label.
pub async fn exchange(docker: &Docker, prefix: &str, service: &str) -> anyhow::Result<()> {
    let (image, name) = (format!("{prefix}/{service}:latest"), format!("{prefix}-exchange"));
    let named = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody { image: Some(image), ..ContainerCreateBody::default() };
    docker.create_container(Some(named), body).await?;
    let label = "LABEL beaver.test=another";
    let options = CommitContainerOptionsBuilder::new()
        .container(&name)
        .repo(&format!("{prefix}/{service}"))
        .tag("latest")
        .changes(label)
        .build();
    let committed = docker.commit_container(options, ContainerConfig::default()).await;
    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    docker.remove_container(&name, Some(force)).await?;
    committed.with_context(|| format!("making another image of {service}"))?;
    Ok(())
}
