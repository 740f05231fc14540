//! The binaries, built by cargo in the checkout.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::stack::Project;

/// Every package that becomes an image. `beaver` is among them also because its dependencies are everybody's: so cargo
/// decides on features as it did for `cargo run`, and builds nothing twice.
pub const PACKAGES: [&str; 6] = ["beaver", "auth-portal", "authz", "deploy-control", "router-proxy", "app-instance"];

/// What is in deploy-control's image beside it: the shim, for the images of others. It is built with that package.
pub const SHIM: &str = "beaver-shim";

#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// The cargo that started us, else the one in the path.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

/// Builds packages with a cargo profile, with deploy-control also [`SHIM`]; where each binary is. `said` is called with
/// cargo's own progress lines.
///
/// # Errors
/// When cargo cannot be run or fails; then with the end of what it said.
pub async fn build(
    project: &Project,
    profile: &str,
    packages: &[&str],
    mut said: impl FnMut(&str),
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let beside = packages.contains(&"deploy-control").then_some(SHIM);
    let wanted: Vec<&str> = packages.iter().copied().chain(beside).collect();
    let mut command = Command::new(cargo());
    command.args(["build", "--profile", profile, "--message-format", "json-render-diagnostics"]);
    for package in packages {
        command.args(["--package", package]);
    }
    command.current_dir(&project.dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    let mut child = command.spawn().context("cannot run cargo")?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("cargo has no output");
    };
    let found = async {
        let mut found = BTreeMap::new();
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            // Only our own packages have executables in the list; build scripts come with another name.
            if let Ok(Message { reason, executable: Some(path), target: Some(target) }) = serde_json::from_str(&line)
                && reason == "compiler-artifact"
                && wanted.contains(&target.name.as_str())
            {
                found.insert(target.name, path);
            }
        }
        anyhow::Ok(found)
    };
    let errors = async {
        let mut kept = Vec::new();
        let mut lines = BufReader::new(stderr).lines();
        while let Some(line) = lines.next_line().await? {
            said(line.trim());
            kept.push(line);
        }
        anyhow::Ok(kept)
    };
    let (found, errors) = tokio::try_join!(found, errors)?;
    if !child.wait().await?.success() {
        bail!("cargo build failed:\n{}", errors[errors.len().saturating_sub(40)..].join("\n"));
    }
    if let Some(missing) = wanted.iter().find(|name| !found.contains_key(**name)) {
        bail!("cargo built no {missing}");
    }
    Ok(found)
}

/// The commit that binaries built now have in them, as `crates/service/build.rs` finds it; empty outside a checkout.
pub async fn commit(project: &Project) -> String {
    if let Some(given) = std::env::var("BEAVER_COMMIT").ok().filter(|commit| !commit.is_empty()) {
        return given;
    }
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(&project.dir).output().await;
    git.ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
