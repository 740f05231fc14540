//! One stack: its files, its settings and the names that follow from them.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use settings::Env;

use crate::{Usage, args::Place, envfile, secrets::Secrets};

/// One of the four services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Its name in compose.yaml; also its package, its binary and its image.
    pub name: &'static str,
    /// The end of its container's name.
    container: &'static str,
}

/// The four services, in the order they are shown.
pub const SERVICES: [Service; 4] = [
    Service { name: "auth-portal", container: "auth-portal" },
    Service { name: "authz", container: "authz-service" },
    Service { name: "deploy-control", container: "deploy-control" },
    Service { name: "router-proxy", container: "router-proxy" },
];

/// Whom the services run as, in compose.yaml and in the images; deploy-control runs as root.
pub const SERVICE_ID: u32 = 10001;

/// The directories under the data directory that services write. Beside them, [`crate::secrets`] has its own there.
pub const DIRECTORIES: [&str; 6] = ["authz", "deploy-control", "router", "instances", "run", "certs"];

/// Where the project's files are.
#[derive(Debug, Clone)]
pub struct Project {
    /// The folder with compose.yaml.
    pub dir: PathBuf,
    /// The settings file, there or not.
    pub env_file: PathBuf,
}

impl Project {
    /// The folder named, else the nearest one above the current folder that has a compose.yaml of ours.
    ///
    /// # Errors
    /// [`Usage`] when there is none.
    pub fn find(place: &Place) -> anyhow::Result<Self> {
        let here = std::env::current_dir().context("the current folder is gone")?;
        let dir = match &place.project_dir {
            Some(dir) => absolute(&here, dir),
            None => here
                .ancestors()
                .find(|dir| dir.join("compose.yaml").is_file() && dir.join(".env.example").is_file())
                .map(Path::to_owned)
                .ok_or_else(|| {
                    Usage("this is not Beaver's folder: go there, or name it with --project-dir".to_owned())
                })?,
        };
        let env_file = match &place.env_file {
            Some(file) => absolute(&here, file),
            None => dir.join(".env"),
        };
        Ok(Self { dir, env_file })
    }
}

/// A stack with all its settings.
#[derive(Clone)]
pub struct Stack {
    /// Its files.
    pub project: Project,
    /// Its settings: the file's, over which those of the shell go, as compose does it.
    pub env: Env,
    /// Names in the shell that outdo the file.
    pub overridden: Vec<String>,
    /// Before all names.
    pub prefix: String,
    /// Absolute.
    pub data_dir: PathBuf,
    /// The router's container.
    router: String,
}

impl Stack {
    /// Reads the settings file and the shell's environment.
    ///
    /// # Errors
    /// [`Usage`] or [`settings::Error`] when a setting is unusable.
    pub fn load(project: Project, shell: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let file = if project.env_file.exists() { envfile::read(&project.env_file)? } else { BTreeMap::new() };
        Self::from_values(project, file, shell)
    }

    /// As [`Stack::load`], from values read already.
    pub fn from_values(
        project: Project,
        file: BTreeMap<String, String>,
        shell: &BTreeMap<String, String>,
    ) -> anyhow::Result<Self> {
        let mut values = file;
        let mut overridden = Vec::new();
        for (key, value) in shell.iter().filter(|(key, value)| ours(key) && !value.trim().is_empty()) {
            let before = values.insert(key.clone(), value.clone());
            if before.is_some_and(|before| before != *value) {
                overridden.push(key.clone());
            }
        }
        // Paths in the file are the project's, wherever one stands.
        let files = values.iter_mut().filter(|(key, path)| names_a_secret(key) && !path.trim().is_empty());
        files.for_each(|(_, path)| *path = absolute(&project.dir, Path::new(path.trim())).display().to_string());
        let env = Env::from_pairs(values).with_files()?;
        let prefix = env.string("BEAVER_PREFIX")?;
        check_prefix(&prefix)?;
        let data_dir = absolute(&project.dir, Path::new(&env.string("BEAVER_DATA_DIR")?));
        let env = env.with("BEAVER_DATA_DIR", data_dir.display().to_string());
        let router = env.string("BEAVER_PROXY_CONTAINER_NAME")?;
        Ok(Self { project, env, overridden, prefix, data_dir, router })
    }

    /// The same stack with other settings.
    pub fn with_env(&self, env: Env) -> Self {
        Self { env, ..self.clone() }
    }

    /// Keeps a second `up` or `down` away from this stack until it is dropped; the settings file serves as the lock.
    ///
    /// # Errors
    /// When another one is at work.
    pub fn lock(&self) -> anyhow::Result<Option<File>> {
        let Ok(file) = File::open(&self.project.env_file) else { return Ok(None) };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(_) => anyhow::bail!("another beaver is at work on this stack: wait until it is done"),
        }
    }

    /// Fails on the first secret that is missing, short or the example's.
    ///
    /// # Errors
    /// [`settings::Error`], which says how to make a good one.
    pub fn check_secrets(&self) -> Result<(), settings::Error> {
        for setting in settings::settings().iter().filter(|s| s.is_generated()) {
            self.env.secret(&setting.key)?;
        }
        Ok(())
    }

    /// Every secret that is given, by name, from its `_FILE` too.
    ///
    /// # Errors
    /// [`settings::Error`] when a file cannot be read.
    pub fn secrets(&self) -> Result<Secrets, settings::Error> {
        let mut secrets = Secrets::new();
        for setting in settings::settings().iter().filter(|setting| setting.is_secret()) {
            for name in [setting.key.clone(), format!("{}_PREVIOUS", setting.key)] {
                if let Some(value) = self.env.sensitive(&name)? {
                    secrets.insert(name, value);
                }
            }
        }
        Ok(secrets)
    }

    /// `BEAVER_HOST_ADDRESSES` as the router shall know it: what the settings say and what was found on the host.
    pub fn host_addresses(&self, found: &[String]) -> String {
        let given = self.env.optional("BEAVER_HOST_ADDRESSES").unwrap_or_default();
        let given = given.split(',').map(str::trim).filter(|part| !part.is_empty());
        let mut all: Vec<&str> = given.chain(found.iter().map(String::as_str)).collect();
        all.sort_unstable();
        all.dedup();
        all.join(",")
    }

    /// The name of a service's container.
    pub fn container(&self, service: Service) -> String {
        if service.name == "router-proxy" {
            self.router.clone()
        } else {
            format!("{}-{}", self.prefix, service.container)
        }
    }

    /// The name of a service's image.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.prefix)
    }

    /// Whether workspaces are on the services' network.
    ///
    /// # Errors
    /// [`settings::Error`] when there is no default.
    pub fn is_shared(&self) -> Result<bool, settings::Error> {
        Ok(self.env.string("BEAVER_ISOLATION")? == "shared")
    }

    /// The engine's socket on this host: `BEAVER_DOCKER_SOCKET`, else `DOCKER_HOST`, else the usual one; and
    /// whether a setting names it.
    ///
    /// # Errors
    /// [`Usage`] when `DOCKER_HOST` is not a Unix socket: data lives in directories of this host.
    pub fn socket(&self) -> Result<(PathBuf, bool), Usage> {
        if let Some(path) = self.env.optional("BEAVER_DOCKER_SOCKET") {
            return Ok((path.into(), true));
        }
        match self.env.optional("DOCKER_HOST") {
            None => Ok(("/var/run/docker.sock".into(), false)),
            Some(host) => match host.strip_prefix("unix://") {
                Some(path) => Ok((path.into(), true)),
                // With TLS or over ssh or not.
                None => Err(Usage(format!(
                    "DOCKER_HOST is {host}: workspaces share folders and Unix sockets with this host, so only its own engine \
                     can run them (unset DOCKER_HOST, or unix:///path/to/docker.sock)"
                ))),
            },
        }
    }
}

/// Whether a setting's value is the path of a secret, or of a directory of them.
pub fn names_a_secret(key: &str) -> bool {
    let base = key.strip_suffix("_FILE").map(|base| base.strip_suffix("_PREVIOUS").unwrap_or(base));
    key == "BEAVER_SECRETS_DIR" || base.is_some_and(|base| settings::settings().iter().any(|s| s.key == base))
}

/// The shell's environment.
pub fn shell() -> BTreeMap<String, String> {
    settings::Env::from_process().given().clone()
}

/// The public addresses of this host's interfaces; none, and said, when they cannot be listed.
pub fn host_addresses() -> Vec<String> {
    match router_proxy::egress::own::public_of_interfaces() {
        Ok(found) => found.iter().map(ToString::to_string).collect(),
        Err(error) => {
            eprintln!("! this host's own addresses cannot be listed ({error}): set BEAVER_HOST_ADDRESSES");
            Vec::new()
        }
    }
}

fn ours(key: &str) -> bool {
    let base = key.trim_end_matches("_FILE").trim_end_matches("_PREVIOUS");
    settings::settings().iter().any(|setting| setting.key == base)
}

/// Whether a prefix can stand in names of containers, images and networks.
///
/// # Errors
/// [`Usage`] when it cannot.
pub fn check_prefix(prefix: &str) -> Result<(), Usage> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=32).contains(&prefix.len())
        && prefix.bytes().all(inner)
        && !prefix.starts_with('-')
        && !prefix.ends_with('-')
        && !prefix.contains("--")
    {
        return Ok(());
    }
    Err(Usage(format!("the prefix {prefix:?} must be 1 to 32 lower-case letters, digits and single inner hyphens")))
}

/// `path` from `base`, without `.` and `..`, whether it exists or not.
pub fn absolute(base: &Path, path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in base.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(file: &[(&str, &str)], shell: &[(&str, &str)]) -> Stack {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let project = Project { dir: "/project".into(), env_file: "/project/.env".into() };
        Stack::from_values(project, map(file), &map(shell)).unwrap()
    }

    #[test]
    fn the_shell_outdoes_the_file_as_compose_has_it_and_that_is_known() {
        let stack = stack(&[("BEAVER_NET", "a"), ("BEAVER_LOG", "info")], &[("BEAVER_NET", "b"), ("PATH", "/bin")]);
        assert_eq!(stack.env.string("BEAVER_NET").unwrap(), "b");
        assert_eq!(stack.overridden, ["BEAVER_NET"]);
    }

    #[test]
    fn a_relative_data_directory_is_the_projects() {
        assert_eq!(stack(&[], &[]).data_dir, Path::new("/project/runtime"));
        assert_eq!(stack(&[("BEAVER_DATA_DIR", "../d/./x")], &[]).data_dir, Path::new("/d/x"));
    }

    #[test]
    fn an_engine_elsewhere_is_refused() {
        for elsewhere in ["tcp://192.0.2.1:2376", "ssh://root@192.0.2.1", "http://127.0.0.1:2375"] {
            let shell = [("DOCKER_HOST", elsewhere), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", "/certs")];
            let error = stack(&[], &shell).socket().unwrap_err().to_string();
            assert!(error.contains(elsewhere) && error.contains("Unix sockets"), "{error}");
        }
        let (path, named) = stack(&[], &[("DOCKER_HOST", "unix:///run/user/1000/docker.sock")]).socket().unwrap();
        assert_eq!((path.as_path(), named), (Path::new("/run/user/1000/docker.sock"), true));
        assert!(!stack(&[], &[]).socket().unwrap().1);
    }

    #[test]
    fn the_hosts_addresses_are_those_given_and_those_found() {
        let found = ["93.184.216.34/32".to_owned(), "2606:4700::/64".to_owned()];
        assert_eq!(stack(&[], &[]).host_addresses(&found), "2606:4700::/64,93.184.216.34/32");
        let both = stack(&[("BEAVER_HOST_ADDRESSES", "198.51.100.7, 93.184.216.34/32,")], &[]);
        assert_eq!(both.host_addresses(&found), "198.51.100.7,2606:4700::/64,93.184.216.34/32");
        assert_eq!(stack(&[], &[]).host_addresses(&[]), "");
    }

    #[test]
    fn prefixes_are_what_container_names_bear() {
        for bad in ["", "-a", "a-", "A", "a_b", "a--b", "a/b", &"a".repeat(33)] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
        assert!(check_prefix("bt12ab-signup").is_ok());
    }

    #[test]
    fn a_secret_in_a_file_is_handed_on_as_a_value() {
        use secrecy::ExposeSecret;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
        let stack = stack(&[("BEAVER_SEAL_KEY_FILE", file.path().to_str().unwrap())], &[]);
        let secrets = stack.secrets().unwrap();
        assert_eq!(secrets.len(), 1);
        assert_eq!(secrets["BEAVER_SEAL_KEY"].expose_secret(), "0123456789abcdef0123456789abcdef");
    }

    #[test]
    fn a_relative_path_of_a_secret_is_the_projects() {
        let stack = stack(&[("BEAVER_DEPLOY_TOKEN_PREVIOUS_FILE", "old/token"), ("DATABASE_URL_FILE", "/etc/db")], &[]);
        assert_eq!(stack.env.given()["BEAVER_DEPLOY_TOKEN_PREVIOUS_FILE"], "/project/old/token");
        assert_eq!(stack.env.given()["DATABASE_URL_FILE"], "/etc/db");
    }

    #[test]
    fn unusable_secrets_are_found_before_anything_starts() {
        let good = "0123456789abcdef0123456789abcdef";
        let keys = settings::settings().iter().filter(|s| s.is_generated()).map(|s| s.key.as_str());
        let mut file: Vec<_> = keys.map(|key| (key, good)).collect();
        assert!(stack(&file, &[]).check_secrets().is_ok());
        file[0].1 = "short";
        assert!(stack(&file, &[]).check_secrets().is_err());
    }
}
