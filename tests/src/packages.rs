//! Images of nothing but Debian's packages: each with everything that it depends on, as it is in the archive. Nothing is
//! installed, no script of a package runs, and the host's own packages and package lists are neither used nor changed.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read},
    os::unix::net::UnixStream,
    path::{Component, Path, PathBuf},
    process::Stdio,
};

use anyhow::Context;
use bollard::{Docker, query_parameters::CreateImageOptionsBuilder};
use futures_util::TryStreamExt;
use tokio::{process::Command, sync::Mutex};
use tokio_util::io::ReaderStream;

use crate::{engine::STACK_LABEL, paths};

/// Folders of the root that are links into /usr, as in every Debian since 12.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// What programs do without.
const LEFT_OUT: [&str; 5] =
    ["usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"];

/// Whether the lists are of this run. One fetches at a time: tests run in parallel.
static FETCHING: Mutex<bool> = Mutex::const_new(false);

/// Whether packages can be had. Where there are none (a host that is no Debian), the test that asks says so loudly and
/// returns; with `BEAVER_TEST_DOCKER=required` it fails.
///
/// # Panics
/// With `BEAVER_TEST_DOCKER=required`, when there is no `apt-get` or no `dpkg-deb`.
pub async fn required_or_none(test: &str) -> bool {
    for program in ["apt-get", "dpkg-deb"] {
        let found = Command::new(program).arg("--version").stdin(Stdio::null()).output().await;
        let Err(error) = found else { continue };
        if std::env::var("BEAVER_TEST_DOCKER").is_ok_and(|v| v == "required") {
            panic!("{test}: BEAVER_TEST_DOCKER=required, and there is no {program}: {error}");
        }
        crate::say(format!("*** {test}: NOT RUN: it makes images from Debian's packages, with {program}: {error}"));
        return false;
    }
    true
}

/// Makes the image `name` of a stack from these packages and all that they depend on.
///
/// # Errors
/// When the packages cannot be had, or the engine does not take them.
pub async fn image(docker: &Docker, stack: &str, name: &str, packages: &[&str]) -> anyhow::Result<()> {
    let archives = fetch(packages).await.with_context(|| format!("fetching {packages:?}"))?;
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    let body = bollard::body_try_stream(ReaderStream::new(tokio::net::UnixStream::from_std(reader)?));
    let packing = tokio::task::spawn_blocking(move || pack(&archives, io::BufWriter::with_capacity(1 << 18, writer)));
    let (repo, tag) = name.split_once(':').context("an image's name has a tag")?;
    let import = CreateImageOptionsBuilder::new().from_src("-").repo(repo).tag(tag);
    let import = import.changes(vec![format!("LABEL {STACK_LABEL}={stack}")]).build();
    let imported = docker.create_image(Some(import), Some(body), None).try_collect::<Vec<_>>().await;
    match (packing.await?, imported) {
        (Ok(()), Ok(_)) => Ok(()),
        (Ok(()), Err(error)) => Err(error).with_context(|| format!("importing {name}")),
        (Err(error), Ok(_)) => Err(error.context(format!("packing {name}"))),
        // Either may be because of the other.
        (Err(packing), Err(importing)) => anyhow::bail!("packing {name}: {packing:#}; importing it: {importing}"),
    }
}

/// The archives of these packages and of everything that they depend on.
async fn fetch(packages: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut is_new = FETCHING.lock().await;
    let dir = paths::target().join("packages");
    let (archives, nowhere) = (dir.join("archives"), dir.join("nowhere"));
    for folder in [dir.join("lists/partial"), archives.join("partial"), nowhere.join("partial")] {
        fs::create_dir_all(folder)?;
    }
    fs::write(dir.join("status"), "")?;
    let apt = |archives: &Path, arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        let options = [
            // Nothing is installed, as far as this one knows.
            format!("Dir::State::status={}", dir.join("status").display()),
            format!("Dir::State::lists={}", dir.join("lists").display()),
            format!("Dir::Cache::archives={}", archives.display()),
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            "Debug::NoLocking=true".into(),
            "APT::Install-Recommends=false".into(),
            "APT::Sandbox::User=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
        ];
        apt.args(options.iter().flat_map(|option| ["-o", option])).args(["-q", "-y"]).args(arguments);
        apt.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        run(apt)
    };
    if !*is_new {
        apt(&archives, &["update"]).await?;
        *is_new = true;
    }
    let install = |how| [&["install", how][..], packages].concat();
    // Only what is not there yet is named: so one that looks where nothing is names all.
    let named = apt(&nowhere, &install("--print-uris")).await?;
    apt(&archives, &install("--download-only")).await?;
    let files: Vec<PathBuf> = named
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| Some(archives.join(line.split(' ').nth(1)?)))
        .collect();
    anyhow::ensure!(!files.is_empty(), "apt-get names no package: {named}");
    Ok(files)
}

async fn run(mut command: Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running apt-get")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{:?} ended with {}: {out}{err}", command.as_std(), output.status);
    Ok(out.into_owned())
}

/// Writes what is in the packages as one file tree.
fn pack(archives: &[PathBuf], to: impl io::Write) -> anyhow::Result<()> {
    let mut tree = tar::Builder::new(to);
    // The engine takes nothing twice, and every package brings the folders of its files.
    let mut there = HashSet::new();
    for name in MERGED {
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_mode(0o777);
        link.set_size(0);
        tree.append_link(&mut link, name, format!("usr/{name}"))?;
    }
    for archive in archives {
        let mut unpacking = std::process::Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(archive)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let files = unpacking.stdout.take().context("no output")?;
        let copied = copy(files, &mut tree, &mut there).with_context(|| archive.display().to_string());
        let status = unpacking.wait()?;
        copied?;
        anyhow::ensure!(status.success(), "dpkg-deb {}: {status}", archive.display());
    }
    tree.into_inner()?.flush()?;
    Ok(())
}

fn copy(files: impl Read, tree: &mut tar::Builder<impl io::Write>, there: &mut HashSet<PathBuf>) -> anyhow::Result<()> {
    let mut files = tar::Archive::new(files);
    for entry in files.entries()? {
        let mut entry = entry?;
        let path = merged(&entry.path()?);
        if path.as_os_str().is_empty() || LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)) {
            continue;
        }
        let mut header = entry.header().clone();
        if !there.insert(path.clone()) {
            anyhow::ensure!(header.entry_type().is_dir(), "{} is in two packages", path.display());
            continue;
        }
        match entry.link_name()? {
            Some(target) if header.entry_type().is_hard_link() => {
                tree.append_link(&mut header, path, merged(&target))?;
            }
            Some(target) => tree.append_link(&mut header, path, target)?,
            None => tree.append_data(&mut header, path, &mut entry)?,
        }
    }
    // To its last byte, or who writes it is told that nobody listens.
    io::copy(&mut files.into_inner(), &mut io::sink())?;
    Ok(())
}

/// Where a file of a package is, with the root's folders merged into /usr.
fn merged(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    if MERGED.iter().any(|folder| plain.starts_with(folder)) { Path::new("usr").join(plain) } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_folder_of_the_root_that_is_a_link_is_in_usr() {
        for (path, place) in [
            ("./", ""),
            ("./bin/cat", "usr/bin/cat"),
            ("./lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
            ("./lib", "usr/lib"),
            ("./library/a", "library/a"),
            ("./usr/bin/env", "usr/bin/env"),
            ("/etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(merged(Path::new(path)), Path::new(place), "{path}");
        }
    }
}
