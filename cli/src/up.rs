//! `beaver up` on the docker engine, and what both engines share before: settings, choice of engine, checks.

use std::time::Duration;

use anyhow::{Context, bail};
use clock::Entropy;
use contracts::deploy::{BLOCKED, SOCKETS_NEED};
use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, sleep};

use crate::{
    ChecksFailed, Exit,
    args::{Choices, EngineKind, Place, Up},
    ask,
    binaries::{self, PACKAGES},
    checks,
    compose::Compose,
    engine::{self, Engine},
    envfile,
    images::{self, Made},
    init, operator, process,
    remembered::{self, Chosen},
    secrets::{self, Changes},
    stack::{self, Project, SERVICES, Service, Stack},
    text,
    ui::Ui,
};

/// How often a service that is not ready is asked again.
const POLL: Duration = Duration::from_millis(300);

/// The stack as it is or would be, and the text of the settings file that is still to be written.
fn plan(place: &Place, choices: &Choices) -> anyhow::Result<(Stack, Option<String>)> {
    let project = Project::find(place)?;
    let shell = stack::shell();
    if project.env_file.exists() {
        return Ok((Stack::load(project, &shell)?, None));
    }
    let text = envfile::generate(choices, &shell, &project.dir, &Entropy::system())?;
    let values = envfile::parse(&text)?;
    Ok((Stack::from_values(project, values, &shell)?, Some(text)))
}

fn choose(stack: &Stack, choices: &Choices) -> anyhow::Result<Chosen> {
    let setting = match stack.env.optional("BEAVER_ENGINE") {
        Some(_) => Some(stack.env.parse::<EngineKind>("BEAVER_ENGINE")?),
        None => None,
    };
    let remembered = remembered::read(&stack.data_dir)?;
    let (socket, named) = match stack.socket() {
        Ok(socket) => socket,
        // A remote engine is no reason to fall back; with docker chosen it is an error of its own.
        Err(usage) if choices.engine.or(setting).or(remembered) == Some(EngineKind::Process) => {
            tracing::debug!("{usage}");
            return Ok(remembered::choose(Some(EngineKind::Process), remembered, true, &stack.data_dir)?);
        }
        Err(usage) => return Err(usage.into()),
    };
    let has_socket = named || std::fs::symlink_metadata(&socket).is_ok();
    Ok(remembered::choose(choices.engine.or(setting), remembered, has_socket, &stack.data_dir)?)
}

/// `beaver doctor`: every finding, good or bad.
///
/// # Errors
/// [`ChecksFailed`], or an unusable setting.
pub async fn doctor(place: &Place, choices: &Choices, ui: &Ui) -> anyhow::Result<Exit> {
    let (stack, _) = plan(place, choices)?;
    checks::settings(&stack)?;
    let kind = choose(&stack, choices)?.kind();
    let building = kind == EngineKind::Docker && stack.project.dir.join("Cargo.toml").is_file();
    let (facts, tools) = checks::gather(&stack, kind, building).await?;
    let mut findings = checks::judge(&facts, ui);
    if let Some(engine) = &tools.engine {
        findings.extend(checks::running(&stack, engine).await?);
    }
    findings.extend(checks::plans(&stack, ui)?);
    for finding in &findings {
        println!("{}", finding.marked());
    }
    if findings.iter().all(|finding| finding.ok) { Ok(Exit::Ok) } else { Err(ChecksFailed.into()) }
}

/// `beaver up`.
///
/// # Errors
/// [`ChecksFailed`] before anything was changed; anything else on the way.
pub async fn up(place: &Place, options: &Up, ui: &Ui) -> anyhow::Result<Exit> {
    let (stack, new_settings) = plan(place, &options.choices)?;
    checks::settings(&stack)?;
    for key in &stack.overridden {
        ui.line(text!(ui, "! {key} is taken from the shell, not from .env", "! {key} 取自当前 shell,而不是 .env"));
    }
    if new_settings.is_none() {
        warn_of_ignored(&options.choices, ui);
    }
    let chosen = choose(&stack, &options.choices)?;
    if chosen.kind() == EngineKind::Process {
        process::ensure_stopped(&stack)?;
    }
    let building = chosen.kind() == EngineKind::Docker && !options.no_build;
    let (facts, tools) = checks::gather(&stack, chosen.kind(), building).await?;
    let findings = checks::judge(&facts, ui);
    let failed: Vec<_> = findings.iter().filter(|finding| !finding.ok).collect();
    if !failed.is_empty() {
        failed.iter().for_each(|finding| ui.line(finding.marked()));
        return Err(ChecksFailed.into());
    }
    if chosen.kind() == EngineKind::Docker && stack.is_shared()? {
        ui.line(text!(
            ui,
            "! BEAVER_ISOLATION=shared: every workspace reaches the services, its neighbours, this host and all that the host \
             reaches, whatever the egress rules say; beaver attack shows it. BEAVER_ISOLATION=sockets is the cure",
            "! BEAVER_ISOLATION=shared:每个工作区都能直接访问四个服务、其他工作区、本机以及本机能访问的一切,出口规则对此不起作用; \
             可用 beaver attack 查看。改回 BEAVER_ISOLATION=sockets 即可消除"
        ));
    }
    let count = findings.len();
    ui.line(text!(ui, "✓ {count} checks passed", "✓ {count} 项检查通过"));
    if let Some(text) = new_settings {
        let path = stack.project.env_file.display();
        init::write(&stack.project.env_file, &text)?;
        ui.line(text!(ui, "✓ wrote {path} with fresh secrets", "✓ 已写入 {path},密钥为新生成"));
    }
    if chosen.kind() == EngineKind::Process {
        return process::run(&stack, chosen == Chosen::NoEngine, ui).await;
    }
    let (Some(engine), Some(compose)) = (tools.engine, tools.compose) else {
        bail!("the engine or the compose tool is gone");
    };
    let _lock = stack.lock()?;
    if !options.no_build {
        build(&stack, &engine, &options.profile, ui).await?;
    }
    start(&stack, &engine, &compose, Duration::from_secs(options.timeout), ui).await?;
    if let Err(error) = images::remove_replaced(&engine, &stack.prefix).await {
        ui.line(format!("! {error:#}"));
    }
    finish(&stack, &compose, ui).await?;
    Ok(Exit::Ok)
}

fn warn_of_ignored(choices: &Choices, ui: &Ui) {
    let given = [
        ("--domain", choices.domain.is_some()),
        ("--portal-url", choices.portal_url.is_some()),
        ("--scheme", choices.scheme.is_some()),
        ("--bind", choices.bind.is_some()),
        ("--portal-port", choices.portal_port.is_some()),
        ("--router-port", choices.router_port.is_some()),
        ("--port", choices.public_port.is_some()),
        ("--prefix", choices.prefix.is_some()),
        ("--data-dir", choices.data_dir.is_some()),
    ];
    for (name, _) in given.iter().filter(|(_, given)| *given) {
        ui.line(text!(
            ui,
            "! {name} has no effect: .env is there and is never changed; edit it",
            "! {name} 不起作用:.env 已存在且不会被改动,请直接编辑它"
        ));
    }
}

async fn build(stack: &Stack, engine: &Engine, profile: &str, ui: &Ui) -> anyhow::Result<()> {
    let building =
        text!(ui, "building the binaries (the first time takes some minutes)", "正在构建程序(第一次需要几分钟)");
    let step = ui.step(building.as_str());
    let binaries = binaries::build(&stack.project, profile, &PACKAGES, |line| {
        if line.starts_with("Compiling") || line.starts_with("Building") {
            step.now(format!("{building}: {line}"));
        }
    })
    .await?;
    step.done(text!(ui, "binaries are built", "程序已构建"));

    let step = ui.step(text!(ui, "making the images", "正在制作镜像"));
    let commit = binaries::commit(&stack.project).await;
    let made = try_join_all(PACKAGES.map(|name| {
        let (binaries, commit) = (&binaries, &commit);
        async move {
            let (tag, beside) = match name {
                "app-instance" => (stack.env.string("BEAVER_INSTANCE_IMAGE")?, None),
                "deploy-control" => (stack.image(name), Some(binaries::SHIM)),
                name => (stack.image(name), None),
            };
            let programs: Vec<_> =
                [Some(name), beside].into_iter().flatten().map(|name| (name, &*binaries[name])).collect();
            let made = images::ensure(engine, &stack.prefix, &tag, &programs, commit, &[]).await?;
            anyhow::Ok((name, made))
        }
    }))
    .await?;
    let new: Vec<&str> = made.iter().filter(|(_, made)| *made == Made::New).map(|(name, _)| *name).collect();
    step.done(if new.is_empty() {
        text!(ui, "images are as they were", "镜像没有变化")
    } else {
        let names = new.join(", ");
        text!(ui, "new images: {names}", "新镜像:{names}")
    });
    Ok(())
}

async fn start(stack: &Stack, engine: &Engine, compose: &Compose, timeout: Duration, ui: &Ui) -> anyhow::Result<()> {
    let step = ui.step(text!(ui, "starting the services", "正在启动服务"));
    let changes = secrets::hand_over(stack, compose).await?;
    compose.run(stack, &["up", "--detach", "--no-build", "--remove-orphans"]).await?;
    let began = Instant::now();
    for service in SERVICES {
        if let Some(name) = renew(engine, stack, service, &changes).await? {
            step.line(text!(ui, "  {name} has new secrets and is restarted", "  {name} 的密钥有变化,已重新启动"));
            // One after the other, so that never all are away; whether each becomes ready is waited for below.
            while matches!(readiness(engine, stack, service).await, Readiness::NotYet(_)) && began.elapsed() < timeout {
                sleep(POLL).await;
            }
        }
    }
    step.done(text!(ui, "services are started", "服务已启动"));

    let step = ui.step(text!(ui, "waiting until they are ready", "正在等待服务就绪"));
    let began = Instant::now();
    let mut waiting: Vec<Service> = SERVICES.to_vec();
    let blocked = format!("{SOCKETS_NEED}: {BLOCKED}");
    while !waiting.is_empty() {
        let states = join_all(waiting.iter().map(|service| readiness(engine, stack, *service))).await;
        let mut still = Vec::new();
        for (service, state) in waiting.into_iter().zip(states) {
            let name = service.name;
            match state {
                Readiness::Ready => {
                    let seconds = began.elapsed().as_secs_f32();
                    step.line(text!(ui, "  {name} is ready ({seconds:.1} s)", "  {name} 已就绪({seconds:.1} 秒)"));
                }
                // The settings will not get better by waiting.
                Readiness::Ended(2) => return Err(explain(engine, stack, service, "a setting is unusable").await),
                // Nor does what the containers' border lets through; it is said with its cure.
                Readiness::NotYet(why) if why.contains(&blocked) => bail!("{name}: {why}"),
                Readiness::NotYet(why) => still.push((service, why)),
                Readiness::Ended(_) => still.push((service, String::new())),
            }
        }
        waiting = still.iter().map(|(service, _)| *service).collect();
        if let Some((first, why)) = still.first() {
            if began.elapsed() > timeout {
                let what = format!("it did not become ready in time ({why})");
                return Err(explain(engine, stack, *first, what.trim_end_matches(" ()")).await);
            }
            let names: Vec<&str> = waiting.iter().map(|service| service.name).collect();
            let names = names.join(", ");
            step.now(text!(ui, "waiting for {names}", "正在等待 {names}"));
            sleep(POLL).await;
        }
    }
    step.done(text!(ui, "everything is ready", "全部就绪"));
    Ok(())
}

/// Restarts a service that was started before its secrets became what they are; its name, if so.
async fn renew(
    engine: &Engine,
    stack: &Stack,
    service: Service,
    changes: &Changes,
) -> anyhow::Result<Option<&'static str>> {
    let name = stack.container(service);
    let state = engine.api().inspect_container(&name, None).await?.state.unwrap_or_default();
    let started: Option<jiff::Timestamp> = state.started_at.and_then(|at| at.parse().ok());
    let started = started.with_context(|| format!("the engine does not say since when {name} runs"))?;
    if changes.get(service.name).is_none_or(|changed| started.as_millisecond() >= *changed) {
        return Ok(None);
    }
    engine.restart(&name).await.with_context(|| format!("cannot restart {name}"))?;
    Ok(Some(service.name))
}

enum Readiness {
    Ready,
    /// As it says why, where it says anything.
    NotYet(String),
    /// The process ended with this code; the engine starts it again.
    Ended(i64),
}

/// Asks a service's own health check, which its image brings along.
async fn readiness(engine: &Engine, stack: &Stack, service: Service) -> Readiness {
    let name = stack.container(service);
    match engine.unmet(&name, service.name).await {
        Ok(None) => Readiness::Ready,
        Ok(Some(why)) => Readiness::NotYet(why),
        Err(_) => match engine.api().inspect_container(&name, None).await.ok().and_then(|c| c.state) {
            Some(state) if state.running != Some(true) || state.restarting == Some(true) => {
                Readiness::Ended(state.exit_code.unwrap_or_default())
            }
            _ => Readiness::NotYet(String::new()),
        },
    }
}

async fn explain(engine: &Engine, stack: &Stack, service: Service, what: &str) -> anyhow::Error {
    let name = stack.container(service);
    let lines = engine.last_lines(&name, 8).await.join("\n  ");
    anyhow::anyhow!("{}: {what}. The end of its log (docker logs {name}):\n  {lines}", service.name)
}

async fn finish(stack: &Stack, compose: &Compose, ui: &Ui) -> anyhow::Result<()> {
    operator::print_addresses(stack, ui)?;
    let answers = ask::through_compose(stack, compose).await.context("cannot ask the services")?;
    match answers.operator_exists {
        Some(false) => operator::print_link(stack, ui)?,
        Some(true) => {}
        None => bail!("cannot ask whether there is an operator: {}", answers.trouble.join("; ")),
    }
    Ok(())
}

/// Stops instances with no regard to what is wanted of them: that is kept where it is.
pub async fn stop_instances(engine: &Engine, stack: &Stack) -> anyhow::Result<usize> {
    let running: Vec<_> = engine.instances(stack).await?.into_iter().filter(engine::is_running).collect();
    let ids: Vec<String> = running.into_iter().filter_map(|container| container.id).collect();
    try_join_all(ids.iter().map(|id| engine.stop(id, 15))).await?;
    Ok(ids.len())
}
