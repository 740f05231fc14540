//! Settings from the environment, with `.env.example` as the one truth of what there is and what the defaults are.
//!
//! A service builds its own configuration struct from an [`Env`]; asking for a setting that `.env.example` does not
//! know is a programming error and panics, so the file cannot fall behind the code.

mod example;
mod files;
mod public;
pub mod watched;

use std::{collections::BTreeMap, fs, path::Path, str::FromStr};

pub use example::{EXAMPLE, Setting, for_service, settings};
pub use public::PublicAddress;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// The shortest secret that is accepted, in bytes.
pub const MIN_SECRET_BYTES: usize = 32;

/// Names a directory with one file a setting; see [`Env::with_files`].
const SECRETS_DIR: &str = "BEAVER_SECRETS_DIR";

/// Settings of seed systems that lost their purpose: accepted, and said to be ignored.
const RETIRED: &[&str] = &["PROJECT_ROOT", "BEAVER_PROJECT_ROOT"];

/// A setting that cannot be used. Its text names the setting and the cure, in one line, and never a secret's value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The setting is needed and neither given nor has a default.
    #[error("{key} is missing: {cure}")]
    Missing {
        /// The setting's name.
        key: String,
        /// What to do about it.
        cure: String,
    },
    /// The value cannot be read as what the setting must be.
    #[error("{key} is not usable ({why}): {cure}")]
    Invalid {
        /// The setting's name.
        key: String,
        /// What is wrong with the value.
        why: String,
        /// What to do about it.
        cure: String,
    },
    /// A `_FILE` variant or `BEAVER_SECRETS_DIR` names what cannot be read.
    #[error("{key} names {path}, which cannot be read: {source}")]
    File {
        /// The setting's name, with `_FILE`; or `BEAVER_SECRETS_DIR`.
        key: String,
        /// The path it holds, or that of a file in it.
        path: String,
        /// Why reading failed.
        source: std::io::Error,
    },
    /// `BEAVER_SECRETS_DIR` holds something that is named as no setting.
    #[error("{path} is named as no setting: remove it from BEAVER_SECRETS_DIR, or name it as .env.example does")]
    UnknownFile {
        /// Its path.
        path: String,
    },
}

/// A source of settings: given values over the defaults of `.env.example`.
#[derive(Clone, Default)]
pub struct Env {
    given: BTreeMap<String, String>,
}

impl Env {
    /// The process's environment. What is not UTF-8 in it is none of ours and is left out.
    pub fn from_process() -> Self {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self { given: std::env::vars_os().filter_map(text).collect() }
    }

    /// These settings, over those in the files of the directory that `BEAVER_SECRETS_DIR` names, if it does: each named
    /// as its setting (`…_PREVIOUS` too) and holding the value. A value given as such, or by a `_FILE` variant, wins.
    ///
    /// # Errors
    /// [`Error::File`] when the directory or a file in it cannot be read, [`Error::UnknownFile`].
    pub fn with_files(mut self) -> Result<Self, Error> {
        let Some(dir) = self.optional(SECRETS_DIR) else { return Ok(self) };
        let given = |env: &Self, key: &str| env.given.get(key).is_some_and(|value| !value.trim().is_empty());
        for (key, value) in files::read(Path::new(&dir))? {
            if !given(&self, &key) && !given(&self, &format!("{key}_FILE")) {
                self.given.insert(key, value);
            }
        }
        Ok(self)
    }

    /// Every value that was given, by name.
    pub fn given(&self) -> &BTreeMap<String, String> {
        &self.given
    }

    /// Exactly these values, over the defaults.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { given: pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect() }
    }

    /// This environment with one value set.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.given.insert(key.to_owned(), value.into());
        self
    }

    /// The setting's value: as given, else its default; `None` when that is empty.
    ///
    /// # Panics
    /// When `.env.example` has no such setting.
    pub fn optional(&self, key: &str) -> Option<String> {
        let default = &example::find(key).unwrap_or_else(|| panic!("{key} is not in .env.example")).default;
        let value = self.given.get(key).map(|v| v.trim()).filter(|v| !v.is_empty()).unwrap_or(default);
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// The setting's value.
    ///
    /// # Errors
    /// [`Error::Missing`] when it is empty.
    pub fn string(&self, key: &str) -> Result<String, Error> {
        self.optional(key).ok_or_else(|| Error::Missing {
            key: key.into(),
            cure: format!("set it in .env; {}", example::explain(key)),
        })
    }

    /// The setting's value, parsed.
    ///
    /// # Errors
    /// [`Error::Missing`] when it is empty, [`Error::Invalid`] when it does not parse.
    pub fn parse<T: FromStr>(&self, key: &str) -> Result<T, Error>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.string(key)?;
        text.parse().map_err(|e: T::Err| invalid(key, e.to_string()))
    }

    /// A comma-separated setting's parts, parsed; none when it is empty.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a part does not parse; it is named.
    pub fn list<T: FromStr>(&self, key: &str) -> Result<Vec<T>, Error>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.optional(key).unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().map_err(|e: T::Err| invalid(key, format!("{part}: {e}"))))
            .collect()
    }

    /// An absolute http or https URL without a trailing slash, query or fragment.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Invalid`].
    pub fn url(&self, key: &str) -> Result<url::Url, Error> {
        let url: url::Url = self.parse(key)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(invalid(key, "not an http or https address".into()));
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(key, "it must have no user, query or fragment".into()));
        }
        Ok(url)
    }

    /// A secret: from `KEY_FILE` when that is given, else from `KEY`.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none, [`Error::Invalid`] when it is short or still the example's,
    /// [`Error::File`] when the file cannot be read.
    pub fn secret(&self, key: &str) -> Result<SecretString, Error> {
        self.secret_or(key, &[])
    }

    /// A secret that falls back to others when it is empty, in the order given: `DEPLOY_API_TOKEN`, then
    /// `BEAVER_DEPLOY_TOKEN`.
    ///
    /// # Errors
    /// As [`Env::secret`]; a missing one names the last of `fallbacks`.
    pub fn secret_or(&self, key: &str, fallbacks: &[&str]) -> Result<SecretString, Error> {
        for name in std::iter::once(&key).chain(fallbacks) {
            if let Some(value) = self.raw_secret(name)? {
                return check_secret(name, value);
            }
        }
        let name = fallbacks.last().copied().unwrap_or(key);
        Err(Error::Missing { key: name.into(), cure: make_secret(name) })
    }

    /// Every value of a service token that is accepted at present: the current one first, then `KEY_PREVIOUS`.
    ///
    /// # Errors
    /// As [`Env::secret`].
    pub fn live_secrets(&self, key: &str, fallbacks: &[&str]) -> Result<Vec<SecretString>, Error> {
        let mut live = vec![self.secret_or(key, fallbacks)?];
        for name in std::iter::once(&key).chain(fallbacks) {
            let previous = format!("{name}_PREVIOUS");
            if let Some(value) = self.raw_secret(&previous)? {
                live.push(check_secret(&previous, value)?);
            }
        }
        Ok(live)
    }

    /// `DATABASE_URL` or another setting that holds a password but no generated secret: from its `_FILE` variant or
    /// itself, unchecked; `None` when empty.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read.
    pub fn sensitive(&self, key: &str) -> Result<Option<SecretString>, Error> {
        Ok(self.raw_secret(key)?.map(SecretString::from))
    }

    /// Where workspaces and the portal are, as a browser sees them.
    ///
    /// # Errors
    /// When one of the settings behind it is unusable.
    pub fn public_address(&self) -> Result<PublicAddress, Error> {
        PublicAddress::from_env(self)
    }

    /// One line for each given setting that has no effect: retired ones, and names that
    /// begin like ours but that nothing reads.
    pub fn ignored(&self) -> Vec<String> {
        self.given
            .keys()
            .filter_map(|key| {
                if RETIRED.contains(&key.as_str()) {
                    return Some(format!("{key} is no longer needed and is ignored"));
                }
                let ours = ["BEAVER_", "DEPLOY_", "AUTHZ_", "PORTAL_", "ROUTER_", "INSTANCE_"]
                    .iter()
                    .any(|p| key.starts_with(p));
                let base = key.trim_end_matches("_FILE").trim_end_matches("_PREVIOUS");
                let private = key.starts_with("BEAVER_TEST_")
                    || key.starts_with("BEAVER_COMMIT")
                    || key.starts_with("BEAVER_PROJECT_DIR");
                // A setting that is no secret may end in _FILE too.
                (ours && !private && example::find(base).is_none() && example::find(key).is_none())
                    .then(|| format!("{key} is not a setting and is ignored; .env.example lists what there is"))
            })
            .collect()
    }

    fn raw_secret(&self, key: &str) -> Result<Option<String>, Error> {
        let file_key = format!("{key}_FILE");
        if let Some(path) = self.given.get(&file_key).filter(|p| !p.trim().is_empty()) {
            let text =
                fs::read_to_string(path).map_err(|source| Error::File { key: file_key, path: path.clone(), source })?;
            return Ok(Some(text.trim().to_owned()));
        }
        Ok(self.given.get(key).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()))
    }
}

fn check_secret(key: &str, value: String) -> Result<SecretString, Error> {
    let base = key.trim_end_matches("_PREVIOUS");
    let why = if example::find(base).is_some_and(|s| s.default == value) {
        "still the example's value".to_owned()
    } else if value.len() < MIN_SECRET_BYTES {
        format!("shorter than {MIN_SECRET_BYTES} characters")
    } else if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it has a space or a control character in it".to_owned()
    } else {
        return Ok(SecretString::from(value));
    };
    Err(Error::Invalid { key: key.into(), why, cure: make_secret(key) })
}

fn make_secret(key: &str) -> String {
    format!("make one with `openssl rand -hex 32` and set {key} in .env")
}

fn invalid(key: &str, why: String) -> Error {
    Error::Invalid { key: key.into(), why, cure: format!("correct it in .env; {}", example::explain(key)) }
}

/// Whether two secrets are the same, in time that does not depend on where they differ.
pub fn same_secret(a: &SecretString, b: &str) -> bool {
    bool::from(a.expose_secret().as_bytes().ct_eq(b.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn defaults_come_from_the_example() {
        let env = Env::default();
        assert_eq!(env.string("BEAVER_BASE_DOMAIN").unwrap(), "localhost");
        assert_eq!(env.parse::<u16>("BEAVER_INSTANCE_PIDS").unwrap(), 128);
        assert_eq!(env.optional("DATABASE_URL"), None);
    }

    #[test]
    fn an_empty_value_means_the_default() {
        assert_eq!(Env::from_pairs([("BEAVER_NET", " ")]).string("BEAVER_NET").unwrap(), "beaver-instance-edge");
    }

    #[test]
    fn secrets_are_refused_when_missing_short_or_the_examples() {
        for (value, part) in
            [("", "is missing"), ("short", "shorter than 32"), ("change-me-with-openssl-rand-hex-32", "example")]
        {
            let error = Env::from_pairs([("BEAVER_DEPLOY_TOKEN", value)])
                .secret("BEAVER_DEPLOY_TOKEN")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("BEAVER_DEPLOY_TOKEN") && error.contains(part) && error.contains("openssl rand"),
                "{error}"
            );
            assert!(!error.contains('\n'));
        }
        assert_eq!(
            Env::from_pairs([("BEAVER_DEPLOY_TOKEN", GOOD)]).secret("BEAVER_DEPLOY_TOKEN").unwrap().expose_secret(),
            GOOD
        );
    }

    #[test]
    fn a_caller_token_falls_back_and_a_previous_one_stays_alive() {
        let other = GOOD.replace('0', "z");
        let env = Env::from_pairs([("BEAVER_DEPLOY_TOKEN", GOOD), ("BEAVER_DEPLOY_TOKEN_PREVIOUS", &other)]);
        let live = env.live_secrets("DEPLOY_CONTROL_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"]).unwrap();
        assert_eq!(live.iter().map(|s| s.expose_secret()).collect::<Vec<_>>(), [GOOD, &other]);
        assert!(same_secret(&live[0], GOOD) && !same_secret(&live[0], &other) && !same_secret(&live[0], ""));
    }

    #[test]
    fn a_secret_can_come_from_a_file() {
        let file = std::env::temp_dir().join(format!("beaver-settings-{}", std::process::id()));
        fs::write(&file, format!("{GOOD}\n")).unwrap();
        let env = Env::from_pairs([("BEAVER_DEPLOY_TOKEN_FILE", file.to_str().unwrap())]);
        assert_eq!(env.secret("BEAVER_DEPLOY_TOKEN").unwrap().expose_secret(), GOOD);
        fs::remove_file(&file).unwrap();
        assert!(env.secret("BEAVER_DEPLOY_TOKEN").unwrap_err().to_string().contains("BEAVER_DEPLOY_TOKEN_FILE"));
    }

    #[test]
    fn a_directory_of_files_gives_what_is_not_given_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: &str| fs::write(dir.path().join(name), value).unwrap();
        let other = GOOD.replace('0', "z");
        put("BEAVER_DEPLOY_TOKEN", &format!("{GOOD}\n"));
        put("BEAVER_DEPLOY_TOKEN_PREVIOUS", &format!("{other}\r\n"));
        put("BEAVER_SEAL_KEY", &other);
        put("BEAVER_OPERATOR_TOKEN", &other);
        put("DATABASE_URL", "postgres://beaver:a b@db/beaver\n");
        put("..2026_data", "what Kubernetes links to");
        let file = dir.path().join("..2026_data");
        fs::write(&file, GOOD).unwrap();
        let read = |pairs: &[(&str, &str)]| {
            let all = pairs.iter().copied().chain([(SECRETS_DIR, dir.path().to_str().unwrap())]);
            Env::from_pairs(all).with_files()
        };
        let env = read(&[
            ("BEAVER_SEAL_KEY", GOOD),
            ("BEAVER_OPERATOR_TOKEN_FILE", file.to_str().unwrap()),
            ("DATABASE_URL", " "),
        ]);
        let env = env.unwrap();
        let live = env.live_secrets("DEPLOY_CONTROL_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"]).unwrap();
        assert_eq!(live.iter().map(|s| s.expose_secret()).collect::<Vec<_>>(), [GOOD, &other]);
        assert_eq!(env.secret("BEAVER_SEAL_KEY").unwrap().expose_secret(), GOOD, "the value itself wins");
        assert_eq!(env.secret("BEAVER_OPERATOR_TOKEN").unwrap().expose_secret(), GOOD, "its _FILE wins");
        let database = env.sensitive("DATABASE_URL").unwrap().unwrap();
        assert_eq!(database.expose_secret(), "postgres://beaver:a b@db/beaver", "an empty value is none");
        assert_eq!(env.ignored(), Vec::<String>::new());
        assert!(Env::default().with_files().unwrap().given().is_empty());
    }

    #[test]
    fn a_directory_with_something_else_in_it_is_refused_by_name() {
        let said = |make: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path());
            let error = Env::from_pairs([(SECRETS_DIR, dir.path().to_str().unwrap())]).with_files().err();
            error.expect("refused").to_string()
        };
        let typo = said(&|dir| fs::write(dir.join("BEAVER_DEPLOY_TOKN"), GOOD).unwrap());
        assert!(typo.contains("/BEAVER_DEPLOY_TOKN ") && typo.contains("BEAVER_SECRETS_DIR") && !typo.contains(GOOD));
        let path = said(&|dir| fs::write(dir.join("BEAVER_DEPLOY_TOKEN_FILE"), "/elsewhere").unwrap());
        assert!(path.contains("BEAVER_DEPLOY_TOKEN_FILE "), "{path}");
        let folder = said(&|dir| fs::create_dir(dir.join("BEAVER_DEPLOY_TOKEN")).unwrap());
        assert!(folder.contains("BEAVER_DEPLOY_TOKEN") && folder.contains("not a file"), "{folder}");
        let large = said(&|dir| fs::write(dir.join("BEAVER_DEPLOY_TOKEN"), GOOD.repeat(4096)).unwrap());
        assert!(large.contains("more than") && !large.contains(GOOD), "{large}");
        let missing = Env::from_pairs([(SECRETS_DIR, "/nowhere/at/all")]).with_files().err().unwrap().to_string();
        assert!(missing.contains("BEAVER_SECRETS_DIR names /nowhere/at/all"), "{missing}");
    }

    #[test]
    fn secrets_are_known_as_such() {
        let secret = |key: &str| example::find(key).unwrap().is_secret();
        assert!(secret("BEAVER_SEAL_KEY") && secret("DEPLOY_CONTROL_API_TOKEN") && secret("DATABASE_URL"));
        assert!(!secret("BEAVER_DEPLOY_URL") && !secret("BEAVER_NET"));
        // A setting named as a secret is one; whoever adds it is reminded here.
        for setting in settings() {
            let named = ["_TOKEN", "_KEY", "_SECRET", "_PASSWORD"].iter().any(|end| setting.key.ends_with(end));
            assert!(!named || setting.is_secret(), "{}", setting.key);
        }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let said = Env::from_pairs([
            ("PROJECT_ROOT", "/x"),
            ("BEAVER_TYPO", "1"),
            ("BEAVER_NET", "n"),
            ("HOME", "/"),
            ("BEAVER_PLANS_FILE", "p"),
        ])
        .ignored();
        assert_eq!(said.len(), 2, "{said:?}");
    }
}
