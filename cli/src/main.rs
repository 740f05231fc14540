//! `beaver`, the operator's command.

fn main() -> std::process::ExitCode {
    beaver::main()
}
