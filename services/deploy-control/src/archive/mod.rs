//! One person's data as one file, to take along and to put back: a tar archive (POSIX.1-1988 with GNU's long names) whose
//! entries below `data/` are the data, and whose last entry, `manifest.json`, says what they must be.
//!
//! Since the manifest is last, an archive that was cut short has none and is noticed. What the instance keeps for Beaver alone,
//! its key above all, is not in it: data that is put elsewhere gets an identity of its own there.

pub mod pipe;
pub mod read;
pub mod write;

use std::path::{Component, Path};

use contracts::InstanceId;
use serde::{Deserialize, Serialize};

/// The most entries an archive has.
pub const MAX_ENTRIES: usize = 200_000;
/// The largest manifest, in bytes.
const MAX_MANIFEST: u64 = 64 << 20;
/// The longest path in an archive, in bytes, and the deepest.
const MAX_PATH: usize = 4_000;
const MAX_DEPTH: usize = 32;
/// The manifest's name, and the folder of everything else.
const MANIFEST: &str = "manifest.json";
const DATA: &str = "data";
/// What the manifest says it is.
const FORMAT: &str = "beaver-workspace";
const VERSION: u32 = 1;
/// What is told of what was left out, at most.
const LEFT_OUT: usize = 1_000;

/// The database of one of Beaver's own workspaces, and what SQLite has beside it. Of one that runs, a
/// [snapshot](contracts::instance::SNAPSHOT) takes their place.
const DATABASE: [&str; 3] = ["instance.db", "instance.db-wal", "instance.db-shm"];
/// What one of Beaver's own workspaces keeps for itself: its key, its lock, a snapshot, and that its data came from an archive.
const ITS_OWN: [&str; 8] = [
    "identity.key",
    "identity.new",
    "lock",
    contracts::instance::SNAPSHOT,
    "snapshot.db-journal",
    "instance.db-shm",
    contracts::instance::FROM_ARCHIVE,
    contracts::instance::REVOKED,
];

/// What wrote the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// One of Beaver's own workspaces.
    Workspace,
    /// A program that knows nothing of Beaver.
    Image,
}

/// An instance, as it was configured last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// The instance.
    pub instance: InstanceId,
    /// Its newest configuration.
    pub generation: i64,
}

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `beaver-workspace`.
    pub format: String,
    /// The format's version.
    pub version: u32,
    /// The name of the workspace that it was made of.
    pub slug: String,
    /// What wrote the data.
    pub program: Program,
    /// When it was made, in Unix milliseconds.
    pub made_at_ms: i64,
    /// What of whose configuration was the newest then; absent from before that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<Configured>,
    /// Everything in it, in order, but this.
    pub entries: Vec<Entry>,
    /// What there was and is not in it, up to a thousand.
    pub left_out: Vec<LeftOut>,
    /// How much there was and is not in it.
    pub left_out_count: u64,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path in the archive.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A folder.
    Directory,
    /// A file.
    File {
        /// Its bytes.
        size: u64,
        /// Their SHA-256, in hex.
        sha256: String,
    },
    /// A symlink that leads to somewhere in the archive.
    Symlink {
        /// Where, from its own folder on.
        target: String,
    },
}

/// Something that is not in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Where it was.
    pub path: String,
    /// Why, in a few words.
    pub why: String,
}

/// Whether a symlink in this folder, whose own path has no symlink in it, stays inside whatever it leads through.
///
/// Going up is allowed only first: after a name, which may be a symlink itself, `..` leads to where nobody can tell from the
/// text.
fn leads_inside(folder: &Path, target: &Path) -> bool {
    let mut up = 0;
    let mut down = false;
    for component in target.components() {
        match component {
            Component::ParentDir if !down => up += 1,
            Component::CurDir => {}
            Component::Normal(_) => down = true,
            _ => return false,
        }
    }
    up <= folder.components().count() && !target.as_os_str().is_empty()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
