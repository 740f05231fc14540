//! Rules in a file, taken over while the router runs.
//!
//! One rule a line: `default deny-all`, `allow 192.168.1.10:11434`, `deny *:25`; `#` begins a comment. They are added to
//! those of the settings, and a `default` in the file outdoes theirs. A file with a mistake in it changes nothing: the
//! rules before it go on, and where there are none yet, nothing is let out.

use std::{path::PathBuf, sync::Arc};

use service::Shutdown;
use settings::watched::{CHECK, Watched, WatchedError};
use tokio::sync::watch;

use super::Rules;

/// Why a file's rules are not taken over.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A line means nothing.
    #[error("line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] WatchedError),
}

/// The rules that are in force, those of the settings and those of a file.
pub struct Ruling {
    settings: Rules,
    file: Watched,
    current: watch::Sender<Arc<Rules>>,
}

/// Those who go by the rules see the newest.
pub type Current = watch::Receiver<Arc<Rules>>;

impl Ruling {
    /// The rules of the settings, and those in the file at `path` if there is one.
    pub fn new(settings: Rules, path: PathBuf) -> (Self, Current) {
        let (current, seen) = watch::channel(Arc::new(settings.clone()));
        let mut this = Self { settings, file: Watched::new(path), current };
        if let Err(error) = this.look() {
            this.say(error);
            this.current.send_replace(Arc::new(Rules::nothing()));
        }
        (this, seen)
    }

    /// Takes over changes of the file, until `stop`.
    pub async fn keep(mut self, stop: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK) => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.look() {
                self.say(error);
            }
        }
    }

    /// Looks at the file, and takes it over if it has changed.
    fn look(&mut self) -> Result<(), FileError> {
        let Some(text) = self.file.look()? else { return Ok(()) };
        let rules = match &text {
            Some(text) => self.settings.with_file(text)?,
            None => self.settings.clone(),
        };
        metrics::gauge!("router_egress_rules_good").set(1.0);
        tracing::info!(
            file = text.is_some(),
            allow = rules.allow.len(),
            deny = rules.deny.len(),
            default = ?rules.default,
            "the rules for what instances may reach"
        );
        self.current.send_replace(Arc::new(rules));
        self.file.is_good();
        Ok(())
    }

    fn say(&mut self, error: FileError) {
        metrics::gauge!("router_egress_rules_good").set(0.0);
        let cause = format!("{:#}", anyhow::Error::from(error));
        if self.file.is_news(&cause) {
            tracing::error!(file = %self.file.path().display(), cause, "this file of egress rules is not taken over");
        }
    }
}

impl Rules {
    /// Nothing at all is let out.
    pub fn nothing() -> Self {
        Self { default: super::Default::DenyAll, allow: Vec::new(), deny: Vec::new() }
    }

    /// These rules and those in a file's text.
    ///
    /// # Errors
    /// The first line that means nothing.
    pub fn with_file(&self, text: &str) -> Result<Self, FileError> {
        let mut rules = self.clone();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let wrong = |why| FileError::Line { line: n + 1, why };
            match word {
                "allow" => rules.allow.push(rest.trim().parse().map_err(wrong)?),
                "deny" => rules.deny.push(rest.trim().parse().map_err(wrong)?),
                "default" => rules.default = rest.trim().parse().map_err(wrong)?,
                _ => return Err(wrong("a line begins with allow, deny or default")),
            }
        }
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::egress::{rules::Reason, target::Target};

    const SETTINGS: Rules =
        Rules { default: crate::egress::rules::Default::AllowPublic, allow: Vec::new(), deny: Vec::new() };

    fn check(rules: &Current, target: &str, address: &str) -> Result<(), Reason> {
        let target = Target::parse(&target.parse().unwrap(), None).unwrap();
        rules.borrow().check(&target, address.parse().unwrap(), false)
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_taken_over_and_a_wrong_one_is_not() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("egress.rules");
        let (ruling, mut rules) = Ruling::new(SETTINGS, path.clone());
        assert!(check(&rules, "a.test:80", "10.0.0.1").is_err());
        let stop = Shutdown::new();
        let keeping = tokio::spawn(ruling.keep(stop.clone()));

        fs::write(&path, "# ours\n\n  allow 10.0.0.0/8:80   # the shelf\ndeny *:25\n").unwrap();
        rules.changed().await.unwrap();
        assert!(check(&rules, "a.test:80", "10.0.0.1").is_ok());
        assert_eq!(check(&rules, "a.test:25", "93.184.216.34"), Err(Reason::Denied));

        fs::write(&path, "allow 10.0.0.0/8\nallow ten dot net\n").unwrap();
        tokio::time::sleep(CHECK * 2).await;
        assert!(check(&rules, "a.test:81", "10.0.0.1").is_err(), "the rules before go on");
        assert!(check(&rules, "a.test:80", "10.0.0.1").is_ok(), "the rules before go on");

        // As editors save: another file under the same name.
        fs::write(dir.path().join("new"), "default deny-all\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        rules.mark_unchanged();
        rules.changed().await.unwrap();
        assert_eq!(check(&rules, "a.test:80", "93.184.216.34"), Err(Reason::NotListed));

        fs::remove_file(&path).unwrap();
        rules.changed().await.unwrap();
        assert!(check(&rules, "a.test:80", "93.184.216.34").is_ok());
        stop.cancel();
        keeping.await.unwrap();
    }

    #[test]
    fn a_file_that_is_wrong_from_the_start_lets_nothing_out() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("egress.rules");
        for text in [&b"allow"[..], b"permit a.test", b"default open", b"deny a:0", b"\xff\xfe"] {
            fs::write(&path, text).unwrap();
            let (_, rules) = Ruling::new(SETTINGS, path.clone());
            assert_eq!(check(&rules, "a.test:80", "93.184.216.34"), Err(Reason::NotListed));
        }
        let error = SETTINGS.with_file("allow a.test\n\nallow a b\n").unwrap_err().to_string();
        assert!(error.starts_with("line 3: "), "{error}");
    }
}
