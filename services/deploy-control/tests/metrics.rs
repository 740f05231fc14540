//! `/metrics`, as whoever watches the service reads it: its numbers are what happened.
//!
//! All of it is one test, since a process has one recorder: services beside each other would count in each other's numbers.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};

use contracts::{
    PlanName,
    deploy::{EventCode, Phase, Reserved, WakeReason},
};
use deploy_control::{
    config::Idle,
    engine::{Engine, ErrorKind, Unit, UnitState},
    registry::{MIGRATOR, Registry, Wish},
};
use http::StatusCode;
use serde_json::{Value, json};
use support::{Person, Running, eventually, neighbours::Used, sqlite_world, until};

const SHORT: Option<Duration> = Some(Duration::from_millis(1));
const MB: usize = 1 << 20;

/// What `/metrics` said.
struct Numbers(String);

impl Numbers {
    /// Each series, with its labels, and its value.
    fn series(&self) -> BTreeMap<&str, f64> {
        let lines = self.0.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect()
    }

    /// The value of one; `None` when it is not there.
    fn of(&self, series: &str) -> Option<f64> {
        self.series().get(series).copied()
    }

    /// How often this was counted.
    fn count(&self, series: &str) -> usize {
        let value = self.of(series).unwrap_or(0.0);
        assert!(value >= 0.0 && value.fract() == 0.0, "{series} {value}");
        value as usize
    }

    /// How often a step was done, and how often it failed.
    fn steps(&self, step: &str) -> [usize; 2] {
        [
            self.count(&format!("beaver_reconcile_step_seconds_count{{step=\"{step}\"}}")),
            self.count(&format!("beaver_reconcile_step_failures_total{{step=\"{step}\"}}")),
        ]
    }

    fn engine_errors(&self, kind: &str) -> usize {
        self.count(&format!("beaver_engine_errors_total{{kind=\"{kind}\"}}"))
    }

    /// The families of Beaver's that have a line of this kind.
    fn families(&self, kind: &str) -> BTreeSet<&str> {
        let lines = self.0.lines().filter_map(|line| line.strip_prefix("# ")?.strip_prefix(kind)?.strip_prefix(' '));
        lines.filter_map(|line| line.split(' ').next()).filter(|name| name.starts_with("beaver_")).collect()
    }
}

impl Running {
    async fn numbers(&self) -> Numbers {
        let answer = self.client.get(format!("{}/metrics", self.base)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Numbers(answer.text().await.unwrap())
    }

    /// Waits until what is read there fits.
    async fn counts(&self, what: &str, fits: impl AsyncFn(&Numbers) -> bool) {
        eventually(async || {
            let numbers = self.numbers().await;
            if fits(&numbers).await { Ok(()) } else { Err(format!("never {what}: {}", numbers.0)) }
        })
        .await;
    }

    /// Waits until a series has this value.
    async fn shows(&self, series: &str, value: f64) {
        self.counts(&format!("{series} {value}"), async |numbers| numbers.of(series) == Some(value)).await;
    }

    /// Waits until so many instances are in each of these phases, and none in any other.
    async fn phases(&self, expected: &[(&str, f64)]) {
        let expected = expected.iter().map(|(phase, value)| (format!("beaver_instances{{phase=\"{phase}\"}}"), *value));
        let expected: BTreeMap<_, _> = expected.collect();
        self.counts(&format!("{expected:?}"), async |numbers| {
            let all = numbers.series().into_iter();
            let found = all.filter(|(name, value)| name.starts_with("beaver_instances{") && *value != 0.0);
            found.map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>() == expected
        })
        .await;
    }

    /// How many events with this code, and this detail where one is named, were told of these.
    async fn told(&self, people: &[&Person], code: EventCode, detail: Option<&str>) -> usize {
        let mut told = 0;
        for person in people {
            let events = self.events(person).await.into_iter();
            told += events.filter(|e| e.code == code && (detail.is_none() || e.detail.as_deref() == detail)).count();
        }
        told
    }

    async fn wake(&self, person: &Person, why: WakeReason) {
        let path = format!("/api/instances/{}/wake", person.id);
        assert_eq!(self.post::<Value>(&path, &json!({ "why": why })).await.0, StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn what_metrics_say_is_what_happened() {
    // The first: nothing was counted, and no recorder was there, before its service began.
    phases_steps_errors_and_passes().await;
    who_waits_in_line().await;
    what_is_made_ahead().await;
    sleeps_and_wakes().await;
    disk_and_plans().await;
}

async fn phases_steps_errors_and_passes() {
    let mut world = sqlite_world().await;
    world.config.reconcile.resync = Duration::from_millis(20);
    let [alice, bob, carol, dave] = ["alice", "bobby", "carol", "david"].map(Person::named);
    // Two that are there already as the service begins.
    let store = store::Store::open(world.store.database(), &MIGRATOR).await.unwrap();
    let registry = Registry::open(store, world.clock.clone(), world.config.engine.uid_base).await.unwrap();
    for person in [&alice, &bob] {
        registry.register(&person.wanted(), &PlanName::workspace()).await.unwrap();
    }
    registry.wish(bob.id, bob.account, Wish::Stop).await.unwrap();
    let service = world.start().await;
    assert_eq!(service.numbers().await.of("beaver_plans_good"), Some(1.0), "there is no file, and nothing is wrong");
    service.settled(&alice, Phase::Ready).await;
    service.settled(&bob, Phase::Stopped).await;
    service.phases(&[("ready", 1.0), ("stopped", 1.0)]).await;
    service.shows("beaver_bring_up_seconds_count", 1.0).await;

    // One that fails, and says each time that it did.
    world.neighbours.set_refuse_owner(true);
    service.register(&carol).await;
    service.settled(&carol, Phase::Failed).await;
    world.neighbours.set_refuse_owner(false);
    service.phases(&[("ready", 1.0), ("stopped", 1.0), ("failed", 1.0)]).await;
    let attempts = service.told(&[&carol], EventCode::AttemptFailed, None).await;
    assert!(attempts > 0);
    service.counts("its attempts", async |numbers| numbers.steps("register") == [1, attempts]).await;
    service.shows("beaver_bring_up_seconds_count", 1.0).await;

    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    service.phases(&[("stopped", 2.0), ("failed", 1.0)]).await;
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
    service.shows("beaver_bring_up_seconds_count", 2.0).await;

    // An engine that has no room for a while.
    assert_eq!(service.numbers().await.steps("start")[1], 0);
    world.engine.refuse("start", ErrorKind::Capacity);
    service.register(&dave).await;
    until("tried again", || world.engine.count("start", dave.id) >= 3).await;
    world.engine.accept("start");
    service.settled(&dave, Phase::Ready).await;
    service.phases(&[("ready", 2.0), ("stopped", 1.0), ("failed", 1.0)]).await;
    let refused = world.engine.count("start", dave.id) - 1;
    service
        .counts("what the engine was asked", async |numbers| {
            let started = world.engine.count_all("start") - refused;
            let made = world.engine.count_all("ensure");
            (numbers.steps("start"), numbers.steps("create")) == ([started, refused], [made, 0])
                && numbers.engine_errors("capacity") == refused
        })
        .await;
    let numbers = service.numbers().await;
    assert!(numbers.of("beaver_reconcile_step_seconds_sum{step=\"start\"}").unwrap() > 0.0);
    assert!(numbers.of("beaver_bring_up_seconds_sum").unwrap() > 0.0);

    // One that is away.
    assert_eq!(numbers.engine_errors("unavailable"), 0);
    world.engine.set_away(true);
    // Nothing that is to be down is asked for.
    service.phases(&[("unknown", 2.0), ("stopped", 1.0), ("failed", 1.0)]).await;
    service.counts("an engine that is away", async |numbers| numbers.engine_errors("unavailable") > 0).await;
    world.engine.set_away(false);
    service.phases(&[("ready", 2.0), ("stopped", 1.0), ("failed", 1.0)]).await;

    // A unit that nobody knows, and is gone again.
    service.shows("beaver_orphans", 0.0).await;
    let stranger = Person::named("stranger").id;
    world.engine.plant(Unit { id: stranger, state: UnitState::Exited, ..world.engine.units()[0].clone() });
    service.shows("beaver_orphans", 1.0).await;
    world.engine.remove(stranger).await.unwrap();
    service.shows("beaver_orphans", 0.0).await;
    service
        .counts("as many passes as there were looks at everything", async |numbers| {
            let passes = numbers.count("beaver_full_pass_seconds_count");
            passes > 3 && passes == world.engine.count_all("list")
        })
        .await;
    service.kill_and_wait().await;
}

async fn who_waits_in_line() {
    let mut world = sqlite_world().await;
    world.config.reconcile.line.running = Some(1);
    let [alice, bob, carol] = ["alice", "bobby", "carol"].map(Person::named);
    let service = world.start().await;
    service.ready(&alice).await;
    service.shows("beaver_line_waiting", 0.0).await;
    service.register(&bob).await;
    service.register(&carol).await;
    service.shows("beaver_line_waiting", 2.0).await;
    // One leaves, and the other has her turn.
    service.wish(&bob, "stop").await;
    service.shows("beaver_line_waiting", 1.0).await;
    service.wish(&alice, "stop").await;
    service.settled(&carol, Phase::Ready).await;
    service.shows("beaver_line_waiting", 0.0).await;
    service.kill_and_wait().await;
}

async fn what_is_made_ahead() {
    let mut world = sqlite_world().await;
    world.config.reconcile.pool.size = 2;
    world.config.reconcile.pool.calm = Duration::ZERO;
    let service = world.start().await;
    service.shows("beaver_pool_ready", 2.0).await;
    // While one is made in the place of another that somebody was told of.
    world.engine.hold("ensure");
    assert_eq!(service.post::<Reserved>("/api/instances/reserve", &json!({})).await.0, StatusCode::OK);
    until("another is made", || world.engine.is_holding("ensure")).await;
    service.shows("beaver_pool_ready", 1.0).await;
    world.engine.release();
    service.shows("beaver_pool_ready", 2.0).await;
    service.kill_and_wait().await;
}

async fn sleeps_and_wakes() {
    const PAUSED: &str = "beaver_sleeps_total{depth=\"paused\"}";
    let used = || Used { idle: Duration::ZERO, ..Used::default() };
    let mut world = sqlite_world().await;
    world.config.plans.idle = Idle { pause_after: SHORT, stop_after: None };
    let (alice, bob) = (Person::named("alice"), Person::named("bobby"));
    let service = world.start().await;
    for person in [&alice, &bob] {
        world.neighbours.use_it(person.id, used());
        service.ready(person).await;
    }
    assert_eq!(service.numbers().await.count(PAUSED), 0);
    world.neighbours.use_it(alice.id, Used::default());
    service.settled(&alice, Phase::Paused).await;
    service.shows(PAUSED, 1.0).await;
    world.neighbours.use_it(alice.id, used());
    // However many come, they wake it once.
    for _ in 0..3 {
        service.wake(&alice, WakeReason::Visit).await;
    }
    service.settled(&alice, Phase::Ready).await;
    service.shows("beaver_wakes_total{from=\"paused\",why=\"visit\"}", 1.0).await;

    // One that is in use after all, and one that the engine does not freeze.
    let left = async |step: &str| service.told(&[&bob], EventCode::WakeRequested, Some(step)).await;
    world.neighbours.use_it(bob.id, Used { then_in_flight: 1, ..Used::default() });
    eventually(async || if left("quiet").await > 0 { Ok(()) } else { Err("it is not kept awake".into()) }).await;
    world.engine.refuse("pause", ErrorKind::Rejected);
    world.neighbours.use_it(bob.id, Used::default());
    eventually(async || if left("pause").await > 0 { Ok(()) } else { Err("it is not kept awake".into()) }).await;
    world.neighbours.use_it(bob.id, used());
    service.settled(&bob, Phase::Ready).await;
    service
        .counts("what is told of it", async |numbers| {
            let of = |step| numbers.count(&format!("beaver_sleeps_left_total{{step=\"{step}\"}}"));
            let asleep = service.told(&[&alice, &bob], EventCode::SleepRequested, None).await;
            (of("quiet"), of("pause")) == (left("quiet").await, left("pause").await) && numbers.count(PAUSED) == asleep
        })
        .await;
    service
        .counts("each refusal", async |numbers| {
            let refused = world.engine.count("pause", bob.id);
            [numbers.engine_errors("rejected"), numbers.steps("pause")[1]] == [refused; 2]
        })
        .await;
    service.kill_and_wait().await;

    world.config.plans.idle = Idle { pause_after: SHORT, stop_after: SHORT };
    let service = world.start().await;
    world.neighbours.use_it(alice.id, Used::default());
    service.settled(&alice, Phase::Asleep).await;
    service.shows("beaver_sleeps_total{depth=\"stopped\"}", 1.0).await;
    world.neighbours.use_it(alice.id, used());
    service.wake(&alice, WakeReason::Portal).await;
    service.settled(&alice, Phase::Ready).await;
    service.shows("beaver_wakes_total{from=\"stopped\",why=\"portal\"}", 1.0).await;
    service.kill_and_wait().await;
}

async fn disk_and_plans() {
    let mut world = sqlite_world().await;
    world.config.plans.disk_bytes = Some(2 * MB as u64);
    world.config.measure_disk_every = Duration::from_millis(10);
    let (alice, bob) = (Person::named("alice"), Person::named("bobby"));
    let service = world.start().await;
    let big = |person: &Person| -> PathBuf {
        world.config.data_dir.join("instances").join(person.id.to_string()).join("data/big")
    };
    service.ready(&alice).await;
    service.ready(&bob).await;
    service.shows("beaver_instances_disk_full", 0.0).await;
    for (person, full) in [(&alice, 1.0), (&bob, 2.0)] {
        fs::write(big(person), vec![1; 5 * MB / 2]).unwrap();
        service.shows("beaver_instances_disk_full", full).await;
    }
    for (person, full) in [(&alice, 1.0), (&bob, 0.0)] {
        fs::remove_file(big(person)).unwrap();
        service.shows("beaver_instances_disk_full", full).await;
    }

    for (text, good) in
        [("[workspace-large]\nmemory_mb = \"much\"\n", 0.0), ("[workspace-large]\nmemory_mb = 1024\n", 1.0)]
    {
        world.write_plans(text);
        service.shows("beaver_plans_good", good).await;
    }

    // By now each of them was shown; and says what it is.
    let numbers = service.numbers().await;
    assert_eq!(numbers.families("HELP"), numbers.families("TYPE"));
    let mut families = numbers.families("TYPE");
    assert!(families.remove("beaver_log_lines_dropped_total"), "every service has it");
    assert_eq!(families.len(), 14, "{families:?} are all that are read here");
    service.kill_and_wait().await;
}
