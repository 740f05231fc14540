//! `beaver upgrade`: another try for the workspaces that went back from the newest release, and how far it has come.

use contracts::deploy::{ReleaseList, Upgrade};
use serde::{Deserialize, Serialize};
use service::ServiceClient;
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
struct Said {
    upgrade: Upgrade,
    list: ReleaseList,
}

/// Has them try again, and says who runs what.
///
/// # Errors
/// When the services cannot be asked.
pub async fn upgrade(place: &Place, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let said = ask::either(&stack, async |env| tell(&env).await, &["upgrade-from-inside"]).await?;
    let again = said.upgrade.again;
    if again == 0 {
        ui.line(text!(
            ui,
            "✓ no workspace went back from a release; new ones come to all by themselves after beaver up",
            "✓ 没有工作区退回过旧版本;beaver up 之后新版本会自动推送给所有工作区"
        ));
    } else {
        ui.line(text!(
            ui,
            "✓ {again} workspaces that went back try the newest release again",
            "✓ {again} 个退回旧版本的工作区将再次尝试最新版本"
        ));
    }
    for release in &said.list.releases {
        let (id, plan) = (short(&release.release), &release.plan);
        let (instances, back) = (release.instances, release.went_back);
        ui.line(text!(
            ui,
            "  {id} ({plan}): {instances} run it, {back} went back from it",
            "  {id}({plan}):{instances} 个在运行,{back} 个曾退回"
        ));
    }
    Ok(Exit::Ok)
}

/// `beaver upgrade-from-inside`: the same from inside the services' network, answered as JSON.
///
/// # Errors
/// When a setting is unusable or deploy-control does not answer.
pub async fn from_inside() -> anyhow::Result<Exit> {
    println!("{}", serde_json::to_string(&tell(&Env::from_process().with_files()?).await?)?);
    Ok(Exit::Ok)
}

async fn tell(env: &Env) -> anyhow::Result<Said> {
    let token = env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?;
    let deploy = ServiceClient::new("deploy-control", env.url("BEAVER_DEPLOY_URL")?, token);
    // As it was before they try again.
    let list = deploy.get("/api/releases").await?;
    let upgrade = deploy.post("/api/upgrade", &serde_json::json!({})).await?;
    Ok(Said { upgrade, list })
}

/// An image's id, shortened as Docker does.
fn short(release: &str) -> &str {
    let id = release.strip_prefix("sha256:").unwrap_or(release);
    id.get(..12).unwrap_or(id)
}
