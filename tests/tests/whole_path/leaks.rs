//! No secret, password or prompt is anywhere but where it belongs.

use std::path::Path;

use anyhow::{Context, ensure};
use beaver_tests::{
    canary::{self, Canaries},
    stack::{Engine, Stack},
};

use crate::World;

impl World<'_> {
    /// Everything that somebody typed or was given in this run.
    pub fn canaries(&self, keys: &[String]) -> anyhow::Result<Canaries> {
        let mut canaries = Canaries::default();
        for person in [&self.alice, &self.bob] {
            canaries.add(format!("{}'s password", person.slug), &person.password);
            canaries.add(format!("{}'s key for the provider", person.slug), &person.key);
        }
        for (n, key) in keys.iter().enumerate() {
            canaries.add(format!("key {n} of a workspace"), key);
        }
        // Every prompt begins so, and every answer repeats its prompt.
        canaries.add("what somebody said", "canary-prompt-");
        let settings = self.stack.settings()?;
        for name in settings::settings().iter().filter(|s| s.is_generated()).map(|s| s.key.as_str()) {
            // `up` prints it, to whoever called it, in the link that is good once; without Docker that is also its log.
            if name == "BEAVER_OPERATOR_TOKEN" && self.stack.engine() == Engine::Process {
                continue;
            }
            canaries.add(name, settings.get(name).with_context(|| format!("{name} is not in the settings"))?);
        }
        Ok(canaries)
    }

    /// Looks everywhere. A planted leak must be found by the same search first.
    pub async fn no_leaks(&self, keys: &[String]) -> anyhow::Result<()> {
        let canaries = self.canaries(keys)?;
        let data = self.stack.data_dir();
        let planted = data.join("router/planted");
        std::fs::write(&planted, format!("{{\"oops\":\"{}\"}}", self.alice.password))?;
        let found = canaries.look_in_files(&data, &belongs);
        std::fs::remove_file(&planted)?;
        let found = found?;
        ensure!(found.iter().any(|l| l.place == "router/planted"), "the search does not find what was planted");

        let mut leaks = canaries.look_in_files(&data, &belongs)?;
        leaks.extend(engine_leaks(self.stack, &canaries).await?);
        canary::none(&leaks)
    }
}

/// A person's own folders hold what is theirs: `instances/<id>/data` and `config`. A service's secrets are in its own.
fn belongs(path: &Path) -> bool {
    let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
    matches!(parts[..], ["instances", _, "data" | "config"] | ["secrets", _])
}

async fn engine_leaks(stack: &Stack, canaries: &Canaries) -> anyhow::Result<Vec<canary::Leak>> {
    match (stack.engine(), stack.docker()) {
        (Engine::Docker, Some(docker)) => canaries.look_in_engine(docker, stack.prefix(), stack.since).await,
        _ => Ok(canaries.look("what beaver up wrote", &std::fs::read(stack.process_log())?)),
    }
}
