//! `.env.example`, read.

use std::sync::LazyLock;

/// The text of `.env.example`, as it was at compile time.
pub const EXAMPLE: &str = include_str!("../../../.env.example");

/// One setting of `.env.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// Its default; for secrets the placeholder.
    pub default: String,
    /// What it does: the comment above it, without the list of readers.
    pub explanation: String,
    /// Who reads it: names of binaries.
    pub readers: Vec<String>,
    /// The heading it stands under.
    pub section: String,
}

/// Secrets that are not generated: empty means that another one serves, or that there is none.
const OPTIONAL_SECRETS: [&str; 4] =
    ["DEPLOY_API_TOKEN", "DEPLOY_CONTROL_API_TOKEN", "DATABASE_URL", "BEAVER_EGRESS_UPSTREAM_PROXY"];

impl Setting {
    /// Whether its value is generated, since it must be a secret of this installation's own.
    pub fn is_generated(&self) -> bool {
        self.default.starts_with("change-me")
    }

    /// Whether its value is a secret, or has one in it: then it belongs into no environment, label or log.
    pub fn is_secret(&self) -> bool {
        self.is_generated() || OPTIONAL_SECRETS.contains(&self.key.as_str())
    }
}

static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| read(EXAMPLE));

/// Every setting, in the file's order.
pub fn settings() -> &'static [Setting] {
    &SETTINGS
}

pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    settings().iter().find(|s| s.key == key)
}

pub(crate) fn explain(key: &str) -> String {
    find(key).map(|s| s.explanation.clone()).unwrap_or_default()
}

/// The part of `.env.example` that `service` reads: what stands in the `.env.example` of its own folder.
pub fn for_service(service: &str) -> String {
    let mut text =
        format!("# The settings that {service} reads: a part of the project's .env.example, kept equal by a test.\n");
    for setting in settings().iter().filter(|s| s.readers.iter().any(|r| r == service)) {
        text.push_str(&format!("\n# {}\n{}={}\n", setting.explanation, setting.key, setting.default));
    }
    text
}

fn read(text: &str) -> Vec<Setting> {
    let (mut comment, mut section, mut all) = (Vec::new(), String::new(), Vec::new());
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
            comment.clear();
        } else if let Some(words) = line.strip_prefix('#') {
            comment.push(words.trim());
        } else if let Some((key, default)) = line.split_once('=') {
            let words = comment.join(" ");
            let (explanation, readers) = words.rsplit_once('[').unwrap_or((&words, ""));
            all.push(Setting {
                key: key.to_owned(),
                default: default.to_owned(),
                explanation: explanation.trim().to_owned(),
                readers: readers.trim_end_matches(']').split_whitespace().map(str::to_owned).collect(),
                section: section.clone(),
            });
            comment.clear();
        } else {
            comment.clear();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_explained_and_read_by_somebody() {
        assert!(settings().len() > 30);
        for setting in settings() {
            assert!(
                !setting.explanation.is_empty() && !setting.readers.is_empty() && !setting.section.is_empty(),
                "{setting:?}"
            );
        }
    }

    #[test]
    fn the_examples_beside_the_services_are_parts_of_the_one_truth() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        for (folder, service) in [
            ("services/auth-portal", "auth-portal"),
            ("services/authz", "authz"),
            ("services/deploy-control", "deploy-control"),
            ("router-proxy", "router-proxy"),
            ("app-instance", "app-instance"),
        ] {
            let path = format!("{root}/{folder}/.env.example");
            if std::env::var_os("BEAVER_TEST_WRITE_EXAMPLES").is_some() {
                std::fs::write(&path, for_service(service)).unwrap();
            }
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                there == for_service(service),
                "{path} is stale: run `BEAVER_TEST_WRITE_EXAMPLES=1 cargo test -p settings`"
            );
        }
    }
}
