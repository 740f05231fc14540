//! `beaver attack`: whether a hostile instance reaches anything, tried on the operator's own host.
//!
//! Two instances are taken in by deploy-control like anybody's, and containers are put beside theirs with the very same
//! specification, as the engine shows it, and a hostile program of ours. What these try is bounded and meets nobody else:
//! other people's instances are neither asked nor named, and an address that could be somebody's is only ever asked for
//! where there is no way to it, or where the router must refuse it. For each attempt there is a control, made in a network
//! name space of the command's own in which every address is its own ([`field::Field::world`]).

mod field;
mod outside;
mod rows;
mod table;
mod victims;

use std::{
    net::{IpAddr, SocketAddr},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
};

use ::attack::{Plan, World};
use anyhow::{Context, bail, ensure};
use bollard::models::ContainerCreateBody;
use clock::Entropy;
use contracts::routes::{Route, RouteSnapshot, RouteState, SignIn};

use crate::{
    Exit,
    args::{Attack, EngineKind, Place, Without},
    binaries,
    engine::{self, Engine},
    images::{self, Extra},
    remembered,
    stack::{self, Project, SERVICES, Stack},
    text,
    ui::Ui,
};
use field::{Field, WORLD_DATA};
use outside::Stage;
use rows::{Facts, Row};
use table::{Line, Table, Verdict};
use victims::{Deploy, Victim};

pub use field::sweep;

/// The rows that meet nobody but this stack on the network of instances that have one: only these are tried there.
const NEAR: [&str; 5] = ["interfaces", "services", "raw_sockets", "packet_sockets", "abstract_sockets"];
/// The package, the program and the image.
const PROGRAM: &str = "attack";

/// `beaver attack`.
///
/// # Errors
/// Never a failure of the attack itself: that is in the exit code, as is that it could not be made.
pub async fn attack(place: &Place, options: &Attack, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let made = tokio::select! {
        made = prepared(&stack, options, ui) => made,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; what was made is removed by the next attack, or by down --purge")),
    };
    let table = match made {
        Ok(table) => table,
        Err(error) => {
            eprintln!("beaver attack: {error:#}");
            return Ok(Exit::NotTried);
        }
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        table.print(ui);
    }
    Ok(match table.verdict {
        Verdict::Held => Exit::Ok,
        Verdict::GotThrough => Exit::Failed,
        Verdict::NotTried => Exit::NotTried,
    })
}

async fn prepared(stack: &Stack, options: &Attack, ui: &Ui) -> anyhow::Result<Table> {
    ensure!(
        remembered::read(&stack.data_dir)? != Some(EngineKind::Process),
        "the process engine isolates nothing: there is nothing to try"
    );
    let engine = Engine::of(stack).await?;
    let _lock = stack.lock()?;
    let image = stack.image(PROGRAM);
    if !options.no_build {
        build(stack, &engine, &image, &options.profile, ui).await?;
    }
    let field = Field { engine: &engine, stack, image };
    field.sweep().await?;
    let result = on_field(&field, options, ui).await;
    // Whatever came of it.
    let swept = field.sweep().await;
    let table = result?;
    swept?;
    Ok(table)
}

async fn build(stack: &Stack, engine: &Engine, image: &str, profile: &str, ui: &Ui) -> anyhow::Result<()> {
    let step = ui.step(text!(ui, "building the hostile program", "正在构建攻击程序"));
    // With `beaver`, for the reason that `up` builds it: so nothing is built twice.
    let built = binaries::build(&stack.project, profile, &["beaver", PROGRAM], |_| {}).await?;
    let binary = built.get(PROGRAM).context("cargo built no hostile program")?;
    let commit = binaries::commit(&stack.project).await;
    let extras = [
        Extra::Program(field::RISE.trim_start_matches('/'), 0o4755),
        Extra::Folder(field::SPOT.trim_start_matches('/'), 0o1777),
    ];
    images::ensure(engine, &stack.prefix, image, &[(PROGRAM, binary)], &commit, &extras).await?;
    step.done(text!(ui, "the hostile program is built", "攻击程序已构建"));
    Ok(())
}

async fn on_field(field: &Field<'_>, options: &Attack, ui: &Ui) -> anyhow::Result<Table> {
    let addresses = services(field).await?;
    let step = ui.step(text!(ui, "making two instances of its own", "正在创建两个专用实例"));
    field.neighbour().await?;
    let deploy = Deploy { field, address: port_of(field, &addresses, "deploy-control", "BEAVER_DEPLOY_URL")? };
    deploy.sweep().await?;
    let hostile = deploy.register("a").await?;
    let honest = match deploy.register("b").await {
        Ok(honest) => honest,
        Err(error) => {
            let _ = deploy.discard_victim(&hostile).await;
            return Err(error);
        }
    };
    step.done(text!(ui, "two instances are made", "两个实例已创建"));
    let result = on_victims(field, &deploy, (&hostile, &honest), &addresses, options, ui).await;
    // Their containers first: they have the folders mounted.
    let removed = async {
        for role in ["hostile", "honest", outside::FOLLOWER, "control"] {
            field.engine.remove(&field.name(role)).await?;
        }
        let mut failed = None;
        for victim in [&hostile, &honest] {
            // The first may be gone already: that was the last row.
            if deploy.is_there(victim).await? {
                failed = deploy.discard_victim(victim).await.err().or(failed);
            }
        }
        failed.map_or(Ok(()), Err)
    }
    .await;
    let lines = result?;
    removed.context("removing the two instances")?;
    Ok(Table::new(lines, options.without.map(Without::name), hostile.is_shared()))
}

async fn on_victims(
    field: &Field<'_>,
    deploy: &Deploy<'_>,
    (hostile, honest): (&Victim, &Victim),
    addresses: &[(&'static str, IpAddr)],
    options: &Attack,
    ui: &Ui,
) -> anyhow::Result<Vec<Line>> {
    let without = options.without;
    let wanted = |id: &str| options.only.is_empty() || options.only.iter().any(|only| only == id);
    let abstract_name = format!("beaver-attack-{}", hex::encode(Entropy::system().bytes::<8>()));
    let listening = UnixAddr::from_abstract_name(&abstract_name).and_then(|address| UnixListener::bind_addr(&address));
    let _listening = listening.context("listening on this host")?;
    let facts = facts(field, (hostile, honest), addresses, abstract_name, without)?;
    let mut rows = rows::rows(&facts);
    let known: Vec<&str> = rows.iter().map(|row| row.id).chain(outside::ROWS).collect();
    if let Some(other) = options.only.iter().find(|only| !known.contains(&only.as_str())) {
        bail!("there is no row {other}: {}", known.join(", "));
    }
    rows.retain(|row| wanted(row.id));
    // In the order in which they are tried.
    rows.sort_by_key(|row| !NEAR.contains(&row.id));

    let step = ui.step(text!(ui, "attacking from inside, and its control", "正在从内部攻击,并做对照"));
    let world = World { ports: facts.ports(), abstract_name: facts.abstract_name.clone() };
    field.world(&world, &facts.ids[0], &routes(hostile)?, hostile.uid()?).await?;
    let outside = Plan {
        prepare: rows::prepared(&rows, &facts),
        attempts: rows.iter().flat_map(|row| row.allowed.iter().cloned()).collect(),
    };
    let shared = hostile.is_shared();
    let told = |plan: &Plan| anyhow::Ok(hostile.hostile(field, &["try", &serde_json::to_string(plan)?]));
    let (near, far) = inside_plans(&rows, shared);
    let mut body = told(&far)?;
    if let Some(without) = without {
        take_away(field, honest, without, &mut body);
    }
    if shared {
        // Its real network leads to whatever this host reaches, which is not ours to ask.
        take_away(field, honest, Without::Network, &mut body);
    }
    let (tried, allowed) = tokio::try_join!(
        async {
            let mut tried = field.try_all("hostile", body, &far).await?;
            if !near.attempts.is_empty() {
                tried.splice(..0, field.try_all("hostile", told(&near)?, &near).await?);
            }
            Ok(tried)
        },
        field.try_all("control", field.control(&outside, facts.tmp)?, &outside)
    )?;
    let mut lines = judged(&rows, &tried, &allowed);
    step.done(text!(ui, "attacked from inside", "内部攻击完成"));

    let stage = Stage {
        field,
        hostile,
        honest,
        router: port_of(field, addresses, "router-proxy", "BEAVER_ROUTER_INTERNAL_URL")?,
        follows_links: without == Some(Without::NoFollow),
    };
    let step =
        ui.step(text!(ui, "attacking with its own socket, log and folders", "正在用自身的套接字、日志和目录攻击"));
    if outside::SOCKETS.iter().any(|row| wanted(row)) {
        lines.extend(stage.sockets(&wanted).await?);
    }
    if wanted(outside::LOG) {
        lines.push(stage.log(without == Some(Without::LogRotation)).await?);
    }
    if wanted(outside::REMOVAL) {
        lines.push(stage.removal(deploy).await?);
    }
    step.done(text!(ui, "attacked with socket, log and folders", "套接字、日志与目录攻击完成"));
    Ok(lines)
}

/// What is tried from inside: on the network that a shared instance has, and elsewhere. The former rows come first.
fn inside_plans(rows: &[Row], shared: bool) -> (Plan, Plan) {
    let (near, far): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| shared && NEAR.contains(&row.id));
    let plan = |rows: Vec<&Row>| Plan {
        prepare: Vec::new(),
        attempts: rows.iter().flat_map(|row| row.tried.iter().chain(&row.allowed_here).cloned()).collect(),
    };
    (plan(near), plan(far))
}

fn judged(rows: &[Row], mut tried: &[Option<::attack::Report>], mut allowed: &[Option<::attack::Report>]) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in rows {
        let (of_row, rest) = tried.split_at(row.tried.len());
        let (here, rest) = rest.split_at(row.allowed_here.len());
        let (there, rest_there) = allowed.split_at(row.allowed.len());
        (tried, allowed) = (rest, rest_there);
        lines.push(table::judge(row, of_row, &[here, there].concat()));
    }
    lines
}

/// The addresses of the four services; they must run.
async fn services(field: &Field<'_>) -> anyhow::Result<Vec<(&'static str, IpAddr)>> {
    let net = field.stack.env.string("BEAVER_NET")?;
    let mut addresses = Vec::new();
    for service in SERVICES {
        let name = field.stack.container(service);
        let found = field.engine.container(&name).await?;
        let found = found.filter(engine::is_running).with_context(|| format!("{name} does not run: beaver up"))?;
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.get(&net).and_then(|network| network.ip_address.clone()).unwrap_or_default();
        let address = address.parse().with_context(|| format!("{name} has no address in {net}"))?;
        addresses.push((service.name, address));
    }
    Ok(addresses)
}

/// Where a service's port is that a setting names.
fn port_of(
    field: &Field<'_>,
    addresses: &[(&'static str, IpAddr)],
    service: &str,
    setting: &str,
) -> anyhow::Result<SocketAddr> {
    let (_, address) = addresses.iter().find(|(name, _)| *name == service).context("no such service")?;
    let port = field.stack.env.url(setting)?.port_or_known_default().context("no port")?;
    Ok(SocketAddr::new(*address, port))
}

fn facts(
    field: &Field<'_>,
    (hostile, honest): (&Victim, &Victim),
    addresses: &[(&'static str, IpAddr)],
    abstract_name: String,
    without: Option<Without>,
) -> anyhow::Result<Facts> {
    let stack = field.stack;
    let mut services = Vec::new();
    for (name, address) in addresses {
        let settings: &[&str] = match *name {
            "auth-portal" => &["PORTAL_LISTEN", "PORTAL_INTERNAL_LISTEN"],
            "authz" => &["AUTHZ_LISTEN"],
            "deploy-control" => &["DEPLOY_LISTEN"],
            _ => &["ROUTER_LISTEN", "ROUTER_INTERNAL_LISTEN"],
        };
        for setting in settings {
            services.push(SocketAddr::new(*address, stack.env.parse::<SocketAddr>(setting)?.port()));
        }
    }
    // Bridges' gateways are addresses of the host's own.
    let host = router_proxy::egress::own::of_interfaces().context("listing this host's interfaces")?;
    let mut host: Vec<IpAddr> = host.iter().map(|net| net.addr()).filter(IpAddr::is_ipv4).collect();
    host.dedup();
    ensure!(!host.is_empty(), "this host has no IPv4 address");
    let limits = hostile.host_config();
    let mut facts = Facts {
        ids: [hostile.id.to_string(), honest.id.to_string()],
        data_dir: stack.data_dir.clone(),
        services,
        host,
        host_ports: vec![22, 2375, stack.env.parse("BEAVER_PORTAL_PORT")?, stack.env.parse("BEAVER_ROUTER_PORT")?],
        abstract_name,
        engine_socket: stack.socket()?.0,
        processes: limits.pids_limit.unwrap_or_default(),
        memory: limits.memory.unwrap_or_default(),
        tmp: victims::tmp_of(&limits),
        egress: Facts::own_door(),
        ipv6: field::has_ipv6(),
    };
    if without == Some(Without::AddressRules) {
        facts.egress = facts.world_door();
    }
    Ok(facts)
}

/// The routes that the world's router knows: the one of the hostile instance.
fn routes(hostile: &Victim) -> anyhow::Result<String> {
    let route = Route {
        slug: "beaver-attack".parse()?,
        instance_id: hostile.id,
        account_id: hostile.account,
        state: RouteState::Running,
        sign_in: SignIn::Instance,
        wake_keys: Vec::new(),
    };
    Ok(serde_json::to_string(&RouteSnapshot { epoch: "attack".into(), version: 1, routes: vec![route] })?)
}

/// Takes one defence away from the hostile container, to show that its rows can fail. What that opens is still only the
/// command's own: another network is the world, another folder the other instance's.
fn take_away(field: &Field<'_>, honest: &Victim, without: Without, body: &mut ContainerCreateBody) {
    let Some(host_config) = &mut body.host_config else { return };
    match without {
        Without::Network => {
            host_config.network_mode = Some(field.in_the_world());
            // Who shares a network name space has no name of its own.
            body.hostname = None;
        }
        Without::AddressRules => {
            host_config.mounts.get_or_insert_default().push(field.world_mount(WORLD_DATA, true));
        }
        Without::Capabilities => host_config.cap_drop = None,
        Without::NoNewPrivileges => host_config.security_opt = None,
        Without::Seccomp => host_config.security_opt.get_or_insert_default().push("seccomp=unconfined".into()),
        Without::ReadOnly => host_config.readonly_rootfs = Some(false),
        Without::Folders => {
            let other = field.stack.data_dir.join("instances").join(honest.id.to_string());
            let path = other.display().to_string();
            host_config.binds.get_or_insert_default().push(format!("{path}:{path}"));
        }
        Without::Processes => host_config.pids_limit = None,
        Without::Memory => (host_config.memory, host_config.memory_swap) = (None, None),
        Without::Tmp => {
            let more = field::larger_tmp(victims::tmp_of(host_config));
            host_config.tmpfs.get_or_insert_default().extend(more);
        }
        // Not of its container.
        Without::LogRotation | Without::NoFollow => {}
    }
}
