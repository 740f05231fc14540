//! The changes that are walked: how each begins, and who asks for it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    time::Duration,
};

use contracts::deploy::{Phase, Reserved};
use deploy_control::{config::Idle, engine::UnitState};
use serde_json::{Value, json};

use super::{
    Ground,
    asks::{ask, events, export, in_the_end, post, reach, restore, settled},
};
use crate::support::{Person, Running, neighbours::Used};

/// What everybody has in their data.
pub const KEPT: &str = "what somebody wrote";
/// What is there in an archive in its place.
pub const ARCHIVED: &str = "what somebody wrote before";
/// With this in its data an instance does not become healthy.
pub const SICK: &str = "sick";
/// How long a start that will come to nothing may take.
const IN_VAIN: Duration = Duration::from_secs(5);

/// What it was like before the change.
pub struct Before {
    pub run: Option<String>,
    pub made_from: Option<String>,
    pub told: usize,
    /// Its data as it was taken along.
    archive: Vec<u8>,
}

/// A change that somebody asks for, or that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    SignUp,
    Configure,
    /// With a configuration under which it does not come up.
    ConfigureInVain,
    Stop,
    /// By the operator.
    Suspend,
    Start,
    Restart,
    Retry,
    /// To a plan of the same program with other limits.
    Limits,
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
    /// A sign-up that gets one made ahead.
    TakesOver,
    /// Its image is another after a restart of the service; and one that it does not come up with.
    Upgrade,
    UpgradeInVain,
    /// Data from an archive; and such with which it does not come up.
    Restore,
    RestoreInVain,
    /// Deleted, and the time for which its data is kept is over.
    Expires,
}

impl Change {
    /// The steps that everybody knows it takes: a recording without them is none.
    pub fn takes(self, units_end_with_service: bool) -> &'static [&'static str] {
        match self {
            Self::SignUp => {
                &["prepare", "use_config", "create", "identify", "start", "await_healthy", "register", "settle"]
            }
            Self::Configure | Self::ConfigureInVain => &["stop", "use_config", "start", "await_healthy", "settle"],
            Self::Stop | Self::Suspend => &["stop", "settle"],
            Self::Start => &["start", "await_healthy", "settle"],
            Self::Restart => &["stop", "note_restarted", "start", "await_healthy", "settle"],
            Self::Retry => &["start", "await_healthy", "register", "settle"],
            Self::Limits | Self::Plan | Self::PlanBack => {
                &["stop", "remove", "create", "start", "await_healthy", "settle"]
            }
            Self::Renewal => &["create", "start", "await_healthy", "settle"],
            Self::Delete => &["stop", "remove", "put_tombstone", "revoke", "settle"],
            Self::Undelete => &["take_tombstone", "create", "identify", "start", "await_healthy", "register", "settle"],
            Self::Discard => &["remove", "remove_folders", "settle"],
            // It has ended already.
            Self::LostSocket if units_end_with_service => &["note_down", "start", "await_healthy", "settle"],
            Self::CameDown => &["note_down", "start", "await_healthy", "settle"],
            Self::LostSocket => &["take_down", "start", "await_healthy", "settle"],
            Self::LostFolders => &["prepare", "use_config", "start", "await_healthy", "settle"],
            Self::WrongRights => &["mend", "settle"],
            Self::NewerConfig => &["adopt", "await_healthy", "settle"],
            Self::LostOwner => &["start", "await_healthy", "register", "settle"],
            Self::Pauses => &["quiet", "pause", "settle"],
            Self::FallsAsleep => &["quiet", "stop", "settle"],
            Self::Resumes => &["resume", "settle"],
            Self::Wakes => &["start", "await_healthy", "settle"],
            Self::TakesOver => &["use_config", "begin", "identify", "await_healthy", "register", "settle"],
            Self::Upgrade | Self::UpgradeInVain => &["stop", "remove", "create", "start", "await_healthy", "settle"],
            Self::Restore => &["stop", "put_archive", "start", "await_healthy", "register", "settle"],
            Self::RestoreInVain => &["stop", "put_archive", "take_archive_back", "start", "await_healthy", "settle"],
            Self::Expires => &["stop", "remove", "put_tombstone", "revoke", "settle", "condemn", "remove_folders"],
        }
    }

    /// Whether somebody is left with a release that the next would have at first, because it works for others, and the newest in
    /// their turn: at any time.
    pub fn leaves_a_release(self) -> bool {
        matches!(self, Self::Upgrade | Self::UpgradeInVain)
    }

    /// Whether there is nobody before it.
    pub fn is_sign_up(self) -> bool {
        matches!(self, Self::SignUp | Self::TakesOver)
    }

    /// Whether nothing of the instance is there after it.
    pub fn ends_it(self) -> bool {
        matches!(self, Self::Discard | Self::Delete | Self::Expires)
    }

    /// Whether it is one that is taken back because it does not hold.
    fn is_in_vain(self) -> bool {
        matches!(self, Self::ConfigureInVain | Self::RestoreInVain | Self::UpgradeInVain)
    }

    /// How deep somebody sleeps before it or after it.
    fn sleeps(self) -> Option<Phase> {
        match self {
            Self::Pauses | Self::Resumes => Some(Phase::Paused),
            Self::FallsAsleep | Self::Wakes => Some(Phase::Asleep),
            _ => None,
        }
    }

    /// What the operator has for it.
    pub async fn set(self, ground: &Ground) {
        let after = |phase| (self.sleeps() == Some(phase)).then_some(Duration::from_secs(1));
        {
            let mut config = ground.config.lock().unwrap();
            // Somebody is always in the middle of something here.
            config.reconcile.drain_timeout = Duration::from_millis(60);
            config.plans.idle = Idle { pause_after: after(Phase::Paused), stop_after: after(Phase::Asleep) };
            if self.is_in_vain() {
                // It is waited for in vain once in each walk at the least.
                config.reconcile.start_timeout = config.reconcile.start_timeout.min(IN_VAIN);
            }
            if self == Self::Expires {
                config.delete_after = Duration::from_millis(50);
                // Nobody is woken just because a time has come.
                config.reconcile.resync = Duration::from_millis(100);
            }
            if self == Self::TakesOver {
                (config.reconcile.pool.size, config.reconcile.pool.calm) = (1, Duration::ZERO);
            }
        }
        if matches!(self, Self::Upgrade | Self::UpgradeInVain) {
            (ground.new_image)(true).await;
        }
    }

    /// Somebody for whom it can be made.
    pub async fn somebody(self, ground: &Ground, service: &Running, person: &Person) -> Result<Person, String> {
        if self != Self::TakesOver {
            return Ok(person.clone());
        }
        in_the_end(async || {
            let units = ground.engine().list().await.map_err(|error| error.to_string())?;
            let ahead = units.into_iter().find(|unit| unit.state == UnitState::Paused);
            let ahead = ahead.ok_or("nothing was made ahead")?.id;
            let asked = service.request("POST", "/api/instances/reserve").json(&json!({})).send().await;
            let told: Reserved = asked.map_err(|error| error.to_string())?.json().await.map_err(|e| e.to_string())?;
            let person = Person { id: told.instance_id, ..person.clone() };
            if told.instance_id == ahead { Ok(person) } else { Err(format!("{told:?}, but {ahead} waits")) }
        })
        .await
    }

    /// Brings somebody to where the change begins; what it was like then.
    pub async fn prepare(self, ground: &Ground, service: &Running, person: &Person) -> Result<Before, String> {
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
        } else if !self.is_sign_up() {
            service.register(person).await;
            settled(service, person, Phase::Ready).await?;
            // It is tidied up after that is said: no part of what comes next.
            let token = ground.folder("instances", person).join("config/registration.json");
            in_the_end(async || if token.exists() { Err(format!("{token:?} is there")) } else { Ok(()) }).await?;
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
        let write = |name: &str, text: &str| {
            let data = ground.folder("instances", person).join("data");
            let owner = fs::metadata(&data).unwrap();
            fs::write(data.join(name), text).unwrap();
            chown(data.join(name), Some(owner.uid()), Some(owner.gid())).unwrap();
        };
        let mut archive = Vec::new();
        if matches!(self, Self::Restore | Self::RestoreInVain) {
            write("kept", ARCHIVED);
            (self == Self::RestoreInVain).then(|| write(SICK, ""));
            archive = export(service, person).await?;
            let _ = fs::remove_file(ground.folder("instances", person).join("data").join(SICK));
        }
        if !self.is_sign_up() {
            write("kept", KEPT);
        }
        let unit = ground.unit(person).await;
        let told = if self.is_sign_up() { 0 } else { events(service, person).await?.len() };
        Ok(Before {
            run: unit.as_ref().and_then(|unit| unit.run.clone()),
            made_from: unit.map(|unit| unit.fingerprint),
            told,
            archive,
        })
    }

    /// What somebody asks of the service; asked again when no answer came. `None` when it is not asked for.
    pub async fn ask(self, service: &Running, person: &Person, before: &Before) -> Option<Result<(), String>> {
        let owner = json!({ "account_id": person.account });
        Some(match self {
            Self::SignUp | Self::TakesOver => post(service, "/api/instances/register", &json!(person.wanted())).await,
            Self::Configure | Self::ConfigureInVain => {
                post(service, "/api/instances/configure-provider", &person.provider("sk-new")).await
            }
            Self::Stop => ask(service, person, "stop", owner).await,
            Self::Suspend => {
                let body = json!({ "account_id": person.account, "suspended_for": "unpaid" });
                ask(service, person, "stop", body).await
            }
            Self::Start | Self::LostOwner => ask(service, person, "start", owner).await,
            Self::Restart => ask(service, person, "restart", owner).await,
            Self::Retry => ask(service, person, "retry", owner).await,
            Self::Discard => ask(service, person, "discard", owner).await,
            Self::Restore | Self::RestoreInVain => restore(service, person, before.archive.clone()).await,
            Self::Delete | Self::Expires => {
                ask(service, person, "delete", json!({ "by": person.account, "slug": person.slug })).await
            }
            Self::Undelete => ask(service, person, "undelete", json!({ "by": person.account })).await,
            Self::Limits => ask(service, person, "plan", json!({ "plan": "workspace-small" })).await,
            Self::Plan => ask(service, person, "plan", json!({ "plan": "notes" })).await,
            Self::PlanBack => ask(service, person, "plan", json!({ "plan": "workspace" })).await,
            Self::Resumes | Self::Wakes => ask(service, person, "wake", json!({ "why": "visit" })).await,
            _ => return None,
        })
    }

    pub fn is_between_lives(self) -> bool {
        matches!(
            self,
            Self::Renewal
                | Self::LostFolders
                | Self::LostSocket
                | Self::WrongRights
                | Self::NewerConfig
                | Self::Pauses
                | Self::FallsAsleep
                | Self::Upgrade
                | Self::UpgradeInVain
        )
    }

    /// What happens while nobody looks, between two lives of the service.
    pub async fn happens(self, ground: &Ground, person: &Person) {
        match self {
            Self::Upgrade | Self::UpgradeInVain => (ground.new_image)(self == Self::Upgrade).await,
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
}
