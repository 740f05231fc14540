//! No secret, password or prompt is anywhere but where it belongs.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    canary::{self, Canaries},
    engine,
    people::Person,
    stack::{Engine, Stack},
    wait,
};
use bollard::{
    Docker,
    models::ContainerCreateBody,
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder},
};
use sqlx::{AnyConnection, Connection, Executor};

use crate::World;

impl World<'_> {
    /// Everything that somebody typed or was given in this run.
    pub fn canaries(&self, keys: &[String]) -> anyhow::Result<Canaries> {
        let mut canaries = Canaries::default();
        for person in Person::everybody() {
            canaries.add(format!("{}'s password", person.slug), &person.password);
            canaries.add(format!("{}'s key for the provider", person.slug), &person.key);
        }
        for refused in ["sk-wrong-key-0123456789", "not her password at all"] {
            canaries.add("what was refused", refused);
        }
        for (n, key) in keys.iter().enumerate() {
            canaries.add(format!("key {n} of a workspace"), key);
        }
        // Every prompt begins so, and every answer repeats its prompt.
        canaries.add("what somebody said", "canary-prompt-");
        let settings = self.stack.settings()?;
        for name in settings::settings().iter().filter(|s| s.is_generated()).map(|s| s.key.as_str()) {
            // `up` prints it, to whoever called it, in the link that is good once; without Docker that is also its log.
            if name == "BEAVER_OPERATOR_TOKEN" && self.stack.engine() == Engine::Process {
                continue;
            }
            canaries.add(name, settings.get(name).with_context(|| format!("{name} is not in the settings"))?);
        }
        Ok(canaries)
    }

    /// Looks everywhere. A planted leak must be found by the same search first.
    pub async fn no_leaks(&self, keys: &[String]) -> anyhow::Result<()> {
        let canaries = self.canaries(keys)?;
        let data = self.stack.data_dir();
        let planted = data.join("router/planted");
        std::fs::write(&planted, format!("{{\"oops\":\"{}\"}}", self.alice.password))?;
        let found = canaries.look_in_files(&data, &belongs);
        std::fs::remove_file(&planted)?;
        let found = found?;
        ensure!(found.iter().any(|l| l.place == "router/planted"), "the search does not find what was planted");
        self.planted_in_a_database().await?;
        if let (Engine::Docker, Some(docker)) = (self.stack.engine(), self.stack.docker()) {
            self.planted_on_the_engine(docker).await?;
        }

        let mut leaks = canaries.look_in_files(&data, &belongs)?;
        leaks.extend(engine_leaks(self.stack, &canaries).await?);
        canary::none(&leaks)
    }
}

impl World<'_> {
    /// What is written to a database is found in it, in its journal and after it.
    async fn planted_in_a_database(&self) -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut canaries = Canaries::default();
        let secret = clock::Entropy::system().token();
        canaries.add("what was planted", &secret);
        sqlx::any::install_default_drivers();
        let url = format!("sqlite://{}?mode=rwc", dir.path().join("planted.db").display());
        let mut connection = AnyConnection::connect(&url).await?;
        connection.execute("PRAGMA journal_mode = WAL").await?;
        connection.execute("CREATE TABLE planted (secret TEXT NOT NULL)").await?;
        sqlx::query("INSERT INTO planted (secret) VALUES ($1)").bind(&secret).execute(&mut connection).await?;
        let open = canaries.look_in_files(dir.path(), &|_| false)?;
        connection.close().await?;
        let closed = canaries.look_in_files(dir.path(), &|_| false)?;
        ensure!(!open.is_empty() && !closed.is_empty(), "the search does not find what is in a database");
        Ok(())
    }

    /// A container that gives away what it is told: its log, what inspect says of it, and the engine's events are searched,
    /// and so is every service.
    async fn planted_on_the_engine(&self, docker: &Docker) -> anyhow::Result<()> {
        let (prefix, name) = (self.stack.prefix(), self.stack.container("planted"));
        let mut canaries = Canaries::default();
        // Another one than the real ones: events cannot be taken back.
        let secret = clock::Entropy::system().token();
        canaries.add("what was planted", &secret);
        let labels = [(engine::STACK_LABEL, prefix), ("beaver.test", &secret)];
        let body = ContainerCreateBody {
            image: Some(format!("{prefix}/beaver:latest")),
            // It says that it knows no such command.
            cmd: Some(vec![secret.clone()]),
            labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
            ..ContainerCreateBody::default()
        };
        let named = CreateContainerOptionsBuilder::new().name(&name).build();
        docker.create_container(Some(named), body).await?;
        let looked = async {
            docker.start_container(&name, None).await?;
            let ended = async || {
                let state = docker.inspect_container(&name, None).await?.state.unwrap_or_default();
                anyhow::Ok((state.running == Some(false)).then_some(()))
            };
            wait::until("it has said it", Duration::from_secs(20), ended).await?;
            canaries.look_in_engine(docker, prefix, self.stack.since).await
        };
        let looked = looked.await;
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        docker.remove_container(&name, Some(force)).await?;
        let found: Vec<_> = looked?.into_iter().map(|leak| leak.place).collect();
        for place in [format!("the logs of {name}"), format!("inspect of {name}"), "the engine's events".to_owned()] {
            ensure!(found.contains(&place), "the search does not find what was planted in {place}, only in {found:?}");
        }
        let searched = engine::belongings(docker, prefix).await?.containers;
        for service in ["auth-portal", "authz-service", "deploy-control", "router-proxy"] {
            ensure!(searched.contains(&self.stack.container(service)), "{service} is not searched, only {searched:?}");
        }
        Ok(())
    }
}

/// A person's own folders hold what is theirs: `instances/<id>/data` and `config`. A service's secrets are in its own.
fn belongs(path: &Path) -> bool {
    let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
    matches!(parts[..], ["instances", _, "data" | "config"] | ["secrets", _])
}

async fn engine_leaks(stack: &Stack, canaries: &Canaries) -> anyhow::Result<Vec<canary::Leak>> {
    match (stack.engine(), stack.docker()) {
        (Engine::Docker, Some(docker)) => canaries.look_in_engine(docker, stack.prefix(), stack.since).await,
        _ => Ok(canaries.look("what beaver up wrote", &std::fs::read(stack.process_log())?)),
    }
}
