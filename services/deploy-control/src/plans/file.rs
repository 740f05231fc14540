//! The file of plans: TOML, a table a plan.

use std::{collections::BTreeMap, sync::Arc};

use contracts::PlanName;
use serde::Deserialize;
use settings::watched::WatchedError;

use super::{Named, Plan, PlansConfig};
use crate::{
    config::{Idle, Limits},
    engine::{ImageProgram, Program},
};

const MEGABYTE: i64 = 1 << 20;

/// Why a file's plans are not taken over. Its text names the plan, the key and, where there is one, the line.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is no TOML, or a key or value is none that a plan has.
    #[error("{place}: {why}")]
    Line {
        /// The line, from 1, and the plan.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// A plan as a whole makes no sense.
    #[error("plan {plan}: {why}")]
    Plan {
        /// Its name.
        plan: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] WatchedError),
}

/// A plan as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    image: Option<Image>,
    command: Option<Command>,
    #[serde(default)]
    env: BTreeMap<EnvName, EnvValue>,
    port: Option<Port>,
    health: Option<Health>,
    memory_mb: Option<Megabytes>,
    cpus: Option<Cpus>,
    pids: Option<Pids>,
    /// 0 is no limit, as in the settings.
    disk_mb: Option<u32>,
    tmp_mb: Option<Megabytes>,
    /// Seconds; 0 is never, as in the settings.
    pause_after: Option<u32>,
    /// The same.
    idle_timeout: Option<u32>,
}

/// A type that takes some values of another; the others are refused with these words, by the parser, which knows the line.
macro_rules! some_of {
    ($(#[$meta:meta])* $name:ident($of:ty = $text:literal), $good:expr, $why:literal) => {
        #[derive(Debug, Clone, Deserialize)]
        #[serde(try_from = $text)]
        $(#[$meta])*
        struct $name($of);

        impl TryFrom<$of> for $name {
            type Error = &'static str;

            fn try_from(value: $of) -> Result<Self, Self::Error> {
                let good: fn(&$of) -> bool = $good;
                if good(&value) { Ok(Self(value)) } else { Err($why) }
            }
        }
    };
}

some_of!(
    Image(String = "String"),
    |image| !image.is_empty() && image.len() <= 255 && image.bytes().all(|b| b.is_ascii_graphic()),
    "image must be an image's name, such as notes:1"
);
some_of!(
    Command(Vec<String> = "Vec<String>"),
    |command| !command.is_empty() && !command[0].is_empty() && command.iter().all(|word| !word.contains('\0')),
    "command must be a program and its arguments, such as [\"/usr/bin/notes\", \"--port\", \"8080\"]"
);
some_of!(
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    EnvName(String = "String"),
    |name| !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
    "a variable's name has letters, digits and underscores"
);
some_of!(EnvValue(String = "String"), |value| !value.contains('\0'), "a variable's value has no NUL in it");
some_of!(
    Port(u16 = "u16"),
    |port| *port != 0 && *port != shim::PROXY_PORT,
    "port must be from 1 to 65535, and not 3128, where programs find the way out"
);
some_of!(
    Health(String = "String"),
    |path| path.starts_with('/') && path.len() <= 512 && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#'),
    "health must be a path, such as /healthz"
);
some_of!(Megabytes(u32 = "u32"), |number| *number > 0, "it must be at least 1");
some_of!(Pids(u32 = "u32"), |number| *number > 0, "pids must be at least 1");
some_of!(
    Cpus(f64 = "f64"),
    |cpus| cpus.is_finite() && (0.01..=1024.0).contains(cpus),
    "cpus must be from 0.01 to 1024"
);

/// The plans that are there without a file.
pub(super) fn built_in(config: &PlansConfig) -> Named {
    let workspace = Plan {
        program: Program::Workspace,
        env: BTreeMap::new(),
        health: String::new(),
        limits: config.limits,
        disk_bytes: config.disk_bytes,
        idle: config.idle,
    };
    [(PlanName::workspace(), Arc::new(workspace))].into()
}

/// Whether a file's text is one that is taken over; the names in it.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<Vec<String>, FileError> {
    entries(text)?.into_iter().map(|(name, entry)| entry.program(&name).map(|_| name)).collect()
}

/// The plans in a file's text, and those that are there without it.
pub(super) fn plans(config: &PlansConfig, text: &str) -> Result<Named, FileError> {
    let mut plans = built_in(config);
    for (name, entry) in entries(text)? {
        let program = entry.program(&name)?;
        let name: PlanName = name
            .parse()
            .map_err(|error: contracts::NotAPlanName| FileError::Plan { plan: name, why: error.to_string() })?;
        plans.insert(name, Arc::new(entry.plan(program, config)));
    }
    Ok(plans)
}

fn entries(text: &str) -> Result<BTreeMap<String, Entry>, FileError> {
    toml::from_str::<BTreeMap<String, Entry>>(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let place = match plan_at(text, line) {
            Some(plan) => format!("line {line}, plan {plan}"),
            None => format!("line {line}"),
        };
        FileError::Line { place, why: error.message().replace('\n', " ") }
    })
}

/// The plan whose table a line, from 1, is in.
fn plan_at(text: &str, line: usize) -> Option<&str> {
    let header = text.lines().take(line).filter_map(|line| line.trim_start().strip_prefix('[')).last()?;
    Some(header.split(['.', ']']).next()?.trim().trim_matches(['"', '\'']))
}

impl Entry {
    /// What it runs.
    fn program(&self, name: &str) -> Result<Program, FileError> {
        let wrong = |why: String| FileError::Plan { plan: name.to_owned(), why };
        if name.parse::<PlanName>().is_ok_and(|name| name.is_workspace()) {
            let fixed = [
                ("image", self.image.is_some()),
                ("command", self.command.is_some()),
                ("env", !self.env.is_empty()),
                ("port", self.port.is_some()),
                ("health", self.health.is_some()),
            ];
            return match fixed.into_iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(wrong(format!(
                    "{key} cannot be given: this plan, by its name, is Beaver's own workspace; only its limits can"
                ))),
                None => Ok(Program::Workspace),
            };
        }
        let missing = |key| {
            let own = "or name the plan workspace-… where Beaver's own workspace with other limits is meant";
            wrong(format!("{key} is missing; give it, {own}"))
        };
        Ok(Program::Image(ImageProgram {
            image: self.image.clone().ok_or_else(|| missing("image"))?.0,
            command: self.command.clone().map(|command| command.0).unwrap_or_default(),
            port: self.port.clone().ok_or_else(|| missing("port"))?.0,
        }))
    }

    fn plan(self, program: Program, config: &PlansConfig) -> Plan {
        let megabytes = |given: Option<Megabytes>, else_bytes| {
            given.map_or(else_bytes, |megabytes| i64::from(megabytes.0) * MEGABYTE)
        };
        Plan {
            program,
            env: self.env.into_iter().map(|(name, value)| (name.0, value.0)).collect(),
            health: self.health.map_or_else(|| "/".into(), |health| health.0),
            limits: Limits {
                memory_bytes: megabytes(self.memory_mb, config.limits.memory_bytes),
                nano_cpus: self.cpus.map_or(config.limits.nano_cpus, |cpus| (cpus.0 * 1e9) as i64),
                pids: self.pids.map_or(config.limits.pids, |pids| pids.0.into()),
                tmp_bytes: megabytes(self.tmp_mb, config.limits.tmp_bytes),
            },
            disk_bytes: match self.disk_mb {
                Some(megabytes) => Some(u64::from(megabytes) << 20).filter(|limit| *limit > 0),
                None => config.disk_bytes,
            },
            idle: {
                let named = Idle::of_seconds(self.pause_after.unwrap_or(0), self.idle_timeout.unwrap_or(0));
                Idle {
                    pause_after: self.pause_after.map_or(config.idle.pause_after, |_| named.pause_after),
                    stop_after: self.idle_timeout.map_or(config.idle.stop_after, |_| named.stop_after),
                }
            },
        }
    }
}
