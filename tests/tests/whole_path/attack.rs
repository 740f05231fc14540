//! `beaver attack` on a stack as operators have it: everything holds; and with a defence taken away, one at a time, the
//! rows that it is for say so.

use std::time::Duration;

use anyhow::{Context, ensure};
use beaver_tests::{
    engine,
    stack::{Engine, Stack},
    steps::Steps,
};
use serde_json::Value;

use crate::{on_stack, report};

/// How long the whole table may take: far more than it does.
const PATIENCE: Duration = Duration::from_secs(240);
/// Something got through; not everything could be tried.
const GOT_THROUGH: i32 = 1;
const NOT_TRIED: i32 = 5;
/// Defences, and rows that must not hold without them.
const DEFENCES: [(&str, &[&str]); 11] = [
    ("network", &["interfaces", "services", "host", "lan", "metadata", "dns", "abstract_sockets"]),
    (
        "address-rules",
        &["egress_services", "egress_host", "egress_lan", "egress_metadata", "egress_special", "egress_names"],
    ),
    ("capabilities", &["capabilities"]),
    ("no-new-privileges", &["new_privileges", "set_uid"]),
    ("seccomp", &["seccomp"]),
    ("read-only", &["root_file_system"]),
    ("folders", &["others_folders", "others_mounts"]),
    ("processes", &["processes"]),
    ("memory", &["memory"]),
    ("tmp", &["tmp", "tmp_files"]),
    ("log-rotation", &["log"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out_of_a_hostile_instance() {
    if engine::required_or_none("attacks on the Docker engine").await.is_none() {
        return;
    }
    let stack = Stack::up("attack", Engine::Docker, &[]).await.unwrap();
    on_stack("attack", stack, run).await;
}

async fn run(steps: &mut Steps, stack: &Stack) -> anyhow::Result<()> {
    let before = belongings(stack).await?;
    steps.check("everything holds", everything_holds(stack)).await;
    for (defence, rows) in DEFENCES {
        steps.check(&format!("without {defence}"), shows(stack, defence, rows)).await;
    }
    steps.check("without no-follow the other's own words are read", follows(stack)).await;
    steps.check("a row that is not there is not one that held", unknown(stack)).await;
    steps
        .check("nothing is left", async {
            let after = belongings(stack).await?;
            ensure!(before == after, "before {before:?}, after {after:?}");
            let status = stack.beaver(&["status", "--json"]).await?;
            let status: Value = serde_json::from_slice(&status.stdout)?;
            ensure!(status["instances"].as_array().is_some_and(Vec::is_empty), "{}", status["instances"]);
            for place in ["run", "instances"] {
                let left = std::fs::read_dir(stack.data_dir().join(place))?.count();
                ensure!(left == 0, "{left} folders are left in {place}");
            }
            Ok(())
        })
        .await;
    Ok(())
}

/// Containers and networks of the stack. The image of the hostile program stays, for the next time.
async fn belongings(stack: &Stack) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let found = engine::belongings(stack.docker().context("an engine")?, stack.prefix()).await?;
    Ok((found.containers, found.networks))
}

/// Runs it; its exit code and its table.
async fn attack(stack: &Stack, arguments: &[&str]) -> anyhow::Result<(i32, Value)> {
    let arguments = [&["attack", "--json"], arguments].concat();
    let output = tokio::time::timeout(PATIENCE, stack.beaver(&arguments)).await.context("it does not end")??;
    let code = output.status.code().context("it was killed")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let table = serde_json::from_slice(&output.stdout).with_context(|| format!("{code}: {said}"))?;
    Ok((code, table))
}

async fn everything_holds(stack: &Stack) -> anyhow::Result<()> {
    let (code, table) = attack(stack, &[]).await?;
    let rows = table["rows"].as_array().context("no rows")?;
    let not_held: Vec<&Value> = rows.iter().filter(|row| row["verdict"] != "held").collect();
    ensure!(not_held.is_empty(), "{not_held:#?}");
    ensure!((code, &table["verdict"]) == (0, &"held".into()), "{code}: {}", table["verdict"]);
    ensure!(rows.len() >= 35, "only {} rows", rows.len());
    Ok(())
}

async fn shows(stack: &Stack, defence: &str, rows: &[&str]) -> anyhow::Result<()> {
    let only = rows.join(",");
    let (code, table) = attack(stack, &["--no-build", "--without", defence, "--only", &only]).await?;
    ensure!((code, &table["verdict"]) == (GOT_THROUGH, &"got_through".into()), "{code}: {table:#}");
    ensure!(table["without"] == defence, "{}", table["without"]);
    let told = table["rows"].as_array().context("no rows")?;
    ensure!(told.len() == rows.len(), "{table:#}");
    let held: Vec<&Value> = told.iter().filter(|row| row["verdict"] != "got_through").collect();
    ensure!(held.is_empty(), "{held:#?}");
    Ok(())
}

/// It is the link that leads there, and nothing else that fails.
async fn follows(stack: &Stack) -> anyhow::Result<()> {
    let (code, table) = attack(stack, &["--no-build", "--without", "no-follow", "--only", "socket_link"]).await?;
    ensure!((code, &table["without"]) == (GOT_THROUGH, &"no-follow".into()), "{code}: {table:#}");
    let row = &table["rows"][0];
    let happened = row["happened"].as_str().context("nothing happened")?;
    ensure!(row["control"] == "answered" && !happened.contains("the other one's was"), "{row}");
    ensure!(happened.contains("in/http.sock: 200 "), "{row}");
    Ok(())
}

/// As people who cannot do without a network have it: the table says what that gives up, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_for_instances_gives_up_what_the_table_says() {
    if engine::required_or_none("attacks on instances with a network").await.is_none() {
        return;
    }
    let stack = Stack::up("shared", Engine::Docker, &[("BEAVER_ISOLATION", "shared")]).await.unwrap();
    let mut steps = Steps::new("shared isolation");
    let result = async {
        let said = stack.beaver(&["up", "--no-build"]).await?;
        let warned = String::from_utf8_lossy(&said.stderr).contains("! BEAVER_ISOLATION=shared");
        steps
            .check("up warns of it", async {
                ensure!(warned, "{said:?}");
                Ok(())
            })
            .await;
        steps.check("the table says what that gives up", gives_up(&stack)).await;
        Ok(())
    }
    .await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    steps.end(result.and(purged)).unwrap();
}

async fn gives_up(stack: &Stack) -> anyhow::Result<()> {
    let through = ["interfaces", "services", "host", "lan", "metadata", "dns"];
    let held = ["raw_sockets", "abstract_sockets", "egress_services", "egress_lan", "others_folders", "capabilities"];
    let only = [through, held].concat().join(",");
    let (code, table) = attack(stack, &["--only", &only]).await?;
    ensure!(code == GOT_THROUGH && table["shared"] == true, "{code}: {table:#}");
    for (rows, verdict) in [(through, "got_through"), (held, "held")] {
        for row in rows {
            let told = table["rows"].as_array().and_then(|all| all.iter().find(|told| told["id"] == row));
            ensure!(told.is_some_and(|told| told["verdict"] == verdict), "{row} is not {verdict}: {told:#?}");
        }
    }
    Ok(())
}

async fn unknown(stack: &Stack) -> anyhow::Result<()> {
    let output = stack.beaver(&["attack", "--no-build", "--only", "nothing"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(NOT_TRIED) && said.contains("there is no row nothing"), "{said}");
    Ok(())
}
