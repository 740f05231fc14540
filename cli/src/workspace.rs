//! One workspace, by its name, for the operator's shell: what it logs, a command in it, a request to it. Its container has
//! no network and mostly no shell, so what one would try first with Docker's own tools leads nowhere.

use std::{
    fs,
    io::{self, Read, Seek, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use bollard::{
    container::LogOutput,
    exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults},
    query_parameters::LogsOptionsBuilder,
};
use contracts::InstanceId;
use futures_util::StreamExt;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::AsyncWriteExt,
    signal::unix::{SignalKind, signal},
};

use crate::{
    Exit, Usage,
    args::{EngineKind, Exec, Logs, Place},
    ask,
    engine::{self, Engine, INSTANCE_LABEL},
    remembered,
    stack::{self, Project, Stack},
};

/// How often a growing file is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// The instance with this slug or id.
///
/// # Errors
/// [`Usage`] when there is none; when the services do not say.
pub async fn find(stack: &Stack, name: &str) -> anyhow::Result<InstanceId> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let answers = match ask::Way::to(stack).await? {
        ask::Way::Direct(env) => ask::services(&env).await?,
        ask::Way::Compose(compose) => ask::through_compose(stack, &compose).await?,
    };
    Ok(ask::named(&answers.instances.with_context(|| answers.trouble.join("; "))?, name)?.id)
}

/// The id of an instance's container.
async fn container(engine: &Engine, stack: &Stack, id: InstanceId) -> anyhow::Result<String> {
    let (all, id) = (engine.instances(stack).await?, id.to_string());
    let found = all.into_iter().find(|c| engine::label_of(c, INSTANCE_LABEL) == Some(id.as_str()));
    found.and_then(|container| container.id).context("it has no container at present: beaver status says how it is")
}

/// `beaver logs`: what the workspace's program writes, on standard output and standard error as it wrote it.
///
/// # Errors
/// When there is no such workspace or it has no container; when the engine cannot be asked.
pub async fn logs(place: &Place, options: &Logs) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let id = find(&stack, &options.workspace).await?;
    if remembered::read(&stack.data_dir)? == Some(EngineKind::Process) {
        let file = stack.data_dir.join(format!("instances/{id}/instance.log"));
        return logs_of_file(&file, options).await;
    }
    let engine = Engine::of(&stack).await?;
    let container = container(&engine, &stack, id).await?;
    let wanted = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(options.follow);
    let mut pieces = engine.api().logs(&container, Some(wanted.tail(&options.tail.to_string()).build()));
    while let Some(piece) = pieces.next().await {
        print(piece?)?;
    }
    Ok(Exit::Ok)
}

async fn logs_of_file(path: &Path, options: &Logs) -> anyhow::Result<Exit> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut out = io::stdout().lock();
    lines[lines.len().saturating_sub(options.tail)..].iter().try_for_each(|line| out.write_all(line))?;
    out.flush()?;
    let mut seen = text.len() as u64;
    if !options.follow {
        return Ok(Exit::Ok);
    }
    loop {
        tokio::time::sleep(LOOK).await;
        let mut file = fs::File::open(path)?;
        // A shorter one is another one.
        seen = if file.metadata()?.len() < seen { 0 } else { seen };
        file.seek(io::SeekFrom::Start(seen))?;
        seen += io::copy(&mut file, &mut out)?;
        out.flush()?;
    }
}

fn print(piece: LogOutput) -> io::Result<()> {
    match piece {
        LogOutput::StdErr { message } => io::stderr().lock().write_all(&message),
        other => {
            let mut out = io::stdout().lock();
            out.write_all(&other.into_bytes())?;
            out.flush()
        }
    }
}

/// `beaver exec`: runs a program of the workspace's image in it, as its user, with as little as it may do itself. The
/// program's exit code is this command's.
///
/// # Errors
/// When there is no such workspace or program; when the engine cannot be asked.
pub async fn exec(place: &Place, options: &Exec) -> anyhow::Result<std::process::ExitCode> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    if remembered::read(&stack.data_dir)? == Some(EngineKind::Process) {
        return Err(Usage(
            "workspaces of the process engine are processes of this host: a shell of yours is in them".into(),
        )
        .into());
    }
    let id = find(&stack, &options.workspace).await?;
    let engine = Engine::of(&stack).await?;
    let container = container(&engine, &stack, id).await?;
    let terminal = isatty(io::stdin()) && isatty(io::stdout());
    let made = CreateExecOptions {
        cmd: Some(options.command.clone()),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(terminal),
        ..CreateExecOptions::default()
    };
    let api = engine.api();
    let exec = api.create_exec(&container, made).await?.id;
    let attach = StartExecOptions { tty: terminal, ..StartExecOptions::default() };
    let StartExecResults::Attached { mut output, mut input } = api.start_exec(&exec, Some(attach)).await? else {
        bail!("the engine does not connect to the program");
    };
    let raw = terminal.then(Raw::enter).transpose()?;
    // A thread of its own, which nobody waits for: it may wait for a key when the program has ended long since.
    let (typed, mut keys) = tokio::sync::mpsc::channel::<Vec<u8>>(8);
    std::thread::spawn(move || {
        let (mut stdin, mut buffer) = (io::stdin().lock(), [0; 8192]);
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            if typed.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let typing = tokio::spawn(async move {
        while let Some(piece) = keys.recv().await {
            if input.write_all(&piece).await.is_err() || input.flush().await.is_err() {
                return;
            }
        }
        let _ = input.shutdown().await;
    });
    let mut resized = signal(SignalKind::window_change())?;
    let mut said = Vec::new();
    loop {
        if let (Some(_), Ok(size)) = (&raw, tcgetwinsize(io::stdout())) {
            let _ = api.resize_exec(&exec, ResizeExecOptions { height: size.ws_row, width: size.ws_col }).await;
        }
        let ended = loop {
            tokio::select! {
                piece = output.next() => match piece {
                    Some(piece) => {
                        let piece = piece?;
                        if said.len() < 1024 {
                            said.extend_from_slice(piece.as_ref());
                        }
                        print(piece)?;
                    }
                    None => break true,
                },
                _ = resized.recv() => break false,
            }
        };
        if ended {
            break;
        }
    }
    typing.abort();
    drop(raw);
    let code = api.inspect_exec(&exec).await?.exit_code.unwrap_or(1);
    if matches!(code, 126 | 127) && String::from_utf8_lossy(&said).contains("exec failed") {
        bail!(
            "the workspace's image has no such program; many have no shell either: beaver logs and beaver curl need none"
        );
    }
    Ok(u8::try_from(code).unwrap_or(1).into())
}

/// The terminal as a program on the other side wants it: every key as it is. Given back when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
