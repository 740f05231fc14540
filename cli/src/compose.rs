//! The compose tool: `docker compose` (2) or `docker-compose` (1.29 and up).

use std::{
    ffi::OsStr,
    process::{Output, Stdio},
};

use anyhow::{Context, bail};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use crate::{
    engine::parse_version,
    stack::{Stack, host_addresses},
};

/// The oldest docker-compose that waits for `service_completed_successfully`.
const OLDEST: (usize, usize) = (1, 29);

/// A compose tool that is good enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compose {
    program: Vec<String>,
    /// Its version, as it says.
    pub version: String,
}

/// Looks for a compose tool.
///
/// # Errors
/// The version of the one that is too old; empty when there is none.
pub async fn detect() -> Result<Compose, String> {
    let mut found = Vec::new();
    for program in [vec!["docker", "compose"], vec!["docker-compose"]] {
        let output = Command::new(program[0])
            .args(&program[1..])
            .args(["version", "--short"])
            .stdin(Stdio::null())
            .output()
            .await
            .ok()
            .filter(|output| output.status.success());
        if let Some(output) = output {
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            found.push((program.into_iter().map(str::to_owned).collect(), version));
        }
    }
    choose(found)
}

/// The first that is new enough.
fn choose(found: Vec<(Vec<String>, String)>) -> Result<Compose, String> {
    let mut too_old = String::new();
    for (program, version) in found {
        if parse_version(&version).is_some_and(|v| v >= OLDEST) {
            return Ok(Compose { program, version });
        }
        too_old = version;
    }
    Err(too_old)
}

impl Compose {
    /// How one calls it.
    pub fn name(&self) -> String {
        self.program.join(" ")
    }

    /// The tool on this stack.
    fn command<I: AsRef<OsStr>>(&self, stack: &Stack, arguments: &[I]) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        command.arg("--project-name").arg(&stack.prefix);
        command.arg("--project-directory").arg(&stack.project.dir);
        command.arg("--file").arg(stack.project.dir.join("compose.yaml"));
        if stack.project.env_file.exists() {
            command.arg("--env-file").arg(&stack.project.env_file);
        }
        let (socket, _) = stack.socket()?;
        command
            .args(arguments)
            .current_dir(&stack.project.dir)
            .env("PWD", &stack.project.dir)
            // Relative in the file, absolute in a mount.
            .env("BEAVER_DATA_DIR", &stack.data_dir)
            .env("BEAVER_DOCKER_SOCKET", &socket)
            // From inside its container the router sees none of the host's interfaces.
            .env("BEAVER_HOST_ADDRESSES", stack.host_addresses(&host_addresses()))
            .env("DOCKER_HOST", format!("unix://{}", socket.display()))
            .env("COMPOSE_PROJECT_NAME", &stack.prefix)
            // They come from more places than compose.yaml knows of, and are handed over before anything starts.
            .env("BEAVER_SECRETS_FROM", "kept")
            .env("COMPOSE_ANSI", "never")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs the tool; its standard output. What it says is shown only when it fails.
    ///
    /// # Errors
    /// When it cannot be run or fails; then with the end of what it said.
    pub async fn run<I: AsRef<OsStr>>(&self, stack: &Stack, arguments: &[I]) -> anyhow::Result<String> {
        let output = self.command(stack, arguments)?.output().await;
        self.told(arguments, output.with_context(|| format!("cannot run {}", self.name()))?)
    }

    /// Begins to run the tool, with pipes to it. It ends when what is returned is dropped.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start<I: AsRef<OsStr>>(&self, stack: &Stack, arguments: &[I]) -> anyhow::Result<Child> {
        let mut command = self.command(stack, arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot run {}", self.name()))
    }

    /// As [`Compose::run`], with something on standard input.
    ///
    /// # Errors
    /// As [`Compose::run`].
    pub async fn run_with_input<I: AsRef<OsStr>>(
        &self,
        stack: &Stack,
        arguments: &[I],
        input: &[u8],
    ) -> anyhow::Result<String> {
        let mut child = self.start(stack, arguments)?;
        let mut stdin = child.stdin.take().context("the compose tool has no standard input")?;
        let feeding = async move {
            // One that ends without reading says why by itself.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feeding);
        self.told(arguments, output.with_context(|| format!("cannot run {}", self.name()))?)
    }

    fn told<I: AsRef<OsStr>>(&self, arguments: &[I], output: Output) -> anyhow::Result<String> {
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            let end = lines[lines.len().saturating_sub(12)..].join("\n  ");
            let what = arguments.first().map(|a| a.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
            bail!("{} {what} failed:\n  {end}", self.name());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(program: &str, version: &str) -> (Vec<String>, String) {
        (program.split(' ').map(str::to_owned).collect(), version.to_owned())
    }

    #[test]
    fn the_plugin_goes_first_and_an_old_tool_is_named() {
        let both = vec![tool("docker compose", "v2.29.7"), tool("docker-compose", "1.29.2")];
        assert_eq!(choose(both).unwrap().name(), "docker compose");
        let old_plugin = vec![tool("docker compose", "1.0"), tool("docker-compose", "1.29.2")];
        assert_eq!(choose(old_plugin).unwrap().name(), "docker-compose");
        assert_eq!(choose(vec![tool("docker-compose", "1.25.0")]), Err("1.25.0".into()));
        assert_eq!(choose(Vec::new()), Err(String::new()));
    }
}
