//! `beaver image check`: what of somebody else's image will work in an instance, before it becomes a plan.

mod judge;
mod run;

use anyhow::Context;
use bollard::models::ImageInspect;

use crate::{
    Exit,
    args::{Image, ImageCheck, Place},
    engine::Engine,
    stack::{self, Project, Stack},
    text,
    ui::Ui,
};
use judge::{Facts, Verdict};

/// `beaver image …`.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn image(place: &Place, what: &Image, ui: &Ui) -> anyhow::Result<Exit> {
    match what {
        Image::Check(options) => check(place, options, ui).await,
    }
}

async fn check(place: &Place, options: &ImageCheck, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let engine = Engine::of(&stack).await?;
    let name = &options.image;
    let Some(found) = inspect(&engine, name).await? else {
        println!(
            "{}",
            text!(
                ui,
                "✗ {name} is not on this host: Beaver pulls nothing; `docker pull`, `docker load` or `docker build` it first",
                "✗ 主机上没有 {name}:Beaver 不拉取镜像,请先用 `docker pull`、`docker load` 或 `docker build` 准备好"
            )
        );
        return Ok(Exit::Failed);
    };
    let host = engine.api().version().await.context("the engine does not tell what it is")?.arch.unwrap_or_default();
    let facts = Facts::new(name, found, host, options);
    let findings = judge::judge(&facts, ui);
    for finding in &findings {
        println!("{}", finding.marked());
    }
    let mut works = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    if options.run && works {
        works = run::run(&stack, &facts, &options.health, ui).await?;
    }
    println!("\n{}", text!(ui, "A plan to begin with:", "可以从这个套餐开始:"));
    println!("\n{}", judge::plan(&facts));
    Ok(if works { Exit::Ok } else { Exit::Failed })
}

/// The image; `None` when it is not there.
async fn inspect(engine: &Engine, name: &str) -> anyhow::Result<Option<ImageInspect>> {
    match engine.api().inspect_image(name).await {
        Ok(found) => Ok(Some(found)),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("the engine does not show {name}")),
    }
}
