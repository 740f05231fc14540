//! Settings from a directory of files, one a setting: how Docker, Kubernetes and systemd hand secrets to a program
//! without putting them into its environment, where `docker inspect` and `/proc` show them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use crate::{Error, SECRETS_DIR, example};

/// The largest file that is read, in bytes; a secret is far smaller.
const MAX_BYTES: u64 = 64 << 10;

/// Every setting that `dir` holds: a file's name is the setting's, its text the value, without the line break at its end.
///
/// Names that begin with a dot are passed over: Kubernetes keeps the real files under such names and links to them.
pub(crate) fn read(dir: &Path) -> Result<BTreeMap<String, String>, Error> {
    let failed =
        |path: &Path, source| Error::File { key: SECRETS_DIR.into(), path: path.display().to_string(), source };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|source| failed(dir, source))? {
        let path = entry.map_err(|source| failed(dir, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if !is_setting(&name) {
            return Err(Error::UnknownFile { path: path.display().to_string() });
        }
        let value = text(&path).map_err(|source| failed(&path, source))?;
        found.insert(name, value);
    }
    Ok(found)
}

fn is_setting(name: &str) -> bool {
    name != SECRETS_DIR && example::find(name.strip_suffix("_PREVIOUS").unwrap_or(name)).is_some()
}

fn text(path: &Path) -> io::Result<String> {
    // Looked at first: opening a fifo would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}
