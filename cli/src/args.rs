//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use contracts::deploy::EVENT_PAGE;

#[derive(Debug, Parser)]
#[command(
    name = "beaver",
    version = service::VERSION,
    about = "A private workspace for everybody who signs up.",
    after_help = "Exit codes: 0 done · 1 failed, safe to repeat · 2 unusable command line or setting · \
                  3 a check failed, nothing was changed · 4 (status) not, or not wholly, up · \
                  1 (attack) something got through · 5 (attack) not everything could be tried"
)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the stack's files are.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// The folder with compose.yaml; otherwise the nearest one above the current folder.
    #[arg(long, global = true, value_name = "DIR", env = "BEAVER_PROJECT_DIR")]
    pub project_dir: Option<PathBuf>,
    /// The settings file; otherwise .env in the project's folder.
    #[arg(long, global = true, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check, build, start everything, wait until it is ready. Safe to run again.
    Up(Up),
    /// Stop everything; data and what people wanted are kept.
    Down(Down),
    /// Show services and workspaces.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show what a workspace's program writes.
    Logs(Logs),
    /// Show what happened to a workspace, and who did it: oldest first, a line each.
    Events(Events),
    /// Run a program of a workspace's image in it, as its user.
    Exec(Exec),
    /// Send an HTTP request to a workspace, as the other services do.
    Curl(Curl),
    /// Try from inside of instances of its own what a hostile one could do; says what held.
    Attack(Attack),
    /// Run the checks of `up` alone.
    Doctor(Choices),
    /// Write .env with fresh secrets, unless there is one; print the operator link.
    Init(Choices),
    /// Look at an image before it becomes a plan.
    Image {
        #[command(subcommand)]
        what: Image,
    },
    /// Give a workspace another plan. Its data stays; what it runs is made anew.
    Plan {
        /// The workspace's name.
        #[arg(value_name = "WORKSPACE")]
        slug: String,
        /// The plan: workspace, or one of the file of plans.
        plan: String,
    },
    /// Let the workspaces that went back from the newest release try it again; say who runs which.
    Upgrade,
    /// Delete a workspace: it goes down at once; its data is kept for a while, in which `undelete` takes it back.
    Delete {
        /// The workspace's name.
        #[arg(value_name = "WORKSPACE")]
        slug: String,
        /// Its name once more: nothing is deleted by mistake.
        #[arg(long, value_name = "WORKSPACE")]
        confirm: String,
    },
    /// Take a deletion back, while the data is kept.
    Undelete {
        /// The workspace's name.
        #[arg(value_name = "WORKSPACE")]
        slug: String,
    },
    /// Write everything of a workspace into one file.
    Export {
        /// The workspace's name.
        #[arg(value_name = "WORKSPACE")]
        slug: String,
        /// The file; otherwise beaver-WORKSPACE.tar.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Put the data of such a file in the place of a workspace's: all of it, or nothing.
    Restore {
        /// The workspace's name.
        #[arg(value_name = "WORKSPACE")]
        slug: String,
        /// The file.
        file: PathBuf,
    },
    /// Print a file for this stack's surroundings, made from the settings.
    Render {
        /// Which one.
        what: Template,
    },
    /// Make the data directories and hand out the secrets (in compose.yaml's one-shot container).
    #[command(hide = true)]
    Prepare {
        /// Where the secrets come from.
        #[arg(long, value_enum, default_value_t = SecretsFrom::EnvFile, env = "BEAVER_SECRETS_FROM")]
        secrets: SecretsFrom,
    },
    /// Remove the data directories (likewise, for `down --purge`).
    #[command(hide = true)]
    RemoveData,
    /// Ask the services, from inside their network, what `up` and `status` want to know.
    #[command(hide = true)]
    Ask {
        /// Pass on the request on standard input instead.
        #[arg(long)]
        request: bool,
    },
    /// Change a plan, from inside the services' network.
    #[command(hide = true)]
    SetPlan {
        /// The workspace's name.
        slug: String,
        /// The plan.
        plan: String,
    },
    /// A workspace's events, from inside the services' network.
    #[command(hide = true)]
    EventsFromInside(Events),
    /// Upgrade, from inside the services' network.
    #[command(hide = true)]
    UpgradeFromInside,
    /// What `delete`, `undelete`, `export` and `restore` do, from inside the services' network.
    #[command(hide = true)]
    Data {
        #[command(subcommand)]
        what: Inside,
    },
    /// A workspace, as the process engine starts it.
    #[command(hide = true)]
    Instance,
}

/// What is done to a workspace or its data.
#[derive(Debug, Clone, Subcommand)]
pub enum Inside {
    /// Delete it.
    Delete { slug: String, confirm: String },
    /// Take that back.
    Undelete { slug: String },
    /// Its archive, on standard output.
    Export { slug: String },
    /// An archive, from standard input.
    Restore { slug: String },
}

#[derive(Debug, Clone, Default, Args)]
pub struct Up {
    #[command(flatten)]
    pub choices: Choices,
    /// Take the images as they are: build neither binaries nor images.
    #[arg(long)]
    pub no_build: bool,
    /// The cargo profile to build with: `dev` builds faster and runs slower.
    #[arg(long, default_value = "release", hide = true)]
    pub profile: String,
    /// Seconds until every service must be ready.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Image {
    /// Say what of an image will work in an instance and what will not; print a plan to begin with. Exit code 1: it will
    /// not work as it is.
    Check(ImageCheck),
}

#[derive(Debug, Clone, Args)]
pub struct ImageCheck {
    /// The image, which this host's engine has: nothing is pulled.
    pub image: String,
    /// Also start it as an instance is started, with nothing to reach outside, and see whether it answers.
    #[arg(long)]
    pub run: bool,
    /// The TCP port that its program listens on; otherwise the one that it exposes.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The path that is asked for with --run.
    #[arg(long, default_value = "/", requires = "run")]
    pub health: String,
    /// The program and its arguments, in place of the image's own.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Down {
    /// Also remove every workspace, image, network and directory of this stack.
    #[arg(long)]
    pub purge: bool,
    /// Do not ask.
    #[arg(long, requires = "purge")]
    pub yes: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Logs {
    /// Its name or id.
    pub workspace: String,
    /// Go on as it writes more.
    #[arg(long, short)]
    pub follow: bool,
    /// How many of the last lines.
    #[arg(long, short = 'n', default_value_t = 100, value_name = "LINES")]
    pub tail: usize,
}

#[derive(Debug, Clone, Args)]
pub struct Events {
    /// Its name or id.
    pub workspace: String,
    /// How many at most: the newest ones.
    #[arg(long, short = 'n', default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=EVENT_PAGE))]
    pub last: i64,
    /// Only those from before this one, as the line about older ones names it.
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(i64).range(1..))]
    pub before: Option<i64>,
}

#[derive(Debug, Clone, Args)]
pub struct Exec {
    /// Its name or id.
    pub workspace: String,
    /// The program, as a path in the image or a name in its PATH, and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Curl {
    /// Its name or id.
    pub workspace: String,
    /// The path, with a query or not.
    pub path: String,
    /// The method; otherwise GET, or POST with data.
    #[arg(long = "request", short = 'X', value_name = "METHOD")]
    pub method: Option<String>,
    /// A header, as 'name: value'.
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    pub headers: Vec<String>,
    /// What to send; @FILE reads it from a file, @- from standard input.
    #[arg(long, short, value_name = "DATA")]
    pub data: Option<String>,
    /// Also print the status and the headers.
    #[arg(long, short)]
    pub include: bool,
    /// Exit with 1 when the status is 400 or more.
    #[arg(long, short)]
    pub fail: bool,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Attack {
    /// As one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Take one defence away from the attacker's container, to see that the table then says so.
    #[arg(long, value_enum, value_name = "DEFENCE")]
    pub without: Option<Without>,
    /// Only these rows, as --json names them; comma-separated.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Take the hostile program's image as it is.
    #[arg(long)]
    pub no_build: bool,
    /// The cargo profile to build with.
    #[arg(long, default_value = "release", hide = true)]
    pub profile: String,
}

/// A defence that `attack` can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Without {
    /// The attacker has a network: one of the command's own.
    Network,
    /// The attacker's door out leads to a router that lets everything out, in that network.
    AddressRules,
    /// It keeps Docker's usual capabilities.
    Capabilities,
    /// It may gain privileges.
    NoNewPrivileges,
    /// Its system calls are not filtered.
    Seccomp,
    /// Its root file system can be written.
    ReadOnly,
    /// It sees the other instance's folders.
    Folders,
    /// It may have any number of processes.
    Processes,
    /// It may have any amount of memory.
    Memory,
    /// Its /tmp is larger than it may be.
    Tmp,
    /// All of its log is kept.
    LogRotation,
    /// Its socket is opened by its path, wherever a link there leads.
    NoFollow,
}

impl Without {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::AddressRules => "address-rules",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Seccomp => "seccomp",
            Self::ReadOnly => "read-only",
            Self::Folders => "folders",
            Self::Processes => "processes",
            Self::Memory => "memory",
            Self::Tmp => "tmp",
            Self::LogRotation => "log-rotation",
            Self::NoFollow => "no-follow",
        }
    }
}

/// What goes into a new .env. Without effect where one exists.
#[derive(Debug, Clone, Default, Args)]
pub struct Choices {
    /// The domain that workspaces are names of, such as apps.example.com.
    #[arg(long)]
    pub domain: Option<String>,
    /// Where people sign in, such as <https://portal.example.com>.
    #[arg(long, value_name = "URL")]
    pub portal_url: Option<String>,
    /// What a browser uses for workspaces; https unless the domain is localhost.
    #[arg(long, value_parser = ["http", "https"])]
    pub scheme: Option<String>,
    /// The address on this host to listen on.
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<std::net::IpAddr>,
    /// The portal's port on this host.
    #[arg(long, value_name = "PORT")]
    pub portal_port: Option<u16>,
    /// The router's port on this host.
    #[arg(long, value_name = "PORT")]
    pub router_port: Option<u16>,
    /// The port in the addresses of workspaces, when something in front listens on another than the router's.
    #[arg(long = "port", value_name = "PORT")]
    pub public_port: Option<u16>,
    /// Goes before the names of containers, images and the network.
    #[arg(long)]
    pub prefix: Option<String>,
    /// Where everything that must last is kept.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// What runs workspaces.
    #[arg(long, value_enum)]
    pub engine: Option<EngineKind>,
}

/// What runs workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Containers.
    Docker,
    /// Child processes of one foreground process; isolates nothing.
    Process,
}

impl EngineKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

impl std::str::FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "docker" => Ok(Self::Docker),
            "process" => Ok(Self::Process),
            other => Err(format!("{other} is neither docker nor process")),
        }
    }
}

/// Where `prepare` takes the secrets from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SecretsFrom {
    /// The settings file: compose works by itself.
    EnvFile,
    /// One JSON object on standard input: `beaver up` has found them, wherever they are.
    Stdin,
    /// Nowhere: `beaver up` has had them written just before.
    Kept,
}

/// What `render` can print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// A Caddyfile.
    Caddy,
    /// Traefik's dynamic configuration.
    Traefik,
    /// A server block for nginx.
    Nginx,
    /// A systemd unit that brings the stack up at boot.
    Systemd,
}
