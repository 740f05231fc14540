//! A stack under a random walk: people do what people do, while everything that they depend on is killed, cut, removed and
//! filled behind its back. In the end everything that was acknowledged must be there.
//!
//! What was acknowledged is known from the people's side alone ([`people`]): [`truth`] compares with it. The walk is the same
//! for the same seed; how it meets with what goes on at the same time is not.

pub mod faults;
pub mod people;
pub mod seeded;
pub mod truth;

use std::{fmt::Display, path::Path, time::Duration};

use anyhow::Context;
use bollard::Docker;
use clock::Entropy;
use serde::Serialize;

use crate::{
    own_engine::OwnEngine,
    provider::FakeProvider,
    say,
    stack::{Stack, fake_provider_program},
};
use faults::{Fault, Filled};
use people::Somebody;
pub use seeded::Violation;

/// How long everything may take to be as it must be, once nothing is broken any more.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long a violation that was seeded may take to be seen: what heals by itself is none.
const SEEDED_PATIENCE: Duration = Duration::from_secs(45);
/// The plan of a program that is not Beaver's: the fake provider, as one that speaks HTTP.
pub(crate) const OTHER_PLAN: &str = "other";
/// How large the file system of the data is while people walk, in megabytes.
const VOLUME_MB: u64 = 320;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Walk {
    /// What the walk is made from.
    pub seed: u64,
    /// How many things people do.
    pub actions: usize,
    /// How often something is broken.
    pub faults: usize,
    /// How many people there are.
    pub instances: usize,
    /// A violation that is made in the end, to see whether it is found.
    pub violate: Option<Violation>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What the walk was made from.
    pub seed: u64,
    /// How many things people did.
    pub actions: usize,
    /// How many of them were acknowledged.
    pub acknowledged: usize,
    /// How often something was broken.
    pub faults: usize,
    /// How often each kind was.
    pub faults_by_kind: std::collections::BTreeMap<String, usize>,
    /// How many invariants do not hold.
    pub violations: usize,
    /// Which, and how.
    pub violated: Vec<String>,
}

/// A stack on an engine of its own, with a small file system for its data.
pub struct Ground {
    /// The stack.
    pub stack: Stack,
    /// Where people's chats are answered.
    pub provider: FakeProvider,
}

impl Ground {
    /// Brings one up under this name.
    ///
    /// # Errors
    /// When the engine or the stack does not come up.
    pub async fn up(name: &str) -> anyhow::Result<Self> {
        let prefix = Stack::prefix_for(name);
        let own = OwnEngine::start(&prefix).await?;
        let rule = FakeProvider::rule(&prefix);
        let settings = [("BEAVER_EGRESS_ALLOW", rule.as_str()), ("BEAVER_SIGN_UPS_PER_HOUR", "0")];
        let plan = format!(
            "[{OTHER_PLAN}]\nimage = \"{prefix}-fake-provider:latest\"\nport = 8080\nhealth = \"/v1/models\"\n\
             command = [\"/fake-provider\"]\n"
        );
        let files = [("deploy-control/plans.toml", plan.as_str())];
        let mut stack = Stack::up_on_volume(name, own, &settings, &files).await?;
        let docker = stack.docker().context("a stack on Docker has an engine")?.clone();
        let (prefix, network, program) = (stack.prefix().to_owned(), stack.network(), fake_provider_program()?);
        let own = stack.own_engine().context("it has an engine of its own")?;
        let provider = FakeProvider::on_own_engine(own, &docker, &prefix, &network, &program).await?;
        stack.shrink_volume(VOLUME_MB)?;
        Ok(Self { stack, provider })
    }

    fn docker(&self) -> anyhow::Result<&Docker> {
        self.stack.docker().context("a stack on Docker has an engine")
    }

    fn data_dir(&self) -> std::path::PathBuf {
        self.stack.data_dir()
    }
}

/// Walks, and looks in the end whether everything is as it must be.
///
/// # Errors
/// When the walk itself cannot go on: the engine does not come back, or nobody can be asked.
pub async fn walk(ground: &mut Ground, walk: &Walk) -> anyhow::Result<Outcome> {
    let entropy = Entropy::seeded(walk.seed);
    let mut people: Vec<_> = (0..walk.instances).map(|n| Somebody::new(&format!("walker-{n}"))).collect();
    let (mut acknowledged, mut by_kind) = (0, std::collections::BTreeMap::<String, usize>::new());
    // What fills the disk, and until which action.
    let mut filled: Vec<(Filled, usize)> = Vec::new();
    let schedule = Schedule::new(&entropy, walk);
    for action in 0..walk.actions {
        for (disk, _) in filled.extract_if(.., |(_, until)| action >= *until) {
            disk.free()?;
        }
        // Everybody signs up before anybody does anything else twice.
        let who = if action < people.len() { action } else { entropy.below(people.len() as u64) as usize };
        let doing = people[who].choose(&entropy);
        let id = people[who].person.slug.clone();
        truth::learn(&ground.data_dir(), &mut people);
        let victim = people[entropy.below(people.len() as u64) as usize].id;
        let docker = ground.docker()?.clone();
        let (places, base_url) = (ground.stack.places(), ground.provider.base_url());
        let mut acting = Box::pin(people[who].act(places, base_url, doing));
        let mut done = None;
        for _ in 0..schedule.faults_at(action) {
            let fault = Fault::draw(&entropy);
            *by_kind.entry(fault.to_string()).or_default() += 1;
            say(format!("{action}: {id} {doing:?}, and {fault}"));
            let breaking = faults::strike(&mut ground.stack, &docker, fault, victim);
            // The first meets the action in its middle, whatever comes after it meets what came of that.
            let struck = match done {
                Some(_) => breaking.await,
                None => {
                    let (acted, struck) = tokio::join!(&mut acting, breaking);
                    done = Some(acted);
                    struck
                }
            };
            if let Some(disk) = struck.with_context(|| fault.to_string())? {
                filled.push((disk, action + 4));
            }
        }
        let done = match done {
            Some(done) => done,
            None => acting.await,
        };
        acknowledged += usize::from(tell(&id, done));
    }
    for (disk, _) in filled {
        disk.free()?;
    }
    let mut violated = truth::in_the_end(ground, &mut people, PATIENCE).await?;
    if violated.is_empty() {
        faults::prune(ground.docker()?).await?;
        violated = truth::everybody_up(ground, &mut people, PATIENCE).await?;
    }
    if let Some(violation) = walk.violate
        && violated.is_empty()
    {
        seeded::make(ground, &mut people, violation).await?;
        violated = truth::in_the_end(ground, &mut people, SEEDED_PATIENCE).await?;
    }
    Ok(Outcome {
        seed: walk.seed,
        actions: walk.actions,
        acknowledged,
        faults: by_kind.values().sum(),
        faults_by_kind: by_kind,
        violations: violated.len(),
        violated,
    })
}

/// Whether it was acknowledged; says why not.
fn tell(who: &str, done: anyhow::Result<()>) -> bool {
    if let Err(error) = &done {
        let told = format!("{error:#}");
        say(format!("    {who}: {}", told.chars().take(200).collect::<String>()));
    }
    done.is_ok()
}

/// How often something is broken at each action.
struct Schedule(Vec<usize>);

impl Schedule {
    fn new(entropy: &Entropy, walk: &Walk) -> Self {
        let mut at = vec![0; walk.actions.max(1)];
        // Not before anybody is there; but for that anywhere, also twice at once.
        let first = walk.instances.min(walk.actions.saturating_sub(1)) as u64 / 2;
        for _ in 0..walk.faults {
            let action = first + entropy.below(at.len() as u64 - first);
            at[action as usize] += 1;
        }
        Self(at)
    }

    fn faults_at(&self, action: usize) -> usize {
        self.0[action]
    }
}

/// Names a thing that does not hold.
fn violation(invariant: &str, what: impl Display) -> String {
    format!("{invariant}: {what}")
}

/// Where the small file system is full or not.
fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |room| room.f_bavail.saturating_mul(room.f_frsize))
}
