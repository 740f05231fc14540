//! Secrets on their way to the services: files under `<data>/secrets/<service>`, each service given only its own, as
//! its `BEAVER_SECRETS_DIR`. An environment would show them to whoever asks the engine about a container.

use std::{collections::BTreeMap, fs, io::Read, os::unix::fs::MetadataExt, path::Path};

use anyhow::Context;
use beneath::Root;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    Usage, ask,
    compose::Compose,
    envfile,
    stack::{self, Project, SERVICE_ID, Stack},
};

/// Where they are, under the data directory.
pub const DIRECTORY: &str = "secrets";

/// Secrets by the names of their settings.
pub type Secrets = BTreeMap<String, SecretString>;

/// When each service's secrets last changed, in milliseconds since 1970.
pub type Changes = BTreeMap<String, i64>;

/// Who gets secrets, and the user id it runs as in compose.yaml.
const RECIPIENTS: [(&str, u32); 5] = [
    ("auth-portal", SERVICE_ID),
    ("authz", SERVICE_ID),
    ("deploy-control", 0),
    ("router-proxy", SERVICE_ID),
    (ASK, SERVICE_ID),
];

/// The one-off that asks the services, and what it shows them.
const ASK: &str = "ask";
const ASKS_WITH: [&str; 4] =
    ["BEAVER_DEPLOY_TOKEN", "DEPLOY_API_TOKEN", "BEAVER_AUTHZ_INTERNAL_TOKEN", "BEAVER_ROUTER_INTERNAL_TOKEN"];

/// Who checks which token: it alone also accepts the one before.
const CHECKS: [(&str, &str); 4] = [
    ("authz", "BEAVER_AUTHZ_INTERNAL_TOKEN"),
    ("deploy-control", "BEAVER_DEPLOY_TOKEN"),
    ("deploy-control", "DEPLOY_CONTROL_API_TOKEN"),
    ("router-proxy", "BEAVER_ROUTER_INTERNAL_TOKEN"),
];

/// The most entries of a directory that is ours; more were never written by us.
const MAX_ENTRIES: usize = 1000;
const MAX_BYTES: u64 = 64 << 10;

fn gets(recipient: &str, name: &str) -> bool {
    if let Some(base) = name.strip_suffix("_PREVIOUS") {
        return CHECKS.contains(&(recipient, base));
    }
    if recipient == ASK {
        return ASKS_WITH.contains(&name);
    }
    let mut settings = settings::settings().iter().filter(|setting| setting.is_secret() && setting.key == name);
    settings.any(|setting| setting.readers.iter().any(|reader| reader == recipient))
}

/// Reads the secrets of `.env` for a stack that compose starts by itself. What `_FILE` settings name is seen in here only
/// in the project's folder and in the data directory, which are mounted.
///
/// # Errors
/// [`Usage`] or [`settings::Error`] when there is no such file, a path is elsewhere, or a secret is unusable.
pub fn of_settings_file(project: Project, data: &Path) -> anyhow::Result<Secrets> {
    if !project.env_file.is_file() {
        let file = project.env_file.display();
        return Err(Usage(format!("{file} is not there: docker compose run --rm beaver init makes it")).into());
    }
    let values = envfile::read(&project.env_file)?;
    for (key, path) in values.iter().filter(|(key, path)| stack::names_a_secret(key) && !path.trim().is_empty()) {
        let path = stack::absolute(&project.dir, Path::new(path.trim()));
        if !path.starts_with(&project.dir) && !path.starts_with(data) {
            let (path, dir, data) = (path.display(), project.dir.display(), data.display());
            return Err(Usage(format!(
                "{key} names {path}, which is neither in {dir} nor in {data}: compose by itself reads secrets only \
                 there; move it, or start the stack with beaver up"
            ))
            .into());
        }
    }
    let here = BTreeMap::from([("BEAVER_DATA_DIR".to_owned(), data.display().to_string())]);
    let stack = Stack::from_values(project, values, &here)?;
    stack.check_secrets()?;
    Ok(stack.secrets()?)
}

/// Reads what [`hand_over`] sends.
///
/// # Errors
/// When it is something else.
pub fn of_reader(reader: impl Read) -> anyhow::Result<Secrets> {
    // The parser's own message could quote what it read.
    let values: BTreeMap<String, String> =
        serde_json::from_reader(reader).map_err(|_| anyhow::anyhow!("what came in is no secrets"))?;
    Ok(values.into_iter().map(|(name, value)| (name, value.into())).collect())
}

/// Has `prepare`'s container write the secrets, which reach it through a pipe: they are in no file but the services' own,
/// wherever this stack's settings come from.
///
/// # Errors
/// When the container cannot be run or fails.
pub async fn hand_over(stack: &Stack, compose: &Compose) -> anyhow::Result<Changes> {
    let secrets = stack.secrets()?;
    let values: BTreeMap<&str, &str> = secrets.iter().map(|(k, v)| (k.as_str(), v.expose_secret())).collect();
    let input = serde_json::to_vec(&values)?;
    let arguments = ["run", "--rm", "--no-deps", "-T", "prepare", "prepare", "--secrets", "stdin"];
    let output = compose.run_with_input(stack, &arguments, &input).await?;
    ask::answer(&output).context("prepare does not say when secrets changed")
}

/// Writes each service's secrets, and removes what is not or no longer one of them. What is as it should be stays
/// untouched, so that the time of a directory's last change tells whether its service has read what is in it.
///
/// # Errors
/// When something cannot be written or removed.
pub fn hand_out(data: &Path, secrets: &Secrets) -> anyhow::Result<Changes> {
    let base = data.join(DIRECTORY);
    let failed = || format!("cannot write {}", base.display());
    Root::open(data).and_then(|root| root.create_dir(DIRECTORY, 0o700, Some((0, 0)))).with_context(failed)?;
    let root = Root::open(&base).with_context(failed)?;
    keep_only(&root, "", |name| RECIPIENTS.iter().any(|(recipient, _)| *recipient == name)).with_context(failed)?;
    let mut changes = Changes::new();
    for (recipient, owner) in RECIPIENTS {
        let owner = (owner, owner);
        root.create_dir(recipient, 0o500, Some(owner)).with_context(failed)?;
        let own: Vec<_> = secrets.iter().filter(|(name, _)| gets(recipient, name)).collect();
        keep_only(&root, recipient, |name| own.iter().any(|(own, _)| *own == name)).with_context(failed)?;
        for (name, value) in own {
            let (path, value) = (Path::new(recipient).join(name), value.expose_secret().as_bytes());
            if !is_there(&root, &base, &path, value, owner)? {
                root.write_atomic(&path, value, 0o400, Some(owner)).with_context(failed)?;
            }
        }
        let meta = fs::symlink_metadata(base.join(recipient)).with_context(failed)?;
        changes.insert(recipient.to_owned(), meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000);
    }
    Ok(changes)
}

fn keep_only(root: &Root, dir: &str, wanted: impl Fn(&str) -> bool) -> Result<(), beneath::Error> {
    for entry in root.list(dir, MAX_ENTRIES)? {
        if !entry.name.to_str().is_some_and(&wanted) {
            root.remove_tree(Path::new(dir).join(entry.name))?;
        }
    }
    Ok(())
}

fn is_there(root: &Root, base: &Path, path: &Path, value: &[u8], owner: (u32, u32)) -> anyhow::Result<bool> {
    let Ok(there) = root.read(path, MAX_BYTES) else { return Ok(false) };
    let meta = fs::symlink_metadata(base.join(path)).with_context(|| format!("cannot look at {}", path.display()))?;
    let as_given = !rustix::process::geteuid().is_root() || (meta.uid(), meta.gid()) == owner;
    Ok(there == value && meta.mode() & 0o777 == 0o400 && as_given)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn secrets(names: &[&str]) -> Secrets {
        names.iter().map(|name| ((*name).to_owned(), format!("{GOOD}-{name}").into())).collect()
    }

    fn every_secret() -> Secrets {
        let names = settings::settings().iter().filter(|s| s.is_secret()).map(|s| s.key.clone());
        let names: Vec<_> = names.flat_map(|name| [format!("{name}_PREVIOUS"), name]).collect();
        secrets(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn there(data: &Path, service: &str) -> Vec<String> {
        let entries = fs::read_dir(data.join(DIRECTORY).join(service)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn each_service_gets_what_it_reads_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        hand_out(data.path(), &every_secret()).unwrap();
        assert_eq!(
            there(data.path(), "auth-portal"),
            ["BEAVER_AUTHZ_INTERNAL_TOKEN", "BEAVER_DEPLOY_TOKEN", "BEAVER_ROUTER_INTERNAL_TOKEN", "DEPLOY_API_TOKEN"]
        );
        assert_eq!(
            there(data.path(), "authz"),
            [
                "BEAVER_AUTHZ_INTERNAL_TOKEN",
                "BEAVER_AUTHZ_INTERNAL_TOKEN_PREVIOUS",
                "BEAVER_DEPLOY_TOKEN",
                "BEAVER_OPERATOR_TOKEN",
                "BEAVER_ROUTER_INTERNAL_TOKEN",
                "BEAVER_SEAL_KEY",
                "DATABASE_URL",
                "DEPLOY_API_TOKEN"
            ]
        );
        assert_eq!(
            there(data.path(), "deploy-control"),
            [
                "BEAVER_AUTHZ_INTERNAL_TOKEN",
                "BEAVER_DEPLOY_TOKEN",
                "BEAVER_DEPLOY_TOKEN_PREVIOUS",
                "BEAVER_ROUTER_INTERNAL_TOKEN",
                "DATABASE_URL",
                "DEPLOY_CONTROL_API_TOKEN",
                "DEPLOY_CONTROL_API_TOKEN_PREVIOUS"
            ]
        );
        assert_eq!(
            there(data.path(), "router-proxy"),
            [
                "BEAVER_DEPLOY_TOKEN",
                "BEAVER_EGRESS_UPSTREAM_PROXY",
                "BEAVER_ROUTER_INTERNAL_TOKEN",
                "BEAVER_ROUTER_INTERNAL_TOKEN_PREVIOUS",
                "DEPLOY_API_TOKEN"
            ]
        );
        assert_eq!(
            there(data.path(), "ask"),
            ["BEAVER_AUTHZ_INTERNAL_TOKEN", "BEAVER_DEPLOY_TOKEN", "BEAVER_ROUTER_INTERNAL_TOKEN", "DEPLOY_API_TOKEN"]
        );
        // No secret is for nobody.
        for setting in settings::settings().iter().filter(|setting| setting.is_secret()) {
            assert!(RECIPIENTS.iter().any(|(recipient, _)| gets(recipient, &setting.key)), "{}", setting.key);
        }
        let file = data.path().join("secrets/authz/BEAVER_SEAL_KEY");
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{GOOD}-BEAVER_SEAL_KEY"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o500);
        if rustix::process::geteuid().is_root() {
            assert_eq!(fs::metadata(&file).unwrap().uid(), SERVICE_ID);
            assert_eq!(fs::metadata(data.path().join("secrets/deploy-control")).unwrap().uid(), 0);
        }
    }

    #[test]
    fn only_a_service_whose_secrets_are_others_is_told_to_read_them_again() {
        let data = tempfile::tempdir().unwrap();
        let mut all = secrets(&["BEAVER_DEPLOY_TOKEN", "BEAVER_SEAL_KEY", "BEAVER_OPERATOR_TOKEN"]);
        let first = hand_out(data.path(), &all).unwrap();
        // As if that had been long ago.
        let ages_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for (service, _) in RECIPIENTS {
            fs::File::open(data.path().join(DIRECTORY).join(service)).unwrap().set_modified(ages_ago).unwrap();
        }
        let same = hand_out(data.path(), &all).unwrap();
        assert!(same.values().all(|at| *at == 1_000_000_000_000), "{same:?}");
        all.insert("BEAVER_SEAL_KEY".into(), GOOD.to_owned().into());
        let other = hand_out(data.path(), &all).unwrap();
        let changed: Vec<_> = other.iter().filter(|(name, at)| same[*name] != **at).map(|(name, _)| name).collect();
        assert_eq!(changed, ["authz"]);
        assert!(other["authz"] >= first["authz"]);
        all.remove("BEAVER_OPERATOR_TOKEN");
        hand_out(data.path(), &all).unwrap();
        assert_eq!(there(data.path(), "authz"), ["BEAVER_DEPLOY_TOKEN", "BEAVER_SEAL_KEY"]);
    }

    #[test]
    fn what_is_not_a_secret_of_ours_goes_and_no_link_is_followed() {
        let data = tempfile::tempdir().unwrap();
        let elsewhere = data.path().join("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        let authz = data.path().join("secrets/authz");
        fs::create_dir_all(authz.join("folder")).unwrap();
        fs::create_dir_all(data.path().join("secrets/of-old")).unwrap();
        fs::write(authz.join(".tmp-1"), "half").unwrap();
        symlink(&elsewhere, authz.join("BEAVER_SEAL_KEY")).unwrap();
        hand_out(data.path(), &secrets(&["BEAVER_SEAL_KEY"])).unwrap();
        assert_eq!(there(data.path(), "authz"), ["BEAVER_SEAL_KEY"]);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
        assert!(fs::symlink_metadata(authz.join("BEAVER_SEAL_KEY")).unwrap().is_file());
        assert!(!data.path().join("secrets/of-old").exists());
    }

    #[test]
    fn compose_by_itself_reads_the_settings_file_and_files_it_can_see() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, data) = (folder.path().join("project"), folder.path().join("data"));
        fs::create_dir_all(dir.join("own")).unwrap();
        let project = || Project { dir: dir.clone(), env_file: dir.join(".env") };
        let said = |error: anyhow::Error| format!("{error:#}");
        let missing = said(of_settings_file(project(), &data).unwrap_err());
        assert!(missing.contains("beaver init"), "{missing}");

        let generated = settings::settings().iter().filter(|s| s.is_generated());
        let all: String = generated.map(|s| format!("{}={GOOD}\n", s.key)).collect();
        let write = |more: &str| fs::write(dir.join(".env"), format!("{all}{more}")).unwrap();
        fs::write(dir.join("own/db"), "postgres://beaver:pass@db/beaver\n").unwrap();
        write("DATABASE_URL_FILE=own/db\n");
        let secrets = of_settings_file(project(), &data).unwrap();
        assert_eq!(secrets["DATABASE_URL"].expose_secret(), "postgres://beaver:pass@db/beaver");
        assert_eq!(secrets["BEAVER_SEAL_KEY"].expose_secret(), GOOD);

        for elsewhere in ["/etc/beaver/db", "../elsewhere"] {
            write(&format!("DATABASE_URL_FILE={elsewhere}\n"));
            let refused = said(of_settings_file(project(), &data).unwrap_err());
            assert!(refused.starts_with("DATABASE_URL_FILE") && refused.contains("beaver up"), "{refused}");
        }
        write("BEAVER_SEAL_KEY=short\n");
        let short = said(of_settings_file(project(), &data).unwrap_err());
        assert!(short.contains("BEAVER_SEAL_KEY") && !short.contains("=short"), "{short}");
    }

    #[test]
    fn what_is_no_secrets_is_not_quoted() {
        let error = of_reader(&b"{\"BEAVER_SEAL_KEY\": hunter2"[..]).unwrap_err();
        assert!(!format!("{error:#}").contains("hunter2"));
        let read = of_reader(&b"{\"BEAVER_SEAL_KEY\": \"a\"}"[..]).unwrap();
        assert_eq!(read["BEAVER_SEAL_KEY"].expose_secret(), "a");
    }
}
