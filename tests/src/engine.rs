//! The Docker engine that tests use, and what they leave on it: nothing.

use std::collections::HashMap;

use anyhow::Context;
use bollard::{
    Docker,
    query_parameters::{
        ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListNetworksOptionsBuilder,
        RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    },
};

/// The label of everything that belongs to a stack; its value is the stack's prefix.
pub const STACK_LABEL: &str = "beaver.stack";

/// The engine at `DOCKER_HOST` or on the usual socket, when it answers. When it does not, the test that asks says so
/// loudly and returns; with `BEAVER_TEST_DOCKER=required` it fails.
///
/// # Panics
/// With `BEAVER_TEST_DOCKER=required`, when there is no engine.
pub async fn required_or_none(test: &str) -> Option<Docker> {
    match connect().await {
        Ok(docker) => Some(docker),
        Err(error) if std::env::var("BEAVER_TEST_DOCKER").is_ok_and(|v| v == "required") => {
            panic!("{test}: BEAVER_TEST_DOCKER=required, and there is no Docker engine: {error:#}")
        }
        Err(error) => {
            crate::say(format!("*** {test}: NOT RUN: it needs a Docker engine, and there is none here: {error:#}"));
            None
        }
    }
}

/// Connects and makes sure that somebody answers.
///
/// # Errors
/// When the address cannot be used or nobody answers.
pub async fn connect() -> anyhow::Result<Docker> {
    let host = std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty());
    connect_to(host.as_deref().unwrap_or("unix:///var/run/docker.sock")).await
}

/// Connects to the engine at an address and makes sure that somebody answers.
///
/// # Errors
/// When the address cannot be used or nobody answers.
pub async fn connect_to(host: &str) -> anyhow::Result<Docker> {
    let docker = Docker::connect_with_host(host)?;
    let docker = docker.negotiate_version().await.context("the engine does not answer")?;
    docker.ping().await.context("the engine does not answer")?;
    Ok(docker)
}

fn of_stack(prefix: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{STACK_LABEL}={prefix}")])])
}

/// What a stack has on the engine: names of containers, networks and images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belongings {
    /// Container names, without the leading slash.
    pub containers: Vec<String>,
    /// Network names.
    pub networks: Vec<String>,
    /// Image ids.
    pub images: Vec<String>,
}

/// Lists what carries the stack's label.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn belongings(docker: &Docker, prefix: &str) -> anyhow::Result<Belongings> {
    let containers = ListContainersOptionsBuilder::new().all(true).filters(&of_stack(prefix)).build();
    let mut found = Belongings::default();
    for container in docker.list_containers(Some(containers)).await? {
        let names = container.names.unwrap_or_default();
        found.containers.push(names.first().map(|n| n.trim_start_matches('/').to_owned()).unwrap_or_default());
    }
    let networks = ListNetworksOptionsBuilder::new().filters(&of_stack(prefix)).build();
    for network in docker.list_networks(Some(networks)).await? {
        found.networks.extend(network.name);
    }
    let images = ListImagesOptionsBuilder::new().all(true).filters(&of_stack(prefix)).build();
    for image in docker.list_images(Some(images)).await? {
        found.images.push(image.id);
    }
    found.containers.sort();
    Ok(found)
}

/// Removes everything that carries the stack's label: what a killed run left.
///
/// # Errors
/// When the engine refuses.
pub async fn sweep(docker: &Docker, prefix: &str) -> anyhow::Result<()> {
    let found = belongings(docker, prefix).await?;
    for name in &found.containers {
        let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        gone_is_fine(docker.remove_container(name, Some(force)).await).context("removing a container")?;
    }
    for name in &found.networks {
        gone_is_fine(docker.remove_network(name).await).context("removing a network")?;
    }
    for id in &found.images {
        let force = RemoveImageOptionsBuilder::new().force(true).build();
        gone_is_fine(docker.remove_image(id, Some(force), None).await.map(drop)).context("removing an image")?;
    }
    Ok(())
}

/// Removes a container and the image of the same name, when they are there.
///
/// # Errors
/// When the engine refuses.
pub async fn remove(docker: &Docker, name: &str) -> anyhow::Result<()> {
    let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    gone_is_fine(docker.remove_container(name, Some(force)).await)?;
    let force = RemoveImageOptionsBuilder::new().force(true).build();
    gone_is_fine(docker.remove_image(name, Some(force), None).await.map(drop))?;
    Ok(())
}

fn gone_is_fine(result: Result<(), bollard::errors::Error>) -> Result<(), bollard::errors::Error> {
    match result {
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
        other => other,
    }
}
