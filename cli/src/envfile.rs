//! `.env`: made once from `.env.example`, read ever after, never changed.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use anyhow::Context;
use clock::Entropy;

use crate::{Usage, args::Choices, stack};

/// What placeholders of secrets begin with in `.env.example`.
const PLACEHOLDER: &str = "change-me";

/// The values of a settings file.
///
/// # Errors
/// When it cannot be read, or has a line that is no `NAME=value`; the line is not shown, since it may be a secret.
pub fn read(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse(&text).map_err(|Usage(why)| Usage(format!("{}: {why}", path.display())))?)
}

/// The values in a settings file's text.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, Usage> {
    dotenvy::from_read_iter(text.as_bytes())
        .map(|pair| pair.map_err(|_| Usage("a line is not NAME=value".into())))
        .collect()
}

/// The text of a new settings file: `.env.example` with secrets in place of the placeholders and `choices` over the
/// values of `shell`, which are over the defaults.
///
/// # Errors
/// [`Usage`] when a choice is unusable.
pub fn generate(
    choices: &Choices,
    shell: &BTreeMap<String, String>,
    project: &Path,
    entropy: &Entropy,
) -> anyhow::Result<String> {
    let chosen = decide(choices, shell, project)?;
    let mut text = String::with_capacity(settings::EXAMPLE.len());
    for line in settings::EXAMPLE.lines() {
        let Some((key, default)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let value = match chosen.get(key) {
            Some(value) => value.clone(),
            None if default.starts_with(PLACEHOLDER) => secret(entropy),
            None => default.to_owned(),
        };
        if value.contains(['\n', '\r']) {
            return Err(Usage(format!("{key} has a line break in it")).into());
        }
        text.push_str(&format!("{key}={}\n", quoted(&value)));
    }
    Ok(text)
}

/// 32 random bytes as `openssl rand -hex 32` prints them.
fn secret(entropy: &Entropy) -> String {
    hex::encode(entropy.bytes::<32>())
}

/// As compose and we both read it back: single quotes keep `$`, `#` and spaces as they are.
fn quoted(value: &str) -> String {
    if value.contains(['$', '#', ' ', '"', '\\']) && !value.contains('\'') {
        format!("'{value}'")
    } else {
        value.to_owned()
    }
}

fn decide(
    choices: &Choices,
    shell: &BTreeMap<String, String>,
    project: &Path,
) -> anyhow::Result<BTreeMap<String, String>> {
    // Where seed systems exported their settings, the first `up` takes them over.
    let mut chosen: BTreeMap<String, String> = shell
        .iter()
        .filter(|(key, value)| {
            let known = settings::settings().iter().any(|s| s.key == **key && **value != s.default);
            // The engine's address is the shell's own affair, and holds for as long as the shell.
            known && !value.trim().is_empty() && !matches!(key.as_str(), "DOCKER_HOST" | "COMPOSE_PROJECT_NAME")
        })
        .map(|(key, value)| (key.clone(), value.trim().to_owned()))
        .collect();
    let mut set = |key: &str, value: String| chosen.insert(key.to_owned(), value);

    if let Some(domain) = &choices.domain {
        let local = domain == "localhost" || domain.ends_with(".localhost");
        let scheme = choices.scheme.clone().unwrap_or_else(|| if local { "http" } else { "https" }.into());
        if !local {
            let port = if scheme == "https" { 443 } else { 80 };
            set("DEPLOY_PUBLIC_PORT", port.to_string());
            set("BEAVER_PORTAL_URL", format!("{scheme}://{}", portal_host(domain)));
            if choices.bind.is_none_or(|bind| bind.is_loopback()) {
                // Only the proxy on this host can connect then, and the engine shows it under a bridge's address.
                set("BEAVER_TRUSTED_PROXIES", "127.0.0.0/8,172.16.0.0/12,192.168.0.0/16".into());
            }
        }
        set("BEAVER_BASE_DOMAIN", domain.clone());
        set("DEPLOY_PUBLIC_SCHEME", scheme);
    } else if let Some(scheme) = &choices.scheme {
        set("DEPLOY_PUBLIC_SCHEME", scheme.clone());
    }
    if let Some(bind) = choices.bind {
        set("BEAVER_BIND", bind.to_string());
    }
    if let Some(port) = choices.portal_port {
        set("BEAVER_PORTAL_PORT", port.to_string());
        if choices.domain.is_none() {
            set("BEAVER_PORTAL_URL", format!("http://localhost:{port}"));
        }
    }
    if let Some(port) = choices.router_port {
        set("BEAVER_ROUTER_PORT", port.to_string());
        if choices.domain.is_none() {
            set("DEPLOY_PUBLIC_PORT", port.to_string());
        }
    }
    if let Some(port) = choices.public_port {
        set("DEPLOY_PUBLIC_PORT", port.to_string());
    }
    if let Some(url) = &choices.portal_url {
        set("BEAVER_PORTAL_URL", url.trim_end_matches('/').to_owned());
    }
    if let Some(prefix) = &choices.prefix {
        set("BEAVER_PREFIX", prefix.clone());
    }
    if let Some(dir) = &choices.data_dir {
        set("BEAVER_DATA_DIR", dir.to_string_lossy().into_owned());
    }

    let portal_secure = chosen.get("BEAVER_PORTAL_URL").is_some_and(|url| url.starts_with("https://"));
    if chosen.get("DEPLOY_PUBLIC_SCHEME").is_some_and(|scheme| scheme == "https") && !portal_secure {
        return Err(Usage("workspaces with https need a portal with https: add --portal-url https://…".into()).into());
    }

    let prefix = chosen.get("BEAVER_PREFIX").cloned().unwrap_or_else(|| "beaver".into());
    stack::check_prefix(&prefix)?;
    for (key, name) in [
        ("BEAVER_NET", format!("{prefix}-instance-edge")),
        ("BEAVER_PROXY_CONTAINER_NAME", format!("{prefix}-router-proxy")),
        ("BEAVER_INSTANCE_IMAGE", format!("{prefix}/app-instance:latest")),
        ("COMPOSE_PROJECT_NAME", prefix),
    ] {
        chosen.entry(key.to_owned()).or_insert(name);
    }
    let data = chosen.get("BEAVER_DATA_DIR").cloned().unwrap_or_else(|| "./runtime".into());
    chosen.insert("BEAVER_DATA_DIR".into(), stack::absolute(project, Path::new(&data)).display().to_string());
    Ok(chosen)
}

/// `apps.example.com` → `portal.example.com`; a bare `example.com` → `portal.example.com`.
fn portal_host(domain: &str) -> String {
    match domain.split_once('.') {
        Some((_, parent)) if parent.contains('.') => format!("portal.{parent}"),
        _ => format!("portal.{domain}"),
    }
}

/// Writes a settings file that only its owner reads. When root does it, the file goes to whom the folder belongs:
/// that is who runs compose next.
///
/// # Errors
/// `AlreadyExists` when there is one: it is not touched.
pub fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let owner = std::fs::metadata(folder)?;
    // Whole or not at all: half a file would be taken for the operator's own.
    let mut file = tempfile::Builder::new().prefix(".env.").tempfile_in(folder)?;
    if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        std::os::unix::fs::fchown(file.as_file(), Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn made(choices: &Choices, shell: &[(&str, &str)]) -> BTreeMap<String, String> {
        let shell = shell.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse(&generate(choices, &shell, Path::new("/project"), &Entropy::seeded(1)).unwrap()).unwrap()
    }

    #[test]
    fn every_setting_is_there_and_every_secret_is_fresh() {
        let values = made(&Choices::default(), &[]);
        let mut secrets = Vec::new();
        for setting in settings::settings() {
            let value = &values[&setting.key];
            if setting.default.starts_with(PLACEHOLDER) {
                assert!(value.len() == 64 && !secrets.contains(value), "{}", setting.key);
                secrets.push(value.clone());
            } else if setting.key != "BEAVER_DATA_DIR" {
                assert_eq!(*value, setting.default, "{}", setting.key);
            }
        }
        assert!(secrets.len() >= 5);
        assert_eq!(values["BEAVER_DATA_DIR"], "/project/runtime");
    }

    #[test]
    fn https_for_workspaces_alone_is_refused() {
        for (domain, portal_url) in [(None, None), (Some("localhost"), None), (None, Some("http://portal.example.com"))]
        {
            let [domain, portal_url] = [domain, portal_url].map(|value| value.map(str::to_owned));
            let choices = Choices { scheme: Some("https".into()), domain, portal_url, ..Choices::default() };
            let shell = BTreeMap::new();
            let refused = generate(&choices, &shell, Path::new("/project"), &Entropy::seeded(1)).unwrap_err();
            assert!(refused.to_string().contains("--portal-url"), "{refused}");
        }
    }

    #[test]
    fn a_domain_means_https_and_a_portal_beside_it() {
        let values = made(&Choices { domain: Some("apps.example.com".into()), ..Choices::default() }, &[]);
        assert_eq!(values["BEAVER_BASE_DOMAIN"], "apps.example.com");
        assert_eq!(values["BEAVER_PORTAL_URL"], "https://portal.example.com");
        assert_eq!((&*values["DEPLOY_PUBLIC_SCHEME"], &*values["DEPLOY_PUBLIC_PORT"]), ("https", "443"));
        assert!(values["BEAVER_TRUSTED_PROXIES"].contains("172.16.0.0/12"));
        let open = Choices {
            domain: Some("apps.example.com".into()),
            bind: Some([0, 0, 0, 0].into()),
            portal_url: Some("https://sign-in.example.net/".into()),
            ..Choices::default()
        };
        let values = made(&open, &[]);
        assert_eq!(values["BEAVER_TRUSTED_PROXIES"], "", "who can connect directly is not believed");
        assert_eq!(values["BEAVER_PORTAL_URL"], "https://sign-in.example.net");
    }

    #[test]
    fn a_prefix_names_everything() {
        let values = made(&Choices { prefix: Some("two".into()), ..Choices::default() }, &[]);
        assert_eq!(values["BEAVER_NET"], "two-instance-edge");
        assert_eq!(values["BEAVER_PROXY_CONTAINER_NAME"], "two-router-proxy");
        assert_eq!(values["BEAVER_INSTANCE_IMAGE"], "two/app-instance:latest");
        assert_eq!(values["COMPOSE_PROJECT_NAME"], "two");
    }

    #[test]
    fn exported_settings_are_taken_over_and_the_command_line_outdoes_them() {
        let choices = Choices { router_port: Some(9000), ..Choices::default() };
        let values = made(
            &choices,
            &[
                ("BEAVER_NET", "old-net"),
                ("BEAVER_ROUTER_PORT", "9001"),
                ("BEAVER_DEPLOY_TOKEN", "change-me-with-openssl-rand-hex-32"),
                ("BEAVER_EGRESS_ALLOW", "a # b"),
                ("HOME", "/root"),
            ],
        );
        assert_eq!(values["BEAVER_NET"], "old-net");
        assert_eq!((&*values["BEAVER_ROUTER_PORT"], &*values["DEPLOY_PUBLIC_PORT"]), ("9000", "9000"));
        assert_eq!(values["BEAVER_DEPLOY_TOKEN"].len(), 64, "a placeholder is no secret, wherever it comes from");
        assert_eq!(values["BEAVER_EGRESS_ALLOW"], "a # b");
        assert!(!values.contains_key("HOME"));
    }

    #[test]
    fn the_file_is_its_owners_alone_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        write_new(&path, "A=1\n").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(write_new(&path, "A=2\n").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A=1\n");
    }

    #[test]
    fn a_broken_line_is_an_error_that_does_not_show_it() {
        let Usage(said) = parse("A=1\nBEAVER_DEPLOY_TOKEN hunter2\n").unwrap_err();
        assert!(!said.contains("hunter2"), "{said}");
    }
}
