//! Measurements that anyone can run, each beside what it is measured against.

use clap::{Parser, Subcommand};

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
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Spawn(options) => bench::spawn::run(&options).await,
        Command::Egress(options) => bench::egress::run(&options).await,
        Command::Isolation(options) => bench::isolation::run(&options).await,
    }
}
