//! The four folders of a unit, and what each must be.

use beneath::EntryKind;

use super::{SERVICES, files::Files};

/// One of an instance's folders.
pub(super) struct Folder<'a> {
    pub(super) root: &'a Files,
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) owner: Option<(u32, u32)>,
    /// Whether the instance owns it, and so may change its mode.
    pub(super) theirs: bool,
}

impl Folder<'_> {
    pub(super) fn exists(&self) -> bool {
        self.look().is_some()
    }

    /// Whether it has its owner, and the rights that whoever uses it needs. What an instance does to a folder of its own
    /// beyond that is its own affair.
    pub(super) fn is_as_it_must(&self) -> bool {
        self.look() == Some(true)
    }

    /// Whether it [is as it must be](Self::is_as_it_must); `None` when there is no such folder.
    pub(super) fn look(&self) -> Option<bool> {
        let meta = self.root.meta(&self.path).ok().filter(|meta| meta.kind == EntryKind::Directory)?;
        let mode = if self.theirs || self.owner.is_none() { meta.mode & self.mode } else { meta.mode };
        Some(mode == self.mode && self.owner.is_none_or(|owner| owner == meta.owner))
    }
}

/// One of a unit's folders: name, mode, owner, and whether the unit owns it.
pub(super) type Kind = (&'static str, u32, Option<(u32, u32)>, bool);

/// The four folders of a unit whose user is this, or this process's.
pub(super) fn kinds(uid: Option<u32>) -> [Kind; 4] {
    // Sockets that are made in a folder with the set-group-id bit get the folder's group: each side may connect to what the
    // other made, and to nothing else.
    let socket = if uid.is_some() { 0o2750 } else { 0o700 };
    let config = if uid.is_some() { 0o500 } else { 0o700 };
    [
        ("in", socket, uid.map(|uid| (uid, SERVICES)), true),
        ("out", socket, uid.map(|uid| (SERVICES, uid)), false),
        ("data", 0o700, uid.map(|uid| (uid, uid)), true),
        ("config", config, uid.map(|uid| (uid, uid)), false),
    ]
}
