//! Plans in a file.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::engine::ImageProgram;

fn config(file: PathBuf) -> PlansConfig {
    let limits = Limits { memory_bytes: 256 << 20, nano_cpus: 1_000_000_000, pids: 128, tmp_bytes: 64 << 20 };
    PlansConfig {
        file,
        default: PlanName::workspace(),
        limits,
        disk_bytes: Some(2 << 30),
        idle: Idle::of_seconds(300, 0),
    }
}

fn name(text: &str) -> PlanName {
    text.parse().unwrap()
}

const NOTES: &str = r#"
# What our people take notes with.
[notes]
image = "notes:1"
command = ["/usr/bin/notes", "--port", "5232"]
port = 5232
health = "/.web/"
memory_mb = 512
cpus = 1.5
pids = 64
disk_mb = 0
tmp_mb = 16
pause_after = 0
idle_timeout = 7200
env = { NOTES_HOME = "/data/notes" }

[small]
image = "small:1"
port = 80
cpus = 1

[workspace]
memory_mb = 300
"#;

#[test]
fn a_plan_says_what_it_says_and_the_rest_is_the_settings() {
    let config = config(PathBuf::new());
    let plans = file::plans(&config, NOTES).unwrap();
    assert_eq!(plans.len(), 3);
    let notes = &plans[&name("notes")];
    let program = ImageProgram {
        image: "notes:1".into(),
        command: ["/usr/bin/notes", "--port", "5232"].map(str::to_owned).to_vec(),
        port: 5232,
    };
    assert_eq!((&notes.program, notes.health.as_str()), (&Program::Image(program), "/.web/"));
    let limits = Limits { memory_bytes: 512 << 20, nano_cpus: 1_500_000_000, pids: 64, tmp_bytes: 16 << 20 };
    assert_eq!((notes.limits, notes.disk_bytes, notes.env["NOTES_HOME"].as_str()), (limits, None, "/data/notes"));

    assert_eq!(notes.idle, Idle::of_seconds(0, 7200));

    let small = &plans[&name("small")];
    assert_eq!(small.idle, config.idle);
    assert_eq!((small.limits, small.disk_bytes, small.health.as_str()), (config.limits, config.disk_bytes, "/"));
    let workspace = &plans[&name("workspace")];
    assert_eq!(workspace.program, Program::Workspace);
    assert_eq!(workspace.limits, Limits { memory_bytes: 300 << 20, ..config.limits });
    assert_eq!(file::plans(&config, "").unwrap(), file::built_in(&config));
}

#[test]
fn a_mistake_is_named_with_its_plan_its_key_and_its_line() {
    let with = |line: &str| format!("[notes]\nimage = \"n:1\"\nport = 80\n{line}\n");
    for (text, said) in [
        (with("memry_mb = 1"), "line 4, plan notes: unknown field `memry_mb`"),
        (with("privileged = true"), "line 4, plan notes: unknown field `privileged`"),
        (with("mounts = [\"/:/host\"]"), "line 4, plan notes: unknown field `mounts`"),
        (with("memory_mb = 0"), "line 4, plan notes: it must be at least 1"),
        (with("memory_mb = \"much\""), "line 4, plan notes: invalid type"),
        (with("cpus = 0.0"), "line 4, plan notes: cpus must be"),
        (with("cpus = nan"), "line 4, plan notes: cpus must be"),
        (with("idle_timeout = -1"), "line 4, plan notes: invalid value"),
        (with("pause_after = \"5m\""), "line 4, plan notes: invalid type"),
        (with("pids = -1"), "line 4, plan notes: invalid value"),
        (with("health = \"healthz\""), "line 4, plan notes: health must be a path"),
        (with("health = \"/a b\""), "line 4, plan notes: health must be a path"),
        (with("command = []"), "line 4, plan notes: command must be"),
        (with("command = \"sh -c x\""), "line 4, plan notes: invalid type"),
        (with("env = { \"A-B\" = \"x\" }"), "line 4, plan notes: a variable's name"),
        (with("[notes.env]\nA = \"x\"\nB = 3"), "line 6, plan notes: invalid type"),
        (with("port = 81"), "line 4, plan notes: duplicate key"),
        (with("image = "), "line 4, plan notes: "),
        ("[notes]\nport = 80\n".into(), "plan notes: image is missing"),
        ("[notes]\nimage = \"n:1\"\n".into(), "plan notes: port is missing"),
        ("[notes]\nimage = \"n 1\"\n".into(), "line 2, plan notes: image must be"),
        ("[notes]\nport = 3128\n".into(), "line 2, plan notes: port must be"),
        ("[notes]\nport = 65536\n".into(), "line 2, plan notes: invalid value"),
        ("[Notes]\nimage = \"n:1\"\nport = 80\n".into(), "plan Notes: a plan's name has"),
        ("[workspace]\nimage = \"evil:1\"\n".into(), "plan workspace: image cannot be given"),
        ("[workspace]\nenv = { A = \"x\" }\n".into(), "plan workspace: env cannot be given"),
        ("notes = 3\n".into(), "line 1: invalid type"),
        ("x\n".into(), "line 1: "),
    ] {
        let error = file::plans(&config(PathBuf::new()), &text).expect_err(&text).to_string();
        assert!(error.starts_with(said), "{text}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_taken_over_and_a_wrong_one_is_not() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("plans.toml");
    let (mut plans, keeper) = Plans::open(config(path.clone()), true);
    assert_eq!(plans.get(&name("notes")), Err(NoPlan::Missing));
    assert!(plans.get(&name("workspace")).is_ok());
    let stop = Shutdown::new();
    let keeping = tokio::spawn(keeper.keep(stop.clone()));

    fs::write(&path, NOTES).unwrap();
    plans.changed().await;
    let notes = plans.get(&name("notes")).unwrap();

    fs::write(&path, format!("{NOTES}\nimage = 3\n")).unwrap();
    tokio::time::sleep(CHECK * 2).await;
    assert_eq!(plans.get(&name("notes")), Ok(notes), "the plans before go on");

    fs::write(&path, NOTES.replace("notes:1", "notes:2")).unwrap();
    plans.changed().await;
    let Program::Image(program) = &plans.get(&name("notes")).unwrap().program else { panic!("an image") };
    assert_eq!(program.image, "notes:2");

    fs::remove_file(&path).unwrap();
    plans.changed().await;
    assert_eq!(plans.get(&name("notes")), Err(NoPlan::Missing));
    stop.cancel();
    keeping.await.unwrap();
}

#[test]
fn a_file_that_is_wrong_from_the_start_leaves_what_is_always_there() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("plans.toml");
    fs::write(&path, "[notes]\nimage = 3\n").unwrap();
    let (plans, _keeper) = Plans::open(config(path.clone()), true);
    assert!(plans.get(&name("workspace")).is_ok());
    assert_eq!(plans.get(&name("notes")), Err(NoPlan::Missing));

    fs::write(&path, NOTES).unwrap();
    let (plans, _keeper) = Plans::open(config(path), false);
    assert_eq!(plans.get(&name("notes")), Err(NoPlan::NeedsImages), "where there are none");
    assert!(plans.get(&name("workspace")).is_ok());
}
