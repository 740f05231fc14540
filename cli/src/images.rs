//! Images from nothing: the static binary, a user, and that is all. No registry is asked.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, bail};
use bollard::{body_full, models::ImageSummary, query_parameters::BuildImageOptionsBuilder};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use crate::engine::{Engine, STACK_LABEL};

/// The label with the hash of what the image was made from.
const CONTENT_LABEL: &str = "beaver.content";

/// Whom the services run as; deploy-control and workspaces are started as others.
const PASSWD: &str = "root:x:0:0:root:/:/\nbeaver:x:10001:10001:beaver:/:/\n";
const GROUP: &str = "root:x:0:\nbeaver:x:10001:\n";

/// The archive with the extras in the build context.
const TREE: &str = "tree.tar";

/// What making sure of an image came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was there, from the same content.
    Unchanged,
    /// It is new.
    New,
}

/// Something in an image beside its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// The program once more, under this name, with this mode.
    Program(&'static str, u32),
    /// An empty folder of this name, with this mode.
    Folder(&'static str, u32),
}

/// Makes sure that `tag` is the image of these programs, names and files; each is at `/<name>` in it, and the first is what
/// it starts. Extras come beside them.
///
/// Every binary has the commit in it, for `--version`. One that differs in nothing else is no reason to replace what
/// runs: a commit that touches the router would restart every workspace.
///
/// # Errors
/// When a binary cannot be read or the engine does not build.
pub async fn ensure(
    engine: &Engine,
    prefix: &str,
    tag: &str,
    programs: &[(&str, &Path)],
    commit: &str,
    extras: &[Extra],
) -> anyhow::Result<Made> {
    let mut files = Vec::new();
    for (name, binary) in programs {
        let bytes = tokio::fs::read(binary).await.with_context(|| format!("cannot read {}", binary.display()))?;
        files.push((*name, bytes));
    }
    let recipe = recipe(prefix, &files, extras);
    let content = content_hash(&recipe, files.iter().map(|(_, bytes)| without(bytes, commit)));
    if label(engine, tag, CONTENT_LABEL).await?.as_deref() == Some(&content) {
        return Ok(Made::Unchanged);
    }
    let context = context(&recipe, &files, extras)?;
    let labels = HashMap::from([(CONTENT_LABEL, content.as_str())]);
    let options = BuildImageOptionsBuilder::default()
        .dockerfile("Dockerfile")
        .t(tag)
        .rm(true)
        .forcerm(true)
        .labels(&labels)
        .build();
    let mut progress = engine.api().build_image(options, None, Some(body_full(context.into())));
    while let Some(message) = progress.next().await {
        let message = message.with_context(|| format!("the engine does not build {tag}"))?;
        if let Some(error) = message.error_detail {
            bail!("the engine does not build {tag}: {}", error.message.unwrap_or_default());
        }
    }
    Ok(Made::New)
}

async fn label(engine: &Engine, tag: &str, label: &str) -> anyhow::Result<Option<String>> {
    match engine.api().inspect_image(tag).await {
        Ok(image) => Ok(image.config.and_then(|config| config.labels?.get(label).cloned())),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("the engine does not show {tag}")),
    }
}

fn recipe(prefix: &str, files: &[(&str, Vec<u8>)], extras: &[Extra]) -> String {
    let copied: String = files.iter().map(|(name, _)| format!("COPY {name} /{name}\n")).collect();
    let started = files.first().map_or("", |(name, _)| name);
    // Unpacked, not copied: what is copied loses its set-user-id bit. Without any, the text is as it was: the same image.
    let tree = if extras.is_empty() { String::new() } else { format!("ADD {TREE} /\n# {extras:?}\n") };
    format!(
        "FROM scratch\nCOPY passwd group /etc/\n{copied}{tree}USER 10001:10001\n\
         LABEL {STACK_LABEL}={prefix}\nENTRYPOINT [\"/{started}\"]\n"
    )
}

fn content_hash(recipe: &str, programs: impl Iterator<Item = Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    [recipe, PASSWD, GROUP].into_iter().for_each(|part| add(part.as_bytes()));
    programs.for_each(|program| add(&program));
    hex::encode(hash.finalize())
}

/// The program with every occurrence of `commit` blotted out.
fn without(program: &[u8], commit: &str) -> Vec<u8> {
    let (mut result, commit) = (program.to_owned(), commit.as_bytes());
    // A short one could stand anywhere by chance.
    if commit.len() >= 8 {
        let found: Vec<usize> = memchr::memmem::find_iter(program, commit).collect();
        found.into_iter().for_each(|at| result[at..at + commit.len()].fill(0));
    }
    result
}

/// The build context: always the same bytes for the same content, so that the engine finds its layers again.
fn context(recipe: &str, files: &[(&str, Vec<u8>)], extras: &[Extra]) -> anyhow::Result<Vec<u8>> {
    let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut tar = tar::Builder::new(Vec::with_capacity(size + (1 << 14)));
    let ours = [("Dockerfile", recipe), ("passwd", PASSWD), ("group", GROUP)]
        .map(|(path, text)| (path, 0o644, text.as_bytes()));
    for (path, mode, bytes) in ours.into_iter().chain(files.iter().map(|(name, bytes)| (*name, 0o755, &bytes[..]))) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        tar.append_data(&mut header, path, bytes)?;
    }
    if !extras.is_empty() {
        let program = files.first().map_or(&[][..], |(_, bytes)| bytes);
        let tree = tree(program, extras)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(tree.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        tar.append_data(&mut header, TREE, tree.as_slice())?;
    }
    Ok(tar.into_inner()?)
}

/// The extras, as an archive that the engine unpacks.
fn tree(program: &[u8], extras: &[Extra]) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for extra in extras {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        match extra {
            Extra::Program(path, mode) => {
                header.set_size(program.len() as u64);
                header.set_mode(*mode);
                tar.append_data(&mut header, path, program)?;
            }
            Extra::Folder(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                header.set_mode(*mode);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

/// Removes images that were replaced, as far as nothing runs on them any more.
pub async fn remove_replaced(engine: &Engine, prefix: &str) -> anyhow::Result<()> {
    for ImageSummary { id, .. } in engine.images(prefix, true).await? {
        engine.remove_image(&id).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(elf: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        vec![("authz", elf.to_owned()), ("helper", b"elf".to_vec())]
    }

    #[test]
    fn the_same_content_is_the_same_context() {
        let (one, two) = (files(b"elf"), files(b"elf2"));
        let recipe = recipe("beaver", &one, &[]);
        assert!(recipe.contains("COPY helper /helper\n") && recipe.ends_with("ENTRYPOINT [\"/authz\"]\n"), "{recipe}");
        assert_eq!(context(&recipe, &one, &[]).unwrap(), context(&recipe, &one, &[]).unwrap());
        let hash = |files: Vec<(&str, Vec<u8>)>| content_hash(&recipe, files.into_iter().map(|(_, bytes)| bytes));
        assert_ne!(hash(one), hash(two));
    }

    #[test]
    fn another_commit_alone_is_the_same_content() {
        let (one, two) = (b"..0.1.0 (0123456789ab)..", b"..0.1.0 (ba9876543210)..");
        assert_eq!(without(one, "0123456789ab"), without(two, "ba9876543210"));
        assert_ne!(without(one, "unknown"), without(two, "unknown"));
    }

    #[test]
    fn an_image_holds_its_binaries_and_a_user_and_nothing_else() {
        let files = files(b"elf");
        let bytes = context(&recipe("beaver", &files, &[]), &files, &[]).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["Dockerfile", "passwd", "group", "authz", "helper"]);
        let extras = [Extra::Program("again", 0o4755), Extra::Folder("spot", 0o1777)];
        let recipe = recipe("beaver", &files, &extras);
        assert!(recipe.contains("ADD tree.tar /\n"));
        let bytes = context(&recipe, &files, &extras).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        assert_eq!(archive.entries().unwrap().last().unwrap().unwrap().path().unwrap(), Path::new("tree.tar"));
        let tree = tree(b"elf", &extras).unwrap();
        let mut archive = tar::Archive::new(tree.as_slice());
        let entries = archive.entries().unwrap().map(|e| {
            let entry = e.unwrap();
            (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
        });
        assert_eq!(entries.collect::<Vec<_>>(), [("again".into(), 0o4755), ("spot/".into(), 0o1777)]);
    }
}
