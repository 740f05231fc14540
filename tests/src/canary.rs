//! Secrets that must be nowhere but where they belong: looks for them in everything a run leaves.
//!
//! Looked for as they are, as JSON and as a URL write them, in hexadecimal, and in Base64 at each of its three
//! alignments: that is how values travel into logs.

use std::{collections::HashMap, fmt, fs, path::Path};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bollard::{
    Docker,
    query_parameters::{EventsOptionsBuilder, LogsOptionsBuilder},
};
use futures_util::TryStreamExt;

use crate::engine;

/// The shortest value that is looked for: shorter ones are found by chance.
const SHORTEST: usize = 8;

/// The values to look for.
#[derive(Default)]
pub struct Canaries {
    forms: Vec<(String, Vec<Vec<u8>>)>,
}

/// A value where it must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// What it is; never the value.
    pub what: String,
    /// Where it was found.
    pub place: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.what, self.place)
    }
}

impl Canaries {
    /// Adds a value under a name that may be shown.
    ///
    /// # Panics
    /// When the value is too short to be told from chance.
    pub fn add(&mut self, what: impl Into<String>, value: &str) {
        assert!(value.len() >= SHORTEST, "a canary of {} bytes is found by chance", value.len());
        let mut forms = vec![value.as_bytes().to_vec(), hex(value).into_bytes()];
        let json = serde_json::to_string(value).expect("a text is always JSON");
        forms.push(json.trim_matches('"').as_bytes().to_vec());
        forms.push(percent(value).into_bytes());
        for skip in 0..3 {
            // The characters at both ends depend on what stands beside the value; those between do not.
            let padded = [vec![0; skip], value.as_bytes().to_vec()].concat();
            let whole = STANDARD_NO_PAD.encode(&padded);
            let from = if skip == 0 { 0 } else { skip + 1 };
            let to = padded.len() / 3 * 4;
            forms.push(whole.as_bytes()[from..to].to_vec());
            let url_safe = whole[from..to].replace('+', "-").replace('/', "_");
            forms.push(url_safe.into_bytes());
        }
        forms.sort();
        forms.dedup();
        self.forms.push((what.into(), forms));
    }

    /// How many values are looked for.
    pub fn len(&self) -> usize {
        self.forms.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    /// Looks through bytes that were at `place`.
    pub fn look(&self, place: impl fmt::Display, bytes: &[u8]) -> Vec<Leak> {
        let found = self.forms.iter().filter(|(_, forms)| forms.iter().any(|form| contains(bytes, form)));
        found.map(|(what, _)| Leak { what: what.clone(), place: place.to_string() }).collect()
    }

    /// Looks through every file under `dir`, names included, leaving out those that `belongs` says may hold them.
    /// Databases are files: a text in SQLite or in its journal stands there as it is.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn look_in_files(&self, dir: &Path, belongs: &dyn Fn(&Path) -> bool) -> anyhow::Result<Vec<Leak>> {
        let mut leaks = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(next) = dirs.pop() {
            for entry in fs::read_dir(&next).with_context(|| format!("listing {}", next.display()))? {
                let path = entry?.path();
                let shown = path.strip_prefix(dir).unwrap_or(&path).to_owned();
                if belongs(&shown) {
                    continue;
                }
                leaks.extend(
                    self.look(format_args!("the name of {}", shown.display()), shown.as_os_str().as_encoded_bytes()),
                );
                let kind = fs::symlink_metadata(&path)?.file_type();
                if kind.is_dir() {
                    dirs.push(path);
                } else if kind.is_file() {
                    match fs::read(&path) {
                        Ok(bytes) => leaks.extend(self.look(shown.display(), &bytes)),
                        // A journal may go between the listing and the reading.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
                    }
                }
            }
        }
        Ok(leaks)
    }

    /// Looks through what the engine tells of a stack: logs, inspect output (environment and labels included) of its
    /// containers, networks and images, image histories, and the engine's events since `since` (Unix seconds).
    ///
    /// # Errors
    /// When the engine cannot be asked.
    pub async fn look_in_engine(&self, docker: &Docker, prefix: &str, since: i64) -> anyhow::Result<Vec<Leak>> {
        let mut leaks = Vec::new();
        let found = engine::belongings(docker, prefix).await?;
        for name in &found.containers {
            leaks.extend(self.look(format_args!("the logs of {name}"), &logs(docker, name).await?));
            let container = docker.inspect_container(name, None).await?;
            leaks.extend(self.look(format_args!("inspect of {name}"), &serde_json::to_vec(&container)?));
        }
        for name in &found.networks {
            let inspect = serde_json::to_vec(&docker.inspect_network(name, None).await?)?;
            leaks.extend(self.look(format_args!("inspect of network {name}"), &inspect));
        }
        for id in &found.images {
            let image = serde_json::to_vec(&docker.inspect_image(id).await?)?;
            leaks.extend(self.look(format_args!("inspect of image {id}"), &image));
            let history = serde_json::to_vec(&docker.image_history(id).await?)?;
            leaks.extend(self.look(format_args!("history of image {id}"), &history));
        }
        let until = clock::Clock::system().now_s() + 1;
        let none = HashMap::<String, Vec<String>>::new();
        let span =
            EventsOptionsBuilder::new().since(&since.to_string()).until(&until.to_string()).filters(&none).build();
        let events: Vec<_> = docker.events(Some(span)).try_collect().await?;
        leaks.extend(self.look("the engine's events", &serde_json::to_vec(&events)?));
        Ok(leaks)
    }
}

/// Everything a container wrote so far.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn logs(docker: &Docker, container: &str) -> anyhow::Result<Vec<u8>> {
    let all = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    let lines: Vec<_> = docker.logs(container, Some(all)).try_collect().await?;
    Ok(lines.into_iter().flat_map(|line| line.into_bytes()).collect())
}

/// An error that names every leak.
///
/// # Errors
/// When there is one.
pub fn none(leaks: &[Leak]) -> anyhow::Result<()> {
    let shown: Vec<_> = leaks.iter().map(Leak::to_string).collect();
    anyhow::ensure!(leaks.is_empty(), "{} leaks: {}", leaks.len(), shown.join("; "));
    Ok(())
}

fn contains(bytes: &[u8], form: &[u8]) -> bool {
    let Some((&first, rest)) = form.split_first() else { return false };
    let mut from = bytes;
    while let Some(at) = from.iter().position(|&b| b == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

fn hex(value: &str) -> String {
    value.bytes().map(|b| format!("{b:02x}")).collect()
}

fn percent(value: &str) -> String {
    value
        .bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "canary \"Käse\"/+?-5f2c91";

    fn canaries() -> Canaries {
        let mut canaries = Canaries::default();
        canaries.add("the value", VALUE);
        canaries
    }

    #[test]
    fn every_form_of_a_planted_value_is_found() {
        let mut planted =
            vec![VALUE.to_owned(), hex(VALUE), percent(VALUE), serde_json::json!({"a": VALUE}).to_string()];
        for before in ["", "a", "ab", "abc"] {
            for after in ["", "y", "yz"] {
                planted.push(base64::engine::general_purpose::STANDARD.encode(format!("{before}{VALUE}{after}")));
                planted.push(base64::engine::general_purpose::URL_SAFE.encode(format!("{before}{VALUE}{after}")));
            }
        }
        for text in planted {
            let around = format!("2026-01-02 INFO x={text} end");
            assert_eq!(canaries().look("log", around.as_bytes()).len(), 1, "{around}");
        }
        assert_eq!(canaries().look("log", b"canary Kase nothing here"), []);
    }

    #[test]
    fn files_are_searched_but_those_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("..{VALUE}..")).unwrap();
        };
        at("instances/i-1/data/own.db");
        let belongs = |p: &Path| p.starts_with("instances/i-1/data");
        assert_eq!(canaries().look_in_files(dir.path(), &belongs).unwrap(), []);
        at("router/routes.json");
        let leaks = canaries().look_in_files(dir.path(), &belongs).unwrap();
        assert_eq!(leaks, [Leak { what: "the value".into(), place: "router/routes.json".into() }]);
        assert!(!none(&leaks).unwrap_err().to_string().contains(VALUE));
    }
}
