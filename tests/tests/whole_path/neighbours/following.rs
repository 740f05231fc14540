//! One tenant is gone with everything, and another comes: what is given back and taken anew.
//!
//! What is promised: an id, a name and a user id are never given twice, and what was kept under them is gone with them, in
//! the folders, at the router and on the engine.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use beaver_tests::{canary::Canaries, house::House, streams::Stream, wait};
use bollard::{
    Docker,
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder},
};
use clock::Entropy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{PATIENCE, Town};
use crate::faults;

const SLUG: &str = "following";

/// Discards an instance full of marks, and looks for them everywhere while the next takes its place.
pub async fn nothing_is_left(town: &Town<'_>, house: &House, docker: &Docker) -> anyhow::Result<()> {
    let data_dir = town.stack.data_dir();
    let former = house.nobodys(SLUG).await?;
    let uid = former.uid()?;
    let (run, instances) = (data_dir.join("run"), data_dir.join("instances"));
    let (its_run, its_data) = (run.join(former.id.to_string()), instances.join(former.id.to_string()));

    // It leaves its mark wherever it, or the house on its behalf, may put one.
    let secret = Entropy::system().token();
    let mut canaries = Canaries::default();
    canaries.add("the former tenant's secret", &secret);
    for (path, owner) in [
        (its_data.join("data/kept"), uid),
        (its_data.join("data/deep/down").join(&secret), uid),
        (its_data.join("config/config.9.json"), uid),
        (its_run.join("in/left"), uid),
        (its_run.join("out/left"), 0),
    ] {
        let folder = path.parent().context("a folder")?;
        fs::create_dir_all(folder)?;
        fs::write(&path, &secret)?;
        chown(&path, Some(owner), Some(owner))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    }
    // It uses its way out, and is refused something.
    let key = format!("{}{secret}", beaver_tests::provider::GOOD_KEY);
    let way = match town.way(town.tenants.first().context("somebody")?, 1)? {
        beaver_tests::streams::Way::Door { provider, .. } => {
            beaver_tests::streams::Way::Door { socket: town.door(former.id), provider, key }
        }
        beaver_tests::streams::Way::Edge { .. } => anyhow::bail!("no door"),
    };
    let mark = format!("mark-of-the-former-{secret}");
    let held = Stream::open(&way, &mark).await?;
    let refused = refusal(&town.door(former.id), &format!("{secret}.invalid:80")).await?;
    ensure!(refused.starts_with("HTTP/1.1 502"), "{refused}");
    town.go_on(std::slice::from_ref(&held), 3).await?;

    // The control: all of that is found where it was left.
    let of_former = former.id.to_string();
    let used = house.usage(former.id).await?.context("its way out is not known")?;
    ensure!(used.bytes_in > 0 && used.refused == 1 && used.open_connections == 1, "{used:?}");
    ensure!(used.refusals.iter().any(|refusal| refusal.target.contains(&secret)), "{used:?}");
    ensure!(house.metrics().await?.contains(&of_former), "the metrics do not tell of it");
    ensure!(canaries.look_in_files(&data_dir, &|_| false)?.len() >= 5, "what it left is not found");
    ensure!(!owned_by(&data_dir, uid)?.is_empty(), "nothing is its own");
    let containers = faults::instances(docker, town.stack.prefix()).await?;
    ensure!(containers.iter().any(|(id, _)| *id == of_former), "it has no container");

    // A program of its own still runs on its folders while they are taken away.
    let image = format!("{}/app-instance:latest", town.stack.prefix());
    let name = format!("{}-lingers", town.stack.prefix());
    let named = CreateContainerOptionsBuilder::new().name(&name).build();
    docker.create_container(Some(named), former.with(&image, &[])).await.context("a container on its folders")?;
    docker.start_container(&name, None).await.context("starting it")?;
    let discarded = house.discard(&former).await;
    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    docker.remove_container(&name, Some(force)).await?;
    discarded?;

    let next = house.nobodys("following-next").await?;
    ensure!(next.uid()? > uid, "the user id {} comes after {uid}", next.uid()?);
    ensure!(next.id != former.id && next.account != former.account);
    for folder in [&its_run, &its_data] {
        ensure!(!folder.exists(), "{} is there", folder.display());
    }
    wait::until("its stream is cut", PATIENCE, async || anyhow::Ok(held.has_ended().then_some(()))).await?;
    ensure!(!held.so_far()?.whole, "it looks as if it had come to its end");
    wait::until("the router has forgotten it", PATIENCE, async || {
        ensure!(house.usage(former.id).await?.is_none(), "its numbers are told");
        ensure!(!house.metrics().await?.contains(&of_former), "its metrics are told");
        // What is kept for the next start follows the table.
        let kept = fs::read_to_string(data_dir.join("router/routes.json"))?;
        ensure!(!kept.contains(&of_former), "its route is kept");
        anyhow::Ok(Some(()))
    })
    .await?;
    let status = house.ask_instance(former.id, "/readyz").await?;
    ensure!(status == 503, "its socket answers {status}");
    let containers = faults::instances(docker, town.stack.prefix()).await?;
    ensure!(!containers.iter().any(|(id, _)| *id == of_former), "its container is there");

    // The next has nothing of it, in number or in word.
    let used = house.usage(next.id).await?.context("the next one's way out is not known")?;
    ensure!((used.bytes_in, used.bytes_out, used.refused, used.open_connections) == (0, 0, 0, 0), "{used:?}");
    let found = canaries.look_in_files(&data_dir, &in_the_log)?;
    ensure!(found.is_empty(), "{found:?}");
    let owned = owned_by(&data_dir, uid)?;
    ensure!(owned.is_empty(), "still its own: {owned:?}");

    // Neither its name nor its id is to be had again, and asking for its own brings nothing back.
    let (other_id, other_account) = House::new_ids();
    for (id, account, slug, code) in [
        (other_id, other_account, &former.slug, "slug_taken"),
        (former.id, other_account, &"following-else".parse()?, "instance_id_taken"),
    ] {
        let answer = house.ask_for(id, account, slug).await?;
        let (status, said) = (answer.status(), answer.text().await?);
        ensure!(status == 409 && said.contains(code), "{code}: {status} {said}");
    }
    let again = house.ask_for(former.id, former.account, &former.slug).await?;
    let said: serde_json::Value = again.json().await?;
    ensure!(said["phase"] == "deleted", "{said}");
    let third = house.nobodys("following-third").await?;
    ensure!(third.uid()? > next.uid()?, "the user ids {} and {}", third.uid()?, next.uid()?);
    ensure!(!its_run.exists() && !its_data.exists(), "its folders came back");
    for one in [&next, &third] {
        house.discard(one).await?;
    }
    Ok(())
}

/// Its name and that it asked for something are events, which its operator keeps.
fn in_the_log(path: &Path) -> bool {
    path.starts_with("deploy-control")
}

/// Everything in this folder that belongs to this user.
fn owned_by(folder: &Path, uid: u32) -> anyhow::Result<Vec<PathBuf>> {
    let (mut owned, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                folders.push(path.clone());
            }
            if meta.uid() == uid || meta.gid() == uid {
                owned.push(path);
            }
        }
    }
    Ok(owned)
}

/// What a door answers who asks for this.
async fn refusal(door: &Path, target: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(door).await?;
    let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
