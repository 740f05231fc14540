//! `beaver-shim`: runs a program that only knows TCP where there is no network.
//!
//! In an instance there are Unix sockets and its own loopback, nothing else. The shim is what the container starts. It
//! listens on `http.sock` and passes each connection on to the program's port on loopback; it listens on loopback as a
//! proxy and passes each connection on to `egress.sock`, which speaks a proxy's HTTP. It starts the program, passes signals
//! on to it, and ends with it, with its exit code. Bytes go through as they come; the end of one direction is passed on
//! while the other goes on.
//!
//! It runs in somebody else's image, static and alone: one thread, few dependencies, little memory.

mod program;
mod relay;

use std::{ffi::OsString, io, net::Ipv4Addr, path::PathBuf, process::ExitCode, time::Duration};

use door::Place;
use tokio::net::{TcpListener, TcpStream, UnixStream};

use program::Program;

/// The program's file, wherever it is put.
pub const FILE: &str = "beaver-shim";
/// The folder in an instance where the connections from outside come in, by [`door::HTTP`].
pub const INWARD: &str = "/run/beaver/in";
/// Where in an instance the way out is.
pub const OUTWARD: &str = "/run/beaver/out/egress.sock";
/// The port on loopback of the proxy; no program may listen on it. The usual one of HTTP proxies, so that it is easily
/// remembered where a program must be told by hand.
pub const PROXY_PORT: u16 = 3128;

/// How long a program may take to end when it is asked to: as long as its container may.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long connections may take to bring their last bytes out once the program has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// What exit codes mean here beyond the program's own, as shells have it.
const USAGE: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The environment by which programs find the proxy: name and value. Some read the one case, some the other.
pub fn proxy_environment() -> Vec<(&'static str, String)> {
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    let own = "localhost,127.0.0.1,::1";
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    names
        .map(|name| (name, proxy.clone()))
        .into_iter()
        .chain(["NO_PROXY", "no_proxy"].map(|n| (n, own.into())))
        .collect()
}

/// What to run, and between which doors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    /// The folder where the socket for connections from outside is made. What a run before left there is replaced.
    pub inward: PathBuf,
    /// The socket that leads out.
    pub outward: PathBuf,
    /// The port on loopback that the program listens on.
    pub port: u16,
    /// The port on loopback to listen on as a proxy.
    pub proxy_port: u16,
    /// How long the program may take to end when another comes for its place.
    pub patience: Duration,
    /// The program and its arguments.
    pub program: Vec<OsString>,
}

impl Shim {
    /// From the command line: the program's port, the program, its arguments.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, &'static str> {
        let mut arguments = arguments.into_iter();
        let port = arguments.next().and_then(|port| port.to_str()?.parse().ok());
        let port = port.filter(|port| *port != 0 && *port != PROXY_PORT).ok_or("the first argument must be a port")?;
        let program: Vec<_> = arguments.collect();
        if program.is_empty() {
            return Err("there is no program to run: the image names none, and neither does the plan");
        }
        Ok(Self {
            inward: INWARD.into(),
            outward: OUTWARD.into(),
            port,
            proxy_port: PROXY_PORT,
            patience: PATIENCE,
            program,
        })
    }

    /// Runs the program until it ends; its exit code, 128 and the signal's number when a signal ended it. One that runs
    /// already between the same doors is asked to end first, and the program that it started with it.
    ///
    /// # Errors
    /// When a socket cannot be made; [`io::ErrorKind::NotFound`] also when there is no such program.
    pub async fn run(self) -> io::Result<u8> {
        let place = Place::take(&self.inward).await?;
        // All of it before the program starts, which may ask at once.
        let inward = door::listen(&self.inward, door::HTTP)?;
        let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, self.proxy_port)).await?;
        let mut program = Program::start(&self.program)?;

        let (port, outward) = (self.port, self.outward);
        let mut coming_in = relay::Relays::default();
        let mut going_out = relay::Relays::default();
        let code = {
            let served = async {
                tokio::join!(
                    coming_in.serve(async || Ok(inward.accept().await?.0), async || to_program(port).await),
                    going_out.serve(
                        async || without_delay(proxy.accept().await?.0),
                        async || { UnixStream::connect(&outward).await }
                    ),
                )
            };
            tokio::select! {
                code = program.ended(place.asked_to_end(), self.patience) => code?,
                _ = served => unreachable!("connections are served for ever"),
            }
        };
        // What the program said last is still on its way.
        let _ = tokio::time::timeout(DRAIN, coming_in.drain()).await;
        Ok(code)
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let shim = match Shim::from_arguments(std::env::args_os().skip(1)) {
        Ok(shim) => shim,
        Err(why) => {
            eprintln!("{FILE}: {why}");
            return USAGE.into();
        }
    };
    let name = shim.program[0].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(shim.run()));
    match outcome {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("{FILE}: {}: {error}", name.to_string_lossy());
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND.into() } else { CANNOT_RUN.into() }
        }
    }
}

async fn to_program(port: u16) -> io::Result<TcpStream> {
    without_delay(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?)
}

fn without_delay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
