//! What an instance is given: where its folders are, and the two files in its read-only one.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::Context;
use contracts::instance::{InstanceConfig, Registration};
use settings::{Env, Error};

/// The folders of one instance.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What lasts.
    pub data: PathBuf,
    /// What it is given, read-only.
    pub config: PathBuf,
    /// Where its own socket is.
    pub inward: PathBuf,
    /// Where the router's sockets are.
    pub outward: PathBuf,
    /// Whether it ends when standard input does.
    pub exit_with_parent: bool,
}

impl Settings {
    /// From the environment.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Invalid`], naming the setting.
    pub fn from_env(env: &Env) -> Result<Self, Error> {
        let exit_with_parent = match env.optional("INSTANCE_EXIT_WITH_PARENT").as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(_) => {
                return Err(Error::Invalid {
                    key: "INSTANCE_EXIT_WITH_PARENT".into(),
                    why: "it is neither empty, 0 nor 1".into(),
                    cure: "leave it empty outside the process engine".into(),
                });
            }
        };
        Ok(Self {
            data: env.string("INSTANCE_DATA_DIR")?.into(),
            config: env.string("INSTANCE_CONFIG_DIR")?.into(),
            inward: env.string("INSTANCE_IN_DIR")?.into(),
            outward: env.string("INSTANCE_OUT_DIR")?.into(),
            exit_with_parent,
        })
    }

    /// Its own socket.
    pub fn http_socket(&self) -> PathBuf {
        self.inward.join(door::HTTP)
    }

    /// `config.json`.
    ///
    /// # Errors
    /// When it is missing, unreadable, or lacks a member; the text names the file and the place.
    pub fn read_config(&self) -> anyhow::Result<InstanceConfig> {
        let path = self.config.join("config.json");
        let text = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        parse(&path, &text)
    }

    /// Whether there is a `config.json`.
    ///
    /// # Errors
    /// When its folder cannot be looked into.
    pub fn has_config(&self) -> anyhow::Result<bool> {
        let path = self.config.join("config.json");
        path.try_exists().with_context(|| format!("{} cannot be looked for", path.display()))
    }

    /// `registration.json`, while it is there.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn read_registration(&self) -> anyhow::Result<Option<Registration>> {
        let path = self.config.join("registration.json");
        match std::fs::read(&path) {
            Ok(text) => parse(&path, &text).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
    }
}

/// serde's own error may quote what it read, a key above all: only the kind of fault and its place are told.
fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        let what = error.to_string();
        let what = match what.split_once('`') {
            Some((kind @ ("missing field " | "duplicate field "), rest)) => {
                format!("{kind}`{}`", rest.split('`').next().unwrap_or_default())
            }
            _ => format!("{:?} error", error.classify()),
        };
        anyhow::anyhow!("{}: {what}, line {} column {}", path.display(), error.line(), error.column())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_config(text: &str) -> anyhow::Result<InstanceConfig> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let env = Env::from_pairs([("INSTANCE_CONFIG_DIR", folder.path().to_str().unwrap())]);
        Settings::from_env(&env).unwrap().read_config()
    }

    const GOOD: &str = r#"{"generation":1,"instance_id":"i-00000000000000000000000000000001","slug":"alice",
        "owner":"a-00000000000000000000000000000002","origin":"http://alice.localhost:8088",
        "issuer":"http://beaver-authz-service:19090","portal":"http://localhost:3081""#;

    #[test]
    fn a_missing_member_is_named_and_a_wrong_value_is_not_quoted() {
        assert_eq!(with_config(&format!("{GOOD},\"colour\":1}}")).unwrap().generation, 1);
        let missing = with_config(&format!("{}}}", GOOD.replace("portal", "colour"))).unwrap_err().to_string();
        assert!(missing.contains("missing field `portal`"), "{missing}");
        let provider = r#","provider":{"kind":"canary-kind","base_url":"","model":"m","api_key":"canary-key"}}"#;
        let wrong = with_config(&format!("{GOOD}{provider}")).unwrap_err().to_string();
        assert!(!wrong.contains("canary") && wrong.contains("line"), "{wrong}");
    }

    #[test]
    fn an_odd_exit_with_parent_is_an_error_that_names_it() {
        let env = Env::from_pairs([("INSTANCE_EXIT_WITH_PARENT", "yes")]);
        assert!(Settings::from_env(&env).unwrap_err().to_string().contains("INSTANCE_EXIT_WITH_PARENT"));
    }
}
