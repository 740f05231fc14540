//! What is tried from inside, row by row, and what each row's control is.
//!
//! A row's attempts are made in a hostile instance, where none may succeed. Its control makes attempts of the same kind
//! where they are allowed, and each must succeed: in the world ([`super::field::Field::world`]), where every address is
//! its own and nothing is forbidden, or, for what a door does let through, in the instance itself.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use attack::Attempt;

use super::field::{RISE, SPOT, WORLD_DATA};

/// The instance's own door to the outside.
const EGRESS: &str = "/run/beaver/out/egress.sock";
/// The instance's own door to authz.
const IDENTITY: &str = "/run/beaver/out/identity.sock";
/// How much more than is allowed an attempt on a limit asks for.
const BEYOND: u64 = 32;
/// The most of the host's addresses that are tried.
const MAX_ADDRESSES: usize = 8;

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its name, in `--json` too.
    pub id: &'static str,
    /// What is tried, in English and in Chinese.
    pub what: [&'static str; 2],
    /// What should happen.
    pub must: [&'static str; 2],
    /// What is tried.
    pub tried: Vec<Attempt>,
    /// The same, or of the same kind, where it is allowed: in the world.
    pub allowed: Vec<Attempt>,
    /// What is allowed in the instance itself.
    pub allowed_here: Vec<Attempt>,
}

/// What rows are made from.
pub struct Facts {
    /// The hostile instance, and the one beside it.
    pub ids: [String; 2],
    /// The stack's data folder.
    pub data_dir: PathBuf,
    /// The services, each with its port.
    pub services: Vec<SocketAddr>,
    /// The addresses of the host's interfaces.
    pub host: Vec<IpAddr>,
    /// Ports that may be open on the host.
    pub host_ports: Vec<u16>,
    /// An abstract socket that somebody on the host listens on.
    pub abstract_name: String,
    /// The engine's socket on this host.
    pub engine_socket: PathBuf,
    /// What an instance may have: processes and memory in bytes.
    pub processes: i64,
    pub memory: i64,
    /// What its /tmp may hold, in bytes.
    pub tmp: u64,
    /// The door that hostile requests for addresses go through: the instance's own, unless a defence is taken away.
    pub egress: PathBuf,
    /// Whether the host has IPv6.
    pub ipv6: bool,
}

impl Facts {
    /// The instance's own door.
    pub fn own_door() -> PathBuf {
        EGRESS.into()
    }

    /// The door of the world's router.
    pub fn world_door(&self) -> PathBuf {
        Path::new(WORLD_DATA).join("run").join(&self.ids[0]).join("out/egress.sock")
    }

    fn host_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.host.iter().take(MAX_ADDRESSES);
        addresses.flat_map(|address| self.host_ports.iter().map(|port| SocketAddr::new(*address, *port))).collect()
    }

    /// Every port that somebody answers on in the world.
    pub fn ports(&self) -> Vec<u16> {
        let services = self.services.iter().map(SocketAddr::port);
        let mut ports: Vec<u16> = services.chain(self.host_ports.iter().copied()).chain([80, 443]).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

const METADATA: [&str; 3] = ["169.254.169.254:80", "169.254.170.2:80", "100.100.100.200:80"];
const PRIVATE: [&str; 5] = ["10.0.0.1:80", "172.16.0.1:80", "192.168.0.1:80", "192.168.1.1:443", "100.64.0.1:80"];
const SPECIAL: [&str; 6] =
    ["127.0.0.1:80", "127.255.0.1:80", "0.0.0.0:80", "169.254.0.1:80", "192.0.2.1:80", "198.18.0.1:80"];
const IPV6: [&str; 9] = [
    "[::1]:80",
    "[::]:80",
    "[::ffff:127.0.0.1]:80",
    "[::ffff:10.0.0.1]:80",
    "[::ffff:a9fe:a9fe]:80",
    "[64:ff9b::a00:1]:80",
    "[2002:a00:1::1]:80",
    "[fc00::1]:80",
    "[fd00:ec2::254]:80",
];
const NUMBERS: [&str; 6] =
    ["2130706433:80", "0x7f000001:80", "0x7f.0.0.1:80", "017700000001:80", "0177.0.0.1:80", "127.1:80"];
const NAMES: [&str; 4] =
    ["localhost:80", "metadata.localhost:80", "beaver-authz-service:19090", "beaver-deploy-control:8090"];

/// Requests that an instance's door to authz must not pass on.
fn closed_paths(deploy: SocketAddr) -> Vec<String> {
    let plain = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: authz\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let mut requests: Vec<String> = [
        "/portal/operator",
        "/metrics",
        "/readyz",
        "/openapi.json",
        "/",
        "/oauth",
        "/oauth/../portal/operator",
        "/oauth/%2e%2e/portal/operator",
        "/oauth/..%2fportal/operator",
        "/oauth//../portal/operator",
        "//portal/operator",
        "/%6fauth/token",
        "http://beaver-authz-service:19090/portal/operator",
    ]
    .iter()
    .map(|path| plain("GET", path))
    .collect();
    requests.extend(["/backends/register", "/portal/login", "/portal/register"].map(|path| plain("POST", path)));
    requests.push(format!("GET http://{deploy}/api/instances HTTP/1.1\r\nHost: {deploy}\r\nConnection: close\r\n\r\n"));
    requests.push(format!("CONNECT {deploy} HTTP/1.1\r\nHost: {deploy}\r\n\r\n"));
    requests
}

/// A second request inside or behind a first, of which one reader sees it and another may not.
fn smuggled() -> Vec<String> {
    let second = "GET /portal/operator HTTP/1.1\r\nHost: authz\r\nConnection: close\r\n\r\n";
    let first =
        |headers: &str, body: &str| format!("POST /oauth/token HTTP/1.1\r\nHost: authz\r\n{headers}\r\n\r\n{body}");
    vec![
        first("Content-Length: 4\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{second}")),
        first(&format!("Content-Length: {}\r\nContent-Length: 0", second.len()), second),
        first("Transfer-Encoding: chunked, identity", &format!("0\r\n\r\n{second}")),
        first("Transfer-Encoding : chunked", &format!("0\r\n\r\n{second}")),
        first("Transfer-Encoding: chunked", &format!("0;x=\"\n\"\r\n\r\n{second}")),
        first("Content-Length: 0", second),
        format!("GET /nothing HTTP/1.1\nHost: authz\n\n{second}"),
    ]
}

/// What is no HTTP/1.1 at all.
fn no_http() -> Vec<String> {
    vec![
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".repeat(20),
        "GET\0/.well-known/jwks.json HTTP/1.1\r\nHost: authz\r\n\r\n".to_owned(),
        "GET /.well-known/jwks.json HTTP/9.9\r\nHost: authz\r\n\r\n".to_owned(),
        "\r\n".repeat(1000) + "nothing\r\n\r\n",
    ]
}

/// Everything that is tried from inside, in the table's order.
pub fn rows(facts: &Facts) -> Vec<Row> {
    let mut rows = network(facts);
    rows.extend(egress(facts));
    rows.extend(identity(facts));
    rows.extend(folders(facts));
    rows.extend(privileges());
    rows.extend(limits(facts));
    // What this host does not have cannot be tried, nor reached.
    rows.retain(|row| !row.tried.is_empty());
    rows
}

/// A row whose control is the very same attempts in the world.
fn same(id: &'static str, what: [&'static str; 2], must: [&'static str; 2], tried: Vec<Attempt>) -> Row {
    Row { id, what, must, allowed: tried.clone(), tried, allowed_here: Vec::new() }
}

/// As [`same`], with other attempts of the same kind.
fn other(
    id: &'static str,
    what: [&'static str; 2],
    must: [&'static str; 2],
    tried: Vec<Attempt>,
    allowed: Vec<Attempt>,
) -> Row {
    Row { id, what, must, tried, allowed, allowed_here: Vec::new() }
}

const UNREACHABLE: [&str; 2] = ["no way there", "无路可达"];
const NOT_OPENED: [&str; 2] = ["refused by the system", "系统拒绝"];
const NOT_LET_OUT: [&str; 2] = ["refused by the rules", "被规则拒绝"];
const NOT_PASSED: [&str; 2] = ["not passed on", "不予转发"];
const NOT_THERE: [&str; 2] = ["not there", "不存在"];

fn network(facts: &Facts) -> Vec<Row> {
    let addresses = |texts: &[&str]| texts.iter().filter_map(|text| text.parse().ok()).map(Attempt::Tcp).collect();
    let tcp = |to: Vec<SocketAddr>| to.into_iter().map(Attempt::Tcp).collect();
    let mut servers: Vec<SocketAddr> = vec![SocketAddr::from((Ipv4Addr::new(192, 0, 2, 53), 53))];
    servers.extend(facts.host.iter().filter(|address| address.is_ipv4()).take(4).map(|a| SocketAddr::new(*a, 53)));
    let mut v6: Vec<Attempt> = addresses(&["[fd00:ec2::254]:80", "[2001:db8::1]:80", "[fc00::1]:443"]);
    v6.retain(|_| facts.ipv6);
    vec![
        same(
            "interfaces",
            ["a network interface beside lo", "lo 以外的网络接口"],
            ["only lo", "只有 lo"],
            vec![Attempt::Interface],
        ),
        same("services", ["the four services, directly", "直接连接四个服务"], UNREACHABLE, tcp(facts.services.clone())),
        same(
            "host",
            ["the host: its interfaces, the bridges' gateways", "主机:各网络接口、网桥网关"],
            UNREACHABLE,
            tcp(facts.host_addresses()),
        ),
        same("lan", ["private addresses", "私有地址"], UNREACHABLE, addresses(&PRIVATE)),
        same("metadata", ["a cloud's metadata address", "云厂商元数据地址"], UNREACHABLE, addresses(&METADATA)),
        same(
            "dns",
            ["name servers, by UDP", "经 UDP 访问域名服务器"],
            UNREACHABLE,
            servers.into_iter().map(Attempt::Dns).collect(),
        ),
        same("raw_sockets", ["raw IP sockets", "原始 IP 套接字"], NOT_OPENED, vec![Attempt::RawSocket]),
        same(
            "packet_sockets",
            ["packet sockets, as for ARP", "数据链路层套接字(如 ARP)"],
            NOT_OPENED,
            vec![Attempt::PacketSocket],
        ),
        same(
            "abstract_sockets",
            ["the host's abstract Unix sockets", "主机的抽象 Unix 套接字"],
            ["nobody there", "无人监听"],
            vec![Attempt::Abstract(facts.abstract_name.clone())],
        ),
        same("ipv6", ["IPv6 addresses", "IPv6 地址"], UNREACHABLE, v6),
    ]
}

fn egress(facts: &Facts) -> Vec<Row> {
    let both = |door: PathBuf, targets: &[String]| -> Vec<Attempt> {
        let connect = targets.iter().map(|target| Attempt::Connect(door.clone(), target.clone()));
        let absolute = targets.iter().take(3).map(|target| Attempt::Absolute(door.clone(), target.clone()));
        connect.chain(absolute).collect()
    };
    let row = |id, what, targets: Vec<String>| {
        other(id, what, NOT_LET_OUT, both(facts.egress.clone(), &targets), both(facts.world_door(), &targets))
    };
    let texts = |targets: &[&str]| targets.iter().map(|target| (*target).to_owned()).collect::<Vec<_>>();
    let shown = |targets: &[SocketAddr]| targets.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut numbers =
        row("egress_numbers", ["egress door: addresses as numbers", "出口:用数字写法的地址"], texts(&NUMBERS));
    // No rule lets them out as they are written: the control is the address that they mean.
    numbers.allowed = both(facts.world_door(), &texts(&["127.0.0.1:80"]));
    let mut rows = vec![
        row("egress_services", ["egress door: the four services", "出口:四个服务"], shown(&facts.services)),
        row("egress_host", ["egress door: the host", "出口:主机"], shown(&facts.host_addresses())),
        row("egress_lan", ["egress door: private addresses", "出口:私有地址"], texts(&PRIVATE)),
        row("egress_metadata", ["egress door: metadata addresses", "出口:元数据地址"], texts(&METADATA)),
        row(
            "egress_special",
            ["egress door: loopback, link-local, reserved", "出口:回环、链路本地、保留地址"],
            texts(&SPECIAL),
        ),
        numbers,
        row("egress_names", ["egress door: names that lead inside", "出口:指向内部的域名"], texts(&NAMES)),
    ];
    if facts.ipv6 {
        rows.push(row(
            "egress_ipv6",
            ["egress door: IPv6, mapped and translated", "出口:IPv6、映射与转换地址"],
            texts(&IPV6),
        ));
    }
    rows
}

fn identity(facts: &Facts) -> Vec<Row> {
    let door = || PathBuf::from(IDENTITY);
    let said = |requests: Vec<String>| requests.into_iter().map(|request| Attempt::Say(door(), request)).collect();
    let open = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: authz\r\nConnection: close\r\n\r\n";
    let row = |id, what, must, tried| Row {
        id,
        what,
        must,
        tried,
        allowed: Vec::new(),
        allowed_here: vec![Attempt::Say(door(), open.to_owned())],
    };
    let deploy = facts.services.iter().find(|service| service.port() == 8090).or(facts.services.first());
    let deploy = deploy.copied().unwrap_or(SocketAddr::from(([192, 0, 2, 1], 8090)));
    vec![
        row(
            "identity_paths",
            ["identity door: authz's internal endpoints", "身份通道:authz 的内部接口"],
            NOT_PASSED,
            said(closed_paths(deploy)),
        ),
        row(
            "identity_smuggling",
            ["identity door: smuggled requests", "身份通道:夹带请求"],
            NOT_PASSED,
            said(smuggled()),
        ),
        row(
            "identity_garbage",
            ["identity door: HTTP/2, TLS, noise", "身份通道:HTTP/2、TLS、乱码"],
            ["refused", "拒绝"],
            said(no_http()),
        ),
        Row {
            allowed_here: vec![Attempt::EndlessHeader(door(), 2)],
            ..row(
                "identity_endless",
                ["identity door: a header without an end", "身份通道:没有尽头的请求头"],
                ["cut off", "中断"],
                vec![Attempt::EndlessHeader(door(), 1024)],
            )
        },
    ]
}

fn folders(facts: &Facts) -> Vec<Row> {
    let [_, other_id] = &facts.ids;
    let of_other: Vec<PathBuf> =
        ["run", "instances"].iter().map(|place| facts.data_dir.join(place).join(other_id)).collect();
    let mut sockets: Vec<PathBuf> =
        ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"].map(PathBuf::from).to_vec();
    sockets.push(facts.engine_socket.clone());
    sockets.sort();
    sockets.dedup();
    let places = of_other.iter().cloned().chain([facts.data_dir.clone()]);
    let seen: Vec<Attempt> = places.map(Attempt::See).collect();
    vec![
        other(
            "read_only_folders",
            ["writing to out/ and config/", "写入 out/ 与 config/"],
            ["read-only", "只读"],
            vec![
                Attempt::Create("/run/beaver/out".into()),
                Attempt::Create("/config".into()),
                Attempt::Remove(EGRESS.into()),
                Attempt::Remove("/config/config.json".into()),
            ],
            vec![Attempt::Create(SPOT.into()), Attempt::Remove(format!("{SPOT}/gone").into())],
        ),
        same("others_folders", ["the other instance's folders, the host's", "另一个实例和主机的目录"], NOT_THERE, seen),
        other(
            "others_mounts",
            ["the other instance among the mounts", "挂载中的另一个实例"],
            NOT_THERE,
            vec![Attempt::Mention("/proc/self/mountinfo".into(), other_id.clone())],
            vec![Attempt::Mention(format!("{SPOT}/list").into(), other_id.clone())],
        ),
        same(
            "engine_socket",
            ["the engine's socket", "引擎的套接字"],
            NOT_THERE,
            sockets.into_iter().map(Attempt::Unix).collect(),
        ),
        other(
            "root_file_system",
            ["writing to the root file system", "写入根文件系统"],
            ["read-only", "只读"],
            vec![Attempt::Create(SPOT.into()), Attempt::Create("/".into()), Attempt::Create("/etc".into())],
            vec![Attempt::Create(SPOT.into()), Attempt::Create("/".into()), Attempt::Create("/etc".into())],
        ),
    ]
}

/// What must be in place in the world for the controls.
pub fn prepared(rows: &[Row], facts: &Facts) -> Vec<::attack::Prepared> {
    let mut prepared = vec![
        ::attack::Prepared::System,
        ::attack::Prepared::File(format!("{SPOT}/gone").into(), String::new()),
        ::attack::Prepared::File(format!("{SPOT}/list").into(), facts.ids[1].clone()),
    ];
    for attempt in rows.iter().flat_map(|row| &row.allowed) {
        match attempt {
            Attempt::See(path) => prepared.push(::attack::Prepared::File(path.join(".there"), String::new())),
            Attempt::Unix(path) => prepared.push(::attack::Prepared::Listener(path.clone())),
            _ => {}
        }
    }
    prepared
}

fn privileges() -> Vec<Row> {
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/kernel/mm/ksm/run",
    ];
    // The same kernel: what is not here is not there.
    let files =
        files.iter().filter(|path| fs::metadata(path).is_ok()).map(|path| Attempt::Write(path.into())).collect();
    let spot = || PathBuf::from(SPOT);
    vec![
        same(
            "capabilities",
            ["capabilities, in any set", "任何能力(capability)"],
            ["none", "没有"],
            vec![Attempt::Capability],
        ),
        same(
            "new_privileges",
            ["gaining new privileges", "获得新的特权"],
            ["switched off", "已关闭"],
            vec![Attempt::NewPrivileges],
        ),
        same(
            "seccomp",
            ["system calls without a filter", "不受过滤的系统调用"],
            ["filtered", "受过滤"],
            vec![Attempt::Unfiltered],
        ),
        same(
            "set_uid",
            ["a set-user-id program of root's", "root 的 setuid 程序"],
            ["gains nothing", "毫无所得"],
            vec![Attempt::SetUid(RISE.into())],
        ),
        same("become_root", ["becoming root", "成为 root"], NOT_OPENED, vec![Attempt::BecomeRoot]),
        same(
            "kernel",
            ["mount, unshare, chroot, mknod, the host's name", "mount、unshare、chroot、mknod、主机名"],
            NOT_OPENED,
            vec![
                Attempt::Mount(spot()),
                Attempt::Unshare,
                Attempt::Chroot(spot()),
                Attempt::Device("/tmp/beaver-attack-device".into()),
                Attempt::HostName,
            ],
        ),
        same("modules", ["a kernel module", "内核模块"], NOT_OPENED, modules()),
        same(
            "kernel_files",
            ["opening /proc/sys, sysrq and /sys to write", "以写方式打开 /proc/sys、sysrq 与 /sys"],
            NOT_OPENED,
            files,
        ),
        same("devices", ["the host's devices", "主机的设备"], NOT_THERE, devices()),
    ]
}

/// Where the kernel has modules at all.
fn modules() -> Vec<Attempt> {
    if Path::new("/proc/modules").exists() { vec![Attempt::Module] } else { Vec::new() }
}

/// The kernel's log, and the first disk that this host has.
fn devices() -> Vec<Attempt> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut disks: Vec<PathBuf> =
        disks.map(|name| Path::new("/dev").join(name)).filter(|path| fs::File::open(path).is_ok()).collect();
    disks.sort();
    let log = PathBuf::from("/dev/kmsg");
    [log].into_iter().filter(|path| path.exists()).chain(disks.into_iter().take(1)).map(Attempt::Read).collect()
}

fn limits(facts: &Facts) -> Vec<Row> {
    // Without a limit there is none to go beyond, and the attempt is still bounded.
    let processes =
        u32::try_from(facts.processes).ok().filter(|most| (1..2000).contains(most)).unwrap_or(2000) + BEYOND as u32;
    let memory =
        u64::try_from(facts.memory).ok().filter(|most| (1..1 << 33).contains(most)).unwrap_or(1 << 33) + (BEYOND << 20);
    let bounded = ["bounded", "有上限"];
    vec![
        same(
            "processes",
            ["more processes than allowed", "超出上限的进程数"],
            bounded,
            vec![Attempt::Processes(processes)],
        ),
        same(
            "memory",
            ["more memory than allowed", "超出上限的内存"],
            ["killed, alone", "仅自身被终止"],
            vec![Attempt::Memory(memory)],
        ),
        same(
            "open_files",
            ["more open files than allowed", "超出上限的打开文件数"],
            bounded,
            vec![Attempt::Files(4096 + BEYOND)],
        ),
        same("tmp", ["filling /tmp", "写满 /tmp"], bounded, vec![Attempt::Fill("/tmp".into(), facts.tmp + (8 << 20))]),
        same(
            "tmp_files",
            ["very many files in /tmp", "在 /tmp 中创建大量文件"],
            bounded,
            vec![Attempt::ManyFiles("/tmp".into(), 17_000)],
        ),
        same(
            "shared_memory",
            ["filling /dev/shm", "写满 /dev/shm"],
            bounded,
            vec![Attempt::Fill("/dev/shm".into(), 72 << 20)],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    pub(crate) fn facts() -> Facts {
        Facts {
            ids: ["i-1".into(), "i-2".into()],
            data_dir: "/srv/beaver".into(),
            services: vec!["172.20.0.2:19090".parse().unwrap(), "172.20.0.3:8090".parse().unwrap()],
            host: vec!["172.17.0.1".parse().unwrap(), "192.168.1.7".parse().unwrap()],
            host_ports: vec![22, 3081],
            abstract_name: "beaver".into(),
            engine_socket: "/var/run/docker.sock".into(),
            processes: 128,
            memory: 256 << 20,
            tmp: 64 << 20,
            egress: Facts::own_door(),
            ipv6: true,
        }
    }

    #[test]
    fn every_row_has_a_name_of_its_own_attempts_and_a_control() {
        let rows = rows(&facts());
        let names: HashSet<&str> = rows.iter().map(|row| row.id).collect();
        assert_eq!(names.len(), rows.len());
        for row in &rows {
            assert!(!row.tried.is_empty(), "{}", row.id);
            assert!(!row.allowed.is_empty() || !row.allowed_here.is_empty(), "{} has no control", row.id);
        }
    }

    #[test]
    fn a_control_never_asks_the_instances_own_door_for_an_address() {
        for row in rows(&facts()) {
            for attempt in row.allowed.iter().chain(&row.allowed_here) {
                if let Attempt::Connect(door, _) | Attempt::Absolute(door, _) = attempt {
                    assert_eq!(door, &facts().world_door(), "{}", row.id);
                }
            }
        }
    }

    #[test]
    fn whatever_is_asked_for_in_the_world_is_answered_there() {
        let facts = facts();
        let ports = facts.ports();
        for row in rows(&facts) {
            for attempt in &row.allowed {
                if let Attempt::Connect(_, target) = attempt {
                    let port: u16 = target.rsplit(':').next().unwrap().parse().unwrap();
                    assert!(ports.contains(&port), "{target}");
                }
            }
        }
    }
}
