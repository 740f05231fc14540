//! deploy-control's settings, one struct a topic.

use std::{path::PathBuf, time::Duration};

use contracts::{PlanName, instance::McpServer};
use secrecy::SecretString;
use settings::{Env, Error, PublicAddress};
use store::Database;
use url::Url;

use crate::{
    plans::PlansConfig,
    reconcile::{LineConfig, PoolConfig, RolloutConfig},
    strikes::Strikes,
};

/// Everything deploy-control is told from outside.
#[derive(Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: String,
    /// Where its registry is.
    pub database: Database,
    /// Where folders and sockets of instances are: absolute, the same inside and outside of containers.
    pub data_dir: PathBuf,
    /// The tokens its callers may show.
    pub tokens: Vec<SecretString>,
    /// The services it calls.
    pub peers: Peers,
    /// What runs instances.
    pub engine: EngineConfig,
    /// What every instance is told.
    pub instance: InstanceSettings,
    /// How instances are worked on.
    pub reconcile: ReconcileConfig,
    /// What plans there are.
    pub plans: PlansConfig,
    /// How long the data of an instance that is deleted is kept.
    pub delete_after: Duration,
    /// How long after all instances' disk use was measured it is measured again.
    pub measure_disk_every: Duration,
    /// Where tests strike; no setting sets it.
    pub strikes: Strikes,
}

/// The services that are called, and what is shown to them.
#[derive(Clone)]
pub struct Peers {
    /// authz.
    pub authz_url: Url,
    /// The token for authz.
    pub authz_token: SecretString,
    /// The router's internal listener.
    pub router_url: Url,
    /// The token for it.
    pub router_token: SecretString,
}

/// Which engine, and what it must know.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Which one.
    pub kind: EngineKind,
    /// Before the names and in the labels of everything it makes.
    pub prefix: String,
    /// Docker's socket.
    pub docker_socket: PathBuf,
    /// The network that instances are on beside their sockets: none, unless the operator gives isolation up.
    pub network: Option<String>,
    /// The image that instances run.
    pub image: String,
    /// The program, and its arguments, that instances run with the process engine.
    pub command: Vec<String>,
    /// The shim's file, for images that know nothing of Beaver: beside this program.
    pub shim: PathBuf,
    /// Where it is put for containers to find it.
    pub shim_folder: PathBuf,
    /// The first instance's user id is the one after this.
    pub uid_base: u32,
    /// How long a byte may take through the sockets of a container that is there to try that.
    pub passage_timeout: Duration,
    /// `BEAVER_LOG` and `BEAVER_LOG_FORMAT`, passed on to instances.
    pub log: [(&'static str, String); 2],
}

/// The engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Containers.
    Docker,
    /// Child processes, without isolation.
    Process,
}

/// What one instance may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Memory in bytes; swap is not added.
    pub memory_bytes: i64,
    /// Processors, in billionths.
    pub nano_cpus: i64,
    /// Processes and threads.
    pub pids: i64,
    /// Its /tmp, in bytes; what is in it counts as memory.
    pub tmp_bytes: i64,
}

/// After how long without use an instance sleeps; `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    /// Frozen, its memory kept.
    pub pause_after: Option<Duration>,
    /// Down, its data kept.
    pub stop_after: Option<Duration>,
}

impl Idle {
    /// Both in seconds, 0 for never.
    pub fn of_seconds(pause_after: u32, stop_after: u32) -> Self {
        let seconds = |given: u32| (given > 0).then(|| Duration::from_secs(given.into()));
        Self { pause_after: seconds(pause_after), stop_after: seconds(stop_after) }
    }
}

/// What stands in every instance's `config.json`.
#[derive(Clone, Debug)]
pub struct InstanceSettings {
    /// Where browsers find things.
    pub public: PublicAddress,
    /// The issuer's name.
    pub issuer: String,
    /// The operator's Outlook MCP server.
    pub outlook_mcp: Option<McpServer>,
}

/// How instances are worked on.
#[derive(Clone, Debug)]
pub struct ReconcileConfig {
    /// Who waits for whom.
    pub line: LineConfig,
    /// How new releases come to instances.
    pub rollout: RolloutConfig,
    /// What is made ahead.
    pub pool: PoolConfig,
    /// How long an instance may take to become healthy.
    pub start_timeout: Duration,
    /// How long one that is in use may go on before it goes down for something of ours.
    pub drain_timeout: Duration,
    /// How often everything is looked at, hint or no hint.
    pub resync: Duration,
    /// The wait after the first failed attempt; each doubles the one before.
    pub first_retry: Duration,
    /// For how long a process is waited for that was asked to end by its own door: longer than what runs in it gives to what is
    /// under way.
    pub end_limit: Duration,
}

impl Config {
    /// Reads the settings.
    ///
    /// # Errors
    ///
    /// The first [`Error`] found; it names the setting and the cure.
    pub fn from_env(env: &Env) -> Result<Self, Error> {
        let data_dir = absolute(env)?;
        let database = Database::from_env(env, "deploy_control", &data_dir, "deploy-control/registry.db")?;
        Ok(Self {
            listen: env.string("DEPLOY_LISTEN")?,
            database,
            tokens: env.live_secrets("DEPLOY_CONTROL_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?,
            peers: Peers {
                authz_url: env.url("BEAVER_AUTHZ_URL")?,
                authz_token: env.secret("BEAVER_AUTHZ_INTERNAL_TOKEN")?,
                router_url: env.url("BEAVER_ROUTER_INTERNAL_URL")?,
                router_token: env.secret("BEAVER_ROUTER_INTERNAL_TOKEN")?,
            },
            engine: EngineConfig::from_env(env, &data_dir)?,
            instance: InstanceSettings {
                public: env.public_address()?,
                issuer: env.string("AUTHZ_ISSUER")?,
                outlook_mcp: outlook(env)?,
            },
            reconcile: ReconcileConfig {
                line: LineConfig {
                    at_once: positive(env, "BEAVER_RECONCILE_CONCURRENCY")?,
                    // 0 is no limit, of either.
                    running: Some(env.parse::<u32>("BEAVER_MAX_RUNNING")? as usize).filter(|most| *most > 0),
                    spare_bytes: Some(u64::from(env.parse::<u32>("BEAVER_SPARE_MEMORY_MB")?) << 20)
                        .filter(|spare| *spare > 0),
                    meminfo: "/proc/meminfo".into(),
                },
                rollout: RolloutConfig {
                    canaries: positive(env, "BEAVER_UPGRADE_CANARIES")?,
                    at_once: positive(env, "BEAVER_UPGRADE_AT_ONCE")?,
                },
                pool: PoolConfig { size: env.parse::<u16>("BEAVER_POOL_SIZE")?.into(), calm: Duration::from_secs(2) },
                start_timeout: Duration::from_secs(positive(env, "BEAVER_START_TIMEOUT")? as u64),
                drain_timeout: Duration::from_secs(env.parse::<u16>("BEAVER_DRAIN_TIMEOUT")?.into()),
                resync: Duration::from_secs(30),
                first_retry: Duration::from_secs(1),
                end_limit: Duration::from_secs(30),
            },
            plans: PlansConfig {
                file: data_dir.join("deploy-control").join(env.string("BEAVER_PLANS_FILE")?),
                default: default_plan(env)?,
                limits: limits(env)?,
                // 0 is no limit.
                disk_bytes: Some(u64::from(env.parse::<u32>("BEAVER_INSTANCE_DISK_MB")?) << 20)
                    .filter(|limit| *limit > 0),
                idle: Idle::of_seconds(env.parse("BEAVER_PAUSE_AFTER")?, env.parse("BEAVER_IDLE_TIMEOUT")?),
            },
            delete_after: delete_after(env)?,
            measure_disk_every: Duration::from_secs(60),
            strikes: Strikes::default(),
            data_dir,
        })
    }
}

impl EngineConfig {
    fn from_env(env: &Env, data_dir: &std::path::Path) -> Result<Self, Error> {
        let kind = match env.optional("BEAVER_ENGINE").as_deref() {
            None | Some("docker") => EngineKind::Docker,
            Some("process") => EngineKind::Process,
            Some(other) => return Err(invalid("BEAVER_ENGINE", format!("{other} is neither docker nor process"))),
        };
        let host = env.optional("DOCKER_HOST").unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let Some(docker_socket) = host.strip_prefix("unix://").filter(|path| path.starts_with('/')) else {
            // TLS or ssh would not help: what is shared with containers are folders and Unix sockets of this host.
            let why = "instances share folders and Unix sockets with this host, so only its own engine can run them";
            return Err(invalid("DOCKER_HOST", format!("{host} is not unix:// and an absolute path, and {why}")));
        };
        let prefix = env.string("BEAVER_PREFIX")?;
        // It goes into container names, whose grammar is Docker's.
        if prefix.len() > 40 || !prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(invalid("BEAVER_PREFIX", "at most 40 lower-case letters, digits and hyphens".into()));
        }
        let uid_base: u32 = env.parse("BEAVER_INSTANCE_UID_BASE")?;
        // Below are the ids of people, the system and our services; above those that the kernel keeps.
        if !(10_100..=2_000_000_000).contains(&uid_base) {
            return Err(invalid("BEAVER_INSTANCE_UID_BASE", "it must be from 10100 to 2000000000".into()));
        }
        Ok(Self {
            kind,
            prefix,
            docker_socket: docker_socket.into(),
            network: network(env)?,
            image: env.string("BEAVER_INSTANCE_IMAGE")?,
            command: env.string("BEAVER_INSTANCE_COMMAND")?.split_whitespace().map(str::to_owned).collect(),
            shim: std::env::current_exe().map(|program| program.with_file_name(shim::FILE)).unwrap_or_default(),
            shim_folder: data_dir.join("deploy-control").join("shim"),
            uid_base,
            passage_timeout: Duration::from_secs(20),
            log: [("BEAVER_LOG", env.string("BEAVER_LOG")?), ("BEAVER_LOG_FORMAT", env.string("BEAVER_LOG_FORMAT")?)],
        })
    }
}

fn network(env: &Env) -> Result<Option<String>, Error> {
    match env.string("BEAVER_ISOLATION")?.as_str() {
        "sockets" => Ok(None),
        "shared" => env.string("BEAVER_NET").map(Some),
        other => Err(invalid("BEAVER_ISOLATION", format!("{other} is neither sockets nor shared"))),
    }
}

fn limits(env: &Env) -> Result<Limits, Error> {
    let cpus: f64 = env.parse("BEAVER_INSTANCE_CPUS")?;
    if !(cpus.is_finite() && (0.01..=1024.0).contains(&cpus)) {
        return Err(invalid("BEAVER_INSTANCE_CPUS", "it must be from 0.01 to 1024".into()));
    }
    Ok(Limits {
        memory_bytes: (positive(env, "BEAVER_INSTANCE_MEMORY_MB")? as i64).saturating_mul(1 << 20),
        nano_cpus: (cpus * 1e9) as i64,
        pids: positive(env, "BEAVER_INSTANCE_PIDS")? as i64,
        tmp_bytes: 64 << 20,
    })
}

fn delete_after(env: &Env) -> Result<Duration, Error> {
    const KEY: &str = "BEAVER_DELETE_AFTER_DAYS";
    let days: f64 = env.parse(KEY)?;
    if !(days.is_finite() && (0.0..=3650.0).contains(&days)) {
        return Err(invalid(KEY, "it must be from 0 to 3650".into()));
    }
    Ok(Duration::from_secs_f64(days * 24.0 * 60.0 * 60.0))
}

fn default_plan(env: &Env) -> Result<PlanName, Error> {
    let key = "BEAVER_DEFAULT_PLAN";
    env.string(key)?.parse().map_err(|error: contracts::NotAPlanName| invalid(key, error.to_string()))
}

fn absolute(env: &Env) -> Result<PathBuf, Error> {
    let given: PathBuf = env.string("BEAVER_DATA_DIR")?.into();
    let path = std::path::absolute(&given).map_err(|error| invalid("BEAVER_DATA_DIR", error.to_string()))?;
    // Docker parts the two sides of a mount at the colon.
    if path.to_str().is_none_or(|text| text.contains(':')) {
        return Err(invalid("BEAVER_DATA_DIR", "it must be valid UTF-8 without a colon".into()));
    }
    Ok(path)
}

fn outlook(env: &Env) -> Result<Option<McpServer>, Error> {
    if env.optional("BEAVER_OUTLOOK_MCP_URL").is_none() {
        return Ok(None);
    }
    let url = env.url("BEAVER_OUTLOOK_MCP_URL")?.to_string();
    Ok(Some(McpServer { id: env.string("BEAVER_OUTLOOK_MCP_SERVER_ID")?, url }))
}

fn positive(env: &Env, key: &str) -> Result<usize, Error> {
    match env.parse::<u32>(key)? {
        0 => Err(invalid(key, "it must be at least 1".into())),
        // Fits: usize has at least 32 bits here.
        number => Ok(number as usize),
    }
}

fn invalid(key: &str, why: String) -> Error {
    Error::Invalid { key: key.into(), why, cure: "correct it in .env; .env.example explains it".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn env() -> Env {
        ["BEAVER_DEPLOY_TOKEN", "BEAVER_AUTHZ_INTERNAL_TOKEN", "BEAVER_ROUTER_INTERNAL_TOKEN"]
            .iter()
            .fold(Env::default(), |env, key| env.with(key, TOKEN))
    }

    #[test]
    fn defaults_are_enough_once_there_are_secrets() {
        let config = Config::from_env(&env()).unwrap();
        assert_eq!((config.engine.kind, config.engine.network), (EngineKind::Docker, None));
        let shared = Config::from_env(&env().with("BEAVER_ISOLATION", "shared").with("BEAVER_NET", "edge")).unwrap();
        assert_eq!(shared.engine.network.as_deref(), Some("edge"));
        let limits = Limits { memory_bytes: 256 << 20, nano_cpus: 1_000_000_000, pids: 128, tmp_bytes: 64 << 20 };
        assert_eq!((config.plans.limits, config.plans.default.is_workspace()), (limits, true));
        assert_eq!(config.plans.file, config.data_dir.join("deploy-control/plans.toml"));
        let elsewhere = Config::from_env(&env().with("BEAVER_PLANS_FILE", "/etc/plans.toml")).unwrap();
        assert_eq!(elsewhere.plans.file, PathBuf::from("/etc/plans.toml"));
        assert!(config.data_dir.is_absolute());
        assert_eq!(config.delete_after, Duration::from_secs(7 * 24 * 60 * 60));
        let half = Config::from_env(&env().with("BEAVER_DELETE_AFTER_DAYS", "0.5")).unwrap();
        assert_eq!(half.delete_after, Duration::from_secs(12 * 60 * 60));
        assert_eq!(config.plans.disk_bytes, Some(2 << 30));
        assert_eq!(Config::from_env(&env().with("BEAVER_INSTANCE_DISK_MB", "0")).unwrap().plans.disk_bytes, None);
        assert_eq!(config.plans.idle, Idle { pause_after: None, stop_after: None }, "nobody sleeps");
        assert_eq!(config.reconcile.pool.size, 0, "nothing is made ahead");
        assert_eq!(Config::from_env(&env().with("BEAVER_POOL_SIZE", "3")).unwrap().reconcile.pool.size, 3);
        let sleepy = env().with("BEAVER_PAUSE_AFTER", "300").with("BEAVER_IDLE_TIMEOUT", "3600");
        let idle = Config::from_env(&sleepy).unwrap().plans.idle;
        assert_eq!(
            (idle.pause_after, idle.stop_after),
            (Some(Duration::from_secs(300)), Some(Duration::from_secs(3600)))
        );
        let line = &config.reconcile.line;
        assert_eq!((line.at_once, line.running, line.spare_bytes), (10, None, Some(256 << 20)));
        let env = env().with("BEAVER_MAX_RUNNING", "7").with("BEAVER_SPARE_MEMORY_MB", "0");
        let line = Config::from_env(&env).unwrap().reconcile.line;
        assert_eq!((line.running, line.spare_bytes), (Some(7), None));
        assert!(matches!(config.database, Database::Sqlite(_)));
    }

    #[test]
    fn unusable_values_name_their_setting() {
        for (key, value) in [
            ("BEAVER_ENGINE", "swarm"),
            ("DOCKER_HOST", "tcp://127.0.0.1:2375"),
            ("DOCKER_HOST", "ssh://root@192.0.2.1"),
            ("DOCKER_HOST", "unix://docker.sock"),
            ("BEAVER_PREFIX", "Beaver"),
            ("BEAVER_ISOLATION", "none"),
            ("BEAVER_INSTANCE_CPUS", "NaN"),
            ("BEAVER_INSTANCE_PIDS", "0"),
            ("BEAVER_INSTANCE_DISK_MB", "-1"),
            ("BEAVER_DELETE_AFTER_DAYS", "-1"),
            ("BEAVER_PAUSE_AFTER", "5m"),
            ("BEAVER_IDLE_TIMEOUT", "-1"),
            ("BEAVER_INSTANCE_UID_BASE", "0"),
            ("BEAVER_DEFAULT_PLAN", "No Plan"),
            ("BEAVER_DATA_DIR", "/a:b"),
            ("BEAVER_RECONCILE_CONCURRENCY", "0"),
            ("BEAVER_MAX_RUNNING", "many"),
            ("BEAVER_POOL_SIZE", "-1"),
            ("BEAVER_UPGRADE_CANARIES", "0"),
            ("BEAVER_UPGRADE_AT_ONCE", "0"),
            ("BEAVER_SPARE_MEMORY_MB", "-1"),
        ] {
            let error = Config::from_env(&env().with(key, value)).err().expect(key).to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }
}
