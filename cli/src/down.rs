//! `beaver down`, and `down --purge`.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Context;
use futures_util::future::try_join_all;

use crate::{
    Exit, Usage,
    args::{Down, EngineKind, Place},
    attack, checks,
    compose::{self, Compose},
    engine::Engine,
    prepare, process, remembered,
    stack::{self, Project, Stack},
    text,
    ui::Ui,
    up,
};

/// Stops everything; with `--purge` also removes it.
///
/// # Errors
/// When something cannot be stopped or removed. Repeating it goes on where it ended.
pub async fn down(place: &Place, options: &Down, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let kind = remembered::read(&stack.data_dir)?;
    if kind == Some(EngineKind::Process) {
        return down_process(&stack, options, ui).await;
    }
    let engine = Engine::of(&stack).await?;
    let compose = compose::detect()
        .await
        .map_err(|_| anyhow::anyhow!("no compose tool that is new enough: beaver doctor says what to do"))?;
    if let Some((name, whose)) = checks::foreign(&stack, Some(&engine)).await?.into_iter().next() {
        return Err(Usage(format!("{name} is not this stack's ({whose}): nothing was stopped")).into());
    }
    let _lock = stack.lock()?;
    if options.purge {
        if !options.yes {
            confirm(&stack)?;
        }
        return purge(&stack, &engine, &compose, ui).await;
    }
    let step = ui.step(text!(ui, "stopping the services", "正在停止服务"));
    compose.run(&stack, &["stop"]).await?;
    step.done(text!(ui, "services are stopped", "服务已停止"));
    // After deploy-control is gone, so that nobody starts them again; what people wanted stays as it is.
    let step = ui.step(text!(ui, "stopping the workspaces", "正在停止工作区"));
    let count = up::stop_instances(&engine, &stack).await?;
    step.done(text!(ui, "{count} workspaces are stopped", "已停止 {count} 个工作区"));
    remove_services(&stack, &engine, &compose, ui).await?;
    let data = stack.data_dir.display();
    ui.line(text!(
        ui,
        "Data is kept in {data}; `beaver up` goes on.",
        "数据保留在 {data};再次执行 beaver up 即可继续。"
    ));
    Ok(Exit::Ok)
}

/// Removes what bears the stack's label or name, and nothing else. The services stop first, since deploy-control would
/// bring workspaces back; then workspaces go, their data, services and network, images. Data goes before the network,
/// because compose makes the network anew for whatever it runs.
async fn purge(stack: &Stack, engine: &Engine, compose: &Compose, ui: &Ui) -> anyhow::Result<Exit> {
    let step = ui.step(text!(ui, "removing the workspaces", "正在删除工作区"));
    compose.run(stack, &["stop"]).await?;
    let instances: Vec<String> = engine.instances(stack).await?.into_iter().filter_map(|c| c.id).collect();
    try_join_all(instances.iter().map(|id| engine.remove(id))).await?;
    // What an attack that was killed left: it would keep folders and the network in use.
    attack::sweep(engine, &stack.prefix).await?;
    let count = instances.len();
    step.done(text!(ui, "{count} workspaces are removed", "已删除 {count} 个工作区"));

    let data = stack.data_dir.display().to_string();
    let step = ui.step(text!(ui, "removing the data in {data}", "正在删除 {data} 中的数据"));
    if stack.data_dir.exists() {
        remove_data(stack, engine, compose).await?;
    }
    step.done(text!(ui, "the data is removed", "数据已删除"));

    remove_services(stack, engine, compose, ui).await?;

    let step = ui.step(text!(ui, "removing the images", "正在删除镜像"));
    let mut count = 0;
    for image in engine.images(&stack.prefix, false).await? {
        for tag in image.repo_tags.iter().filter(|tag| !tag.starts_with('<')) {
            engine.remove_image(tag).await;
        }
        engine.remove_image(&image.id).await;
        count += 1;
    }
    for name in engine.releases(&stack.prefix).await? {
        engine.remove_image(&name).await;
    }
    step.done(text!(ui, "{count} images are removed", "已删除 {count} 个镜像"));
    let file = stack.project.env_file.display();
    ui.line(text!(ui, "Your settings stay in {file}.", "设置保留在 {file}。"));
    Ok(Exit::Ok)
}

/// Removes the services' containers and the network. A network that somebody else's container is on, such as a proxy of the
/// operator's, stays, and is named.
async fn remove_services(stack: &Stack, engine: &Engine, compose: &Compose, ui: &Ui) -> anyhow::Result<()> {
    let step = ui.step(text!(ui, "removing the services and the network", "正在删除服务和网络"));
    let removed = compose.run(stack, &["down", "--remove-orphans"]).await;
    let others = engine.attached(&stack.env.string("BEAVER_NET")?).await?.join(", ");
    match removed {
        Ok(_) if others.is_empty() => {
            step.done(text!(ui, "services and network are removed", "服务和网络已删除"));
        }
        Err(error) if others.is_empty() => return Err(error),
        _ => step.done(text!(
            ui,
            "the services are removed; the network stays, since {others} is on it",
            "服务已删除;网络保留,因为 {others} 仍在其中"
        )),
    }
    Ok(())
}

/// Files belong to root and to the workspaces' user ids: a container of root's removes them. Without its image, only
/// root itself can.
async fn remove_data(stack: &Stack, engine: &Engine, compose: &Compose) -> anyhow::Result<()> {
    let image = stack.image("beaver");
    if engine.api().inspect_image(&image).await.is_ok() {
        compose.run(stack, &["run", "--rm", "--no-deps", "-T", "prepare", "remove-data"]).await?;
    } else {
        prepare::remove_directories(&stack.data_dir)
            .with_context(|| format!("the image {image} is gone, so this needs root: sudo beaver down --purge"))?;
    }
    remove_if_empty(stack);
    Ok(())
}

fn remove_if_empty(stack: &Stack) {
    // What else the operator keeps there is not ours; and in a folder of root's, an empty directory stays.
    let _ = std::fs::remove_dir(&stack.data_dir);
}

async fn down_process(stack: &Stack, options: &Down, ui: &Ui) -> anyhow::Result<Exit> {
    if options.purge && !options.yes {
        confirm(stack)?;
    }
    let was_running = process::stop(stack).await?;
    ui.line(match was_running {
        true => text!(ui, "✓ everything is stopped", "✓ 已全部停止"),
        false => text!(ui, "nothing is running", "没有正在运行的服务"),
    });
    if options.purge {
        prepare::remove_directories(&stack.data_dir)?;
        process::forget(stack);
        remove_if_empty(stack);
        let data = stack.data_dir.display();
        ui.line(text!(ui, "✓ {data} is removed", "✓ {data} 已删除"));
    }
    Ok(Exit::Ok)
}

/// Asks for the prefix to be typed: a reflexive "y" removes nothing.
fn confirm(stack: &Stack) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Usage("down --purge removes everybody's data: say --yes where nobody can be asked".into()).into());
    }
    let (prefix, data) = (&stack.prefix, stack.data_dir.display());
    eprint!("This removes every account and workspace in {data}, for good. Type {prefix} to go on: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if answer.trim() == *prefix { Ok(()) } else { Err(Usage("nothing was removed".into()).into()) }
}
