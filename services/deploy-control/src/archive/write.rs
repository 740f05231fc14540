//! Making an archive.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use beneath::{EntryKind, Found, Root};
use contracts::instance::SNAPSHOT;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{
    Configured, DATA, DATABASE, Entry, FORMAT, ITS_OWN, LEFT_OUT, LeftOut, MANIFEST, MAX_ENTRIES, MAX_PATH, Manifest,
    Program, VERSION, What, leads_inside,
};

/// A file that says it is so many times larger than what it takes on disk, and by so many bytes, is a hole: it is left out.
const HOLE_TIMES: u64 = 4;
const HOLE_BYTES: u64 = 16 << 20;

/// Why no archive was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data could not be looked at; also when it is too much of it.
    #[error("looking at the data")]
    Files(#[from] beneath::Error),
    /// The data was changed while it was read, by somebody who runs with it.
    #[error("{0} changed while it was read")]
    Changed(String),
    /// It could not be read, or nobody takes it any more.
    #[error("writing the archive")]
    Io(#[from] io::Error),
    /// The manifest could not be written as JSON.
    #[error("writing JSON")]
    Json(#[from] serde_json::Error),
}

/// What an archive is made of.
pub struct Source {
    /// The data's folder.
    pub data: Root,
    /// The workspace's name.
    pub slug: String,
    /// What wrote the data.
    pub program: Program,
    /// Whether the workspace, which runs, has made a snapshot of its database.
    pub snapshot: bool,
    /// Now, in Unix milliseconds.
    pub made_at_ms: i64,
    /// Whose it is, as configured before the snapshot was made.
    pub configured: Configured,
}

/// What there is, as far as it belongs into an archive.
pub struct Listed {
    found: Vec<Found>,
}

impl Source {
    /// Looks at what there is.
    ///
    /// # Errors
    ///
    /// [`Error::Files`], with [`beneath::Error::TooLarge`] when there is more than an archive has.
    pub fn list(&self) -> Result<Listed, Error> {
        let mut found = self.data.walk("", MAX_ENTRIES)?;
        if self.program == Program::Workspace {
            let is_own = |found: &Found| ITS_OWN.iter().any(|name| found.path == Path::new(name));
            let is_database = |found: &Found| DATABASE.iter().any(|name| found.path == Path::new(name));
            found.retain(|found| {
                (self.snapshot && found.path == Path::new(SNAPSHOT))
                    || !(is_own(found) || (self.snapshot && is_database(found)))
            });
            if self.snapshot && !found.iter().any(|found| found.path == Path::new(SNAPSHOT)) {
                return Err(Error::Changed(SNAPSHOT.into()));
            }
        }
        Ok(Listed { found })
    }

    /// Writes the archive. Before the manifest, which makes it whole, `is_whole` says whether what was read belongs together.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`], [`Error::Io`]; what was written until then is no archive.
    pub fn write<W: Write>(
        &self,
        listed: Listed,
        out: W,
        is_whole: impl FnOnce() -> Result<(), Error>,
    ) -> Result<W, Error> {
        let mut manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            slug: self.slug.clone(),
            program: self.program,
            made_at_ms: self.made_at_ms,
            configured: Some(self.configured),
            entries: Vec::new(),
            left_out: Vec::new(),
            left_out_count: 0,
        };
        let mut builder = Builder::new(out);
        for found in listed.found {
            match self.put(&mut builder, &found) {
                Ok(entry) => manifest.entries.push(entry),
                Err(NotPut::LeftOut(why)) => {
                    manifest.left_out_count += 1;
                    if manifest.left_out.len() < LEFT_OUT {
                        let path = found.path.to_string_lossy().into_owned();
                        manifest.left_out.push(LeftOut { path, why: why.into() });
                    }
                }
                Err(NotPut::Failed(error)) => return Err(error),
            }
        }
        is_whole()?;
        // Removed meanwhile, it may have gone with everything else.
        if self.snapshot && self.data.open_file(SNAPSHOT).is_err() {
            return Err(Error::Changed(SNAPSHOT.into()));
        }
        let text = serde_json::to_vec(&manifest)?;
        let mut header = self.header(EntryType::Regular, 0o600);
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, MANIFEST, &*text)?;
        Ok(builder.into_inner()?)
    }

    fn header(&self, kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(u64::try_from(self.made_at_ms / 1_000).unwrap_or(0));
        header.set_size(0);
        header
    }

    fn put<W: Write>(&self, builder: &mut Builder<W>, found: &Found) -> Result<Entry, NotPut> {
        let is_snapshot = self.snapshot && found.path == Path::new(SNAPSHOT);
        let named = if is_snapshot { Path::new(DATABASE[0]) } else { &found.path };
        let name = named.to_str().ok_or(NotPut::LeftOut("its name is not UTF-8"))?;
        let path = format!("{DATA}/{name}");
        if path.len() > MAX_PATH {
            return Err(NotPut::LeftOut("its path is too long"));
        }
        let what = match found.kind {
            EntryKind::Directory if found.closed => return Err(NotPut::LeftOut("it is too deep")),
            EntryKind::Directory => {
                let mut header = self.header(EntryType::Directory, 0o700);
                builder.append_data(&mut header, format!("{path}/"), io::empty())?;
                What::Directory
            }
            EntryKind::File => self.put_file(builder, found, &path)?,
            EntryKind::Symlink => {
                let target = self.data.read_link(&found.path).map_err(|_| NotPut::LeftOut("it cannot be read"))?;
                let folder = found.path.parent().unwrap_or(Path::new(""));
                if !leads_inside(folder, &target) {
                    return Err(NotPut::LeftOut("it leads outside"));
                }
                let text = target.to_str().ok_or(NotPut::LeftOut("its target is not UTF-8"))?.to_owned();
                builder.append_link(&mut self.header(EntryType::Symlink, 0o777), &path, &target)?;
                What::Symlink { target: text }
            }
            EntryKind::Socket => return Err(NotPut::LeftOut("it is a socket")),
            EntryKind::Other => return Err(NotPut::LeftOut("it is a fifo or a device")),
        };
        Ok(Entry { path, what })
    }

    fn put_file<W: Write>(&self, builder: &mut Builder<W>, found: &Found, path: &str) -> Result<What, NotPut> {
        // It may be something else by now, or nobody's to read.
        let file = match self.data.open_file(&found.path) {
            Ok(file) => file,
            Err(error) if found.path != Path::new(SNAPSHOT) && is_its_own_fault(&error) => {
                return Err(NotPut::LeftOut("it cannot be read"));
            }
            Err(error) => return Err(NotPut::Failed(error.into())),
        };
        if file.size > file.on_disk.saturating_mul(HOLE_TIMES).saturating_add(HOLE_BYTES) {
            return Err(NotPut::LeftOut("it is mostly a hole"));
        }
        let mut header = self.header(EntryType::Regular, file.mode);
        header.set_size(file.size);
        let mut reading = Hashing { from: file.file.take(file.size), hash: Sha256::new(), bytes: 0 };
        builder.append_data(&mut header, path, &mut reading)?;
        if reading.bytes != file.size {
            return Err(NotPut::Failed(Error::Changed(path.to_owned())));
        }
        Ok(What::File { size: file.size, sha256: super::hex(&reading.hash.finalize()) })
    }
}

/// Whether a file that cannot be opened is to blame for it, rather than this host.
fn is_its_own_fault(error: &beneath::Error) -> bool {
    match error {
        beneath::Error::NotFound { .. } | beneath::Error::Refused { .. } | beneath::Error::Busy { .. } => true,
        beneath::Error::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    }
}

/// Why something is not in the archive.
enum NotPut {
    LeftOut(&'static str),
    Failed(Error),
}

impl From<io::Error> for NotPut {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Hashes and counts what is read through it.
struct Hashing<R> {
    from: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.hash.update(&into[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}
