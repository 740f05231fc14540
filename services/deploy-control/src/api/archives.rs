//! An instance's data as one file: out and in, in pieces as they come.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use contracts::{
    InstanceId, ProblemDetails,
    deploy::{By, Desired, EventCode, Instance, Phase},
    instance::FromArchive,
};
use futures_util::StreamExt;
use http::{StatusCode, header};
use serde::Deserialize;
use service::{Json, Problem};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::{Api, instances::parse};
use crate::{
    archive::{
        Configured, Manifest, Program, pipe,
        read::{self, Limits, unpack},
        write::{self, Source},
    },
    chain,
    engine::{ErrorKind, Unit, UnitState},
    folders,
    registry::{NewEvent, Row, Wish},
    turns::Turns,
};

/// How many archives are on their way at once: each keeps the disk busy.
const AT_ONCE: usize = 4;
/// What an instance without a limit may get, at most, of the room that there is on the disk: half of it.
const OF_FREE: u64 = 2;
/// How much of an archive that is refused is read to its end all the same, so that whoever sends it hears the answer.
const READ_ON: u64 = 4 << 30;

/// Who works on an archive at present.
#[derive(Clone)]
pub struct Archives {
    of_each: Turns,
    all: Arc<Semaphore>,
}

impl Default for Archives {
    fn default() -> Self {
        Self { of_each: Turns::default(), all: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// One archive's turn; over when it is dropped.
struct Turn {
    _of_one: OwnedMutexGuard<()>,
    _of_all: OwnedSemaphorePermit,
}

impl Archives {
    fn begin(&self, id: InstanceId) -> Result<Turn, Problem> {
        let of_one = self.of_each.of(id).try_lock_owned().map_err(|_| {
            let words = "An archive of this instance is on its way already. Wait until that is over.";
            Problem::new(StatusCode::CONFLICT, "archive_under_way", words)
        })?;
        let of_all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| {
            Problem::unavailable(anyhow::anyhow!("{AT_ONCE} archives are on their way")).retry_after(10)
        })?;
        Ok(Turn { _of_one: of_one, _of_all: of_all })
    }
}

/// `?by=`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ByQuery {
    by: By,
}

type Asked = Result<Query<ByQuery>, axum::extract::rejection::QueryRejection>;

fn program(row: &Row) -> Program {
    if row.plan.is_workspace() { Program::Workspace } else { Program::Image }
}

/// The instance that has data, for its owner or the operator.
async fn with_data(api: &Api, id: &str, asked: Asked) -> Result<(Row, By), Problem> {
    let Query(ByQuery { by }) = asked.map_err(|error| Problem::bad_request(error.body_text()))?;
    let row = api.of(parse(id)?, by).await?;
    if matches!(row.phase, Phase::Deleting | Phase::Deleted)
        || (row.desired == Desired::Deleted && row.deletion.is_none())
    {
        return Err(Problem::not_found("instance_not_found"));
    }
    Ok((row, by))
}

/// Its data as a tar archive, as it is now. One that breaks off has no manifest at its end, and cannot be put back.
#[utoipa::path(get, path = "/api/instances/{id}/export", params(("id" = InstanceId, Path), ("by" = String, Query)),
    responses((status = 200, content_type = "application/x-tar"), (status = 404, body = ProblemDetails),
        (status = 409, description = "export_needs_stop, archive_under_way, restore_under_way", body = ProblemDetails),
        (status = 503, body = ProblemDetails)))]
pub(super) async fn export(State(api): State<Api>, Path(id): Path<String>, asked: Asked) -> Result<Response, Problem> {
    let (row, by) = with_data(&api, &id, asked).await?;
    let turn = api.archives.begin(row.id)?;
    not_in_between(&api.of(row.id, by).await?)?;
    let before = Still::of(&api, row.id).await?;
    let program = program(&row);
    let snapshot = before.runs() && program == Program::Workspace;
    if before.runs() && !snapshot {
        let words = "What this instance runs may be writing at this moment. Stop it first.";
        return Err(Problem::new(StatusCode::CONFLICT, "export_needs_stop", words));
    }
    let taken_away = Snapshot { api: api.clone(), id: row.id, made: snapshot, turn: Some(turn) };
    if snapshot {
        api.peers.snapshot(row.id).await.map_err(Problem::unavailable)?;
    }
    let source = Source {
        data: api.folders.data(row.id).await.map_err(of_folders)?,
        slug: row.slug.to_string(),
        program,
        snapshot,
        made_at_ms: api.registry.now_ms(),
        configured: Configured { instance: row.id, generation: row.config_generation },
    };
    let listing = tokio::task::spawn_blocking(move || source.list().map(|listed| (source, listed)));
    let (source, listed) = listing.await.map_err(Problem::internal)?.map_err(|error| match error {
        write::Error::Files(beneath::Error::TooLarge { .. }) => {
            let words = "There are more files than an archive has: 200,000. Remove some first.";
            Problem::new(StatusCode::CONFLICT, "export_too_many_files", words)
        }
        error => Problem::unavailable(error),
    })?;
    let event = NewEvent { code: EventCode::Exported, actor: by.to_string(), detail: None };
    let row = api.registry.tell(row.id, vec![event]).await?;
    api.hub.publish(&row);
    // As it is now: telling was a change too.
    let before = if snapshot { None } else { Some(Still { version: row.version, ..before }) };

    let (out, body) = pipe::body();
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let _held = taken_away;
        let is_whole = || match &before {
            None => Ok(()),
            Some(before) => match runtime.block_on(Still::of(&api, row.id)) {
                Ok(now) if now == *before => Ok(()),
                _ => Err(write::Error::Changed("the instance".into())),
            },
        };
        let written = source.write(listed, out, is_whole).and_then(|out| Ok(out.finish()?));
        match written {
            Ok(()) => tracing::info!(instance = %row.id, "its data was taken along"),
            Err(error) => tracing::info!(instance = %row.id, error = chain(&error), "an archive broke off"),
        }
    });
    let disposition = format!("attachment; filename=\"{}.tar\"", row.slug);
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, body).into_response())
}

/// Whether what is read of an instance that does not run is the same at the end as at the beginning.
#[derive(PartialEq)]
struct Still {
    unit: Option<Unit>,
    version: i64,
}

impl Still {
    async fn of(api: &Api, id: InstanceId) -> Result<Self, Problem> {
        let unit = match api.engine.observe(id).await {
            Ok(unit) => unit,
            // Whether anything writes cannot be told.
            Err(error) if error.kind == ErrorKind::Unavailable => return Err(Problem::unavailable(error)),
            Err(error) => return Err(Problem::internal(error)),
        };
        Ok(Self { unit, version: api.registry.get(id).await?.version })
    }

    /// Whether something may write. What is frozen does not, and its database is as after a power failure: whole.
    fn runs(&self) -> bool {
        self.unit.as_ref().is_some_and(|unit| unit.state == UnitState::Running)
    }
}

/// Takes the snapshot away, once it is of no use any more, and only then lets another make one.
struct Snapshot {
    api: Api,
    id: InstanceId,
    made: bool,
    turn: Option<Turn>,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let (true, Ok(runtime)) = (self.made, tokio::runtime::Handle::try_current()) {
            let (folders, id, turn) = (self.api.folders.clone(), self.id, self.turn.take());
            runtime.spawn(async move {
                let _turn = turn;
                if let Err(error) = folders.remove_snapshot(id).await {
                    tracing::info!(instance = %id, error = chain(&error), "a snapshot stays until the next one");
                }
            });
        }
    }
}

/// Puts the data of an archive in the place of its own, which comes back should it not come up with that. The whole archive is
/// read and checked before anything is done.
#[utoipa::path(post, path = "/api/instances/{id}/restore", params(("id" = InstanceId, Path), ("by" = String, Query)),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails),
        (status = 409, description = "archive_under_way, restore_under_way, instance_deleted", body = ProblemDetails),
        (status = 422, description = "archive_broken, archive_entry, archive_too_large, archive_version, archive_of_other_program",
            body = ProblemDetails),
        (status = 503, body = ProblemDetails)))]
pub(super) async fn restore(
    State(api): State<Api>,
    Path(id): Path<String>,
    asked: Asked,
    body: Body,
) -> Result<(StatusCode, Json<Instance>), Problem> {
    let mut sent = body.into_data_stream();
    let outcome = take(&api, &id, asked, &mut sent).await;
    if outcome.is_err() {
        // Who still sends does not listen.
        let mut left = READ_ON;
        while let Some(Ok(piece)) = sent.next().await {
            left = left.saturating_sub(piece.len() as u64);
            if left == 0 {
                break;
            }
        }
    }
    outcome
}

async fn take(
    api: &Api,
    id: &str,
    asked: Asked,
    sent: &mut axum::body::BodyDataStream,
) -> Result<(StatusCode, Json<Instance>), Problem> {
    let (row, by) = with_data(api, id, asked).await?;
    if row.desired == Desired::Deleted {
        return Err(crate::registry::Error::Deleted.into());
    }
    let turn = api.archives.begin(row.id)?;
    not_in_between(&row)?;
    let limits = Limits::of(match api.plans.get(&row.plan).ok().and_then(|plan| plan.disk_bytes) {
        Some(limit) => limit,
        None => api.folders.free_bytes().map_or(u64::MAX, |free| free / OF_FREE),
    });
    let into = api.folders.begin_upload(&row).await.map_err(of_folders)?;
    let program = program(&row);
    let (reading, feeding) = pipe::reading(sent);
    let unpacking = tokio::task::spawn_blocking(move || unpack(&into, reading, program, limits));
    let (unpacked, _) = tokio::join!(unpacking, feeding);
    let unpacked = unpacked.map_err(Problem::internal).and_then(|unpacked| unpacked.map_err(refused));
    // Brought to its end also for somebody who hangs up now.
    let (api, id) = (api.clone(), row.id);
    let put = async move {
        let _turn = turn;
        let put = match unpacked {
            Ok(manifest) => put(&api, id, by, program, manifest).await,
            Err(problem) => Err(problem),
        };
        if put.is_err()
            && let Err(error) = api.folders.end_upload(id).await
        {
            tracing::info!(instance = %id, error = chain(&error), "an archive that was refused stays until the next one");
        }
        put
    };
    tokio::spawn(put.in_current_span()).await.map_err(Problem::internal)?
}

/// Has what was put together count.
async fn put(
    api: &Api,
    id: InstanceId,
    by: By,
    program: Program,
    manifest: Manifest,
) -> Result<(StatusCode, Json<Instance>), Problem> {
    let _turn = api.staging.of(id).lock_owned().await;
    let row = api.of(id, by).await?;
    // Another may have been taken in since it was looked at first.
    not_in_between(&row)?;
    let generation = row.archive_generation + 1;
    // First the data, then the number that makes it count.
    let configured = Configured { instance: id, generation: row.config_generation };
    let counts = match manifest.configured == Some(configured) {
        true => FromArchive::AsItWas,
        false => FromArchive::Over(row.config_generation),
    };
    let counts = (program == Program::Workspace).then_some(counts);
    api.folders.stage_archive(&row, generation, counts).await.map_err(of_folders)?;
    let row = api.wish_for_staged(id, by, Wish::Restore(generation)).await?;
    tracing::info!(instance = %id, from = manifest.slug, "data from an archive is to take the place of its own");
    Ok(api.taken(&row))
}

/// Refuses while one set of data takes the place of another.
fn not_in_between(row: &Row) -> Result<(), Problem> {
    if row.archive_pending() {
        let words = "The data of this instance is just being replaced by an archive's. Wait until that is over.";
        return Err(Problem::new(StatusCode::CONFLICT, "restore_under_way", words));
    }
    Ok(())
}

fn of_folders(error: folders::Error) -> Problem {
    match error {
        folders::Error::Files(beneath::Error::NotFound { .. }) => Problem::new(
            StatusCode::CONFLICT,
            "instance_has_no_data",
            "This instance was not made yet; there is nothing of it.",
        ),
        error => Problem::unavailable(error),
    }
}

/// What is wrong with an archive, for whoever sent it.
fn refused(error: read::Error) -> Problem {
    let problem = |code, words: String| Problem::field("file", code, words);
    match error {
        read::Error::Entry { entry, why } => problem("archive_entry", format!("{entry}: {why}")),
        read::Error::Broken(_) | read::Error::CutShort => {
            let words = "This is no archive of a workspace, or not all of one: its end is missing, or it is damaged.";
            problem("archive_broken", words.into()).cause(error)
        }
        read::Error::Version => {
            problem("archive_version", "This archive is of a version that is not known here.".into())
        }
        read::Error::OtherProgram => {
            let words = "This is the data of another kind of program than the one that this instance runs.";
            problem("archive_of_other_program", words.into())
        }
        read::Error::TooLarge => {
            problem("archive_too_large", "There is more in this archive than this instance may have.".into())
        }
        read::Error::Storage(error) => Problem::unavailable(error),
    }
}
