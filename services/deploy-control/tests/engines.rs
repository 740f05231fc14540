//! Both engines against the one conformance suite; the docker one on a real engine.

#[path = "support/host.rs"]
mod host;
#[path = "support/instance.rs"]
mod instance;

use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use contracts::{AccountId, InstanceId, PlanName};
use deploy_control::{
    config::{Config, EngineConfig},
    engine::{
        Engine, ErrorKind, InstanceSpec, Program,
        conformance::{self, answer_to},
        docker::Docker,
        process::Processes,
    },
    folders::Folders,
    registry::Row,
};
use uuid::Uuid;

use host::{Host, config};

/// Not a test: what an engine starts. See [`instance`].
#[test]
fn as_an_instance() {
    instance::serve_if_started_by_an_engine();
}

/// An instance whose folders are made, and what its unit must be.
async fn instance_of(config: &Config, folders: &Folders, number: i64) -> InstanceSpec {
    let row = row(number);
    folders.prepare(&row).await.unwrap();
    folders.make_current(&row, 0).await.unwrap();
    InstanceSpec {
        not: None,
        id: row.id,
        generation: 1,
        plan: row.plan.clone(),
        program: Program::Workspace,
        uid: folders.uid(&row),
        folders: folders.paths(row.id),
        limits: config.plans.limits,
        env: vec![("BEAVER_LOG".into(), "info".into())],
    }
}

fn row(number: i64) -> Row {
    use contracts::deploy::{Desired, Phase};
    let uuid = Uuid::from_u128(0xbea0_0000 + u128::try_from(number).unwrap());
    Row {
        id: InstanceId::from_uuid(uuid),
        number,
        uid: 20_000 + u32::try_from(number).unwrap(),
        slug: format!("person-{number}").parse().unwrap(),
        account_id: AccountId::from_uuid(uuid),
        plan: PlanName::workspace(),
        desired: Desired::Running,
        before_deletion: None,
        deletion: None,
        sleep: Default::default(),
        wake_keys: Vec::new(),
        generation: 1,
        observed_generation: 0,
        restart_generation: 0,
        applied_restart_generation: 0,
        config_generation: 0,
        applied_config_generation: 0,
        refused_config_generation: 0,
        archive_generation: 0,
        applied_archive_generation: 0,
        refused_archive_generation: 0,
        phase: Phase::Accepted,
        route: None,
        registered: false,
        ready_run: None,
        ready_at_ms: None,
        attempts: 0,
        next_attempt_at_ms: 0,
        error: None,
        disk_full: false,
        release: None,
        refused_release: None,
        last_used_ms: None,
        version: 1,
        last_event: 0,
        created_at_ms: 0,
        updated_at_ms: 0,
    }
}

#[tokio::test]
async fn the_process_engine_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "process", "test-process");
    let folders = Folders::open(folder.path(), false, config.instance.clone()).unwrap();
    let engine = Processes::new(&config.engine);
    let (a, b) = (instance_of(&config, &folders, 1).await, instance_of(&config, &folders, 2).await);
    conformance::suite(&engine, &a, &b).await;
}

#[tokio::test]
async fn children_end_with_their_engine() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "process", "test-process");
    let folders = Folders::open(folder.path(), false, config.instance.clone()).unwrap();
    let spec = instance_of(&config, &folders, 1).await;
    let engine = Processes::new(&config.engine);
    engine.ensure(&spec).await.unwrap();
    engine.start(spec.id).await.unwrap();
    conformance::answer(&engine, &spec).await;
    let run = engine.observe(spec.id).await.unwrap().unwrap().run.unwrap();
    let pid = run.split('@').next().unwrap().to_owned();
    drop(engine);
    conformance::eventually(async || {
        // A zombie has ended: its parent, this program, is still there and just has not looked.
        let ended = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        ended.then_some(()).ok_or_else(|| format!("process {pid} goes on without its engine"))
    })
    .await;
}

#[tokio::test]
async fn a_program_that_is_missing_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "process", "test-process");
    config.engine.command = vec!["/no/such/program".into()];
    let folders = Folders::open(folder.path(), false, config.instance.clone()).unwrap();
    let spec = instance_of(&config, &folders, 1).await;
    let engine = Processes::new(&config.engine);
    engine.ensure(&spec).await.unwrap();
    assert_eq!(engine.start(spec.id).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn the_docker_engine_conforms() {
    let Some(host) = Host::new().await else { return };
    let engine = Docker::new(&host.config.engine);
    let (a, b) = (instance_of(&host.config, &host.folders, 1).await, instance_of(&host.config, &host.folders, 2).await);
    conformance::suite(&engine, &a, &b).await;
}

#[tokio::test]
async fn a_container_is_as_hard_as_it_is_said_to_be() {
    let Some(host) = Host::new().await else { return };
    let engine = Docker::new(&host.config.engine);
    let spec = instance_of(&host.config, &host.folders, 3).await;
    engine.ensure(&spec).await.unwrap();
    engine.start(spec.id).await.unwrap();

    // As the instance sees it.
    let report = answer_to(&engine, &spec, "/report").await;
    let uid = row(3).uid;
    let facts: Vec<&str> = report.lines().collect();
    for fact in [
        &format!("Uid: {uid} {uid} {uid} {uid}"),
        &format!("Gid: {uid} {uid} {uid} {uid}"),
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "Seccomp_filters: 1",
        "network: lo",
        "writes root: false",
        "writes config: false",
        "writes out: false",
        "writes data: true",
        "writes in: true",
        "writes tmp: true",
        "Max open files 4096 4096 files",
        "Max core file size 0 0 bytes",
        "init: docker-init",
        "oom: 500",
    ] {
        assert!(facts.contains(&fact), "{fact} is not so:\n{report}");
    }
    let fact = |name: &str| facts.iter().find_map(|fact| fact.strip_prefix(&format!("{name}: "))).unwrap_or_default();
    let number = |name: &str| fact(name).parse::<u64>().unwrap_or_else(|_| panic!("{name}: {report}"));
    // It asked for more of each, and got what it may have.
    assert!((4_000..4_096).contains(&number("opens")), "{report}");
    assert_eq!((number("files in tmp"), number("bytes in tmp")), (16_384, 64 << 20), "{report}");
    for (place, options) in [
        ("/tmp", &["tmpfs ", "noexec", "nosuid", "nodev", "size=65536k", "nr_inodes=16384"][..]),
        ("/dev/shm", &["tmpfs ", "noexec", "nosuid", "nodev", "size=65536k"]),
        ("/", &[" ro"]),
        ("/config", &[" ro"]),
        ("/proc/sys", &[" ro"]),
    ] {
        let mounted = fact(&format!("mount {place}"));
        assert!(options.iter().all(|option| mounted.contains(option)), "{place}: {mounted}\n{report}");
    }
    // What Docker hides of the host.
    for hidden in ["kcore", "timers"] {
        assert!(["", "Permission denied (os error 13)"].contains(&fact(hidden)), "{report}");
    }
    // The limits as the kernel has them; of the first kind of cgroups only with a namespace of one's own.
    assert!(fact("cgroup").split(' ').all(|line| line.ends_with(":/")), "it sees no group but its own: {report}");
    assert_eq!((number("memory"), fact("pids")), (256 << 20, "128"), "{report}");
    assert!(["100000 100000", "100000"].contains(&fact("cpu")), "{report}");
    assert!(["", "0"].contains(&fact("swap")), "swap, where the host accounts for it: {report}");
    assert!(["", "268435456"].contains(&fact("memory and swap")), "{report}");
    // Docker's own seccomp profile: nothing was said about it, and the engine was not told to have another.
    let engine_says = host.client.info().await.unwrap().security_options.unwrap_or_default();
    let seccomp = engine_says.iter().find(|option| option.starts_with("name=seccomp")).expect("seccomp");
    assert!(["profile=builtin", "profile=default"].iter().any(|own| seccomp.ends_with(own)), "{seccomp}");
    let profile = host.inspect(spec.id).await.app_armor_profile.unwrap_or_default();
    if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y") {
        assert_eq!((profile.as_str(), fact("apparmor")), ("docker-default", "docker-default (enforce)"), "{report}");
    } else {
        eprintln!("AppArmor was not tested: this host has none");
    }
    let config: contracts::instance::InstanceConfig = serde_json::from_str(
        facts.iter().find_map(|fact| fact.strip_prefix("config: ")).expect("a configuration it can read"),
    )
    .unwrap();
    assert_eq!(config.instance_id, spec.id);
    let env = facts.iter().find_map(|fact| fact.strip_prefix("env: ")).unwrap();
    let foreign: Vec<_> = env
        .split(' ')
        .filter(|name| !name.starts_with("INSTANCE_") && !name.starts_with("BEAVER_LOG"))
        .filter(|name| !["PATH", "HOSTNAME", "HOME", "SQLITE_TMPDIR"].contains(name))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");

    // As the engine keeps it.
    let found = host.inspect(spec.id).await;
    let limits = found.host_config.unwrap();
    assert_eq!((limits.memory, limits.memory_swap), (Some(256 << 20), Some(256 << 20)));
    assert_eq!((limits.nano_cpus, limits.pids_limit), (Some(1_000_000_000), Some(128)));
    assert_eq!((limits.init, limits.oom_kill_disable.unwrap_or(false)), (Some(true), false));
    assert_eq!((limits.oom_score_adj, limits.shm_size), (Some(500), Some(64 << 20)));
    assert_eq!(limits.cgroupns_mode, Some(bollard::models::HostConfigCgroupnsModeEnum::PRIVATE));
    assert_eq!(limits.security_opt, Some(vec!["no-new-privileges:true".into()]), "no profile is switched off");
    assert_eq!((limits.privileged, limits.readonly_rootfs), (Some(false), Some(true)));
    assert_eq!(limits.cap_drop, Some(vec!["ALL".into()]));
    assert!(limits.cap_add.is_none_or(|added| added.is_empty()) && limits.devices.is_none_or(|given| given.is_empty()));
    for mode in [limits.pid_mode, limits.uts_mode, limits.userns_mode] {
        assert!(mode.is_none_or(|mode| mode.is_empty()), "a namespace of its own");
    }
    assert_eq!(limits.network_mode.as_deref(), Some("none"));
    assert_eq!(limits.ipc_mode.as_deref(), Some("private"));
    assert_eq!(limits.mounts.unwrap().len(), 4);
    assert!(limits.binds.is_none_or(|binds| binds.is_empty()));
    assert_eq!(limits.restart_policy.unwrap().name, Some(bollard::models::RestartPolicyNameEnum::NO));
    let log = limits.log_config.unwrap();
    assert_eq!(log.config.unwrap()["max-size"], "10m");
    let labels = found.config.unwrap().labels.unwrap();
    assert_eq!(labels["beaver.instance"], spec.id.to_string());
    assert_eq!(labels["beaver.generation"], "1");
}

#[tokio::test]
async fn somebody_elses_container_is_not_touched() {
    let Some(host) = Host::new().await else { return };
    let engine = Docker::new(&host.config.engine);
    let spec = instance_of(&host.config, &host.folders, 4).await;
    let name = format!("{}-{}", host.config.engine.prefix, spec.id);
    let body =
        bollard::models::ContainerCreateBody { image: Some(host.config.engine.image.clone()), ..Default::default() };
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let theirs = host.client.create_container(Some(options), body).await.unwrap().id;

    assert_eq!(engine.observe(spec.id).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(engine.ensure(&spec).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(engine.start(spec.id).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(engine.stop(spec.id).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(engine.remove(spec.id).await.unwrap_err().kind, ErrorKind::Conflict);
    assert!(engine.list().await.unwrap().is_empty());

    let there = host.client.inspect_container(&theirs, None).await;
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    // It has no label of this test, so it is removed by hand, before anything can fail.
    host.client.remove_container(&theirs, Some(options)).await.unwrap();
    assert_eq!(there.unwrap().state.unwrap().running, Some(false));
}

#[tokio::test]
async fn a_missing_image_and_a_missing_folder_are_told_apart() {
    let Some(host) = Host::new().await else { return };
    let mut spec = instance_of(&host.config, &host.folders, 5).await;
    let elsewhere = EngineConfig { image: "test-no-such-image:never".into(), ..host.config.engine.clone() };
    assert_eq!(Docker::new(&elsewhere).ensure(&spec).await.unwrap_err().kind, ErrorKind::NotFound);

    spec.folders.data = host.folder.path().join("missing");
    let error = Docker::new(&host.config.engine).ensure(&spec).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error:?}");
    assert!(std::error::Error::source(&error).is_some(), "the cause is kept");

    let nowhere = EngineConfig { docker_socket: host.folder.path().join("no.sock"), ..host.config.engine.clone() };
    assert_eq!(Docker::new(&nowhere).observe(spec.id).await.unwrap_err().kind, ErrorKind::Unavailable);
}
