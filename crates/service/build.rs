//! Tells the binaries which commit they are from; "unknown" outside a checkout, "development" in debug builds, which
//! would otherwise be compiled anew, all of them, after every commit.

use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn main() {
    println!("cargo:rerun-if-env-changed=BEAVER_COMMIT");
    let given = std::env::var("BEAVER_COMMIT").ok().filter(|c| !c.is_empty());
    let debug = std::env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let commit = given.or_else(|| debug.then(|| "development".to_owned())).or_else(|| {
        // HEAD's log changes with every commit and checkout, HEAD itself only with the branch.
        if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) {
            println!("cargo:rerun-if-changed={log}");
        }
        git(&["rev-parse", "--short=12", "HEAD"])
    });
    println!("cargo:rustc-env=BEAVER_COMMIT={}", commit.unwrap_or_else(|| "unknown".into()));
}
