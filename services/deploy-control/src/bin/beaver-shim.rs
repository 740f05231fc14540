//! The shim, which deploy-control puts where containers find it. Built here so that it is beside deploy-control wherever
//! that is.

fn main() -> std::process::ExitCode {
    shim::main()
}
