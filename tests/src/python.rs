//! The Python side: the official SDKs and axe-core, in an environment of its own under `target/`.

use std::{fs, path::PathBuf};

use anyhow::Context;
use tokio::{process::Command, sync::Mutex};

use crate::paths;

/// The official SDKs.
const SDKS: &[&str] = &["openai==3.52.0"];
/// Carries axe-core; what it is made to work with (Playwright) is not needed here.
const AXE: &str = "axe-playwright-python==0.1.8";

/// One at a time: tests run in parallel.
static MAKING: Mutex<()> = Mutex::const_new(());

/// The environment's folder. It is made, with pip from PyPI, when it is not there or not of these versions.
///
/// # Errors
/// When Python or PyPI is not to be had.
pub async fn environment() -> anyhow::Result<PathBuf> {
    let _making = MAKING.lock().await;
    let dir = paths::target().join("python");
    let (made_of, wanted) = (dir.join("made-of"), format!("{SDKS:?} {AXE}"));
    if fs::read_to_string(&made_of).is_ok_and(|have| have == wanted) {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    run(Command::new("python3").arg("-m").arg("venv").arg(&dir)).await.context("python3-venv is needed")?;
    let pip = || {
        let mut pip = Command::new(dir.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check"]);
        pip
    };
    run(pip().args(SDKS)).await?;
    run(pip().args(["--no-deps", AXE])).await?;
    fs::write(made_of, wanted)?;
    Ok(dir)
}

/// The source of axe-core, which checks a page's accessibility.
///
/// # Errors
/// As [`environment`].
pub async fn axe() -> anyhow::Result<String> {
    let lib = environment().await?.join("lib");
    let version = fs::read_dir(&lib)?.next().context("the environment has no Python")??.path();
    let path = version.join("site-packages/axe_playwright_python/axe.min.js");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Runs a script in the environment, with variables; its standard output.
///
/// # Errors
/// When it fails: what it wrote.
pub async fn script(source: &str, variables: &[(&str, &str)]) -> anyhow::Result<String> {
    let python = environment().await?.join("bin/python");
    let mut command = Command::new(python);
    command.arg("-c").arg(source).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    run(command.envs(variables.iter().copied())).await
}

async fn run(command: &mut Command) -> anyhow::Result<String> {
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = command.output().await.with_context(|| format!("running {:?}", command.as_std().get_program()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{:?}: {}: {out}{err}", command.as_std().get_program(), output.status);
    Ok(out.into_owned())
}
