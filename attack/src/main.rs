//! The program in the containers of `beaver attack`. See the library for what it is told and what it says.

mod calls;
mod doors;
mod folders;
mod limits;
mod network;
mod privileges;
mod rage;
mod serve;
mod verdict;
mod world;

use std::{
    io::{Read, Write},
    process::ExitCode,
    time::Duration,
};

use attack::{Attempt, Plan, Prepared, READY, Report};
use verdict::Verdict;

/// The longest that anything here waits for nothing.
const WAIT: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = arguments.get(1).map(String::as_str).unwrap_or_default();
    let result = match arguments.first().map(String::as_str) {
        Some("try") => read(given).map(|plan| attempt_all(&plan)),
        // In a process of its own: what it does to itself must not stay.
        Some("one") => read(given).map(|attempt| say(&report(0, &attempt_one(&attempt)))),
        Some("world") => read(given).and_then(|world| world::be(&world)),
        Some("serve") => read(given).and_then(|behaviour| serve::be(&behaviour)),
        Some("litter") => read::<Vec<String>>(given).and_then(|links| folders::litter(&links)),
        Some("lay") => read(given).and_then(|plan: Plan| prepare(&plan.prepare)),
        Some("flood") => read(given).and_then(limits::flood),
        Some("eat") => read(given).map(limits::eat),
        Some("rage") => read(given).and_then(|rage| rage::be(&rage)),
        Some("breed") => read(given).map(rage::be_bred),
        Some("call") => calls::all(),
        Some("who") => {
            println!("{}", rustix::process::geteuid().as_raw());
            Ok(())
        }
        Some("wait") => {
            println!("{READY}");
            std::thread::sleep(WAIT);
            Ok(())
        }
        // Until whoever began it ends, or takes it down.
        Some("linger") => std::io::stdin().read_to_end(&mut Vec::new()).map(drop).map_err(|error| error.to_string()),
        other => Err(format!("{other:?} is nothing that this program does")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("what to do cannot be read: {error}"))
}

fn attempt_all(plan: &Plan) {
    if let Err(error) = prepare(&plan.prepare) {
        eprintln!("{error}");
        return;
    }
    for (n, attempt) in plan.attempts.iter().enumerate() {
        say(&report(n, &attempt_one(attempt)));
    }
}

fn report(attempt: usize, verdict: &Verdict) -> Report {
    Report { attempt, outcome: verdict.outcome, what: verdict.what.clone() }
}

fn say(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        // One write a line: the reader takes lines.
        let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
    }
}

fn prepare(wanted: &[Prepared]) -> Result<(), String> {
    for prepared in wanted {
        match prepared {
            Prepared::File(path, text) => folders::put(path, text),
            Prepared::Listener(path) => folders::listen(path),
            Prepared::System => privileges::system(),
        }
        .map_err(|error| format!("{prepared:?}: {error}"))?;
    }
    Ok(())
}

fn attempt_one(attempt: &Attempt) -> Verdict {
    match attempt {
        Attempt::Tcp(to) => network::tcp(*to),
        Attempt::Dns(to) => network::dns(*to),
        Attempt::Abstract(name) => network::abstract_socket(name),
        Attempt::RawSocket => network::raw_socket(),
        Attempt::PacketSocket => network::packet_socket(),
        Attempt::Interface => network::interface(),
        Attempt::Unix(path) => network::unix(path),
        Attempt::Connect(door, target) => doors::connect(door, target),
        Attempt::Absolute(door, target) => doors::absolute(door, target),
        Attempt::Say(door, bytes) => doors::say(door, bytes),
        Attempt::EndlessHeader(door, kib) => doors::endless_header(door, *kib),
        Attempt::See(path) => folders::see(path),
        Attempt::Mention(path, text) => folders::mention(path, text),
        Attempt::Create(folder) => folders::create(folder),
        Attempt::Remove(path) => folders::remove(path),
        Attempt::Read(path) => folders::open(path, false),
        Attempt::Write(path) => folders::open(path, true),
        Attempt::Capability => privileges::capability(),
        Attempt::NewPrivileges => privileges::new_privileges(),
        Attempt::Unfiltered => privileges::unfiltered(),
        Attempt::SetUid(program) => privileges::set_uid(program),
        Attempt::BecomeRoot => privileges::become_root(),
        Attempt::Mount(folder) => privileges::mount(folder),
        Attempt::Unshare if privileges::is_alone() => privileges::unshare(),
        Attempt::Chroot(folder) if privileges::is_alone() => privileges::chroot(folder),
        Attempt::Unshare | Attempt::Chroot(_) => privileges::alone(attempt),
        Attempt::Device(path) => privileges::device(path),
        Attempt::HostName => privileges::host_name(),
        Attempt::Module => privileges::module(),
        Attempt::Processes(count) => limits::processes(*count),
        Attempt::Memory(bytes) => limits::memory(*bytes),
        Attempt::Files(count) => limits::files(*count),
        Attempt::Fill(folder, bytes) => limits::fill(folder, *bytes),
        Attempt::ManyFiles(folder, count) => limits::many_files(folder, *count),
    }
}
