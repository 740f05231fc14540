//! Where things are.

use std::path::{Path, PathBuf};

/// The project's folder.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Where builds go, and what tests leave to be looked at.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where binaries of a profile (`debug`, `release`) are: every build names its target, see `.cargo/config.toml`.
pub fn binaries(profile: &str) -> PathBuf {
    target().join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).join(profile)
}
