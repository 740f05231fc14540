//! The router's process.

use std::process::ExitCode;

use rustix::process::{Resource, getrlimit, setrlimit};

fn main() -> ExitCode {
    // Two descriptors a request and two listeners an instance: the usual soft limit of 1024 is for programs that use
    // select(2). What the hard limit is stays the operator's choice.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        eprintln!("router-proxy: the limit of open files stays as it is: {error}");
    }
    service::run::main("router-proxy", router_proxy::health_url, router_proxy::run)
}
