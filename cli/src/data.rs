//! `beaver delete`, `undelete`, `export` and `restore`: a workspace and its data, on somebody's behalf.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use contracts::deploy::{By, DeleteInstance, Instance, UndeleteInstance};
use futures_util::{Stream, StreamExt, stream};
use http::Method;
use serde::{Deserialize, Serialize};
use service::{CallError, ServiceClient};
use settings::Env;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
};

use crate::{
    Exit,
    args::{Inside, Place},
    ask,
    stack::{self, Project, Stack},
    text,
    ui::Ui,
};

/// How much is read at once, in bytes.
const PIECE: usize = 64 << 10;

/// What deploy-control says to a wish.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// It is written down, and being worked on.
    Taken(Box<Instance>),
    /// Nothing was changed, for this reason.
    Refused(String),
}

/// Deletes a workspace, whose name is said twice. Its data is kept for a while.
///
/// # Errors
/// When the services cannot be asked.
pub async fn delete(place: &Place, slug: &str, confirm: &str, ui: &Ui) -> anyhow::Result<Exit> {
    let wish = Inside::Delete { slug: slug.into(), confirm: confirm.into() };
    let instance = match wished(place, wish, &["delete", slug, confirm]).await? {
        Said::Taken(instance) => instance,
        Said::Refused(why) => return Ok(refused(ui, &why)),
    };
    let until = instance.deletion.map(|deletion| clock::rfc3339(deletion.data_until_ms)).unwrap_or_default();
    ui.line(text!(
        ui,
        "✓ {slug} is deleted; its data is kept until {until}: beaver undelete {slug} takes it back",
        "✓ {slug} 已删除;数据保留到 {until}:beaver undelete {slug} 可以撤销"
    ));
    Ok(Exit::Ok)
}

/// Takes a deletion back.
///
/// # Errors
/// When the services cannot be asked.
pub async fn undelete(place: &Place, slug: &str, ui: &Ui) -> anyhow::Result<Exit> {
    match wished(place, Inside::Undelete { slug: slug.into() }, &["undelete", slug]).await? {
        Said::Taken(_) => {
            ui.line(text!(
                ui,
                "✓ {slug} is not deleted any more (see beaver status)",
                "✓ 已撤销删除 {slug}(见 beaver status)"
            ));
            Ok(Exit::Ok)
        }
        Said::Refused(why) => Ok(refused(ui, &why)),
    }
}

/// Writes a workspace's data into a file, which is there when it is whole.
///
/// # Errors
/// When the services cannot be asked, or the file cannot be written.
pub async fn export(place: &Place, slug: &str, output: Option<&Path>, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let file = output.map_or_else(|| PathBuf::from(format!("beaver-{slug}.tar")), Path::to_owned);
    let mut name = file.clone().into_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut options = tokio::fs::OpenOptions::new();
    // The provider's key is in it.
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&part).await;
    let mut to = opened.with_context(|| format!("cannot write {}", part.display()))?;
    let outcome = async {
        match ask::Way::to(&stack).await? {
            ask::Way::Direct(env) => take(&env, slug, &mut to).await?,
            ask::Way::Compose(compose) => {
                let mut asking =
                    compose.start(&stack, &["run", "--rm", "--no-deps", "-T", "ask", "data", "export", slug])?;
                drop(asking.stdin.take());
                let mut stdout = asking.stdout.take().context("the compose tool has no standard output")?;
                tokio::io::copy(&mut stdout, &mut to).await?;
                let ended = asking.wait_with_output().await?;
                if !ended.status.success() {
                    bail!("{}", why(&ended.stderr));
                }
            }
        }
        to.sync_all().await?;
        tokio::fs::rename(&part, &file).await.with_context(|| format!("cannot write {}", file.display()))
    };
    if let Err(error) = outcome.await {
        let _ = tokio::fs::remove_file(&part).await;
        return Ok(refused(ui, &format!("{error:#}")));
    }
    let file = file.display();
    ui.line(text!(
        ui,
        "✓ {file} has everything of {slug}, the key of its provider too: keep it like a password",
        "✓ {file} 中有 {slug} 的全部数据,包括其服务商密钥,请像密码一样保管"
    ));
    Ok(Exit::Ok)
}

/// Puts a file's data in the place of a workspace's.
///
/// # Errors
/// When the services cannot be asked, or the file cannot be read.
pub async fn restore(place: &Place, slug: &str, file: &Path, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let mut from = File::open(file).await.with_context(|| format!("cannot read {}", file.display()))?;
    let said = match ask::Way::to(&stack).await? {
        ask::Way::Direct(env) => put(&env, slug, from).await?,
        ask::Way::Compose(compose) => {
            let mut asking =
                compose.start(&stack, &["run", "--rm", "--no-deps", "-T", "ask", "data", "restore", slug])?;
            let mut stdin = asking.stdin.take().context("the compose tool has no standard input")?;
            // It may have been refused before its end.
            let _ = tokio::io::copy(&mut from, &mut stdin).await;
            drop(stdin);
            let ended = asking.wait_with_output().await?;
            ask::answer(&String::from_utf8_lossy(&ended.stdout))
                .map_err(|_| anyhow::anyhow!("{}", why(&ended.stderr)))?
        }
    };
    match said {
        Said::Taken(_) => {
            ui.line(text!(
                ui,
                "✓ {slug} restarts with the data of the file; should it not come up with that, its own comes back",
                "✓ {slug} 正在用文件中的数据重启;如果无法启动,会恢复原来的数据"
            ));
            Ok(Exit::Ok)
        }
        Said::Refused(why) => Ok(refused(ui, &why)),
    }
}

/// `beaver data …`: the same from inside the services' network. A wish is answered as JSON; an archive comes on standard output,
/// or is read from standard input.
///
/// # Errors
/// When a setting is unusable or deploy-control does not answer.
pub async fn from_inside(wish: Inside) -> anyhow::Result<Exit> {
    let env = Env::from_process().with_files()?;
    match &wish {
        Inside::Export { slug } => {
            take(&env, slug, &mut File::options().write(true).open("/dev/stdout").await?).await?
        }
        Inside::Restore { slug } => {
            println!("{}", serde_json::to_string(&put(&env, slug, File::open("/dev/stdin").await?).await?)?);
        }
        Inside::Delete { .. } | Inside::Undelete { .. } => {
            println!("{}", serde_json::to_string(&tell(&env, &wish).await?)?);
        }
    }
    Ok(Exit::Ok)
}

async fn wished(place: &Place, wish: Inside, arguments: &[&str]) -> anyhow::Result<Said> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    ask::either(&stack, async |env| tell(&env, &wish).await, &[&["data"], arguments].concat()).await
}

fn refused(ui: &Ui, why: &str) -> Exit {
    ui.line(format!("✗ {why}"));
    Exit::Failed
}

/// The last of what a container said that matters.
fn why(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr).into_owned();
    let why = said.lines().rfind(|line| line.starts_with("beaver: ")).or(said.lines().last());
    why.unwrap_or("the services cannot be asked").trim_start_matches("beaver: ").to_owned()
}

fn deploy(env: &Env) -> anyhow::Result<ServiceClient> {
    let token = env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?;
    Ok(ServiceClient::new("deploy-control", env.url("BEAVER_DEPLOY_URL")?, token))
}

fn said(outcome: Result<Instance, CallError>) -> anyhow::Result<Said> {
    match outcome {
        Ok(instance) => Ok(Said::Taken(Box::new(instance))),
        Err(CallError::Refused { problem, .. }) if problem.status < 500 => Ok(Said::Refused(problem.detail)),
        Err(error) => Err(error.into()),
    }
}

async fn tell(env: &Env, wish: &Inside) -> anyhow::Result<Said> {
    let deploy = deploy(env)?;
    let all = ask::all(&deploy).await?;
    let (Inside::Delete { slug, .. } | Inside::Undelete { slug } | Inside::Export { slug } | Inside::Restore { slug }) =
        wish;
    let instance = match ask::named(&all, slug) {
        Ok(instance) => instance,
        Err(refused) => return Ok(Said::Refused(refused.to_string())),
    };
    let path = |what: &str| format!("/api/instances/{}/{what}", instance.id);
    said(match wish {
        Inside::Delete { confirm, .. } => {
            deploy.post(&path("delete"), &DeleteInstance { by: By::Operator, slug: confirm.clone() }).await
        }
        _ => deploy.post(&path("undelete"), &UndeleteInstance { by: By::Operator }).await,
    })
}

/// Writes a workspace's archive.
async fn take(env: &Env, slug: &str, to: &mut File) -> anyhow::Result<()> {
    let deploy = deploy(env)?;
    let all = ask::all(&deploy).await?;
    let id = ask::named(&all, slug)?.id;
    let asked = deploy.request(Method::GET, &format!("/api/instances/{id}/export?by={}", By::Operator));
    let archive = deploy.send(asked).await.map_err(|error| match error {
        CallError::Refused { problem, .. } => anyhow::anyhow!("{}", problem.detail),
        error => error.into(),
    })?;
    let mut pieces = archive.bytes_stream();
    while let Some(piece) = pieces.next().await {
        to.write_all(&piece.context("the archive broke off")?).await?;
    }
    Ok(to.flush().await?)
}

/// Sends an archive to a workspace.
async fn put(env: &Env, slug: &str, from: File) -> anyhow::Result<Said> {
    let deploy = deploy(env)?;
    let all = ask::all(&deploy).await?;
    let id = match ask::named(&all, slug) {
        Ok(instance) => instance.id,
        Err(refused) => return Ok(Said::Refused(refused.to_string())),
    };
    let asked = deploy.request(Method::POST, &format!("/api/instances/{id}/restore?by={}", By::Operator));
    said(deploy.json_of_stream(asked.header("content-type", "application/x-tar"), pieces(from)).await)
}

/// A file in pieces.
fn pieces(file: File) -> impl Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static {
    Box::pin(stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(count) => {
                piece.truncate(count);
                Some((Ok(piece.into()), Some(file)))
            }
            Err(error) => Some((Err(error), None)),
        }
    }))
}
