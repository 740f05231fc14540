//! The walk over crash points: a change is made while the service is killed at a place, before, in or after it; then
//! everything must be as it was wanted.
//!
//! The places are those that a run without a strike has recorded: a step that is new is walked by itself.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{
    any::Any,
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use contracts::{
    deploy::{EventList, Instance, Phase},
    instance::InstanceConfig,
    provider::ProviderConfig,
    routes::{RouteMessage, RouteState},
};
use deploy_control::{
    config::{Config, Idle},
    engine::{Engine, Unit, UnitState, conformance::within, faulty::Faulty},
    strikes::testing::{Place, Strikers, When},
};
use futures_util::future::{BoxFuture, join_all};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::{
    self, Person, Running,
    neighbours::{Neighbours, Used},
    reader::Reader,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is looked whether anything is done still, and how often nothing must be found.
const LONGEST_REST: Duration = Duration::from_secs(3);
const QUIET_LOOKS: u32 = 16;
/// How many people there are on a ground at most.
const PEOPLE: usize = 6;
/// What everybody has in their data.
const KEPT: &str = "what somebody wrote";

type Crash = Box<dyn Fn(contracts::InstanceId) -> BoxFuture<'static, ()> + Send + Sync>;
type MakeEngine = Box<dyn Fn() -> Arc<dyn Engine> + Send + Sync>;

/// What outlives the service.
pub struct Ground {
    pub config: Mutex<Config>,
    pub neighbours: Neighbours,
    pub strikers: Strikers,
    /// The engine as the present life has it.
    pub units: Arc<Mutex<Arc<dyn Engine>>>,
    pub make_engine: MakeEngine,
    /// Ends an instance's process, as a crash does.
    pub crash: Crash,
    /// Whether instances end when the service does.
    pub units_end_with_service: bool,
    /// Whatever goes with it.
    pub keeps: Box<dyn Any + Send + Sync>,
}

impl Ground {
    pub async fn start(&self) -> Running {
        let engine = (self.make_engine)();
        *self.units.lock().unwrap() = engine.clone();
        let mut config = self.config.lock().unwrap().clone();
        config.strikes = self.strikers.life();
        let strikes = config.strikes.clone();
        let mut running = support::start(&config, Arc::new(Faulty::new(engine, strikes))).await;
        running.follow_as(&self.neighbours);
        running
    }

    /// Waits until nothing is done any more: what must be so may be so before all of it was. `whole`: the change that is to
    /// be recorded; `due`: a strike is to come.
    async fn rests(&self, whole: Option<Change>, due: bool) {
        let took_all = || {
            let recorded = self.strikers.recorded();
            whole
                .map_or(&[][..], Change::takes)
                .iter()
                .all(|step| recorded.iter().any(|(place, _)| place.step == *step))
        };
        // How much was recorded, and since how many looks it is no more than that.
        let seen = Cell::new((0, 0));
        let _ = within(LONGEST_REST, async || {
            let recorded = self.strikers.recorded().len();
            let (known, looks) = seen.get();
            let quiet = if recorded == known { looks + 1 } else { 0 };
            seen.set((recorded, quiet));
            if quiet >= QUIET_LOOKS && !due && took_all() { Ok(()) } else { Err("it goes on".to_owned()) }
        })
        .await;
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.units.lock().unwrap().clone()
    }

    fn folder(&self, name: &str, person: &Person) -> PathBuf {
        self.config.lock().unwrap().data_dir.join(name).join(person.id.to_string())
    }

    async fn unit(&self, person: &Person) -> Option<Unit> {
        self.engine().observe(person.id).await.unwrap()
    }
}

/// A change that somebody asks for, or that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    SignUp,
    Configure,
    /// With a configuration under which it does not come up.
    ConfigureInVain,
    Stop,
    Start,
    Restart,
    Retry,
    /// To another program, and back.
    Plan,
    PlanBack,
    /// The operator's settings are others after a restart of the service.
    Renewal,
    Discard,
    /// Deleted, with its data kept for a while; and taken back.
    Delete,
    Undelete,
    /// Its process ends by itself.
    CameDown,
    /// Its folders in `run/` are gone after a restart of the service.
    LostFolders,
    /// Its socket is.
    LostSocket,
    /// Its folders have other rights than they must.
    WrongRights,
    /// The registry is from before its configuration.
    NewerConfig,
    /// It does not know its owner any more.
    LostOwner,
    /// Nobody uses it: it is frozen, or stopped.
    Pauses,
    FallsAsleep,
    /// Somebody comes to one that is frozen, or asleep.
    Resumes,
    Wakes,
}

impl Change {
    /// The steps that everybody knows it takes: a recording without them is none.
    pub fn takes(self) -> &'static [&'static str] {
        match self {
            Self::SignUp => {
                &["prepare", "use_config", "create", "identify", "start", "await_healthy", "register", "settle"]
            }
            Self::Configure | Self::ConfigureInVain => &["stop", "use_config", "start", "await_healthy", "settle"],
            Self::Stop => &["stop", "settle"],
            Self::Start => &["start", "await_healthy", "settle"],
            Self::Restart => &["stop", "note_restarted", "start", "await_healthy", "settle"],
            Self::Retry => &["start", "await_healthy", "register", "settle"],
            Self::Plan | Self::PlanBack => &["stop", "remove", "create", "start", "await_healthy", "settle"],
            Self::Renewal => &["create", "start", "await_healthy", "settle"],
            Self::Delete => &["stop", "remove", "put_tombstone", "revoke", "settle"],
            Self::Undelete => &["take_tombstone", "create", "identify", "start", "await_healthy", "register", "settle"],
            Self::Discard => &["remove", "remove_folders", "settle"],
            Self::CameDown | Self::LostSocket => &["note_down", "start", "await_healthy", "settle"],
            Self::LostFolders => &["prepare", "use_config", "start", "await_healthy", "settle"],
            Self::WrongRights => &["mend", "settle"],
            Self::NewerConfig => &["adopt", "await_healthy", "settle"],
            Self::LostOwner => &["start", "await_healthy", "register", "settle"],
            Self::Pauses => &["quiet", "pause", "settle"],
            Self::FallsAsleep => &["quiet", "stop", "settle"],
            Self::Resumes => &["resume", "settle"],
            Self::Wakes => &["start", "await_healthy", "settle"],
        }
    }

    /// How deep somebody sleeps before it or after it.
    fn sleeps(self) -> Option<Phase> {
        match self {
            Self::Pauses | Self::Resumes => Some(Phase::Paused),
            Self::FallsAsleep | Self::Wakes => Some(Phase::Asleep),
            _ => None,
        }
    }

    /// What the operator's settings say for it.
    fn set(self, ground: &Ground) {
        let after = |phase| (self.sleeps() == Some(phase)).then_some(Duration::from_secs(1));
        let idle = Idle { pause_after: after(Phase::Paused), stop_after: after(Phase::Asleep) };
        ground.config.lock().unwrap().plans.idle = idle;
    }

    /// Brings somebody to where the change begins; what it was like then.
    async fn prepare(self, ground: &Ground, service: &Running, person: &Person) -> Result<Before, String> {
        let in_use = Used { in_flight: 1, then_in_flight: 1, ..Used::default() };
        ground.neighbours.use_it(person.id, in_use.clone());
        if matches!(self, Self::Retry | Self::Discard) {
            ground.neighbours.set_refuse_owner(true);
            service.register(person).await;
            reach(service, person, |instance| instance.phase == Phase::Failed).await?;
            // It is taken down after that is said; what comes next begins with one that is down.
            in_the_end(async || match ground.unit(person).await {
                Some(unit) if unit.is_up() => Err(format!("{unit:?}")),
                _ => Ok(()),
            })
            .await?;
            if self == Self::Retry {
                ground.neighbours.set_refuse_owner(false);
            }
        } else if self != Self::SignUp {
            service.register(person).await;
            settled(service, person, Phase::Ready).await?;
        }
        match self {
            Self::Configure | Self::ConfigureInVain => {
                service.configure(person, "sk-old").await;
                settled(service, person, Phase::Ready).await?;
                (self == Self::ConfigureInVain).then(|| (2..20).for_each(|bad| ground.neighbours.make_sick(bad)));
            }
            Self::Start | Self::LostOwner => {
                service.wish(person, "stop").await;
                settled(service, person, Phase::Stopped).await?;
                if self == Self::LostOwner {
                    ground.neighbours.forget_owner(person.id);
                }
            }
            Self::PlanBack => {
                ask(service, person, "plan", json!({ "plan": "notes" })).await?;
                settled(service, person, Phase::Ready).await?;
            }
            Self::Undelete => {
                service.delete(person).await;
                settled(service, person, Phase::PendingDeletion).await?;
            }
            Self::Resumes | Self::Wakes => {
                ground.neighbours.use_it(person.id, Used::default());
                settled(service, person, self.sleeps().expect("it sleeps before it")).await?;
                ground.neighbours.use_it(person.id, in_use);
            }
            _ => {}
        }
        if self != Self::SignUp {
            let data = ground.folder("instances", person).join("data");
            let owner = fs::metadata(&data).unwrap();
            fs::write(data.join("kept"), KEPT).unwrap();
            chown(data.join("kept"), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let unit = ground.unit(person).await;
        let told = if self == Self::SignUp { 0 } else { events(service, person).await?.len() };
        Ok(Before {
            run: unit.as_ref().and_then(|unit| unit.run.clone()),
            made_from: unit.map(|unit| unit.fingerprint),
            told,
        })
    }

    /// What somebody asks of the service; asked again when no answer came. `None` when it is not asked for.
    async fn ask(self, service: &Running, person: &Person) -> Option<Result<(), String>> {
        let owner = json!({ "account_id": person.account });
        Some(match self {
            Self::SignUp => post(service, "/api/instances/register", &json!(person.wanted())).await,
            Self::Configure | Self::ConfigureInVain => {
                post(service, "/api/instances/configure-provider", &person.provider("sk-new")).await
            }
            Self::Stop => ask(service, person, "stop", owner).await,
            Self::Start | Self::LostOwner => ask(service, person, "start", owner).await,
            Self::Restart => ask(service, person, "restart", owner).await,
            Self::Retry => ask(service, person, "retry", owner).await,
            Self::Discard => ask(service, person, "discard", owner).await,
            Self::Delete => ask(service, person, "delete", json!({ "by": person.account, "slug": person.slug })).await,
            Self::Undelete => ask(service, person, "undelete", json!({ "by": person.account })).await,
            Self::Plan => ask(service, person, "plan", json!({ "plan": "notes" })).await,
            Self::PlanBack => ask(service, person, "plan", json!({ "plan": "workspace" })).await,
            Self::Resumes | Self::Wakes => ask(service, person, "wake", json!({ "why": "visit" })).await,
            _ => return None,
        })
    }

    fn is_between_lives(self) -> bool {
        matches!(
            self,
            Self::Renewal
                | Self::LostFolders
                | Self::LostSocket
                | Self::WrongRights
                | Self::NewerConfig
                | Self::Pauses
                | Self::FallsAsleep
        )
    }

    /// What happens while nobody looks, between two lives of the service.
    fn happens(self, ground: &Ground, person: &Person) {
        match self {
            Self::Pauses | Self::FallsAsleep => ground.neighbours.use_it(person.id, Used::default()),
            Self::Renewal => ground.config.lock().unwrap().plans.limits.memory_bytes += 1 << 20,
            Self::LostFolders => fs::remove_dir_all(ground.folder("run", person)).unwrap(),
            Self::LostSocket => {
                // One that ends with the service takes it along, or not.
                let _ = fs::remove_file(ground.folder("run", person).join("in/http.sock"));
            }
            Self::WrongRights => {
                let config = ground.folder("instances", person).join("config");
                fs::set_permissions(config, fs::Permissions::from_mode(0o555)).unwrap();
            }
            Self::NewerConfig => {
                let path = ground.folder("instances", person).join("config/config.json");
                let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                config["generation"] = 7.into();
                // In place, so that its owner and mode stay.
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                fs::write(&path, config.to_string()).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
            }
            _ => {}
        }
    }

    /// Whether everything is as it must be in the end.
    async fn holds(self, ground: &Ground, service: &Running, person: &Person, before: &Before) -> Result<(), String> {
        let (phase, route, state) = match self {
            Self::Stop => (Phase::Stopped, Some(RouteState::Stopped), Some(UnitState::Exited)),
            Self::Discard => (Phase::Deleted, None, None),
            Self::Delete => (Phase::PendingDeletion, None, None),
            Self::Pauses => (Phase::Paused, Some(RouteState::Paused), Some(UnitState::Paused)),
            Self::FallsAsleep => (Phase::Asleep, Some(RouteState::Asleep), Some(UnitState::Exited)),
            _ => (Phase::Ready, Some(RouteState::Running), Some(UnitState::Running)),
        };
        let instance = look(service, person).await?;
        let is = |what: &str, is_so: bool| if is_so { Ok(()) } else { Err(format!("{what}: {instance:?}")) };
        is("phase", instance.phase == phase)?;
        is("generation", instance.observed_generation == instance.generation)?;
        let plan = if self == Self::Plan { "notes" } else { "workspace" };
        is("plan", instance.plan.as_str() == plan)?;

        // Exactly one unit, as it must be.
        let units = ground.engine().list().await.map_err(|error| error.to_string())?;
        let of_this: Vec<_> = units.iter().filter(|unit| unit.id == person.id).collect();
        let unit = ground.unit(person).await;
        // Where units end with the service, one that is down is not even there after a kill.
        let state = if self == Self::Stop && ground.units_end_with_service && unit.is_none() { None } else { state };
        is(&format!("units {of_this:?}"), of_this.len() == usize::from(state.is_some()))?;
        is(&format!("unit {unit:?}"), unit.as_ref().map(|unit| unit.state) == state)?;
        let run = unit.as_ref().and_then(|unit| unit.run.clone());
        let renewed = unit.as_ref().map(|unit| &unit.fingerprint) != before.made_from.as_ref();
        match self {
            Self::Restart | Self::CameDown | Self::LostFolders | Self::LostSocket => {
                is("the process is another", run != before.run)?
            }
            Self::Renewal | Self::Plan | Self::PlanBack => is("the unit is another", renewed)?,
            Self::Pauses | Self::Resumes => is("the process is the same", run == before.run)?,
            _ => {}
        }

        is_route(service, person, route).await?;
        let told = events(service, person).await?;
        is(&format!("events {told:?}"), told.len() >= before.told)?;
        if self == Self::Discard {
            let left = ["run", "instances"].map(|name| ground.folder(name, person)).into_iter().find(|f| f.exists());
            return is(&format!("left {left:?}"), left.is_none());
        }
        self.files_hold(ground, person, &instance)?;
        is("its owner", ground.neighbours.owners_taken(person.id) >= 1)
    }

    /// Whether its files are whole, and nothing is left over.
    fn files_hold(self, ground: &Ground, person: &Person, instance: &Instance) -> Result<(), String> {
        let list = |folder: PathBuf| {
            let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            Ok::<BTreeSet<String>, String>(names.filter(|name| !name.ends_with(".log")).collect())
        };
        let same = |what: &str, there: BTreeSet<String>, expected: &[&str]| {
            let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            if there == expected { Ok(()) } else { Err(format!("{what}: {there:?}, not {expected:?}")) }
        };
        let (run, own) = (ground.folder("run", person), ground.folder("instances", person));
        same("run/", list(run)?, &["in", "out"])?;
        let marked: &[&str] =
            if self == Self::Delete { &["config", "data", "tombstone.json"] } else { &["config", "data"] };
        same("instances/", list(own.clone())?, marked)?;
        if self != Self::SignUp {
            let kept = fs::read_to_string(own.join("data/kept")).map_err(|error| error.to_string())?;
            if kept != KEPT {
                return Err(format!("its data is {kept:?}"));
            }
        }
        let applied = instance.applied_config_generation;
        let (generation, key) = match self {
            Self::Configure => (applied.max(2), Some("sk-new")),
            Self::ConfigureInVain => (1, Some("sk-old")),
            Self::NewerConfig => (7, None),
            _ => (0, None),
        };
        if applied != generation {
            return Err(format!("configuration {applied} is in force, not {generation}: {instance:?}"));
        }
        let there = fs::read(own.join("config/config.json")).map_err(|error| error.to_string())?;
        let there: InstanceConfig = serde_json::from_slice(&there).map_err(|error| error.to_string())?;
        let its_key = there.provider.as_ref().map(key_of);
        if (there.generation, its_key.as_deref()) != (generation, key) {
            return Err(format!("config.json is {} with {its_key:?}, not {generation} with {key:?}", there.generation));
        }
        let staged = format!("config.{generation}.json");
        let files = if key.is_some() { vec!["config.json", &staged] } else { vec!["config.json"] };
        same("config/", list(own.join("config"))?, &files)
    }
}

/// What it was like before the change.
struct Before {
    run: Option<String>,
    made_from: Option<String>,
    told: usize,
}

fn key_of(provider: &ProviderConfig) -> String {
    provider.api_key.expose_secret().to_owned()
}

/// A call whose answer may get lost.
async fn post(service: &Running, path: &str, body: &Value) -> Result<(), String> {
    let answer = service.request("POST", path).json(body).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    // What is gone already was taken back by the call before.
    let done = path.ends_with("/discard") && status == 404 || path.ends_with("/undelete") && status == 409;
    if status.is_success() || done { Ok(()) } else { Err(format!("{path}: {status} {text}")) }
}

async fn ask(service: &Running, person: &Person, wish: &str, body: Value) -> Result<(), String> {
    post(service, &format!("/api/instances/{}/{wish}", person.id), &body).await
}

async fn look(service: &Running, person: &Person) -> Result<Instance, String> {
    let body = json!({ "account_id": person.account, "slug": person.slug });
    let asked = service.request("POST", "/api/instances/resolve").json(&body).send().await;
    let answer = asked.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|_| format!("{status} {text}"))
}

/// Its events; an error when one is missing.
async fn events(service: &Running, person: &Person) -> Result<Vec<String>, String> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/api/instances/{}/events?account_id={}&after={after}", person.id, person.account);
        let answer = service.request("GET", &path).send().await.map_err(|error| error.to_string())?;
        let list: EventList = answer.json().await.map_err(|error| error.to_string())?;
        let Some(last) = list.events.last() else { return Ok(all) };
        let seqs: Vec<_> = list.events.iter().map(|event| event.seq).collect();
        if seqs != (after + 1..=after + seqs.len() as i64).collect::<Vec<_>>() {
            return Err(format!("events after {after} are {seqs:?}"));
        }
        after = last.seq;
        all.extend(list.events.iter().map(|event| format!("{:?}", event.code)));
    }
}

async fn is_route(service: &Running, person: &Person, wanted: Option<RouteState>) -> Result<(), String> {
    let answer = service.request("GET", "/api/routes").send().await.map_err(|error| error.to_string())?;
    let mut feed = Reader::lines(answer);
    let Some(RouteMessage::Snapshot(snapshot)) = feed.json().await else { return Err("no snapshot of routes".into()) };
    let routes: Vec<_> = snapshot.routes.into_iter().filter(|route| route.instance_id == person.id).collect();
    let states: Vec<_> = routes.iter().map(|route| route.state).collect();
    let right = states == wanted.into_iter().collect::<Vec<_>>()
        && routes.iter().all(|route| route.slug == person.slug && route.account_id == person.account);
    if right { Ok(()) } else { Err(format!("routes {routes:?}, not {wanted:?}")) }
}

async fn settled(service: &Running, person: &Person, phase: Phase) -> Result<(), String> {
    let is_so = |instance: &Instance| instance.phase == phase && instance.observed_generation == instance.generation;
    reach(service, person, is_so).await
}

async fn reach(service: &Running, person: &Person, is_so: impl Fn(&Instance) -> bool) -> Result<(), String> {
    in_the_end(async || match look(service, person).await? {
        instance if is_so(&instance) => Ok(()),
        instance => Err(format!("{instance:?}")),
    })
    .await
}

/// Tries until it holds; else what was wrong last.
async fn in_the_end(holds: impl AsyncFn() -> Result<(), String>) -> Result<(), String> {
    within(PATIENCE, holds).await
}

/// A strike to be made: at a place with so many waits, when, and how often.
pub type Blow = ((Place, usize), When, usize);

/// Makes the change for somebody new, with this blow or, without one, recording; what was recorded. Afterwards the instance
/// is down.
async fn walk(
    ground: &Ground,
    change: Change,
    person: &Person,
    blow: Option<Blow>,
) -> Result<Vec<(Place, usize)>, String> {
    change.set(ground);
    let mut service = ground.start().await;
    let before = change.prepare(ground, &service, person).await.map_err(|why| format!("before it: {why}"))?;
    match blow {
        None => ground.strikers.record(person.id),
        Some((place, when, times)) => ground.strikers.arm(person.id, place, when, times),
    }
    if change == Change::CameDown {
        (ground.crash)(person.id).await;
    } else if change.is_between_lives() {
        service.kill_and_wait().await;
        change.happens(ground, person);
        service = ground.start().await;
    }
    let (mut struck, mut answered) = (0, false);
    loop {
        let goes_on = async {
            if !answered && let Some(answer) = change.ask(&service, person).await {
                if let Err(why) = answer {
                    // Then it must have been struck, and that is told in a moment.
                    return match tokio::time::timeout(PATIENCE, ground.strikers.struck(struck)).await {
                        Ok(()) => std::future::pending().await,
                        Err(_) => Err(why),
                    };
                }
                answered = true;
            }
            in_the_end(async || change.holds(ground, &service, person, &before).await).await?;
            ground.rests(blow.is_none().then_some(change), blow.is_some() && struck == 0).await;
            in_the_end(async || change.holds(ground, &service, person, &before).await).await
        };
        tokio::select! {
            biased;
            () = ground.strikers.struck(struck) => {}
            outcome = goes_on => {
                outcome?;
                break;
            }
        }
        struck = ground.strikers.times();
        service.kill_and_wait().await;
        service = ground.start().await;
    }
    let recorded = ground.strikers.recorded();
    // Whether a later one of the same calls is made at all may depend on who was quicker.
    if ground.strikers.disarm() == 0 && blow.is_some_and(|((place, _), ..)| place.nth == 0) {
        return Err(format!("never struck; there were {recorded:?}"));
    }
    // It stays so; and what is done is not done again by another life.
    let told = events(&service, person).await?;
    if blow.is_none() {
        service.kill_and_wait().await;
        service = ground.start().await;
        in_the_end(async || change.holds(ground, &service, person, &before).await).await?;
        let now = events(&service, person).await?;
        // The process engine's units end with the service.
        if now[..told.len()] != told || (now.len() > told.len() && !ground.units_end_with_service) {
            return Err(format!("after a restart: {now:?}, before {told:?}"));
        }
    }
    if change == Change::ConfigureInVain {
        ground.neighbours.make_well();
    }
    ground.neighbours.set_refuse_owner(false);
    if !matches!(change, Change::Discard | Change::Delete) {
        service.wish(person, "stop").await;
        settled(&service, person, Phase::Stopped).await?;
    }
    service.kill_and_wait().await;
    Ok(recorded)
}

/// Walks every place of the change that a recording finds, and that `is_walked`; the number of blows. `lanes` grounds are
/// walked at once.
///
/// # Panics
/// With everything that was not as it must be.
pub async fn every_place(
    change: Change,
    sample: usize,
    lanes: usize,
    ground: impl AsyncFn() -> Ground,
    is_walked: impl Fn(&Place) -> bool,
) -> usize {
    let first = ground().await;
    let recorded = walk(&first, change, &Person::named("recorded"), None).await;
    let recorded = recorded.unwrap_or_else(|why| panic!("{change:?} without a strike: {why}"));
    drop(first);
    let steps: BTreeSet<_> = recorded.iter().map(|(place, _)| place.step).collect();
    for step in change.takes() {
        assert!(steps.contains(step), "{change:?} takes {step}, but {recorded:?} was recorded");
    }
    let mut blows = VecDeque::new();
    for (place, waits) in recorded.iter().filter(|(place, _)| is_walked(place)) {
        for when in [When::Before, When::In, When::Late, When::After] {
            let goes_on = place.call.starts_with("engine.") && place.call != "engine.observe";
            if when == When::Late && (!goes_on || place.call == "engine.fingerprint") {
                continue;
            }
            blows.extend([1, 3].map(|times| ((*place, *waits), when, times)));
        }
    }
    assert!(!blows.is_empty(), "{change:?}: no place is walked");
    let all = blows.len();
    if std::env::var("BEAVER_TEST_CRASH_POINTS").as_deref() != Ok("all") {
        blows = spread(blows, sample);
    }
    let count = blows.len();
    println!("{change:?}: {count} of {all} blows; all of them with BEAVER_TEST_CRASH_POINTS=all");
    let (blows, failures) =
        (Mutex::new(blows.into_iter().enumerate().collect::<VecDeque<_>>()), Mutex::new(BTreeMap::new()));
    let lane = async || {
        let mut mine = ground().await;
        let mut walked = 0;
        loop {
            let Some((n, blow)) = blows.lock().unwrap().pop_front() else { return };
            // Each start of the service looks at everybody there is.
            if walked == PEOPLE {
                (mine, walked) = (ground().await, 0);
            }
            walked += 1;
            let person = Person::named(&format!("person-{n}"));
            if let Err(why) = walk(&mine, change, &person, Some(blow)).await {
                let ((place, _), when, times) = blow;
                failures.lock().unwrap().insert(n, format!("{when:?} {place:?}, {times} times: {why}"));
                mine = ground().await;
            }
        }
    };
    join_all((0..lanes).map(|_| lane())).await;
    let failures = failures.into_inner().unwrap();
    let told: Vec<_> = failures.values().take(12).cloned().collect();
    assert!(failures.is_empty(), "{change:?}: {} of {count} blows:\n{}", failures.len(), told.join("\n"));
    count
}

/// So many of them, evenly spread.
fn spread<T>(all: VecDeque<T>, count: usize) -> VecDeque<T> {
    let (len, count) = (all.len(), count.min(all.len()));
    let taken: BTreeSet<_> = (0..count).map(|n| n * len / count + len / count / 2).collect();
    all.into_iter().enumerate().filter_map(|(n, blow)| taken.contains(&n).then_some(blow)).collect()
}
