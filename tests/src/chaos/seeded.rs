//! Violations made on purpose, one for each invariant: a check that finds none of them is no check.

use std::{collections::HashMap, fs, path::Path, str::FromStr};

use anyhow::{Context, bail};
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::RemoveImageOptionsBuilder,
};
use serde_json::json;
use sqlx::{Connection, Executor, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Ground, people::Somebody};
use crate::engine::STACK_LABEL;

/// Something that must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Two containers of one instance.
    OneContainer,
    /// A container runs that the engine does not know of.
    Forgotten,
    /// A container of an instance that nobody has.
    NoOrphan,
    /// Something that was removed does not come back: its image is gone too.
    Prune,
    /// An acknowledged wish is forgotten.
    RightGeneration,
    /// Two people's names lead to each other's workspaces.
    RightRoute,
    /// Somebody's row is gone.
    NoLostRow,
    /// A message is gone.
    NoLostMessage,
    /// A configuration has another one's key.
    ConfigWhole,
}

impl Violation {
    /// Each, with its name on the command line and what its finding begins with.
    pub const ALL: [(Self, &'static str, &'static str); 9] = [
        (Self::OneContainer, "one-container", "one_container"),
        (Self::Forgotten, "forgotten", "one_container"),
        (Self::NoOrphan, "no-orphan", "no_orphan"),
        // Given up by then: wanted up, and not.
        (Self::Prune, "prune", "right_generation"),
        (Self::RightGeneration, "right-generation", "right_generation"),
        (Self::RightRoute, "right-route", "right_route"),
        (Self::NoLostRow, "no-lost-row", "no_lost_row"),
        (Self::NoLostMessage, "no-lost-message", "no_lost_message"),
        (Self::ConfigWhole, "config-whole", "config_whole"),
    ];

    /// What its finding begins with.
    pub fn finding(self) -> &'static str {
        Self::ALL.iter().find(|(violation, ..)| *violation == self).map_or("", |(.., finding)| *finding)
    }
}

impl FromStr for Violation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(_, its, _)| *its == name).map(|(violation, ..)| *violation);
        let names = Self::ALL.map(|(_, name, _)| name).join(", ");
        known.ok_or_else(|| format!("there are {names}"))
    }
}

/// Makes it so. Everything was well before.
///
/// # Errors
/// When it cannot be made.
pub(super) async fn make(ground: &mut Ground, people: &mut [Somebody], violation: Violation) -> anyhow::Result<()> {
    let docker = ground.docker()?.clone();
    let prefix = ground.stack.prefix().to_owned();
    let everybody: Vec<_> = people.iter().filter_map(|somebody| somebody.id).collect();
    let [first, second, ..] = people else { bail!("a violation needs two people") };
    let (one, other) = (first.id.context("no instance")?, second.id.context("no instance")?);
    let registry = ground.data_dir().join("deploy-control/registry.db");
    match violation {
        Violation::OneContainer => run(&docker, &prefix, &one.to_string()).await,
        Violation::Forgotten => ground.stack.own_engine().context("it has an engine of its own")?.run_unknown(),
        Violation::NoOrphan => run(&docker, &prefix, "00000000-0000-4000-8000-000000000000").await,
        Violation::Prune => {
            // All of them, or the image stays for the sake of the others, and nobody has time to make one again meanwhile.
            without_deploy_control(ground, &docker, async || {
                for id in &everybody {
                    super::faults::remove_instance(&docker, &prefix, *id).await?;
                }
                let (name, force) =
                    (format!("{prefix}/app-instance:latest"), RemoveImageOptionsBuilder::new().force(true));
                docker.remove_image(&name, Some(force.build()), None).await.map(drop).context("removing the image")
            })
            .await
        }
        Violation::RightGeneration => {
            without_deploy_control(ground, &docker, async || {
                let back = "UPDATE instances SET generation = 1, observed_generation = 1 WHERE id = $1";
                change(&registry, back, &[&one.to_string()]).await
            })
            .await
        }
        Violation::RightRoute => {
            let (a, b) = (first.person.slug.clone(), second.person.slug.clone());
            without_deploy_control(ground, &docker, async || {
                let rename = "UPDATE instances SET slug = $1 WHERE id = $2";
                change(&registry, rename, &["in-between", &one.to_string()]).await?;
                change(&registry, rename, &[&a, &other.to_string()]).await?;
                change(&registry, rename, &[&b, &one.to_string()]).await
            })
            .await
        }
        Violation::NoLostRow => {
            without_deploy_control(ground, &docker, async || {
                change(&registry, "DELETE FROM events WHERE instance_id = $1", &[&one.to_string()]).await?;
                change(&registry, "DELETE FROM instances WHERE id = $1", &[&one.to_string()]).await
            })
            .await
        }
        Violation::NoLostMessage => {
            let said = first.said.first().context("nothing was said")?.said.clone();
            let data = ground.data_dir().join("instances").join(one.to_string()).join("data/instance.db");
            change(&data, "DELETE FROM messages WHERE content = $1", &[&said]).await
        }
        Violation::ConfigWhole => {
            let file = first.config_file(&ground.data_dir()).context("no instance")?;
            let mut config = first.config(&ground.data_dir())?;
            config["provider"]["api_key"] = json!("sk-of-somebody-else");
            // In place: its owner and mode stay.
            Ok(fs::write(&file, config.to_string())?)
        }
    }
}

/// A container with the marks of an instance's.
async fn run(docker: &Docker, prefix: &str, instance: &str) -> anyhow::Result<()> {
    let labels = HashMap::from([
        (STACK_LABEL.to_owned(), prefix.to_owned()),
        ("beaver.instance".to_owned(), instance.to_owned()),
    ]);
    let body = ContainerCreateBody {
        image: Some(format!("{prefix}-fake-provider:latest")),
        cmd: Some(vec!["/fake-provider".into()]),
        labels: Some(labels),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let made = docker.create_container(None, body).await?;
    Ok(docker.start_container(&made.id, None).await?)
}

/// Does something while nobody else has the registry open.
async fn without_deploy_control(
    ground: &Ground,
    docker: &Docker,
    work: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = ground.stack.container("deploy-control");
    docker.stop_container(&name, None).await?;
    let outcome = work().await;
    docker.start_container(&name, None).await?;
    outcome
}

async fn change(database: &Path, sql: &'static str, values: &[&str]) -> anyhow::Result<()> {
    let options = SqliteConnectOptions::new().filename(database).create_if_missing(false).foreign_keys(false);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    connection.execute("PRAGMA busy_timeout = 5000").await?;
    let mut query = sqlx::query(sql);
    for value in values {
        query = query.bind((*value).to_owned());
    }
    let changed = query.execute(&mut connection).await?.rows_affected();
    connection.close().await?;
    anyhow::ensure!(changed > 0, "nothing was changed by {sql}");
    Ok(())
}
