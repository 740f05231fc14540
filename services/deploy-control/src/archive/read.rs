//! Putting an archive's data into a folder that nobody else sees yet: everything that is in it, or an error that names what is
//! wrong. Whoever made the archive may have meant harm.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    path::Path,
};

use beneath::Root;
use contracts::instance::FROM_ARCHIVE;
use sha2::{Digest, Sha256};
use tar::{Archive, Entry as Raw, EntryType, PaxExtensions};

use super::{
    DATA, FORMAT, ITS_OWN, MANIFEST, MAX_DEPTH, MAX_ENTRIES, MAX_MANIFEST, MAX_PATH, Manifest, Program, VERSION, What,
    leads_inside,
};

/// The longest name, target or set of extensions that comes as data of its own, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;
/// How much of a path is told, in characters.
const TOLD: usize = 200;

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no archive, or breaks off.
    #[error("it is no whole archive")]
    Broken(#[source] io::Error),
    /// It has no manifest, so its end is missing.
    #[error("it has no manifest at its end")]
    CutShort,
    /// Its manifest is of a later version, or another format.
    #[error("its manifest is not one of version {VERSION}")]
    Version,
    /// It was made by another kind of program than the one that is to get it.
    #[error("it is the data of another kind of program")]
    OtherProgram,
    /// It has more than may be put there: bytes or entries.
    #[error("it has more than there may be")]
    TooLarge,
    /// One of its entries is not taken.
    #[error("{entry}: {why}")]
    Entry {
        /// The entry, as it may be shown.
        entry: String,
        /// What is wrong with it, in a few words.
        why: &'static str,
    },
    /// It could not be written.
    #[error("writing the data")]
    Storage(#[source] beneath::Error),
}

/// What there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes in files.
    pub bytes: u64,
    /// Entries.
    pub entries: usize,
}

impl Limits {
    /// So many bytes, in as many entries as an archive has.
    pub fn of(bytes: u64) -> Self {
        Self { bytes, entries: MAX_ENTRIES }
    }
}

/// Puts everything into the folder, which is empty, and checks it against the manifest.
///
/// # Errors
///
/// Each [`Error`]; what is in the folder then is good for nothing.
pub fn unpack(into: &Root, from: impl Read, program: Program, limits: Limits) -> Result<Manifest, Error> {
    let mut unpacking = Unpacking { into, program, limits, there: HashMap::new(), manifest: None };
    let mut archive = Archive::new(from);
    // Raw: the crate reads long names into memory, however long they are.
    let entries = archive.entries().map_err(Error::Broken)?.raw(true);
    let (mut name, mut target, mut seen) = (None, None, 0);
    for entry in entries {
        let mut entry = entry.map_err(Error::Broken)?;
        seen += 1;
        if seen > limits.entries.saturating_mul(3) {
            return Err(Error::TooLarge);
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => name = Some(long(&mut entry)?),
            EntryType::GNULongLink => target = Some(long(&mut entry)?),
            EntryType::XHeader => {
                let bytes = extension(&mut entry)?;
                for pair in PaxExtensions::new(&bytes) {
                    let pair = pair.map_err(Error::Broken)?;
                    match pair.key_bytes() {
                        b"path" => name = Some(pair.value_bytes().to_owned()),
                        b"linkpath" => target = Some(pair.value_bytes().to_owned()),
                        // Then the header's own size would not count.
                        b"size" => {
                            return Err(refused(entry.path_bytes().as_ref(), "its size is said in an extension"));
                        }
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => drop(extension(&mut entry)?),
            _ => {
                let name = name.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                let target = target.take().or_else(|| entry.header().link_name_bytes().map(Into::into));
                unpacking.put(&name, target, &mut entry)?;
            }
        }
    }
    unpacking.checked()
}

fn refused(name: &[u8], why: &'static str) -> Error {
    let shown =
        String::from_utf8_lossy(name).chars().take(TOLD).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    Error::Entry { entry: shown, why }
}

/// What an extension says.
fn extension(entry: &mut Raw<'_, impl Read>) -> Result<Vec<u8>, Error> {
    if entry.size() > MAX_EXTENSION {
        return Err(refused(&entry.header().path_bytes(), "a name or an extension is too long"));
    }
    all(entry)
}

/// All that an entry has.
fn all(entry: &mut Raw<'_, impl Read>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(Error::Broken)?;
    // One that breaks off ends like one that does not.
    if bytes.len() as u64 == entry.size() { Ok(bytes) } else { Err(Error::Broken(io::ErrorKind::UnexpectedEof.into())) }
}

/// A name that is longer than a header's field: it ends with a NUL.
fn long(entry: &mut Raw<'_, impl Read>) -> Result<Vec<u8>, Error> {
    let mut bytes = extension(entry)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

struct Unpacking<'a> {
    into: &'a Root,
    program: Program,
    limits: Limits,
    there: HashMap<String, What>,
    manifest: Option<Manifest>,
}

impl Unpacking<'_> {
    fn put(&mut self, name: &[u8], target: Option<Vec<u8>>, entry: &mut Raw<'_, impl Read>) -> Result<(), Error> {
        if self.manifest.is_some() {
            return Err(refused(name, "it comes after the manifest"));
        }
        if name == MANIFEST.as_bytes() {
            self.manifest = Some(self.read_manifest(entry)?);
            return Ok(());
        }
        let kind = entry.header().entry_type();
        let path = self.path(name, kind)?;
        let below = if path == DATA { Some("") } else { path.strip_prefix("data/") };
        let below = below.ok_or_else(|| refused(name, "it is not below data/"))?;
        if below.is_empty() {
            return if kind == EntryType::Directory { Ok(()) } else { Err(refused(name, "it is not a folder")) };
        }
        if self.program == Program::Workspace && ITS_OWN.contains(&below) {
            return Err(refused(name, "the workspace keeps that for itself"));
        }
        if self.there.len() == self.limits.entries {
            return Err(Error::TooLarge);
        }
        if self.there.contains_key(&path) {
            return Err(refused(name, "something of its name is there already"));
        }
        let failed = |error| failed(name, error);
        let what = match kind {
            EntryType::Directory => {
                self.into.create_dir(below, 0o700, None).map_err(failed)?;
                What::Directory
            }
            EntryType::Regular => self.put_file(name, below, entry)?,
            EntryType::Symlink => {
                let target = target.and_then(|target| String::from_utf8(target).ok());
                let target = target.ok_or_else(|| refused(name, "its target is not UTF-8"))?;
                let folder = Path::new(below).parent().unwrap_or(Path::new(""));
                if !leads_inside(folder, Path::new(&target)) || target.contains('\0') || target.len() > MAX_PATH {
                    return Err(refused(name, "it leads outside"));
                }
                self.into.create_link(&target, below).map_err(failed)?;
                What::Symlink { target }
            }
            EntryType::Link => return Err(refused(name, "it is a second name of a file")),
            EntryType::Fifo => return Err(refused(name, "it is a fifo")),
            EntryType::Char | EntryType::Block => return Err(refused(name, "it is a device")),
            _ => return Err(refused(name, "it is neither a file, a folder nor a symlink")),
        };
        self.there.insert(path, what);
        Ok(())
    }

    /// The path, as it is in the manifest, when it is one that can only lead down.
    fn path(&self, name: &[u8], kind: EntryType) -> Result<String, Error> {
        let text = std::str::from_utf8(name).map_err(|_| refused(name, "its name is not UTF-8"))?;
        let text = if kind == EntryType::Directory { text.strip_suffix('/').unwrap_or(text) } else { text };
        if text.starts_with('/') {
            return Err(refused(name, "its path is absolute"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.contains(&"..") {
            return Err(refused(name, "its path has .. in it"));
        }
        if parts.iter().any(|part| part.is_empty() || *part == "." || part.contains('\0')) {
            return Err(refused(name, "its path is not written plainly"));
        }
        // One for data/ itself.
        if parts.len() > MAX_DEPTH + 1 || text.len() > MAX_PATH || parts.iter().any(|part| part.len() > 255) {
            return Err(refused(name, "its path is too long"));
        }
        Ok(text.to_owned())
    }

    fn put_file(&mut self, name: &[u8], below: &str, entry: &mut Raw<'_, impl Read>) -> Result<What, Error> {
        let size = entry.size();
        self.limits.bytes = self.limits.bytes.checked_sub(size).ok_or(Error::TooLarge)?;
        let mode = entry.header().mode().unwrap_or(0o600) & 0o777 | 0o600;
        let mut file = self.into.create_file(below, mode).map_err(|error| failed(name, error))?;
        let (mut hash, mut left, mut buffer) = (Sha256::new(), size, vec![0; 64 << 10]);
        while left > 0 {
            let count = entry.read(&mut buffer).map_err(Error::Broken)?;
            if count == 0 {
                return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            hash.update(&buffer[..count]);
            let written = file.write_all(&buffer[..count]);
            written.map_err(|source| Error::Storage(beneath::Error::Io { path: below.into(), source }))?;
            left = left.saturating_sub(count as u64);
        }
        Ok(What::File { size, sha256: super::hex(&hash.finalize()) })
    }

    fn read_manifest(&self, entry: &mut Raw<'_, impl Read>) -> Result<Manifest, Error> {
        let wrong = |why| refused(MANIFEST.as_bytes(), why);
        if entry.header().entry_type() != EntryType::Regular || entry.size() > MAX_MANIFEST {
            return Err(wrong("it is not a file, or too large"));
        }
        let text = all(entry)?;
        /// What is the same in every version.
        #[derive(serde::Deserialize)]
        struct Kind {
            format: String,
            version: u32,
        }
        let kind: Kind =
            serde_json::from_slice(&text).map_err(|_| wrong("it says nothing of a format and a version"))?;
        if kind.format != FORMAT || kind.version != VERSION {
            return Err(Error::Version);
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|_| wrong("it is not written as it must be"))?;
        if manifest.program != self.program {
            return Err(Error::OtherProgram);
        }
        Ok(manifest)
    }

    /// Whether what is there is what the manifest says, and all of it.
    fn checked(mut self) -> Result<Manifest, Error> {
        let manifest = self.manifest.take().ok_or(Error::CutShort)?;
        for entry in &manifest.entries {
            match self.there.remove(&entry.path) {
                Some(what) if what == entry.what => {}
                Some(_) => return Err(refused(entry.path.as_bytes(), "it is not what the manifest says")),
                None => return Err(refused(entry.path.as_bytes(), "it is missing, or listed twice")),
            }
        }
        if let Some(path) = self.there.keys().min() {
            return Err(refused(path.as_bytes(), "the manifest does not know it"));
        }
        if self.program == Program::Workspace {
            // So that it takes nobody for signed in, and gets an identity of its own.
            self.into.create_file(FROM_ARCHIVE, 0o600).map_err(Error::Storage)?;
        }
        Ok(manifest)
    }
}

/// What an entry could not be made for.
fn failed(name: &[u8], error: beneath::Error) -> Error {
    match error {
        beneath::Error::NotFound { .. } => refused(name, "its folder does not come before it"),
        beneath::Error::Refused { .. } => refused(name, "something of its name is there already"),
        other => Error::Storage(other),
    }
}
