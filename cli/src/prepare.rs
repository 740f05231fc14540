//! The data directories: made, and each given to the one that writes it; the secrets, to those who read them. Runs as root in compose.yaml's one-shot
//! container, so that the operator need not be root.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, lchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use settings::Env;

use crate::{
    Exit,
    args::{EngineKind, Place, SecretsFrom},
    remembered, secrets,
    stack::{DIRECTORIES, Project, SERVICE_ID},
};

/// The most entries of a service's directory; no service of ours makes as many.
const MAX_ENTRIES: u64 = 1_000_000;

/// Makes what is missing under `BEAVER_DATA_DIR`, and hands out the secrets.
///
/// # Errors
/// When a secret is unusable, or a directory cannot be made or given away.
pub fn prepare(place: &Place, from: SecretsFrom) -> anyhow::Result<Exit> {
    let data = data_dir()?;
    // First, so that an unusable one changes nothing.
    let secrets = match from {
        SecretsFrom::EnvFile => Some(secrets::of_settings_file(Project::find(place)?, &data)?),
        SecretsFrom::Stdin => Some(secrets::of_reader(std::io::stdin().lock())?),
        SecretsFrom::Kept => None,
    };
    fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let root = beneath::Root::open(&data)?;
    for name in DIRECTORIES {
        let path = data.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // instances/ and deploy-control/ are nobody's but root's; run/ is passed through by the router; certs/ has what the
        // operator puts there for services to trust.
        let (owner, mode) = match name {
            "authz" | "router" => (SERVICE_ID, 0o700),
            "run" | "certs" => (0, 0o755),
            _ => (0, 0o700),
        };
        if owner == SERVICE_ID {
            // A back-up brought back by root must not lock its service out.
            root.give_tree(name, (owner, owner), MAX_ENTRIES)
                .with_context(|| format!("cannot give {} away", path.display()))?;
        } else {
            lchown(&path, Some(owner), Some(owner)).with_context(|| format!("cannot give {} away", path.display()))?;
        }
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    }
    if let Some(secrets) = secrets {
        let changes = secrets::hand_out(&data, &secrets)?;
        if from == SecretsFrom::Stdin {
            println!("{}", serde_json::to_string(&changes)?);
        }
    }
    remembered::write(&data, EngineKind::Docker)?;
    Ok(Exit::Ok)
}

/// Removes what [`prepare`] made and everything in it; nothing else in the data directory is touched.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_data() -> anyhow::Result<Exit> {
    let data = data_dir()?;
    remove_directories(&data)?;
    Ok(Exit::Ok)
}

/// Removes the directories of a stack; what else is in the data directory stays. People wrote these trees, so they are
/// as deep, as wide and as locked as people like.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_directories(data: &Path) -> anyhow::Result<()> {
    let root = match beneath::Root::open(data) {
        Err(beneath::Error::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    for name in DIRECTORIES.into_iter().chain([secrets::DIRECTORY]) {
        root.remove_tree(name).with_context(|| format!("cannot remove {}", data.join(name).display()))?;
    }
    remembered::forget(data).with_context(|| format!("cannot clear {}", data.display()))?;
    Ok(())
}

fn data_dir() -> anyhow::Result<PathBuf> {
    let data = PathBuf::from(Env::from_process().string("BEAVER_DATA_DIR")?);
    ensure!(data.is_absolute() && data.parent().is_some(), "BEAVER_DATA_DIR must be an absolute path, not /");
    Ok(data)
}

#[cfg(test)]
mod tests {
    use rustix::{
        fs::{Mode, OFlags, mkdirat, openat},
        process::{Resource, Rlimit, getrlimit, setrlimit},
    };

    use super::*;

    const LEVELS: usize = 5_000;
    /// As many handles as the tests here may have at once.
    const HANDLES: u64 = 512;

    #[test]
    fn only_our_own_directories_are_removed_and_no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
        fs::create_dir_all(data.join("instances/i-1/data")).unwrap();
        fs::create_dir_all(data.join("secrets/authz")).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("kept"), "").unwrap();
        fs::write(data.join("letter.txt"), "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, data.join("instances/i-1/data/link")).unwrap();
        remembered::write(&data, EngineKind::Docker).unwrap();
        remove_directories(&data).unwrap();
        assert!(["instances", "secrets", "engine"].iter().all(|name| !data.join(name).exists()));
        assert!(data.join("letter.txt").exists() && elsewhere.join("kept").exists());
        remove_directories(&folder.path().join("never-made")).unwrap();
    }

    /// Whoever walks down a tree with a handle for each level does not come back from this one.
    #[test]
    fn a_tree_without_a_bottom_and_a_locked_directory_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let theirs = folder.path().join("instances/i-1/data");
        fs::create_dir_all(theirs.join("locked/inner")).unwrap();
        fs::write(theirs.join("locked/inner/file"), "").unwrap();
        fs::set_permissions(theirs.join("locked"), Permissions::from_mode(0o000)).unwrap();
        setrlimit(Resource::Nofile, Rlimit { current: Some(HANDLES), ..getrlimit(Resource::Nofile) }).unwrap();
        let mut here = rustix::fs::open(&theirs, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..LEVELS {
            mkdirat(&here, "deeper", Mode::RWXU).unwrap();
            here = openat(&here, "deeper", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(here);
        remove_directories(folder.path()).unwrap();
        assert!(!folder.path().join("instances").exists());
    }
}
