//! `beaver status`: services and workspaces.

use contracts::{
    deploy::{Instance, Phase},
    egress::EgressUsageList,
};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::{
    Exit,
    args::{EngineKind, Place},
    ask::{self, Answers},
    checks, compose,
    engine::{self, Engine},
    process, remembered,
    stack::{self, Project, SERVICES, Stack},
    text,
    ui::{Ui, harmless},
};

/// One service, as the engine sees it.
#[derive(Debug, Serialize)]
struct ServiceStatus {
    name: &'static str,
    container: Option<String>,
    /// The engine's word: running, exited, restarting; or missing.
    state: String,
    /// The engine's sentence, such as "Up 2 minutes (healthy)".
    detail: String,
}

#[derive(Debug, Serialize)]
struct Status {
    engine: &'static str,
    up: bool,
    services: Vec<ServiceStatus>,
    /// Absent when deploy-control did not say.
    instances: Option<Vec<Instance>>,
    /// What they sent, received and were refused since the router started; absent when it did not say.
    egress: Option<EgressUsageList>,
    trouble: Vec<String>,
}

/// Prints how the stack is. [`Exit::NotUp`] unless every service runs and answers.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn status(place: &Place, json: bool, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let status = match remembered::read(&stack.data_dir)? {
        Some(EngineKind::Process) => of_process(&stack).await?,
        _ => of_docker(&stack).await?,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status, ui);
    }
    Ok(if status.up { Exit::Ok } else { Exit::NotUp })
}

async fn of_docker(stack: &Stack) -> anyhow::Result<Status> {
    let engine = Engine::of(stack).await?;
    let (mut services, mut up) = (Vec::new(), true);
    for service in SERVICES {
        let name = stack.container(service);
        let found = engine.container(&name).await?;
        up &= found.as_ref().is_some_and(engine::is_running);
        services.push(ServiceStatus {
            name: service.name,
            container: Some(name),
            state: found.as_ref().and_then(|c| c.state).map_or_else(|| "missing".into(), |s| s.to_string()),
            detail: found.and_then(|c| c.status).unwrap_or_default(),
        });
    }
    let mut answers = if up {
        match compose::detect().await {
            Ok(compose) => ask::through_compose(stack, &compose).await?,
            Err(_) => Answers { trouble: vec!["no compose tool to ask with".into()], ..Answers::default() },
        }
    } else {
        Answers::default()
    };
    let unmet = checks::unmet(stack, &engine).await?;
    answers.trouble.extend(unmet.into_iter().map(|(service, why)| format!("{service}: {why}")));
    up &= answers.trouble.is_empty();
    Ok(Status {
        engine: "docker",
        up,
        services,
        instances: answers.instances,
        egress: answers.egress,
        trouble: answers.trouble,
    })
}

async fn of_process(stack: &Stack) -> anyhow::Result<Status> {
    let env = process::reach(stack);
    let state = if env.is_some() { "running" } else { "missing" };
    let services = SERVICES
        .iter()
        .map(|s| ServiceStatus { name: s.name, container: None, state: state.into(), detail: String::new() })
        .collect();
    let answers = match &env {
        Some(env) => ask::services(env).await?,
        None => Answers::default(),
    };
    let up = env.is_some() && answers.trouble.is_empty();
    Ok(Status {
        engine: "process",
        up,
        services,
        instances: answers.instances,
        egress: answers.egress,
        trouble: answers.trouble,
    })
}

fn print(status: &Status, ui: &Ui) {
    let mut rows = vec![[text!(ui, "SERVICE", "服务"), text!(ui, "STATE", "状态"), String::new()]];
    rows.extend(status.services.iter().map(|s| [s.name.to_owned(), s.state.clone(), s.detail.clone()]));
    println!("{}", table(&rows));
    if let Some(instances) = &status.instances {
        let mut rows = vec![[
            text!(ui, "WORKSPACE", "工作区"),
            text!(ui, "PHASE", "阶段"),
            text!(ui, "WANTED", "期望"),
            text!(ui, "PLAN", "套餐"),
            text!(ui, "SENT", "发送"),
            text!(ui, "RECEIVED", "接收"),
            text!(ui, "REFUSED", "被拒"),
            text!(ui, "ADDRESS", "地址"),
        ]];
        rows.extend(instances.iter().map(|instance| {
            let all = status.egress.iter().flat_map(|list| &list.instances);
            let used = all.into_iter().find(|used| used.instance_id == instance.id);
            let told = |number: Option<String>| number.unwrap_or_else(|| "-".into());
            [
                instance.slug.to_string(),
                phase(instance.phase, ui),
                word(&instance.desired),
                instance.plan.to_string(),
                told(used.map(|used| HumanBytes(used.bytes_out).to_string())),
                told(used.map(|used| HumanBytes(used.bytes_in).to_string())),
                told(used.map(|used| used.refused.to_string())),
                instance.origin.clone(),
            ]
        }));
        println!("\n{}", table(&rows));
        for line in instances.iter().filter_map(|instance| why_failed(instance, ui)) {
            println!("{line}");
        }
        if instances.iter().any(|instance| matches!(instance.phase, Phase::Paused | Phase::Asleep)) {
            println!(
                "{}",
                text!(
                    ui,
                    "Those asleep wake by themselves when their owners visit them.",
                    "休眠的工作区在主人访问时自动唤醒。"
                )
            );
        }
    }
    for line in &status.trouble {
        println!("! {line}");
    }
}

/// Why an instance is failed, and what its program wrote last.
fn why_failed(instance: &Instance, ui: &Ui) -> Option<String> {
    let error = instance.error.as_ref().filter(|_| instance.phase == Phase::Failed)?;
    let why = format!("✗ {}: {}", instance.slug, error.code);
    Some(match error.log.last().map(|line| harmless(line)) {
        Some(last) => text!(ui, "{why}; it wrote last: {last}", "{why};最后写下:{last}"),
        None => why,
    })
}

/// A phase, in the wire's own word; sleep in people's.
fn phase(phase: Phase, ui: &Ui) -> String {
    match phase {
        Phase::Paused => text!(ui, "asleep (paused)", "休眠(已暂停)"),
        Phase::Asleep => text!(ui, "asleep", "休眠"),
        phase => word(&phase),
    }
}

/// A wire enum's own word.
pub fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Columns as wide as their widest cell; wide characters take two places on a terminal.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |cell: &str| cell.chars().map(|c| if c as u32 >= 0x2e80 { 2 } else { 1 }).sum::<usize>();
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| width(&row[i])).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, w)| format!("{cell}{}", " ".repeat(w - width(cell))));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_failed_says_why() {
        let mut instance: Instance = serde_json::from_value(serde_json::json!({
            "id": "i-0198f000000070008000000000000002", "account_id": "a-0198f000000070008000000000000001",
            "slug": "alice", "origin": "http://alice.localhost:8088", "desired": "running", "phase": "failed",
            "error": { "code": "crash_loop", "detail": "It ended.", "log": ["first", "out of\u{1b}[2J memory"] },
            "generation": 1, "observed_generation": 1, "config_generation": 0, "applied_config_generation": 0,
            "created_at_ms": 0, "updated_at_ms": 0,
        }))
        .unwrap();
        let why = |instance: &Instance| why_failed(instance, &Ui::plain());
        let last = "✗ alice: crash_loop; it wrote last: out of\u{fffd}[2J memory";
        assert_eq!(why(&instance).as_deref(), Some(last));
        instance.error.as_mut().unwrap().log.clear();
        assert_eq!(why(&instance).as_deref(), Some("✗ alice: crash_loop"));
        // That a change did not hold is no failure of what runs.
        instance.phase = Phase::Ready;
        assert_eq!(why(&instance), None);
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "b"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "a     b\nlong  x");
    }
}
