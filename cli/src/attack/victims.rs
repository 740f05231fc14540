//! The two instances that an attack makes for itself: taken in by deploy-control as anybody's, for accounts that do not
//! exist, so that they get folders, doors, user ids and a container like everybody's, and never an owner. What attacks has
//! that very container's specification, as the engine shows it, with another image.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use attack::{Call, To};
use bollard::models::{ContainerCreateBody, HostConfig};
use clock::{Clock, Entropy};
use contracts::{
    AccountId, InstanceId, PlanName, Slug,
    deploy::{Instance, InstanceList, OnBehalfOf, Phase, RegisterInstance},
};
use secrecy::ExposeSecret;
use serde::{Serialize, de::DeserializeOwned};

use super::field::Field;

/// How names of such instances begin.
const MARK: &str = "beaver-attack-";
/// How long deploy-control may take to make or remove one.
const PATIENCE: Duration = Duration::from_secs(45);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(200);
/// How long one call may take, in milliseconds.
const CALL_MS: u64 = 15_000;

/// deploy-control, as the neighbour reaches it.
pub struct Deploy<'a> {
    pub field: &'a Field<'a>,
    pub address: std::net::SocketAddr,
}

/// An instance of the attack's own.
pub struct Victim {
    pub id: InstanceId,
    pub account: AccountId,
    /// Its container, as deploy-control had it made.
    pub body: ContainerCreateBody,
}

impl Victim {
    /// The user and group id that it runs as.
    ///
    /// # Errors
    /// When its container has none of its own.
    pub fn uid(&self) -> anyhow::Result<u32> {
        let user = self.body.user.as_deref().unwrap_or_default();
        user.split(':').next().unwrap_or_default().parse().with_context(|| format!("it runs as {user:?}"))
    }

    /// Whether it has a network, which `BEAVER_ISOLATION=shared` gives it.
    pub fn is_shared(&self) -> bool {
        self.host_config().network_mode.is_some_and(|mode| mode != "none")
    }

    /// What its container is on the host.
    pub fn host_config(&self) -> HostConfig {
        self.body.host_config.clone().unwrap_or_default()
    }

    /// Its container with the hostile program in it, told to do this, and nothing else changed.
    pub fn hostile(&self, field: &Field<'_>, command: &[&str]) -> ContainerCreateBody {
        let hostile = field.body(command, self.host_config());
        ContainerCreateBody { image: hostile.image, cmd: hostile.cmd, labels: hostile.labels, ..self.body.clone() }
    }
}

/// How much an instance's /tmp holds, in bytes; what a kernel gives otherwise is far more than anybody tries.
pub fn tmp_of(host_config: &HostConfig) -> u64 {
    let options = host_config.tmpfs.as_ref().and_then(|tmpfs| tmpfs.get("/tmp")).map(String::as_str);
    let size = options.unwrap_or_default().split(',').find_map(|option| option.strip_prefix("size="));
    size.and_then(|size| size.strip_suffix('m')?.parse::<u64>().ok()).map_or(64 << 20, |mib| mib << 20)
}

impl Deploy<'_> {
    async fn call<T: DeserializeOwned>(&self, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let token = self.field.stack.env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?;
        let call = Call {
            to: To::Address(self.address),
            method: method.to_owned(),
            path: path.to_owned(),
            token: token.expose_secret().to_owned(),
            body: serde_json::to_string(body)?,
            patience_ms: CALL_MS,
        };
        let answer = self.field.ask(&[call]).await?.into_iter().next().context("no answer")?;
        ensure!((200..300).contains(&answer.status), "deploy-control: {} {}", answer.status, answer.body);
        serde_json::from_str(&answer.body).with_context(|| format!("deploy-control answered {}", answer.body))
    }

    async fn wish(&self, id: InstanceId, account_id: AccountId, wish: &str) -> anyhow::Result<Instance> {
        self.call("POST", &format!("/api/instances/{id}/{wish}"), &OnBehalfOf { account_id }).await
    }

    /// Has an instance taken in, and waits for its container, which is not started: nobody gives it an owner.
    ///
    /// # Errors
    /// When deploy-control does not make it.
    pub async fn register(&self, mark: &str) -> anyhow::Result<Victim> {
        let (entropy, clock) = (Entropy::system(), Clock::system());
        let slug: Slug = format!("{MARK}{}-{mark}", hex::encode(entropy.bytes::<4>())).parse()?;
        let wanted = RegisterInstance {
            instance_id: InstanceId::from_uuid(entropy.uuid_v7(&clock)),
            account_id: AccountId::from_uuid(entropy.uuid_v7(&clock)),
            slug,
            // The operator's default may be another, whose instances always are somebody's.
            plan: Some(PlanName::workspace().to_string()),
        };
        let _: Instance = self.call("POST", "/api/instances/register", &wanted).await?;
        let (id, account) = (wanted.instance_id, wanted.account_id);
        let name = format!("{}-{id}", self.field.stack.prefix);
        let made = async {
            loop {
                match self.field.engine.api().inspect_container(&name, None).await {
                    Ok(found) => return anyhow::Ok(found),
                    Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let found = match tokio::time::timeout(PATIENCE, made).await {
            Ok(found) => found?,
            Err(_) => bail!("deploy-control makes no container for a new instance: beaver status, and its log"),
        };
        // It is not to be tried again and again to give it an owner.
        self.wish(id, account, "stop").await?;
        let config = found.config.unwrap_or_default();
        let body = ContainerCreateBody {
            user: config.user,
            env: config.env,
            hostname: config.hostname,
            stop_timeout: Some(0),
            host_config: found.host_config,
            ..ContainerCreateBody::default()
        };
        Ok(Victim { id, account, body })
    }

    /// Has an instance of ours removed with its folders, and waits until that is done.
    ///
    /// # Errors
    /// When it is not removed in time.
    pub async fn discard(&self, id: InstanceId, account: AccountId) -> anyhow::Result<()> {
        self.wish(id, account, "discard").await?;
        let gone = async {
            loop {
                let found = self.all().await?.into_iter().find(|instance| instance.id == id);
                if found.is_none_or(|instance| instance.phase == Phase::Deleted) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.with_context(|| format!("{id} is not removed in time"))?
    }

    /// As [`Deploy::discard`].
    pub async fn discard_victim(&self, victim: &Victim) -> anyhow::Result<()> {
        self.discard(victim.id, victim.account).await
    }

    /// Whether it has not been removed.
    ///
    /// # Errors
    /// When deploy-control does not say.
    pub async fn is_there(&self, victim: &Victim) -> anyhow::Result<bool> {
        let found = self.all().await?.into_iter().find(|instance| instance.id == victim.id);
        Ok(found.is_some_and(|instance| instance.phase != Phase::Deleted))
    }

    /// Removes what an attack that was killed left.
    ///
    /// # Errors
    /// As [`Deploy::discard`].
    pub async fn sweep(&self) -> anyhow::Result<()> {
        let left = self
            .all()
            .await?
            .into_iter()
            .filter(|instance| instance.slug.as_str().starts_with(MARK) && instance.phase != Phase::Deleted);
        for instance in left {
            // A person may be called so too; then deploy-control refuses.
            if let Err(error) = self.discard(instance.id, instance.account_id).await {
                eprintln!("! {} stays: {error:#}", instance.slug);
            }
        }
        Ok(())
    }

    async fn all(&self) -> anyhow::Result<Vec<Instance>> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page: InstanceList = self.call("GET", &format!("/api/instances?limit=50{after}"), &()).await?;
            all.extend(page.instances);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }
}
