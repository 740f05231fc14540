//! Files and folders as they are changed: a [`Root`], with the seam at which tests strike.

use std::{ops::Deref, path::Path};

use beneath::{Error, Root};

use crate::strikes::Strikes;

/// Where files and folders of instances are. The first part of a path is the instance's id.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: Root,
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "only tests strike"))]
    strikes: Strikes,
}

impl Deref for Files {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}

impl Files {
    pub(super) fn new(root: Root) -> Self {
        Self { root, strikes: Strikes::default() }
    }

    pub(super) fn with_strikes(self, strikes: Strikes) -> Self {
        Self { strikes, ..self }
    }

    /// As [`Root::create_dir`].
    pub(super) fn create_dir(&self, rel: impl AsRef<Path>, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Error> {
        // Made, and not yet given to anybody.
        let half = |rel: &Path| match self.root.meta(rel) {
            Ok(_) => Ok(()),
            Err(_) => self.root.create_dir(rel, 0o700, None),
        };
        self.change("files.create_dir", rel.as_ref(), |rel| self.root.create_dir(rel, mode, owner), half)
    }

    /// As [`Root::write_atomic`].
    pub(super) fn write_atomic(
        &self,
        rel: impl AsRef<Path>,
        bytes: &[u8],
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<(), Error> {
        // Written in part, beside its place.
        let half = |rel: &Path| {
            let beside = rel.with_file_name(".tmp-0123456789abcdef");
            self.root.write_atomic(beside, &bytes[..bytes.len() / 2], mode, owner)
        };
        self.change("files.write", rel.as_ref(), |rel| self.root.write_atomic(rel, bytes, mode, owner), half)
    }

    /// As [`Root::remove_file`].
    pub(super) fn remove_file(&self, rel: impl AsRef<Path>) -> Result<(), Error> {
        self.change("files.remove", rel.as_ref(), |rel| self.root.remove_file(rel), |_| Ok(()))
    }

    /// As [`Root::remove_tree`].
    pub(super) fn remove_tree(&self, rel: impl AsRef<Path>) -> Result<(), Error> {
        // Some of it is gone.
        let half = |rel: &Path| match self.root.list(rel, 1_000)?.first() {
            Some(entry) => self.root.remove_tree(rel.join(&entry.name)),
            None => Ok(()),
        };
        self.change("files.remove_tree", rel.as_ref(), |rel| self.root.remove_tree(rel), half)
    }

    /// As [`Root::give_tree`].
    pub(super) fn give_tree(&self, rel: impl AsRef<Path>, owner: (u32, u32), max_entries: u64) -> Result<(), Error> {
        self.change("files.give", rel.as_ref(), |rel| self.root.give_tree(rel, owner, max_entries), |_| Ok(()))
    }

    /// As [`Root::rename`].
    pub(super) fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        self.change("files.rename", from.as_ref(), |from| self.root.rename(from, to.as_ref()), |_| Ok(()))
    }

    /// Makes a change; `half` leaves what a kill in its middle leaves.
    #[cfg_attr(not(feature = "testing"), allow(unused_variables))]
    fn change(
        &self,
        call: &'static str,
        rel: &Path,
        whole: impl Fn(&Path) -> Result<(), Error>,
        half: impl Fn(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        #[cfg(feature = "testing")]
        if let (Some(life), Some(id)) = (self.strikes.life(), instance(rel)) {
            use crate::strikes::testing::When;
            if let Some(when) = life.file(call, id) {
                let left = match when {
                    When::Before => Ok(()),
                    When::In | When::Late => half(rel),
                    When::After => whole(rel),
                };
                if let Err(error) = left {
                    tracing::debug!(error = crate::chain(&error), "a change ended with its kill");
                }
                life.file_struck();
                return Err(Error::Io { path: rel.to_owned(), source: std::io::Error::other("killed") });
            }
        }
        whole(rel)
    }
}

/// Whose it is.
#[cfg(feature = "testing")]
fn instance(rel: &Path) -> Option<contracts::InstanceId> {
    rel.iter().next()?.to_str()?.parse().ok()
}
