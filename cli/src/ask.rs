//! What only the services know, asked from inside their network: authz and deploy-control are not published.

use anyhow::Context;
use contracts::{
    authz::OperatorState,
    deploy::{Instance, InstanceList},
    egress::EgressUsageList,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use service::ServiceClient;
use settings::Env;

use crate::{
    Exit, Usage,
    args::EngineKind,
    compose::{self, Compose},
    process, remembered,
    stack::Stack,
};

/// The largest page of instances that is asked for.
const PAGE: usize = 200;

/// The way to the services from the operator's shell.
pub enum Way {
    /// They listen on this host's loopback, with this environment: the process engine.
    Direct(Env),
    /// From a container on their network.
    Compose(Compose),
}

impl Way {
    /// The way to the services of this stack.
    ///
    /// # Errors
    /// When there is none at present.
    pub async fn to(stack: &Stack) -> anyhow::Result<Self> {
        match remembered::read(&stack.data_dir)? {
            Some(EngineKind::Process) => Ok(Self::Direct(process::reach(stack).context("nothing runs: beaver up")?)),
            _ => compose::detect()
                .await
                .map(Self::Compose)
                .map_err(|_| anyhow::anyhow!("no compose tool: beaver doctor")),
        }
    }
}

/// Asks the services directly with `direct`, or has a container on their network run `beaver` with these arguments, which
/// answers the same as a line of JSON.
///
/// # Errors
/// When they cannot be asked, or say something else.
pub async fn either<T: DeserializeOwned>(
    stack: &Stack,
    direct: impl AsyncFnOnce(Env) -> anyhow::Result<T>,
    arguments: &[&str],
) -> anyhow::Result<T> {
    match Way::to(stack).await? {
        Way::Direct(env) => direct(env).await,
        Way::Compose(compose) => {
            let all = [&["run", "--rm", "--no-deps", "-T", "ask"], arguments].concat();
            answer(&compose.run(stack, &all).await?).context("the services gave no answer")
        }
    }
}

/// The answer among what a container said: the last line that is JSON.
///
/// # Errors
/// When there is none.
pub fn answer<T: DeserializeOwned>(output: &str) -> serde_json::Result<T> {
    serde_json::from_str(output.lines().rfind(|line| line.starts_with('{')).unwrap_or_default())
}

/// The instance with this slug or id.
///
/// # Errors
/// [`Usage`] when there is none.
pub fn named<'a>(instances: &'a [Instance], name: &str) -> Result<&'a Instance, Usage> {
    let found = instances.iter().find(|instance| instance.slug.as_str() == name || instance.id.to_string() == name);
    found.ok_or_else(|| Usage(format!("there is no workspace {name}: beaver status lists them")))
}

/// What the services said.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answers {
    /// Whether there is an operator; absent when authz did not say.
    pub operator_exists: Option<bool>,
    /// Every instance; absent when deploy-control did not say.
    pub instances: Option<Vec<Instance>>,
    /// What instances sent, received and were refused since the router started; absent when the router did not say.
    pub egress: Option<EgressUsageList>,
    /// Why something is absent.
    pub trouble: Vec<String>,
}

/// Asks, with addresses and tokens from `env`.
///
/// # Errors
/// When a setting is unusable. Services that do not answer are [`Answers::trouble`].
pub async fn services(env: &Env) -> anyhow::Result<Answers> {
    let authz = ServiceClient::new("authz", env.url("BEAVER_AUTHZ_URL")?, env.secret("BEAVER_AUTHZ_INTERNAL_TOKEN")?);
    let token = env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?;
    let deploy = ServiceClient::new("deploy-control", env.url("BEAVER_DEPLOY_URL")?, token);
    let (url, token) = (env.url("BEAVER_ROUTER_INTERNAL_URL")?, env.secret("BEAVER_ROUTER_INTERNAL_TOKEN")?);
    let router = ServiceClient::new("router-proxy", url, token);
    let (operator, instances, egress) =
        tokio::join!(authz.get::<OperatorState>("/portal/operator"), all(&deploy), router.get("/egress"));
    let mut answers = Answers::default();
    match operator {
        Ok(state) => answers.operator_exists = Some(state.exists),
        Err(error) => answers.trouble.push(error.to_string()),
    }
    match instances {
        Ok(list) => answers.instances = Some(list),
        Err(error) => answers.trouble.push(error.to_string()),
    }
    match egress {
        Ok(list) => answers.egress = Some(list),
        Err(error) => answers.trouble.push(error.to_string()),
    }
    Ok(answers)
}

/// Every instance.
pub async fn all(deploy: &ServiceClient) -> Result<Vec<Instance>, service::CallError> {
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let page: InstanceList = deploy.get(&format!("/api/instances?limit={PAGE}{after}")).await?;
        all.extend(page.instances);
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(all),
        }
    }
}

/// `beaver ask`: the answers as JSON, for [`through_compose`].
///
/// # Errors
/// As [`services`].
pub async fn ask() -> anyhow::Result<Exit> {
    println!("{}", serde_json::to_string(&services(&Env::from_process().with_files()?).await?)?);
    Ok(Exit::Ok)
}

/// Asks from a container on the services' network.
///
/// # Errors
/// When the container cannot be run or says something else.
pub async fn through_compose(stack: &Stack, compose: &Compose) -> anyhow::Result<Answers> {
    let output = compose.run(stack, &["run", "--rm", "--no-deps", "-T", "ask"]).await?;
    Ok(answer(&output)?)
}
