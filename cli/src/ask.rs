//! What only the services know, asked from inside their network: authz and deploy-control are not published.

use contracts::{
    authz::OperatorState,
    deploy::{Instance, InstanceList},
};
use serde::{Deserialize, Serialize};
use service::ServiceClient;
use settings::Env;

use crate::{Exit, compose::Compose, stack::Stack};

/// The largest page of instances that is asked for.
const PAGE: usize = 200;

/// What the services said.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answers {
    /// Whether there is an operator; absent when authz did not say.
    pub operator_exists: Option<bool>,
    /// Every instance; absent when deploy-control did not say.
    pub instances: Option<Vec<Instance>>,
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
    let (operator, instances) = tokio::join!(authz.get::<OperatorState>("/portal/operator"), all(&deploy));
    let mut answers = Answers::default();
    match operator {
        Ok(state) => answers.operator_exists = Some(state.exists),
        Err(error) => answers.trouble.push(error.to_string()),
    }
    match instances {
        Ok(list) => answers.instances = Some(list),
        Err(error) => answers.trouble.push(error.to_string()),
    }
    Ok(answers)
}

async fn all(deploy: &ServiceClient) -> Result<Vec<Instance>, service::CallError> {
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
    let line = output.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
    Ok(serde_json::from_str(line)?)
}
