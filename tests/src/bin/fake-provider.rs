//! The fake provider as a program of its own: from scratch in a container beside a stack, or on a host.
//!
//! `fake-provider [api address] [control address]`, by default 0.0.0.0:8080 and 0.0.0.0:9090.

use beaver_tests::provider::{State, serve};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let api = TcpListener::bind(arguments.next().as_deref().unwrap_or("0.0.0.0:8080")).await?;
    let control = TcpListener::bind(arguments.next().as_deref().unwrap_or("0.0.0.0:9090")).await?;
    serve(State::default(), api, control).await?;
    Ok(())
}
