//! compose.yaml gives each service the settings it reads, hardened and published as the design says, and both
//! generations of the compose tool can read it.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use serde::Deserialize;

/// What compose.yaml decides itself: where services listen inside their containers, which engine runs workspaces, where
/// secrets are.
const FIXED: [&str; 10] = [
    "PORTAL_LISTEN",
    "PORTAL_INTERNAL_LISTEN",
    "AUTHZ_LISTEN",
    "DEPLOY_LISTEN",
    "ROUTER_LISTEN",
    "ROUTER_INTERNAL_LISTEN",
    "BEAVER_INSTANCE_COMMAND",
    "DOCKER_HOST",
    "BEAVER_ENGINE",
    "BEAVER_SECRETS_DIR",
];

/// After which `prepare` has written everything.
const WRITTEN: &str = "service_completed_successfully";

#[derive(Deserialize)]
struct File {
    services: BTreeMap<String, Service>,
}

#[derive(Deserialize)]
struct Service {
    image: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    restart: String,
    read_only: bool,
    cap_drop: Vec<String>,
    #[serde(default)]
    cap_add: Vec<String>,
    security_opt: Vec<String>,
    userns_mode: String,
    mem_limit: String,
    pids_limit: u32,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    condition: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn file() -> File {
    let text = std::fs::read_to_string(root().join("compose.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn each_service_gets_the_settings_it_reads_and_no_others() {
    let file = file();
    for name in ["auth-portal", "authz", "deploy-control", "router-proxy"] {
        let given = &file.services[name].environment;
        for setting in settings::settings() {
            let key = setting.key.as_str();
            let reads = setting.readers.iter().any(|reader| reader == name) && !FIXED.contains(&key);
            let reads = reads && !setting.is_secret();
            let fixed = (name, key) == ("deploy-control", "BEAVER_ENGINE") || key == "BEAVER_SECRETS_DIR";
            assert_eq!(given.contains_key(key), reads || fixed, "{name} {key}");
            if reads && key != "BEAVER_DATA_DIR" {
                assert_eq!(given[key], format!("${{{key}:-}}"), "{name}: the default is .env.example's alone");
            }
        }
        for key in given.keys() {
            assert!(
                settings::settings().iter().any(|setting| setting.key == *key),
                "{name} gets {key}, which is no setting"
            );
        }
    }
}

/// The engine shows an environment and labels to whoever may ask it about a container.
#[test]
fn a_secret_is_in_no_environment_and_each_service_sees_its_own_files_alone() {
    let text = std::fs::read_to_string(root().join("compose.yaml")).unwrap();
    for setting in settings::settings().iter().filter(|setting| setting.is_secret()) {
        assert!(!text.contains(&setting.key), "compose.yaml mentions {}", setting.key);
    }
    for (name, service) in file().services {
        let mounted: Vec<_> = service.volumes.iter().filter(|volume| volume.contains("/secrets")).collect();
        let reads = matches!(name.as_str(), "auth-portal" | "authz" | "deploy-control" | "router-proxy" | "ask");
        if reads {
            let own = format!("${{BEAVER_DATA_DIR:-/var/lib/beaver}}/secrets/{name}:/run/secrets:ro");
            assert_eq!(mounted, [&own], "{name}");
            assert_eq!(service.environment["BEAVER_SECRETS_DIR"], "/run/secrets", "{name}");
            // Somebody has to write them first; `ask` runs beside services that wait for that.
            assert!(name == "ask" || service.depends_on["prepare"].condition == WRITTEN, "{name}");
        } else {
            assert!(mounted.is_empty(), "{name}");
        }
        let whole = |volume: &String| volume.starts_with("${BEAVER_DATA_DIR:-/var/lib/beaver}:");
        assert_eq!(service.volumes.iter().any(whole), name == "prepare", "{name}");
    }
}

#[test]
fn everything_is_hardened_and_only_the_public_parts_are_published() {
    for (name, service) in file().services {
        assert!(service.read_only && service.cap_drop == ["ALL"], "{name}");
        // What they share with the host has the host's ids.
        assert_eq!(service.userns_mode, "host", "{name}");
        // SELinux lets nobody but these reach the sockets of instances and of the engine.
        let beside = matches!(name.as_str(), "deploy-control" | "router-proxy");
        let expected = ["no-new-privileges:true", "label=disable"];
        assert_eq!(service.security_opt, expected[..1 + usize::from(beside)], "{name}");
        assert!(
            service.pids_limit > 0
                && !service.mem_limit.is_empty()
                && (service.image.ends_with(":latest}") || service.image.ends_with(":latest")),
            "{name}"
        );
        assert_eq!(!service.ports.is_empty(), name == "auth-portal" || name == "router-proxy", "{name}");
        assert!(service.ports.iter().all(|port| port.starts_with("${BEAVER_BIND:-127.0.0.1}:")), "{name}");
        assert_eq!(service.volumes.iter().any(|v| v.contains("docker.sock")), name == "deploy-control", "{name}");
        let rooted = matches!(name.as_str(), "deploy-control" | "prepare" | "beaver");
        if name != "instance-image" {
            assert_eq!(service.user, if rooted { "0:0" } else { "10001:10001" }, "{name}");
        }
        assert_eq!(!service.cap_add.is_empty(), rooted, "{name}");
        let serves = matches!(name.as_str(), "auth-portal" | "authz" | "deploy-control" | "router-proxy");
        assert_eq!(service.restart, if serves { "always" } else { "no" }, "{name}");
    }
}

/// Whichever of the two tools is installed reads the file, with no .env at all and with one.
#[test]
fn the_compose_tools_that_are_here_accept_it() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let mut tried = 0;
    for tool in [&["docker", "compose"][..], &["docker-compose"]] {
        let run = |arguments: &[&str]| {
            let mut command = Command::new(tool[0]);
            command.args(&tool[1..]).args(arguments).env("PWD", root()).current_dir(root());
            command.output()
        };
        if !run(&["version"]).is_ok_and(|output| output.status.success()) {
            continue;
        }
        tried += 1;
        let env_file = empty.path().to_str().unwrap();
        let output = run(&["--env-file", env_file, "config", "--quiet"]).unwrap();
        assert!(output.status.success(), "{tool:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(tried > 0 || std::env::var("BEAVER_TEST_DOCKER").as_deref() != Ok("required"), "no compose tool to try");
}

#[test]
fn the_dockerfile_is_given_every_member_of_the_workspace() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let ignored = read(".dockerignore");
    let given: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let mut count = 0;
    for member in serde_json::from_str::<Vec<String>>(members).unwrap() {
        let folder = member.split('/').next().unwrap();
        assert!(given.contains(&folder), ".dockerignore keeps {folder} from the Dockerfile");
        count += 1;
    }
    assert!(count > 5);
}
