//! A stack under a random walk, on an engine that this command starts for itself: see [`beaver_tests::chaos`].

use beaver_tests::chaos::{Ground, Violation, Walk, walk};
use clap::Args;

/// How far to walk.
#[derive(Debug, Args)]
pub struct Options {
    /// What the walk is made from: the same seed, the same walk.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many things people do.
    #[arg(long, default_value_t = 200)]
    actions: usize,
    /// How often something is broken.
    #[arg(long, default_value_t = 40)]
    faults: usize,
    /// How many people there are.
    #[arg(long, default_value_t = 6)]
    instances: usize,
    /// Makes something in the end that must be found: one-container, forgotten, no-orphan, prune, right-generation, right-route,
    /// no-lost-row, no-lost-message, config-whole.
    #[arg(long)]
    violate: Option<Violation>,
}

/// Brings a stack up, walks, and removes it; what it found is the last line.
///
/// # Errors
/// When something does not hold, the stack does not come up, or the walk cannot go on.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(options.instances >= 2, "--instances: at least 2");
    let mut ground = Ground::up("chaos").await?;
    let Options { seed, actions, faults, instances, violate } = *options;
    let outcome = walk(&mut ground, &Walk { seed, actions, faults, instances, violate }).await;
    if !matches!(&outcome, Ok(outcome) if outcome.violations == 0) {
        eprintln!("logs: {}", ground.stack.keep_logs().await.display());
    }
    drop(ground);
    let outcome = outcome?;
    println!("{}", serde_json::to_string(&outcome)?);
    if let Some(violation) = violate {
        let is_found = outcome.violated.iter().any(|found| found.starts_with(violation.finding()));
        anyhow::ensure!(is_found, "{violation:?} was made, and is not what was found");
    }
    anyhow::ensure!(outcome.violations == 0, "{} violations", outcome.violations);
    Ok(())
}
