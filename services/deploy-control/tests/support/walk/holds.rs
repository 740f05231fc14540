//! What must hold after a change, however often the service was killed in it.

use std::{collections::BTreeSet, fs, path::PathBuf};

use contracts::{
    deploy::{Instance, Phase},
    instance::InstanceConfig,
    routes::RouteState,
};
use deploy_control::engine::UnitState;

use super::{
    Ground,
    asks::{events, is_route, key_of, look},
    change::{ARCHIVED, Before, Change, KEPT, SICK},
};
use crate::support::{Person, Running};

impl Change {
    /// Whether everything is as it must be in the end.
    pub async fn holds(
        self,
        ground: &Ground,
        service: &Running,
        person: &Person,
        before: &Before,
    ) -> Result<(), String> {
        let (phase, route, state) = match self {
            Self::Stop | Self::Suspend => (Phase::Stopped, Some(RouteState::Stopped), Some(UnitState::Exited)),
            Self::Discard | Self::Expires => (Phase::Deleted, None, None),
            Self::Delete => (Phase::PendingDeletion, None, None),
            Self::Pauses => (Phase::Paused, Some(RouteState::Paused), Some(UnitState::Paused)),
            Self::FallsAsleep => (Phase::Asleep, Some(RouteState::Asleep), Some(UnitState::Exited)),
            _ => (Phase::Ready, Some(RouteState::Running), Some(UnitState::Running)),
        };
        let instance = look(service, person).await?;
        let is = |what: &str, is_so: bool| if is_so { Ok(()) } else { Err(format!("{what}: {instance:?}")) };
        is("phase", instance.phase == phase)?;
        is("generation", instance.observed_generation == instance.generation)?;
        let plan = match self {
            Self::Plan => "notes",
            Self::Limits => "workspace-small",
            _ => "workspace",
        };
        is("plan", instance.plan.as_str() == plan)?;

        // Exactly one unit, as it must be.
        let units = ground.engine().list().await.map_err(|error| error.to_string())?;
        let of_this: Vec<_> = units.iter().filter(|unit| unit.id == person.id).collect();
        let unit = ground.unit(person).await;
        // Where units end with the service, one that is down is not even there after a kill.
        let may_be_none = matches!(self, Self::Stop | Self::Suspend) && ground.units_end_with_service;
        let state = if may_be_none && unit.is_none() { None } else { state };
        is(&format!("units {of_this:?}"), of_this.len() == usize::from(state.is_some()))?;
        is(&format!("unit {unit:?}"), unit.as_ref().map(|unit| unit.state) == state)?;
        let run = unit.as_ref().and_then(|unit| unit.run.clone());
        let renewed = unit.as_ref().map(|unit| &unit.fingerprint) != before.made_from.as_ref();
        match self {
            Self::Restart | Self::CameDown | Self::LostFolders | Self::LostSocket | Self::Restore => {
                is("the process is another", run != before.run)?
            }
            Self::Renewal | Self::Limits | Self::Plan | Self::PlanBack | Self::Upgrade => {
                is("the unit is another", renewed)?
            }
            Self::UpgradeInVain => is("the unit is as the one before", !renewed && run != before.run)?,
            Self::Pauses | Self::Resumes => is("the process is the same", run == before.run)?,
            _ => {}
        }

        is_route(service, person, route).await?;
        let told = events(service, person).await?;
        is(&format!("events {told:?}"), told.len() >= before.told)?;
        let back = match self {
            Self::ConfigureInVain => Some("ConfigRolledBack"),
            Self::UpgradeInVain => Some("ReleaseRolledBack"),
            Self::RestoreInVain => Some("RestoreRolledBack"),
            _ => None,
        };
        is(&format!("events {told:?}"), back.is_none_or(|back| told.iter().any(|code| code == back)))?;
        if matches!(self, Self::Discard | Self::Expires) {
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
        if !self.is_sign_up() {
            let kept = fs::read_to_string(own.join("data/kept")).map_err(|error| error.to_string())?;
            let expected = if self == Self::Restore { ARCHIVED } else { KEPT };
            if kept != expected || own.join("data").join(SICK).exists() {
                return Err(format!("its data is {kept:?}, not {expected:?}"));
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
