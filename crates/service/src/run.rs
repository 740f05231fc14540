//! Starting and stopping a service's process.

use std::{future::Future, process::ExitCode, time::Duration};

use rustix::process::{Resource, getrlimit, setrlimit};
use settings::Env;
use tokio::signal::unix::{SignalKind, signal};

use crate::telemetry;

/// Cancelled when the service shall end.
pub type Shutdown = tokio_util::sync::CancellationToken;

/// The version and the commit it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BEAVER_COMMIT"), ")");

/// The `main` of a service: `--version`, `healthcheck` (asks `health_url(env)`; exit code 1 when it does not answer
/// 200), or, without an argument, `run` until SIGTERM or SIGINT. An unusable setting is one line and exit code 2.
///
/// `health_url` may also be `unix:<socket>:<path>`, such as `unix:/run/http.sock:/healthz`.
pub fn main<F, Fut>(name: &'static str, health_url: fn(&Env) -> anyhow::Result<String>, run: F) -> ExitCode
where
    F: FnOnce(Env, Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    allow_open_files(name);
    main_on(tokio::runtime::Builder::new_multi_thread(), name, health_url, run)
}

/// Lets this process have as many files open as the hard limit allows: a service has two descriptors and more for each request
/// that waits, and the usual soft limit of 1024 is for programs that use select(2). What the hard limit is stays the operator's
/// choice.
pub fn allow_open_files(name: &str) {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        eprintln!("{name}: the limit of open files stays as it is: {error}");
    }
}

/// As [`main`], on one thread: for a process of which a host has many.
pub fn main_on_one_thread<F, Fut>(
    name: &'static str,
    health_url: fn(&Env) -> anyhow::Result<String>,
    run: F,
) -> ExitCode
where
    F: FnOnce(Env, Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    main_on(tokio::runtime::Builder::new_current_thread(), name, health_url, run)
}

fn main_on<F, Fut>(
    mut threads: tokio::runtime::Builder,
    name: &'static str,
    health_url: fn(&Env) -> anyhow::Result<String>,
    run: F,
) -> ExitCode
where
    F: FnOnce(Env, Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let argument = std::env::args().nth(1);
    let runtime = match threads.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match argument.as_deref() {
        Some("--version" | "-V") => {
            println!("{name} {VERSION}");
            ExitCode::SUCCESS
        }
        Some("healthcheck") => match runtime.block_on(healthcheck(health_url(&Env::from_process()))) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                ExitCode::FAILURE
            }
        },
        Some(other) => {
            eprintln!(
                "{name}: no such command: {other}\nusage: {name} [healthcheck | --version]\nSettings come from the environment; see .env.example."
            );
            ExitCode::from(2)
        }
        None => serve(name, runtime, run),
    }
}

/// As [`main_on_one_thread`], whatever the arguments are: for a program that is a service only under one of its commands.
pub fn serve_on_one_thread<F, Fut>(name: &'static str, run: F) -> ExitCode
where
    F: FnOnce(Env, Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => serve(name, runtime, run),
        Err(error) => {
            eprintln!("{name}: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve<F, Fut>(name: &'static str, runtime: tokio::runtime::Runtime, run: F) -> ExitCode
where
    F: FnOnce(Env, Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let env = match Env::from_process().with_files() {
        Ok(env) => env,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::from(2);
        }
    };
    let level = env.string("BEAVER_LOG").unwrap_or_else(|_| "info".into());
    let log = telemetry::init(&level, env.optional("BEAVER_LOG_FORMAT").as_deref() != Some("text"));
    for line in env.ignored() {
        tracing::warn!("{line}");
    }
    let result = runtime.block_on(async {
        let stop = Shutdown::new();
        tokio::spawn(stop_on_signal(stop.clone()));
        tracing::info!(service = name, version = VERSION, "starting");
        run(env, stop).await
    });
    // Blocking work that hangs must not keep the process; everything that matters is written before.
    runtime.shutdown_timeout(Duration::from_secs(2));
    drop(log);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref::<settings::Error>().is_some() => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Cancels `stop` at the first SIGTERM or SIGINT.
pub async fn stop_on_signal(stop: Shutdown) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("asked to end; draining");
    stop.cancel();
}

/// The URL of a path on this host for a listen address: `0.0.0.0:3081` → `http://127.0.0.1:3081/readyz`.
///
/// # Errors
/// When `listen` is no socket address.
pub fn local_url(listen: &str, path: &str) -> anyhow::Result<String> {
    let mut address: std::net::SocketAddr = listen.parse()?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    Ok(format!("http://{address}{path}"))
}

async fn healthcheck(url: anyhow::Result<String>) -> anyhow::Result<()> {
    let (url, mut client) = (url?, reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)));
    let url = match url.strip_prefix("unix:").and_then(|rest| rest.rsplit_once(':')) {
        Some((socket, path)) => {
            client = client.unix_socket(socket);
            format!("http://localhost{path}")
        }
        None => url,
    };
    // An instance shows its health to Beaver itself alone; to the others the header means nothing.
    let answer = client.build()?.get(url).header(contracts::INTERNAL, "1").send().await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let missing = missing(&answer.bytes().await.unwrap_or_default());
    anyhow::ensure!(!missing.is_empty(), "answered {status}");
    anyhow::bail!("not ready: {missing}");
}

/// The needs that `/readyz` says are not met, and why.
fn missing(answer: &[u8]) -> String {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let needs = answer["needs"].as_object().into_iter().flatten();
    let missing = needs.filter_map(|(name, said)| said.as_str().filter(|said| *said != "ok").map(|said| (name, said)));
    missing.map(|(name, said)| format!("{name}: {said}")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_from_what_is_met() {
        let answer = br#"{"ready":false,"needs":{"database":"ok","engine":"away","sockets":"blocked: x"}}"#;
        assert_eq!(missing(answer), "engine: away; sockets: blocked: x");
        assert_eq!((missing(b"no"), missing(b"{}")), (String::new(), String::new()));
    }

    #[test]
    fn as_many_files_may_be_open_as_the_hard_limit_allows() {
        let before = getrlimit(Resource::Nofile);
        let mut few = before;
        few.current = Some(256);
        setrlimit(Resource::Nofile, few).unwrap();
        allow_open_files("test");
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
        setrlimit(Resource::Nofile, before).unwrap();
    }
}
