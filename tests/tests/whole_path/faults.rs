//! Everything is broken once. Afterwards every account has its workspace, nothing is doubled, and whatever was said and
//! acknowledged is there, compared by content.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    chaos::faults::kill_process,
    engine,
    people::{Person, Provider, by_form},
    provider::{CHAT, reply_to},
    stack::{Engine, Stack},
    steps::Steps,
    wait,
    web::Web,
    workspace::{self, Message},
};
use bollard::{Docker, query_parameters::ListContainersOptionsBuilder};
use futures_util::future::try_join_all;

use crate::{World, journey};

/// The containers of the four services, by the ends of their names.
const SERVICES: [&str; 4] = ["deploy-control", "authz-service", "router-proxy", "auth-portal"];

/// What somebody has in their workspace.
pub type Said = Vec<(String, Vec<Message>)>;

impl World<'_> {
    /// Somebody with a session in their own workspace.
    pub async fn inside(&self, person: &Person) -> anyhow::Result<Web> {
        let mut web = Web::new("en")?;
        by_form::sign_in(&mut web, self.stack, &person.email, &person.password).await?.expect(200)?;
        by_form::enter(&mut web, self.stack, &person.slug).await?;
        Ok(web)
    }

    /// Everything both have said.
    pub async fn everything(&self) -> anyhow::Result<BTreeMap<String, Said>> {
        let mut all = BTreeMap::new();
        for person in [&self.alice, &self.bob] {
            let mut web = self.inside(person).await?;
            all.insert(person.slug.clone(), workspace::everything(&mut web, self.stack, &person.slug).await?);
        }
        Ok(all)
    }

    /// Says something as alice and makes sure it is kept.
    pub async fn say_something(&self, said: &str) -> anyhow::Result<()> {
        let mut web = self.inside(&self.alice).await?;
        let (_, answer) = workspace::say(&mut web, self.stack, &self.alice.slug, said).await?;
        ensure!(answer.text.contains("event: done"), "the answer ends with {}", answer.text);
        let all = workspace::everything(&mut web, self.stack, &self.alice.slug).await?;
        let kept = all.iter().any(|(_, messages)| {
            messages.iter().any(|m| m.role == "user" && m.content == said)
                && messages.iter().any(|m| m.role == "assistant" && m.content == reply_to(said) && m.status == "done")
        });
        ensure!(kept, "what was acknowledged is not kept");
        Ok(())
    }

    /// After a fault: services and workspaces answer, and everything said before is there.
    pub async fn whole_again(&self, before: &BTreeMap<String, Said>) -> anyhow::Result<()> {
        for person in [&self.alice, &self.bob] {
            journey::answers_again(self.stack, &person.slug).await?;
            self.still_said(person, before).await?;
        }
        Ok(())
    }

    /// Everything that somebody had said before is there.
    pub async fn still_said(&self, person: &Person, before: &BTreeMap<String, Said>) -> anyhow::Result<()> {
        let slug = &person.slug;
        let mut web = self.inside(person).await?;
        let now = workspace::everything(&mut web, self.stack, slug).await?;
        for (chat, messages) in &before[slug] {
            let kept = now.iter().find(|(id, _)| id == chat).with_context(|| format!("a chat of {slug} is gone"))?;
            ensure!(kept.1[..messages.len().min(kept.1.len())] == messages[..], "a chat of {slug} has changed");
        }
        Ok(())
    }

    /// A restart of each service, one after the other, while nobody is told.
    pub async fn restarts(&self, steps: &mut Steps, docker: &Docker) -> anyhow::Result<()> {
        for service in SERVICES {
            steps
                .check(&format!("restart of {service}"), async {
                    let before = self.everything().await?;
                    docker.restart_container(&self.stack.container(service), None).await?;
                    self.whole_again(&before).await?;
                    self.say_something(&format!("canary-prompt-after-restart-of-{service}")).await
                })
                .await;
        }
        Ok(())
    }

    /// SIGKILL to deploy-control in the middle of sign-ups, at different moments.
    pub async fn killed_in_the_middle(&self, docker: &Docker) -> anyhow::Result<()> {
        let mut people = Vec::new();
        let at_first = instances(docker, self.stack.prefix()).await?.len();
        for round in 0..3 {
            let already = at_first + round * 3;
            let names: Vec<_> = (0..3).map(|n| Person::new(&format!("mid-{round}-{n}"))).collect();
            let signed_up = try_join_all(names.iter().map(|person| async {
                let mut web = Web::new("en")?;
                by_form::sign_up(&mut web, self.stack, person).await?.expect(200)?;
                anyhow::Ok(web)
            }))
            .await?;
            // Each round at another moment: at once, at the first container, at the second.
            wait::until("the moment comes", Duration::from_secs(60), || async {
                let made = instances(docker, self.stack.prefix()).await?.len();
                anyhow::Ok((made >= already + round).then_some(()))
            })
            .await?;
            kill_process(docker, &self.stack.container("deploy-control")).await?;
            people.extend(names.into_iter().zip(signed_up));
        }
        for (person, web) in &mut people {
            by_form::ready(web, self.stack).await.with_context(|| format!("{} after the kill", person.slug))?;
            by_form::enter(web, self.stack, &person.slug).await.with_context(|| person.slug.clone())?;
        }
        no_doubles(docker, self.stack.prefix(), at_first + people.len()).await?;
        // One of them goes the whole way.
        let (person, web) = people.first_mut().context("somebody")?;
        let provider = Provider { base_url: self.provider.base_url(), model: CHAT, key: &person.key };
        by_form::provide(web, self.stack, provider).await?;
        by_form::enter(web, self.stack, &person.slug).await?;
        let said = "canary-prompt-after-the-kill";
        let (_, answer) = workspace::say(web, self.stack, &person.slug, said).await?;
        ensure!(answer.text.contains("event: done"), "{}", answer.text);
        Ok(())
    }
}

/// The instances on the engine: their ids and containers.
pub async fn instances(docker: &Docker, prefix: &str) -> anyhow::Result<Vec<(String, String)>> {
    let filters =
        [("label".to_owned(), vec![format!("{}={prefix}", engine::STACK_LABEL), "beaver.instance".to_owned()])];
    let all = ListContainersOptionsBuilder::new().all(true).filters(&filters.into_iter().collect()).build();
    let containers = docker.list_containers(Some(all)).await?;
    Ok(containers
        .into_iter()
        .map(|c| {
            let id = c.labels.unwrap_or_default().remove("beaver.instance").unwrap_or_default();
            (id, c.names.unwrap_or_default().join(","))
        })
        .collect())
}

/// As many containers as accounts, each for another instance.
pub async fn no_doubles(docker: &Docker, prefix: &str, accounts: usize) -> anyhow::Result<()> {
    let all = instances(docker, prefix).await?;
    let mut ids: Vec<_> = all.iter().map(|(id, _)| id).collect();
    ids.sort();
    ids.dedup();
    ensure!(all.len() == accounts && ids.len() == accounts, "{accounts} accounts have {all:?}");
    Ok(())
}

/// SIGKILL to everything at once, where everything is one process; then `beaver up` again.
pub async fn killed_whole(world: &mut Stack) -> anyhow::Result<()> {
    ensure!(world.engine() == Engine::Process, "only without Docker is everything one process");
    world.kill().await?;
    world.start().await
}
