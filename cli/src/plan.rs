//! `beaver plan`: gives a workspace another plan.

use contracts::deploy::{ChangePlan, Instance};
use serde::{Deserialize, Serialize};
use service::{CallError, ServiceClient};
use settings::Env;

use crate::{
    Exit,
    args::Place,
    ask,
    stack::{self, Project, Stack},
    text,
    ui::Ui,
};

/// What deploy-control says to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// It is written down, and being worked on.
    Taken(Box<Instance>),
    /// Nothing was changed, for this reason.
    Refused(String),
}

/// Gives the workspace of this name another plan.
///
/// # Errors
/// When the services cannot be asked.
pub async fn change(place: &Place, slug: &str, plan: &str, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let said = ask::either(&stack, async |env| tell(&env, slug, plan).await, &["set-plan", slug, plan]).await?;
    match said {
        Said::Taken(instance) => {
            let plan = &instance.plan;
            ui.line(text!(
                ui,
                "✓ {slug} has the plan {plan}; what it runs is made anew (see beaver status)",
                "✓ {slug} 的套餐是 {plan};它运行的程序会重建(见 beaver status)"
            ));
            Ok(Exit::Ok)
        }
        Said::Refused(why) => {
            ui.line(format!("✗ {why}"));
            Ok(Exit::Failed)
        }
    }
}

/// `beaver set-plan`: the same from inside the services' network, answered as JSON.
///
/// # Errors
/// When a setting is unusable or deploy-control does not answer.
pub async fn from_inside(slug: &str, plan: &str) -> anyhow::Result<Exit> {
    println!("{}", serde_json::to_string(&tell(&Env::from_process().with_files()?, slug, plan).await?)?);
    Ok(Exit::Ok)
}

async fn tell(env: &Env, slug: &str, plan: &str) -> anyhow::Result<Said> {
    let token = env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?;
    let deploy = ServiceClient::new("deploy-control", env.url("BEAVER_DEPLOY_URL")?, token);
    let all = ask::all(&deploy).await?;
    let instance = match ask::named(&all, slug) {
        Ok(instance) => instance,
        Err(refused) => return Ok(Said::Refused(refused.to_string())),
    };
    let body = ChangePlan { plan: plan.to_owned() };
    match deploy.post(&format!("/api/instances/{}/plan", instance.id), &body).await {
        Ok(instance) => Ok(Said::Taken(Box::new(instance))),
        Err(CallError::Refused { problem, .. }) if problem.status < 500 => Ok(Said::Refused(problem.detail)),
        Err(error) => Err(error.into()),
    }
}
