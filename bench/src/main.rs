//! Measurements that anyone can run, each beside what it is measured against.

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "bench", about = "Side-by-side measurements; the last line printed is one JSON object.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From the sign-up form to the first 200 of the workspace, beside the engine's own create + start.
    Spawn(bench::spawn::Options),
    /// Connections through a workspace's door out, beside straight ones.
    Egress(bench::egress::Options),
    /// Instances without a network, beside the same on a bridge network of their own, while there are more and more.
    Isolation(bench::isolation::Options),
    /// People doing what people do while everything is killed, removed and filled behind their backs.
    Chaos(bench::chaos::Options),
    /// What instances, the services and the engine take of a host's memory, while there are more and more.
    Density(bench::density::Options),
    /// Visits to an instance that sleeps, beside ones to the same when it runs, and the engine's own start of it.
    Wake(bench::wake::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let command = Cli::parse().command;
    let measuring = async {
        match command {
            Command::Spawn(options) => bench::spawn::run(&options).await,
            Command::Egress(options) => bench::egress::run(&options).await,
            Command::Isolation(options) => bench::isolation::run(&options).await,
            Command::Chaos(options) => bench::chaos::run(&options).await,
            Command::Density(options) => bench::density::run(&options).await,
            Command::Wake(options) => bench::wake::run(&options).await,
        }
    };
    tokio::select! {
        outcome = measuring => outcome,
        // What was brought up goes with whoever holds it, an engine too.
        () = told_to_end() => anyhow::bail!("it was told to end"),
    }
}

/// Waits for SIGTERM or Ctrl-C.
async fn told_to_end() {
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
