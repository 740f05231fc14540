//! What is, and whether it is what was acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use bollard::{Docker, query_parameters::ListContainersOptionsBuilder};
use contracts::{
    InstanceId,
    deploy::{Desired, EventList, Instance, InstanceList, Phase},
    routes::{Route, RouteMessage, RouteState},
};
use serde::de::DeserializeOwned;

use super::{Ground, people::Somebody, violation};
use crate::{engine::STACK_LABEL, provider::FakeProvider, stack::Places, wait};

/// How long one look may take, over everybody.
const LOOK: Duration = Duration::from_secs(120);

/// A container of an instance.
#[derive(Debug, Clone)]
struct Container {
    instance: String,
    running: bool,
}

/// Everything that can be seen from outside of the services.
struct Seen {
    instances: Vec<Instance>,
    routes: Vec<Route>,
    events: BTreeMap<InstanceId, Vec<i64>>,
    containers: Vec<Container>,
    /// The containers with programs in them that the engine takes for down, or knows nothing of.
    forgotten: BTreeMap<String, BTreeSet<String>>,
    /// The names in `run/` and in `instances/`.
    folders: BTreeSet<String>,
}

/// Waits until every invariant holds; those that never do.
///
/// # Errors
/// When nobody can be asked.
pub(super) async fn in_the_end(
    ground: &mut Ground,
    people: &mut [Somebody],
    within: Duration,
) -> anyhow::Result<Vec<String>> {
    let mut violated = Vec::new();
    let held = wait::until("every invariant", within, async || {
        violated = match tokio::time::timeout(LOOK, look(ground, people)).await {
            Ok(Ok(violated)) => violated,
            Ok(Err(error)) => vec![violation("answers", format!("{error:#}"))],
            Err(_) => vec![violation("answers", "a look did not come to its end")],
        };
        anyhow::Ok(violated.is_empty().then_some(()))
    });
    Ok(match held.await {
        Ok(()) => Vec::new(),
        Err(_) => violated,
    })
}

/// Has everybody wish for a workspace that is up, and waits until that is so with everything in it.
///
/// # Errors
/// When nobody can be asked.
pub(super) async fn everybody_up(
    ground: &mut Ground,
    people: &mut [Somebody],
    within: Duration,
) -> anyhow::Result<Vec<String>> {
    let places = ground.stack.places();
    for somebody in people.iter_mut() {
        let asked = wait::until(somebody.person.slug.clone(), within, async || {
            somebody.wants_everything(&places).await.map(Some)
        });
        if let Err(error) = asked.await {
            return Ok(vec![violation("answers", format!("{error:#}"))]);
        }
    }
    in_the_end(ground, people, within).await
}

/// Tells people which instance is theirs, as far as any files say so.
pub(super) fn learn(data_dir: &Path, people: &mut [Somebody]) {
    for entry in fs::read_dir(data_dir.join("instances")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (Ok(id), Ok(text)) = (name.parse::<InstanceId>(), fs::read(entry.path().join("config/config.json"))) else {
            continue;
        };
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let owner = people.iter_mut().find(|somebody| config["slug"] == somebody.person.slug.as_str());
        if let Some(owner) = owner.filter(|owner| owner.id.is_none()) {
            owner.id = Some(id);
        }
    }
}

async fn look(ground: &mut Ground, people: &mut [Somebody]) -> anyhow::Result<Vec<String>> {
    let seen = see(ground).await?;
    let mut violated = Vec::new();
    for somebody in people.iter_mut() {
        let of_slug = seen.instances.iter().find(|instance| instance.slug.as_str() == somebody.person.slug);
        if somebody.id.is_none() {
            somebody.id = of_slug.map(|instance| instance.id);
        }
    }
    violated.extend(units(&seen, people));
    violated.extend(orphans(&seen, people));
    for somebody in people.iter().filter(|somebody| somebody.signed_up) {
        violated.extend(rows(&seen, somebody));
        violated.extend(wanted(&seen, somebody));
        violated.extend(routes(&seen, somebody));
        violated.extend(config(ground, &seen, somebody));
    }
    // What is said is only asked for where everything else is well.
    if violated.is_empty() {
        let places = ground.stack.places();
        for somebody in people.iter_mut().filter(|somebody| is_up(&seen, somebody)) {
            violated.extend(chats(&places, &ground.provider, somebody).await);
        }
    }
    Ok(violated)
}

fn of<'a>(seen: &'a Seen, somebody: &Somebody) -> Option<&'a Instance> {
    seen.instances.iter().find(|instance| Some(instance.id) == somebody.id)
}

fn is_up(seen: &Seen, somebody: &Somebody) -> bool {
    of(seen, somebody).is_some_and(|it| it.phase == Phase::Ready && it.plan.is_workspace())
        && somebody.given.iter().any(|given| given.taken)
}

/// One container an instance, up or not as it is wanted.
fn units(seen: &Seen, people: &[Somebody]) -> Vec<String> {
    let mut violated = Vec::new();
    for instance in &seen.instances {
        let its: Vec<_> = seen.containers.iter().filter(|c| c.instance == instance.id.to_string()).collect();
        let up = instance.desired == Desired::Running && instance.phase != Phase::Failed;
        let running = its.iter().filter(|container| container.running).count();
        // One that is down and was taken away by a prune is made again with its next start.
        if its.len() > 1 || running != usize::from(up) {
            violated.push(violation("one_container", format!("{} has {its:?}, wanted up: {up}", instance.slug)));
        }
    }
    let forgotten = seen.forgotten.iter();
    violated.extend(
        forgotten.map(|(id, what)| violation("one_container", format!("{id} runs {what:?} unknown to the engine"))),
    );
    let expected = people.iter().filter(|somebody| somebody.signed_up).count();
    if seen.instances.len() < expected {
        violated.push(violation("no_lost_row", format!("{} instances for {expected} people", seen.instances.len())));
    }
    violated
}

/// Nothing that belongs to nobody.
fn orphans(seen: &Seen, people: &[Somebody]) -> Vec<String> {
    let known: BTreeSet<String> = seen.instances.iter().map(|instance| instance.id.to_string()).collect();
    let strangers = seen.containers.iter().map(|container| &container.instance).chain(&seen.folders);
    let strangers: BTreeSet<_> = strangers.filter(|id| !known.contains(*id)).collect();
    let names: BTreeSet<_> = people.iter().map(|somebody| somebody.person.slug.as_str()).collect();
    let unknown: Vec<_> = seen.instances.iter().filter(|it| !names.contains(it.slug.as_str())).collect();
    let mut violated: Vec<_> = strangers.iter().map(|id| violation("no_orphan", format!("{id} is nobody's"))).collect();
    violated.extend(unknown.iter().map(|it| violation("no_orphan", format!("{} is of nobody here", it.slug))));
    violated
}

/// Who was taken in is there, as who they are, with everything that happened.
fn rows(seen: &Seen, somebody: &Somebody) -> Vec<String> {
    let slug = &somebody.person.slug;
    let Some(instance) = of(seen, somebody) else {
        return vec![violation("no_lost_row", format!("{slug} signed up and has no instance"))];
    };
    let mut violated = Vec::new();
    let seqs = seen.events.get(&instance.id).cloned().unwrap_or_default();
    if seqs.is_empty() || seqs != (1..=seqs.len() as i64).collect::<Vec<_>>() {
        violated.push(violation("no_lost_row", format!("the events of {slug} are {seqs:?}")));
    }
    violated
}

/// The last acknowledged wish is what is so, and none was forgotten.
fn wanted(seen: &Seen, somebody: &Somebody) -> Vec<String> {
    let Some(instance) = of(seen, somebody) else { return Vec::new() };
    let as_wanted = match somebody.up {
        Some(true) => instance.phase == Phase::Ready,
        Some(false) => instance.phase == Phase::Stopped,
        None => matches!(instance.phase, Phase::Ready | Phase::Stopped),
    };
    let is_deleted = instance.phase == Phase::PendingDeletion;
    let as_wanted = match somebody.deleted {
        Some(true) => is_deleted,
        Some(false) => as_wanted,
        None => as_wanted || is_deleted,
    };
    let plan = somebody.plan.is_none_or(|plan| instance.plan.as_str() == plan);
    let settled = instance.observed_generation == instance.generation;
    let none_forgotten = instance.generation > somebody.wishes;
    if as_wanted && plan && settled && none_forgotten {
        return Vec::new();
    }
    let wishes = (somebody.up, somebody.plan, somebody.deleted, somebody.wishes);
    vec![violation("right_generation", format!("wanted (up, plan, deleted, wishes) {wishes:?}, but {instance:?}"))]
}

/// One route, to the right instance, which says what is so.
fn routes(seen: &Seen, somebody: &Somebody) -> Vec<String> {
    let Some(instance) = of(seen, somebody) else { return Vec::new() };
    let slug = &somebody.person.slug;
    let state = if instance.phase == Phase::Ready { RouteState::Running } else { RouteState::Stopped };
    let its: Vec<_> = seen.routes.iter().filter(|route| route.slug.as_str() == slug).collect();
    let right = match its[..] {
        // Nobody is let in to what is deleted.
        [] => instance.phase == Phase::PendingDeletion,
        [route] => {
            let (its, owners) = (Some(route.instance_id) == somebody.id, route.account_id == instance.account_id);
            its && owners && route.state == state && instance.phase != Phase::PendingDeletion
        }
        _ => false,
    };
    if right { Vec::new() } else { vec![violation("right_route", format!("{slug} ({:?}): {its:?}", somebody.id))] }
}

/// The configuration is one that was given, the last that was taken or one after it, and whole.
fn config(ground: &Ground, seen: &Seen, somebody: &Somebody) -> Vec<String> {
    let Some(last) = somebody.given.iter().rposition(|given| given.taken) else { return Vec::new() };
    let slug = &somebody.person.slug;
    // One that is down takes its configuration with its next start.
    if !of(seen, somebody).is_some_and(|it| it.phase == Phase::Ready && it.plan.is_workspace()) {
        return Vec::new();
    }
    let there = match somebody.config(&ground.data_dir()) {
        Ok(there) => there,
        Err(error) => return vec![violation("config_whole", format!("{slug}: {error:#}"))],
    };
    let (key, url) = (there["provider"]["api_key"].as_str(), there["provider"]["base_url"].as_str());
    let right = somebody.given[last..].iter().any(|given| {
        key == Some(&given.key) && url.map(|url| url.trim_end_matches('/')) == Some(given.base_url.as_str())
    });
    if right {
        return Vec::new();
    }
    // Its own keys: the fake provider's, and nobody's secret.
    vec![violation("config_whole", format!("{slug} has {key:?} at {url:?}, not one of {:?}", &somebody.given[last..]))]
}

/// Everything said is there; and one more thing is answered, by the provider that was given.
async fn chats(places: &Places, provider: &FakeProvider, somebody: &mut Somebody) -> Vec<String> {
    let slug = somebody.person.slug.clone();
    match somebody.misses(places).await {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => return vec![violation("no_lost_message", format!("{slug} misses {missing:?}"))],
        Err(error) => return vec![violation("answers", format!("{slug}: {error:#}"))],
    }
    let answered = async {
        let said = somebody.says_something(places).await?;
        let asked = provider.asked(&said).await?;
        anyhow::Ok(asked.last().context("nobody asked the provider")?.header("authorization").map(str::to_owned))
    };
    let used = match answered.await {
        Ok(used) => used.unwrap_or_default(),
        Err(error) => return vec![violation("answers", format!("{slug}: {error:#}"))],
    };
    let last = somebody.given.iter().rposition(|given| given.taken).unwrap_or(0);
    if somebody.given[last..].iter().any(|given| used == format!("Bearer {}", given.key)) {
        return Vec::new();
    }
    vec![violation("config_whole", format!("{slug} asks with {used}, not one of {:?}", &somebody.given[last..]))]
}

async fn see(ground: &mut Ground) -> anyhow::Result<Seen> {
    let docker = ground.docker()?.clone();
    let deploy = Deploy::reach(ground, &docker).await?;
    let instances: InstanceList = deploy.get("/api/instances?limit=1000").await?;
    let mut events = BTreeMap::new();
    for instance in &instances.instances {
        let mut seqs = Vec::new();
        loop {
            let after = seqs.last().copied().unwrap_or(0);
            let path =
                format!("/api/instances/{}/events?account_id={}&after={after}", instance.id, instance.account_id);
            let page: EventList = deploy.get(&path).await?;
            if page.events.is_empty() {
                break;
            }
            seqs.extend(page.events.iter().map(|event| event.seq));
        }
        events.insert(instance.id, seqs);
    }
    let mut folders = BTreeSet::new();
    for name in ["run", "instances"] {
        for entry in fs::read_dir(ground.data_dir().join(name))? {
            folders.insert(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    // Those of a probe are no instance's.
    folders.retain(|name| !name.starts_with('.'));
    let containers = containers(&docker, ground.stack.prefix()).await?;
    let mut forgotten = ground.stack.own_engine().context("it has an engine of its own")?.with_programs();
    for known in docker.list_containers(None::<bollard::query_parameters::ListContainersOptions>).await? {
        forgotten.remove(&known.id.unwrap_or_default());
    }
    Ok(Seen { instances: instances.instances, routes: deploy.routes().await?, events, containers, forgotten, folders })
}

async fn containers(docker: &Docker, prefix: &str) -> anyhow::Result<Vec<Container>> {
    let filters = [("label".to_owned(), vec![format!("{STACK_LABEL}={prefix}"), "beaver.instance".to_owned()])];
    let all = ListContainersOptionsBuilder::new().all(true).filters(&filters.into_iter().collect()).build();
    let found = docker.list_containers(Some(all)).await?.into_iter().map(|container| Container {
        instance: container.labels.unwrap_or_default().remove("beaver.instance").unwrap_or_default(),
        running: container.state.is_some_and(|state| state.to_string() == "running"),
    });
    Ok(found.collect())
}

/// deploy-control, which is published to nobody.
struct Deploy {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Deploy {
    async fn reach(ground: &mut Ground, docker: &Docker) -> anyhow::Result<Self> {
        let (name, network) = (ground.stack.container("deploy-control"), ground.stack.network());
        let found = docker.inspect_container(&name, None).await?;
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.get(&network).and_then(|endpoint| endpoint.ip_address.clone()).unwrap_or_default();
        let address: IpAddr = address.parse().with_context(|| format!("{name} has no address"))?;
        let token = ground.stack.settings()?.remove("BEAVER_DEPLOY_TOKEN").context("no token")?;
        let own = ground.stack.own_engine().context("it has an engine of its own")?;
        let here = own.reach(SocketAddr::from((address, 8090))).await?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        Ok(Self { http, base: format!("http://{here}"), token })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    async fn routes(&self) -> anyhow::Result<Vec<Route>> {
        let request = self.http.get(format!("{}{}", self.base, contracts::routes::PATH)).bearer_auth(&self.token);
        let mut feed = request.send().await?.error_for_status()?;
        let mut line = Vec::new();
        while !line.contains(&b'\n') {
            line.extend_from_slice(&feed.chunk().await?.context("the feed ends before its snapshot")?);
        }
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        match serde_json::from_slice(line)? {
            RouteMessage::Snapshot(snapshot) => Ok(snapshot.routes),
            other => anyhow::bail!("the feed begins with {other:?}"),
        }
    }
}
