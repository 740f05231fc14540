//! What every process of an instance has at its door: a socket, and a place that only one of them has at a time.
//!
//! An engine that is killed in the middle of a start may forget what it began. The process runs all the same, and nobody who
//! asks the engine gets at it. So whoever comes after it does not need the engine: it asks for the place ([`Place::take`]).

mod path;
mod place;

use std::{io, os::unix::fs::PermissionsExt, path::Path};

use tokio::net::UnixListener;

pub use path::SocketPath;
pub use place::{END, Place, lock};

/// The socket on which an instance takes HTTP.
pub const HTTP: &str = "http.sock";

/// Listens on `name` in `folder`, mode 0660, in the place of one that an earlier process left.
///
/// It is made under another name and then renamed, so that nobody meets it before its mode is right.
///
/// # Errors
/// When it cannot be made.
///
/// # Panics
/// Outside a tokio runtime.
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let (fresh, lasting) = (SocketPath::new(folder, &format!("{name}.new"))?, SocketPath::new(folder, name)?);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&fresh, &lasting)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_long_path_works() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for folder in [folder.path(), &deep] {
            drop(listen(folder, HTTP).unwrap());
            let listener = listen(folder, HTTP).unwrap();
            let mode = std::fs::metadata(folder.join(HTTP)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
            let path = SocketPath::new(folder, HTTP).unwrap();
            let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
            assert!(connected.is_ok() && accepted.is_ok());
        }
    }
}
