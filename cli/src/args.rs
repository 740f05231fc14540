//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(
    name = "beaver",
    version = service::VERSION,
    about = "A private workspace for everybody who signs up.",
    after_help = "Exit codes: 0 done · 1 failed, safe to repeat · 2 unusable command line or setting · \
                  3 a check failed, nothing was changed · 4 (status) not, or not wholly, up"
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
    /// Run the checks of `up` alone.
    Doctor(Choices),
    /// Write .env with fresh secrets, unless there is one; print the operator link.
    Init(Choices),
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
    Ask,
    /// A workspace, as the process engine starts it.
    #[command(hide = true)]
    Instance,
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

#[derive(Debug, Clone, Default, Args)]
pub struct Down {
    /// Also remove every workspace, image, network and directory of this stack.
    #[arg(long)]
    pub purge: bool,
    /// Do not ask.
    #[arg(long, requires = "purge")]
    pub yes: bool,
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
