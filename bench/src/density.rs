//! How many instances a host holds, and what they cost it: the memory of an instance, of the four services and of the engine,
//! and how long deploy-control takes for a look at everything, while there are more and more.
//!
//! Memory is each process's proportional share (PSS, proc(5)): what several share is counted once. Instances are people who
//! signed up; they do nothing meanwhile.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    engine::STACK_LABEL,
    house::House,
    people::{Person, by_form},
    stack::{Engine, Stack},
    wait,
    web::Web,
};
use bollard::{Docker, query_parameters::ListContainersOptionsBuilder};
use clap::Args;
use contracts::deploy::Phase;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

/// After this, something is wrong.
const LIMIT: Duration = Duration::from_secs(180);
/// The passes that are measured at each number of instances.
const PASSES: u64 = 2;
const SERVICES: [&str; 4] = ["auth-portal", "authz-service", "deploy-control", "router-proxy"];

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// How many instances there are where it is measured, in order.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200, 500])]
    at: Vec<usize>,
    /// How many people sign up at once.
    #[arg(long, default_value_t = 6)]
    at_once: usize,
}

/// Brings a stack up, measures, and removes it.
///
/// # Errors
/// When there is no engine, the stack does not come up, or an instance does not.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.at.is_sorted() && options.at.first().is_some_and(|at| *at > 0), "--at is not in order");
    let stack = Stack::up("density", Engine::Docker, &[("BEAVER_SIGN_UPS_PER_HOUR", "0")]).await?;
    let measured = tokio::select! {
        measured = measure(&stack, options) => measured,
        // What was made goes all the same.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if measured.is_err() {
        eprintln!("logs: {}", stack.keep_logs().await.display());
    }
    let figures = measured?;
    stack.purge().await?;
    println!("{figures}");
    Ok(())
}

async fn measure(stack: &Stack, options: &Options) -> anyhow::Result<Value> {
    let docker = stack.docker().context("a stack without an engine")?;
    let house = House::of(stack).await?;
    let mut figures = json!({"bench": "density", "engine_version": docker.version().await?.version});
    let (alone, mut there) = (engine_kb()?, 0);
    for at in &options.at {
        let coming = (there..*at).map(|n| sign_up(stack, n));
        stream::iter(coming).buffer_unordered(options.at_once).try_collect::<Vec<_>>().await?;
        there = *at;
        let running = wait::until(format!("{at} are ready"), LIMIT, async || {
            let ready = house.instances().await?.iter().filter(|one| one.phase == Phase::Ready).count();
            ensure!(ready == *at, "{ready} are");
            anyhow::Ok(Some(ready))
        })
        .await?;
        let of_one = instance_kb(docker, stack, *at).await?;
        let services = services_kb(docker, stack).await?;
        let engine = engine_kb()?.saturating_sub(alone) as f64 / *at as f64;
        let pass = pass_ms(&house).await?;
        let [instance_mb, control_plane_mb, engine_mb] =
            [of_one, services, engine].map(|kb| (kb / 1024.0 * 100.0).round() / 100.0);
        println!(
            "{at}: an instance {instance_mb} MB, the services {control_plane_mb} MB, the engine {engine_mb} MB for each, \
             a look at everything {pass} ms"
        );
        for (name, value) in [
            ("running", json!(running)),
            ("instance_mb", json!(instance_mb)),
            ("control_plane_mb", json!(control_plane_mb)),
            ("engine_mb_each", json!(engine_mb)),
            ("pass_ms", json!(pass)),
        ] {
            figures[format!("{name}_{at}")] = value.clone();
            // The greatest number's are what is said in short.
            figures[name] = value;
        }
    }
    Ok(figures)
}

async fn sign_up(stack: &Stack, n: usize) -> anyhow::Result<()> {
    let person = Person::new(&format!("dense-{n}"));
    let mut web = Web::new("en")?;
    by_form::sign_up(&mut web, stack, &person).await?.expect(200)?;
    by_form::ready(&mut web, stack).await
}

/// What an instance takes in the middle, in KB: its own process, without the engine's that are there for it.
async fn instance_kb(docker: &Docker, stack: &Stack, count: usize) -> anyhow::Result<f64> {
    let label =
        HashMap::from([("label", vec![format!("{STACK_LABEL}={}", stack.prefix()), "beaver.instance".to_owned()])]);
    let list = ListContainersOptionsBuilder::new().filters(&label).build();
    let mut all = Vec::new();
    for container in docker.list_containers(Some(list)).await? {
        let found = docker.inspect_container(&container.id.unwrap_or_default(), None).await?;
        let init = found.state.and_then(|state| state.pid).context("it does not run")?;
        // The first process is the engine's own init.
        all.push(children(init)?.into_iter().map(pss_kb).sum::<anyhow::Result<u64>>()?);
    }
    ensure!(all.len() == count, "{} containers for {count} instances", all.len());
    all.sort_unstable();
    Ok(all[count / 2] as f64)
}

async fn services_kb(docker: &Docker, stack: &Stack) -> anyhow::Result<f64> {
    let mut sum = 0;
    for service in SERVICES {
        let found = docker.inspect_container(&stack.container(service), None).await?;
        let pid = found.state.and_then(|state| state.pid).with_context(|| format!("{service} does not run"))?;
        sum += tree(pid)?.into_iter().map(pss_kb).sum::<anyhow::Result<u64>>()?;
    }
    Ok(sum as f64)
}

/// What the engine takes: its daemons, and the two processes that it has for each container.
fn engine_kb() -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i64>().ok()) else { continue };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // The kernel keeps the first fifteen letters.
        if ["dockerd", "containerd", "containerd-shim", "docker-init", "docker-proxy"].contains(&name.trim_end()) {
            // One may end meanwhile.
            sum += pss_kb(pid).unwrap_or_default();
        }
    }
    Ok(sum)
}

fn children(pid: i64) -> anyhow::Result<Vec<i64>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.split_whitespace().map(|pid| pid.parse().context(path.clone())).collect()
}

/// A process and all below it, without the engine's init.
fn tree(pid: i64) -> anyhow::Result<Vec<i64>> {
    let (mut all, mut next) = (Vec::new(), vec![pid]);
    while let Some(pid) = next.pop() {
        next.extend(children(pid)?);
        if fs::read_to_string(format!("/proc/{pid}/comm"))?.trim_end() != "docker-init" {
            all.push(pid);
        }
    }
    Ok(all)
}

/// A process's proportional share of memory, in KB (proc(5), smaps_rollup).
fn pss_kb(pid: i64) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// How long the next looks at everything take deploy-control, in the mean.
async fn pass_ms(house: &House) -> anyhow::Result<f64> {
    let told = async || {
        let text = house.deploy_metrics().await?;
        let value = |name: &str| -> anyhow::Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("{name} is not told"))?.parse()?)
        };
        anyhow::Ok((value("beaver_full_pass_seconds_count")?, value("beaver_full_pass_seconds_sum")?))
    };
    let (count, sum) = told().await?;
    let (now, all) = wait::until("the next looks at everything", LIMIT, async || {
        let (now, all) = told().await?;
        anyhow::Ok((now >= count + PASSES as f64).then_some((now, all)))
    })
    .await?;
    Ok(((all - sum) / (now - count) * 1e6).round() / 1e3)
}
