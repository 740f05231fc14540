//! Paths that can only lead down.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Component, Path, PathBuf};

use crate::Error;

/// A path of plain names alone: neither absolute nor with `..` in it. The kernel would refuse those too, when they lead out;
/// here they are refused even when they do not.
#[derive(Debug)]
pub(crate) struct Relative(PathBuf);

impl Relative {
    pub(crate) fn new(path: &Path) -> Result<Self, Error> {
        let refused = |reason| Error::Refused { path: path.to_owned(), reason };
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) if name.as_encoded_bytes().contains(&0) => {
                    return Err(refused("its path has a NUL in it"));
                }
                Component::Normal(name) => plain.push(name),
                Component::CurDir => {}
                Component::ParentDir => return Err(refused("its path has .. in it")),
                Component::RootDir | Component::Prefix(_) => return Err(refused("its path is absolute")),
            }
        }
        Ok(Self(plain))
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path as the kernel takes it, to which an empty one is an error.
    pub(crate) fn or_dot(&self) -> &Path {
        if self.0.as_os_str().is_empty() { Path::new(".") } else { &self.0 }
    }

    /// The path up to its last name, and that name.
    pub(crate) fn split(&self) -> Result<(Self, &Path), Error> {
        match (self.0.parent(), self.0.file_name()) {
            (Some(parent), Some(name)) => Ok((Self(parent.to_owned()), Path::new(name))),
            _ => Err(Error::Refused { path: self.0.clone(), reason: "it is the directory itself" }),
        }
    }
}

/// A name for something that is about to be renamed into place. Whoever shares the directory cannot guess it beforehand; that
/// nothing of this name exists yet is for the caller to make sure.
pub(crate) fn temporary_name() -> PathBuf {
    // Every RandomState has keys of its own, drawn from the operating system's randomness.
    PathBuf::from(format!(".tmp-{:016x}", RandomState::new().build_hasher().finish()))
}
