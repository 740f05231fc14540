//! The walk over crash points: a change is made while the service is killed at a place, before, in or after it; then
//! everything must be as it was wanted.
//!
//! The places are those that a run without a strike has recorded: a step that is new is walked by itself.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

#[path = "walk/asks.rs"]
mod asks;
#[path = "walk/change.rs"]
mod change;
#[path = "walk/holds.rs"]
mod holds;
#[path = "walk/said.rs"]
mod said;

use std::{
    any::Any,
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use contracts::deploy::Phase;
use deploy_control::{
    config::Config,
    engine::{Engine, Unit, conformance::within, faulty::Faulty},
    strikes::testing::{Place, Strikers, When},
};
use futures_util::future::{BoxFuture, join_all};

pub use change::Change;

use crate::support::{self, Person, Running, neighbours::Neighbours};
use asks::{PATIENCE, events, in_the_end, settled};

/// How long it is looked whether anything is done still, and how often nothing must be found.
const LONGEST_REST: Duration = Duration::from_secs(3);
const QUIET_LOOKS: u32 = 16;
/// So many lines of what the services said of a failure are told with it.
const SAID: usize = 80;

/// What is looked at again only where it is not well at once, or the other who looks was slower: a recording has it or not.
const BY_CHANCE: [(&str, &str); 2] = [("await_healthy", "engine.observe"), ("outside", "engine.release")];

/// How many people there are on a ground at most.
const PEOPLE: usize = 6;

type Crash = Box<dyn Fn(contracts::InstanceId) -> BoxFuture<'static, ()> + Send + Sync>;
type NewImage = Box<dyn Fn(bool) -> BoxFuture<'static, ()> + Send + Sync>;
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
    /// Gives the instances' image's name to another one, which works, or does not.
    pub new_image: NewImage,
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
                .map_or(&[][..], |change| change.takes(self.units_end_with_service))
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

/// A strike to be made: at a place with so many waits, when, and how often.
pub type Blow = ((Place, usize), When, usize);

/// What a walk came upon.
struct Walked {
    /// Every place that was reached, with the waits of its call.
    recorded: Vec<(Place, usize)>,
    /// How often the service was killed.
    struck: usize,
}

/// Makes the change for somebody new, with this blow or, without one, recording. Afterwards the instance is down, or deleted.
async fn walk(ground: &Ground, change: Change, person: &Person, blow: Option<Blow>) -> Result<Walked, String> {
    change.set(ground).await;
    let mut service = ground.start().await;
    let person = &change.somebody(ground, &service, person).await.map_err(|why| format!("nobody for it: {why}"))?;
    let before = change.prepare(ground, &service, person).await.map_err(|why| format!("before it: {why}"))?;
    match blow {
        None => ground.strikers.record(person.id),
        Some((place, when, times)) => ground.strikers.arm(person.id, place, when, times),
    }
    if change == Change::CameDown {
        (ground.crash)(person.id).await;
    } else if change.is_between_lives() {
        service.kill_and_wait().await;
        change.happens(ground, person).await;
        service = ground.start().await;
    }
    let (mut struck, mut answered) = (0, false);
    loop {
        let goes_on = async {
            if !answered && let Some(answer) = change.ask(&service, person, &before).await {
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
    let struck = ground.strikers.disarm();
    // Whether a later one of the same calls is made at all may depend on who was quicker.
    let is_sure = |place: &Place| place.nth == 0 && !BY_CHANCE.contains(&(place.step, place.call));
    if struck == 0 && blow.is_some_and(|((place, _), ..)| is_sure(&place)) {
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
    if change.leaves_a_release() {
        service.delete(person).await;
        settled(&service, person, Phase::PendingDeletion).await?;
    } else if !change.ends_it() {
        service.wish(person, "stop").await;
        settled(&service, person, Phase::Stopped).await?;
    }
    service.kill_and_wait().await;
    Ok(Walked { recorded, struck })
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
    said::listen();
    let first = ground().await;
    let recorded = walk(&first, change, &Person::named("recorded"), None).await;
    let Walked { recorded, .. } = recorded.unwrap_or_else(|why| panic!("{change:?} without a strike: {why}"));
    let takes = change.takes(first.units_end_with_service);
    drop(first);
    let steps: BTreeSet<_> = recorded.iter().map(|(place, _)| place.step).collect();
    for step in takes {
        assert!(steps.contains(step), "{change:?} takes {step}, but {recorded:?} was recorded");
    }
    let mut blows = VecDeque::new();
    // Of what is to be no more nobody asks what it would be made from: that was the end of a look from before.
    let is_its = |place: &Place| !change.ends_it() || place.call != "engine.fingerprint";
    for (place, waits) in recorded.iter().filter(|(place, _)| is_its(place) && is_walked(place)) {
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
    let walks_all = std::env::var("BEAVER_TEST_CRASH_POINTS").as_deref() == Ok("all");
    if !walks_all {
        blows = spread(blows, sample);
    }
    let count = blows.len();
    println!("{change:?}: {count} of {all} blows; all of them with BEAVER_TEST_CRASH_POINTS=all");
    let (blows, failures) =
        (Mutex::new(blows.into_iter().enumerate().collect::<VecDeque<_>>()), Mutex::new(BTreeMap::new()));
    // How many struck once, and more than once.
    let (once, again) = (Cell::new(0), Cell::new(0));
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
            match walk(&mine, change, &person, Some(blow)).await {
                Ok(Walked { struck: 0, .. }) => {}
                Ok(Walked { struck: 1, .. }) => once.set(once.get() + 1),
                Ok(_) => again.set(again.get() + 1),
                Err(why) => {
                    let ((place, _), when, times) = blow;
                    let said = said::of(&person.id.to_string(), SAID);
                    failures.lock().unwrap().insert(n, format!("{when:?} {place:?}, {times} times: {why}\n{said}"));
                    mine = ground().await;
                }
            }
        }
    };
    join_all((0..lanes).map(|_| lane())).await;
    let failures = failures.into_inner().unwrap();
    let told: Vec<_> = failures.values().take(12).cloned().collect();
    assert!(failures.is_empty(), "{change:?}: {} of {count} blows:\n{}", failures.len(), told.join("\n"));
    println!("{change:?}: {} were killed once, {} again and again", once.get(), again.get());
    assert!(!walks_all || again.get() > 0, "{change:?}: nobody was killed twice");
    count
}

/// So many of them, spread: one out of each stretch, not always at the same place in it, or it were always of one kind.
fn spread<T>(all: VecDeque<T>, count: usize) -> VecDeque<T> {
    let (len, count) = (all.len(), count.min(all.len()));
    let taken: BTreeSet<_> = (0..count).map(|n| n * len / count + 7 * n % (len / count)).collect();
    all.into_iter().enumerate().filter_map(|(n, blow)| taken.contains(&n).then_some(blow)).collect()
}
