//! `app-instance probe`: whether sockets in the two folders are reached across the container's border. deploy-control asks
//! for it before the first instance is started, since some engines and policies let files through a mount but no sockets.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::ExitCode,
    thread,
    time::Duration,
};

use ::settings::Env;
use anyhow::{Context, ensure};
use contracts::instance::{PROBE_FAILED, PROBE_SOCKET};

use crate::settings::Settings;

/// How long it lives at most: whoever asked for it may have been killed.
const LIFE: Duration = Duration::from_secs(60);

/// The process of a probe. What failed is its last line.
pub fn main() -> ExitCode {
    thread::spawn(|| {
        thread::sleep(LIFE);
        eprintln!("nobody came");
        std::process::exit(PROBE_FAILED.into());
    });
    match Settings::from_env(&Env::from_process()).map_err(Into::into).and_then(|settings| pass(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(PROBE_FAILED)
        }
    }
}

fn pass(settings: &Settings) -> anyhow::Result<()> {
    let inward = UnixListener::bind(settings.inward.join(PROBE_SOCKET)).context("listening in in/")?;
    outward(settings).context("the socket in out/")?;
    let mut stream = inward.accept().context("the socket in in/")?.0;
    let mut byte = [0];
    stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).context("the socket in in/")
}

fn outward(settings: &Settings) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(settings.outward.join(PROBE_SOCKET))?;
    let mut back = [0];
    stream.write_all(b"b")?;
    stream.read_exact(&mut back)?;
    ensure!(back == *b"b", "another byte came back");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &std::path::Path) -> Settings {
        let (inward, outward) = (folder.join("in"), folder.join("out"));
        [&inward, &outward].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        Settings { data: folder.into(), config: folder.into(), inward, outward, exit_with_parent: false }
    }

    #[test]
    fn a_byte_passes_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let outward = UnixListener::bind(settings.outward.join(PROBE_SOCKET)).unwrap();
        let inward = settings.inward.join(PROBE_SOCKET);
        let probe = thread::spawn(move || pass(&settings));
        let (mut byte, mut stream) = ([0], outward.accept().unwrap().0);
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
        let mut stream = UnixStream::connect(inward).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        probe.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_not_reached_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", pass(&settings(folder.path())).unwrap_err());
        assert!(error.starts_with("the socket in out/: "), "{error}");
    }
}
