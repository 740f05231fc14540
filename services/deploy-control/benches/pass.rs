//! What it costs deploy-control to put a host in order: it starts with a registry of a thousand instances, three in ten of
//! which are not as they must be. The processor's time of the service is counted, its database's and the engine's in memory
//! included; what containers cost is the engine's. `cpu_s_process` is the whole process's, with the false router, the false
//! authz and the asking whether it is done. Without drift a pass ends with the last look's beginning.
//!
//! `cargo bench -p deploy-control --bench pass`; the last line printed is one JSON object.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use contracts::deploy::{InstanceList, Phase};
use deploy_control::engine::Engine;
use futures_util::StreamExt;
use support::{Person, Running, SERVICE, World, eventually, sqlite_world};

const ROWS: usize = 1_000;
/// Of each kind of drift.
const OF_EACH: usize = 100;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let mut world = sqlite_world().await;
    world.config.reconcile.start_timeout = Duration::from_secs(60);
    let people: Vec<_> = (0..ROWS).map(|n| Person::named(&format!("guest-{n}"))).collect();
    let service = world.start().await;
    let taken = people.iter().map(|person| service.register(person));
    futures_util::stream::iter(taken).buffer_unordered(8).collect::<Vec<_>>().await;
    all_up(&world, ROWS).await;
    // Nothing is to be done: what looking alone costs.
    service.kill_and_wait().await;
    let looking = pass(&world, 0).await;
    for person in &people[..OF_EACH] {
        world.engine.crash(person.id);
    }
    for person in &people[OF_EACH..2 * OF_EACH] {
        world.engine.remove(person.id).await.unwrap();
    }
    for person in &people[2 * OF_EACH..3 * OF_EACH] {
        std::fs::remove_file(world.config_dir(person.id).join("config.json")).unwrap();
    }
    let mending = pass(&world, 3 * OF_EACH).await;
    let figures = serde_json::json!({
        "bench": "pass",
        "rows": ROWS,
        "drifted": 3 * OF_EACH,
        "cpu_s": mending.service_s,
        "cpu_s_process": mending.process_s,
        "wall_s": mending.wall_s,
        "looks": mending.looks,
        "cpu_s_without_drift": looking.service_s,
        "cpu_s_process_without_drift": looking.process_s,
        "wall_s_without_drift": looking.wall_s,
        "looks_without_drift": looking.looks,
    });
    println!("{figures}");
}

/// Starts the service and waits until everything is in order, for which so many have to be started.
async fn pass(world: &World, drifted: usize) -> Pass {
    let (looks, starts) = (world.engine.count_all("observe"), world.engine.count_all("start"));
    let (process, begun) = (whole_process(), Instant::now());
    let service = world.start_followed(false).await;
    // By the bench, not by the service.
    let follows = tokio::spawn(service.feed(&world.neighbours));
    // Each is looked at once at the least.
    eventually(async || {
        let now = world.engine.count_all("observe");
        if now >= looks + ROWS { Ok(()) } else { Err(format!("{} looks", now - looks)) }
    })
    .await;
    all_up(world, starts + drifted).await;
    let measured = Pass {
        // Its threads began with it, and SQLite's are its own.
        service_s: processor(|name| name == SERVICE || name.starts_with("sqlx-sqlite")),
        process_s: whole_process() - process,
        wall_s: begun.elapsed().as_secs_f64(),
        looks: world.engine.count_all("observe") - looks,
    };
    in_order(&service).await;
    follows.abort();
    service.kill_and_wait().await;
    measured
}

/// Waits until so many were started in all, and everybody is up and routed. What is asked for that costs next to nothing, so
/// that it is not the asking that is measured.
async fn all_up(world: &World, starts: usize) {
    eventually(async || {
        let (started, running) = (world.engine.count_all("start"), world.engine.running());
        let routed = world.neighbours.routed();
        let is_so = started >= starts && running == ROWS && routed == ROWS;
        if is_so { Ok(()) } else { Err(format!("{started} were started, {running} run, {routed} are routed")) }
    })
    .await;
}

/// Waits until it is so as the service tells it, too.
async fn in_order(service: &Running) {
    eventually(async || {
        let (_, list) = service.get::<InstanceList>("/api/instances?limit=1000").await;
        let ready = list.instances.iter().filter(|one| one.phase == Phase::Ready).count();
        if ready == ROWS { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
}

/// What a pass took: processor's and wall time in seconds, and how often somebody was looked at.
struct Pass {
    service_s: f64,
    process_s: f64,
    wall_s: f64,
    looks: usize,
}

/// The processor's time that threads of these names have taken so far, in seconds (proc(5), `schedstat`: in nanoseconds).
fn processor(is_counted: impl Fn(&str) -> bool) -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let taken = threads.filter_map(|thread| {
        let thread = thread.unwrap().path();
        // It may have ended meanwhile.
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let taken = std::fs::read_to_string(thread.join("schedstat")).ok()?;
        let taken: f64 = taken.split(' ').next().unwrap().parse().unwrap();
        is_counted(name.trim_end()).then_some(taken / 1e9)
    });
    taken.sum()
}

/// The processor's time of this process so far, in seconds, with threads that have ended.
fn whole_process() -> f64 {
    let taken = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    taken.tv_sec as f64 + taken.tv_nsec as f64 / 1e9
}
