//! What the services are told by each other, told by a test: deploy-control and the router's internal listener, reached
//! from the host at their addresses in the stack's network.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, ensure};
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig},
};
use clock::{Clock, Entropy};
use contracts::{
    AccountId, InstanceId, PlanName, Slug,
    deploy::{
        EVENT_PAGE, Event, EventList, Instance, InstanceList, OnBehalfOf, Phase, RegisterInstance, ResolveInstance,
    },
    egress::{EgressUsage, usage_path},
    instance::internal_path,
};
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;

use crate::{engine::STACK_LABEL, stack::Stack, wait};

/// How long something may take to be made or removed.
const PATIENCE: Duration = Duration::from_secs(90);
/// The services' ports in the stack's network.
const DEPLOY_PORT: u16 = 8090;
const ROUTER_PORT: u16 = 8089;

/// The way to the services.
pub struct House {
    http: reqwest::Client,
    docker: Docker,
    prefix: String,
    deploy: (String, String),
    router: (String, String),
}

/// An instance of an account that does not exist: made like everybody's, never anybody's, and so one that can be
/// discarded.
#[derive(Debug, Clone)]
pub struct Nobodys {
    /// Its id.
    pub id: InstanceId,
    /// The account that does not exist.
    pub account: AccountId,
    /// Its name.
    pub slug: Slug,
    /// Its container, as deploy-control had it made.
    pub body: ContainerCreateBody,
}

impl Nobodys {
    /// Its user id.
    ///
    /// # Errors
    /// When its container has none of its own.
    pub fn uid(&self) -> anyhow::Result<u32> {
        let user = self.body.user.as_deref().unwrap_or_default();
        user.split(':').next().unwrap_or_default().parse().with_context(|| format!("it runs as {user:?}"))
    }

    /// The specification of its container, for a container with another image that is told to do this.
    pub fn with(&self, image: &str, command: &[&str]) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            ..self.body.clone()
        }
    }
}

impl House {
    /// Of a stack on Docker.
    ///
    /// # Errors
    /// When a service does not run.
    pub async fn of(stack: &Stack) -> anyhow::Result<Self> {
        let docker = stack.docker().context("a stack on Docker has an engine")?.clone();
        let settings = stack.settings()?;
        let place = async |service: &str, port: u16, token: &str| {
            let found = docker.inspect_container(&stack.container(service), None).await?;
            let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            let address = networks.get(&stack.network()).and_then(|network| network.ip_address.clone());
            let address = address.filter(|address| !address.is_empty());
            let address = address.with_context(|| format!("{service} has no address"))?;
            let token = settings.get(token).with_context(|| format!("{token} is not in the settings"))?.clone();
            anyhow::Ok((format!("http://{address}:{port}"), token))
        };
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(15)).build()?,
            deploy: place("deploy-control", DEPLOY_PORT, "BEAVER_DEPLOY_TOKEN").await?,
            router: place("router-proxy", ROUTER_PORT, "BEAVER_ROUTER_INTERNAL_TOKEN").await?,
            prefix: stack.prefix().to_owned(),
            docker: docker.clone(),
        })
    }

    async fn call(
        &self,
        (base, token): &(String, String),
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Response> {
        let mut request = self.http.request(method, format!("{base}{path}")).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.with_context(|| format!("asking for {path}"))
    }

    /// Asks deploy-control for an instance; its answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask_for(&self, id: InstanceId, account_id: AccountId, slug: &Slug) -> anyhow::Result<Response> {
        let wanted = RegisterInstance {
            instance_id: id,
            account_id,
            slug: slug.clone(),
            plan: Some(PlanName::workspace().to_string()),
        };
        self.call(&self.deploy, Method::POST, "/api/instances/register", Some(&wanted)).await
    }

    /// A new id, as those of instances and accounts are.
    pub fn new_ids() -> (InstanceId, AccountId) {
        let (entropy, clock) = (Entropy::system(), Clock::system());
        (InstanceId::from_uuid(entropy.uuid_v7(&clock)), AccountId::from_uuid(entropy.uuid_v7(&clock)))
    }

    /// Has an instance made that is nobody's, and stopped: nobody gives it an owner.
    ///
    /// # Errors
    /// When deploy-control does not make it.
    pub async fn nobodys(&self, slug: &str) -> anyhow::Result<Nobodys> {
        let (slug, (id, account)) = (slug.parse::<Slug>()?, Self::new_ids());
        let answer = self.ask_for(id, account, &slug).await?;
        ensure!(answer.status() == 202, "{slug}: {}", answer.text().await?);
        let name = format!("{}-{id}", self.prefix);
        let found = wait::until(format!("{slug} has a container"), PATIENCE, async || {
            self.docker.inspect_container(&name, None).await.map(Some)
        })
        .await?;
        self.wish(id, account, "stop").await?;
        let config = found.config.unwrap_or_default();
        let body = ContainerCreateBody {
            user: config.user,
            env: config.env,
            hostname: config.hostname,
            // What is made from it goes with the stack.
            labels: Some(HashMap::from([(STACK_LABEL.to_owned(), self.prefix.clone())])),
            stop_timeout: Some(0),
            host_config: found.host_config.map(|host_config| HostConfig { init: Some(true), ..host_config }),
            ..ContainerCreateBody::default()
        };
        wait::until(format!("{slug} is stopped"), PATIENCE, async || {
            anyhow::Ok((self.phase(account, &slug).await? == Some(Phase::Stopped)).then_some(()))
        })
        .await?;
        Ok(Nobodys { id, account, slug, body })
    }

    async fn wish(&self, id: InstanceId, account_id: AccountId, wish: &str) -> anyhow::Result<()> {
        let path = format!("/api/instances/{id}/{wish}");
        let answer = self.call(&self.deploy, Method::POST, &path, Some(&OnBehalfOf { account_id })).await?;
        ensure!(answer.status() == 202, "{wish}: {}", answer.text().await?);
        Ok(())
    }

    /// An instance's phase, as deploy-control tells it to its account.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn phase(&self, account_id: AccountId, slug: &Slug) -> anyhow::Result<Option<Phase>> {
        let body = ResolveInstance { account_id, slug: slug.clone() };
        let answer = self.call(&self.deploy, Method::POST, "/api/instances/resolve", Some(&body)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(Some(answer.error_for_status()?.json::<Instance>().await?.phase)),
        }
    }

    /// Has it removed with all that it has, and waits until that is done.
    ///
    /// # Errors
    /// When it is not.
    pub async fn discard(&self, one: &Nobodys) -> anyhow::Result<()> {
        self.wish(one.id, one.account, "discard").await?;
        wait::until(format!("{} is gone", one.slug), PATIENCE, async || {
            let phase = self.phase(one.account, &one.slug).await?;
            ensure!(matches!(phase, None | Some(Phase::Deleted)), "it is {phase:?}");
            anyhow::Ok(Some(()))
        })
        .await
    }

    /// Every instance that is not gone.
    ///
    /// # Errors
    /// When deploy-control does not tell, or there are more than a page of them.
    pub async fn instances(&self) -> anyhow::Result<Vec<Instance>> {
        let answer = self.call(&self.deploy, Method::GET, "/api/instances?limit=1000", None::<&()>).await?;
        let list: InstanceList = answer.error_for_status()?.json().await?;
        ensure!(list.next.is_none(), "there are more");
        Ok(list.instances)
    }

    /// What happened to an instance, the newest last.
    ///
    /// # Errors
    /// When deploy-control does not tell.
    pub async fn events(&self, one: &Instance) -> anyhow::Result<Vec<Event>> {
        let path = format!("/api/instances/{}/events?account_id={}&last={EVENT_PAGE}", one.id, one.account_id);
        let answer = self.call(&self.deploy, Method::GET, &path, None::<&()>).await?;
        Ok(answer.error_for_status()?.json::<EventList>().await?.events)
    }

    /// What an instance used of its way out; `None` when the router knows of none.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn usage(&self, id: InstanceId) -> anyhow::Result<Option<EgressUsage>> {
        let answer = self.call(&self.router, Method::GET, &usage_path(id), None::<&()>).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(Some(answer.error_for_status()?.json().await?)),
        }
    }

    /// deploy-control's metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn deploy_metrics(&self) -> anyhow::Result<String> {
        let answer = self.call(&self.deploy, Method::GET, "/metrics", None::<&()>).await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// The router's metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let answer = self.call(&self.router, Method::GET, "/metrics", None::<&()>).await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Asks an instance for a page, as the house does; the status.
    ///
    /// # Errors
    /// When the router does not answer.
    pub async fn ask_instance(&self, id: InstanceId, path: &str) -> anyhow::Result<u16> {
        let answer = self.call(&self.router, Method::GET, &internal_path(id, path), None::<&()>).await?;
        Ok(answer.status().as_u16())
    }
}
