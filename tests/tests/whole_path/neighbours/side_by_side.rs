//! Hostile instances take all that they can, all at once and each of its own kind; honest ones beside them are answered as
//! ever, and afterwards nothing is damaged.
//!
//! It is bounded: every hostile container ends by itself after [`RAGE_S`] seconds, whatever becomes of this test.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use ::attack::{Behaviour, Fury, READY, Rage, Raged};
use anyhow::{Context, ensure};
use beaver_tests::{
    canary,
    house::{House, Nobodys},
    provider::{STEADY, reply_to},
    streams::Way,
    wait, workspace,
};
use bollard::{
    Docker,
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder},
};
use futures_util::future::{join_all, try_join_all};
use serde_json::json;

use super::{PATIENCE, Tenant, Town};

const RAGE_S: u64 = 30;
/// How often each honest one must have been answered meanwhile.
const ANSWERS: usize = 3;
/// How many honest ones there are.
const HONEST: usize = 4;
/// How many calls to a door that never answers wait for an answer at once.
const WAITING: usize = 40;
const OWN_DOOR: &str = "/run/beaver/out/egress.sock";
/// What a log keeps at most: three files of ten megabytes, and some.
const KEPT: usize = 32 << 20;

/// The services' containers: their ids and since when they run.
type Running = Vec<(String, String)>;

/// Lets them rage, and talks to the honest ones meanwhile.
pub async fn rage(town: &Town<'_>, house: &House, docker: &Docker) -> anyhow::Result<()> {
    // It leaves the hostile program's image, and is an attack of its own.
    let output = town.stack.beaver(&["attack", "--only", "interfaces,egress_host"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let services = running(town, docker).await?;
    let hostile = try_join_all(["hostile-a", "hostile-b"].map(|slug| house.nobodys(slug))).await?;
    let raged = on(town, house, docker, &hostile).await;
    let force = || Some(RemoveContainerOptionsBuilder::new().force(true).build());
    for (role, _) in furies(town, &hostile)? {
        match docker.remove_container(&name(town, role), force()).await {
            Ok(()) | Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for one in &hostile {
        house.discard(one).await?;
    }
    raged?;
    ensure!(running(town, docker).await? == services, "services were restarted");
    docker.ping().await?;
    for one in &hostile {
        let left = processes_of(one.uid()?)?;
        ensure!(left.is_empty(), "processes of {}: {left:?}", one.slug);
        for place in ["run", "instances"] {
            let folder = town.stack.data_dir().join(place).join(one.id.to_string());
            ensure!(!folder.exists(), "{} is left", folder.display());
        }
    }
    Ok(())
}

fn name(town: &Town<'_>, role: &str) -> String {
    format!("{}-rage-{role}", town.stack.prefix())
}

/// What rages: each in a container of its own, with everything that the instance's own has.
fn furies<'a>(town: &Town<'_>, hostile: &'a [Nobodys]) -> anyhow::Result<Vec<(&'static str, (&'a Nobodys, Fury))>> {
    let [one, other] = hostile else { anyhow::bail!("two") };
    let memory = one.body.host_config.as_ref().and_then(|host_config| host_config.memory).context("no limit")?;
    let Way::Door { provider, key, .. } = town.way(town.tenants.first().context("somebody")?, 1)? else {
        anyhow::bail!("no door")
    };
    // An answer without an end, which nobody reads.
    let body = json!({"model": STEADY, "stream": true, "messages": [{"role": "user", "content": "x".repeat(4000)}]});
    let body = body.to_string();
    let say = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {provider}\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let flood = |say: String| Fury::Connections { door: OWN_DOOR.into(), target: provider.clone(), say };
    Ok(vec![
        ("fork", (one, Fury::Fork)),
        ("memory", (one, Fury::Memory(u64::try_from(memory)? * 2))),
        ("spin", (one, Fury::Spin(8))),
        ("log", (one, Fury::Log)),
        ("unread", (one, flood(say))),
        ("silent", (one, Fury::Door(Behaviour::Silent))),
        // The other one never says anything where it is let out to, and answers without an end.
        ("unsaid", (other, flood(String::new()))),
        ("endless", (other, Fury::Door(Behaviour::EndlessBody))),
    ])
}

async fn on(town: &Town<'_>, house: &House, docker: &Docker, hostile: &[Nobodys]) -> anyhow::Result<()> {
    let image = format!("{}/attack:latest", town.stack.prefix());
    let furies = furies(town, hostile)?;
    try_join_all(furies.iter().map(|(role, (one, fury))| {
        let rage = Rage { fury: fury.clone(), seconds: RAGE_S };
        let (image, name) = (&image, name(town, role));
        async move {
            let body = one.with(image, &["rage", &serde_json::to_string(&rage)?]);
            let named = CreateContainerOptionsBuilder::new().name(&name).build();
            docker.create_container(Some(named), body).await.with_context(|| format!("making {name}"))?;
            docker.start_container(&name, None).await.with_context(|| format!("starting {name}"))?;
            anyhow::Ok(())
        }
    }))
    .await?;
    // What the one says that floods its log is gone from it soon.
    for (role, _) in furies.iter().filter(|(_, (_, fury))| !matches!(fury, Fury::Log)) {
        wait::until(format!("{role} rages"), PATIENCE, async || {
            anyhow::Ok(said(docker, &name(town, role)).await?.lines().any(|line| line == READY).then_some(()))
        })
        .await?;
    }

    // Meanwhile.
    let (over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let honest = try_join_all(town.tenants.iter().take(HONEST).map(|tenant| talk(town, tenant, &over, &answers)));
    let waiting = async {
        let calls = hostile.iter().cycle().take(WAITING).map(|one| house.ask_instance(one.id, "/"));
        // None of them is answered; that is theirs to bear.
        join_all(calls).await.len()
    };
    let to_its_limit = async {
        for one in hostile {
            wait::until(format!("{} has as many connections as it may", one.slug), PATIENCE, async || {
                let used = house.usage(one.id).await?.context("its way out is not known")?;
                let refused = used.refusals.iter().any(|refusal| refusal.code == "egress_too_many");
                ensure!(used.open_connections <= used.connection_limit, "{used:?}");
                anyhow::Ok(refused.then_some(()))
            })
            .await?;
        }
        anyhow::Ok(())
    };
    let ends = async {
        let ended = wait::until("all of them have raged", PATIENCE, async || {
            for (role, _) in &furies {
                let state = docker.inspect_container(&name(town, role), None).await?.state.context("no state")?;
                ensure!(state.running != Some(true), "{role} still does");
            }
            anyhow::Ok(Some(()))
        })
        .await;
        over.store(true, Ordering::SeqCst);
        ended
    };
    let (honest, waited, limited, ended) = tokio::join!(honest, waiting, to_its_limit, ends);
    let (honest, ()) = (honest?, limited?);
    ended?;
    ensure!(waited == WAITING, "{waited}");
    let fewest = honest.iter().min().copied().unwrap_or_default();
    ensure!(honest.len() == HONEST && fewest >= ANSWERS, "the honest ones were answered {honest:?} times");

    // The control: it was all really tried, and had its bounds.
    let mut told = Vec::new();
    for (role, _) in &furies {
        let said = said(docker, &name(town, role)).await?;
        ensure!(said.len() <= KEPT, "{} bytes of the log of {role} are kept", said.len());
        let last =
            said.lines().rev().find(|line| line.starts_with('{')).with_context(|| format!("{role} says nothing"))?;
        let raged: Raged = serde_json::from_str(last)?;
        let bounded = matches!(*role, "fork" | "memory" | "unread" | "unsaid");
        ensure!(!bounded || raged.refused > 0, "{role} had no bounds: {raged:?}");
        ensure!(*role == "memory" || raged.done > 0, "{role} had nothing: {raged:?}");
        ensure!(*role != "memory" || raged.done == 0, "twice its memory was had: {raged:?}");
        told.push(format!("{role} {}/{}", raged.done, raged.refused));
    }
    beaver_tests::say(format!(
        "neighbours: had and refused: {}; honest ones answered {honest:?} times, {} in all",
        told.join(", "),
        answers.load(Ordering::SeqCst)
    ));
    for one in hostile {
        wait::until(format!("{}'s connections are given back", one.slug), PATIENCE, async || {
            let used = house.usage(one.id).await?.context("its way out is not known")?;
            anyhow::Ok((used.open_connections == 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// An honest one: says something and is answered, again and again; how often.
async fn talk(town: &Town<'_>, tenant: &Tenant, over: &AtomicBool, answers: &AtomicUsize) -> anyhow::Result<usize> {
    let (mut web, slug) = (tenant.web.clone(), &tenant.person.slug);
    let mut times = 0;
    while !over.load(Ordering::SeqCst) || times < ANSWERS {
        let said = format!("{} for the {times}. time", tenant.mark);
        let (chat, answer) = workspace::say(&mut web, town.stack, slug, &said).await.with_context(|| slug.clone())?;
        ensure!(answer.text.contains("event: done"), "{slug}: {}", answer.text);
        let all = workspace::everything(&mut web, town.stack, slug).await?;
        let messages = &all.iter().find(|(id, _)| *id == chat).context("the chat is gone")?.1;
        let texts: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        ensure!(texts == [said.as_str(), &reply_to(&said)], "{slug} has {texts:?}");
        times += 1;
        answers.fetch_add(1, Ordering::SeqCst);
    }
    Ok(times)
}

/// What a container wrote, as far as it is kept.
async fn said(docker: &Docker, name: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&canary::logs(docker, name).await?).into_owned())
}

async fn running(town: &Town<'_>, docker: &Docker) -> anyhow::Result<Running> {
    let services = ["deploy-control", "authz-service", "router-proxy", "auth-portal"];
    try_join_all(services.map(|service| async move {
        let found = docker.inspect_container(&town.stack.container(service), None).await?;
        let since = found.state.and_then(|state| state.started_at).context("it does not run")?;
        anyhow::Ok((found.id.context("no id")?, since.to_string()))
    }))
    .await
}

/// The processes on this host that run as this user.
fn processes_of(uid: u32) -> anyhow::Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new("/proc"))? {
        let path = entry?.path();
        let is_process = path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        // One that has ended in between is none.
        if is_process && std::fs::metadata(&path).is_ok_and(|meta| meta.uid() == uid) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}
