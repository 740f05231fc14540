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

/// What making sure of an image came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was there, from the same content.
    Unchanged,
    /// It is new.
    New,
}

/// Makes sure that `tag` is the image of `binary`, which is at `/<name>` in it.
///
/// Every binary has the commit in it, for `--version`. One that differs in nothing else is no reason to replace what
/// runs: a commit that touches the router would restart every workspace.
///
/// # Errors
/// When the binary cannot be read or the engine does not build.
pub async fn ensure(
    engine: &Engine,
    prefix: &str,
    tag: &str,
    name: &str,
    binary: &Path,
    commit: &str,
) -> anyhow::Result<Made> {
    let program = tokio::fs::read(binary).await.with_context(|| format!("cannot read {}", binary.display()))?;
    let recipe = recipe(prefix, name);
    let content = content_hash(&recipe, &without(&program, commit));
    if label(engine, tag, CONTENT_LABEL).await?.as_deref() == Some(&content) {
        return Ok(Made::Unchanged);
    }
    let context = context(&recipe, name, &program)?;
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

fn recipe(prefix: &str, name: &str) -> String {
    format!(
        "FROM scratch\nCOPY passwd group /etc/\nCOPY {name} /{name}\nUSER 10001:10001\n\
         LABEL {STACK_LABEL}={prefix}\nENTRYPOINT [\"/{name}\"]\n"
    )
}

fn content_hash(recipe: &str, program: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [recipe.as_bytes(), PASSWD.as_bytes(), GROUP.as_bytes(), program] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
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
fn context(recipe: &str, name: &str, program: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::with_capacity(program.len() + (1 << 14)));
    for (path, mode, bytes) in [
        ("Dockerfile", 0o644, recipe.as_bytes()),
        ("passwd", 0o644, PASSWD.as_bytes()),
        ("group", 0o644, GROUP.as_bytes()),
        (name, 0o755, program),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        tar.append_data(&mut header, path, bytes)?;
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

    #[test]
    fn the_same_content_is_the_same_context() {
        let recipe = recipe("beaver", "authz");
        assert_eq!(context(&recipe, "authz", b"elf").unwrap(), context(&recipe, "authz", b"elf").unwrap());
        assert_ne!(content_hash(&recipe, b"elf"), content_hash(&recipe, b"elf2"));
    }

    #[test]
    fn another_commit_alone_is_the_same_content() {
        let (one, two) = (b"..0.1.0 (0123456789ab)..", b"..0.1.0 (ba9876543210)..");
        assert_eq!(without(one, "0123456789ab"), without(two, "ba9876543210"));
        assert_ne!(without(one, "unknown"), without(two, "unknown"));
    }

    #[test]
    fn an_image_holds_its_binary_and_a_user_and_nothing_else() {
        let bytes = context(&recipe("beaver", "authz"), "authz", b"elf").unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["Dockerfile", "passwd", "group", "authz"]);
    }
}
