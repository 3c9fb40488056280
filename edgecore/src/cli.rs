//! Flags. The code in `main.rs` turns them into an exit code.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Exit codes, as documented in `--help`.
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const TRANSIENT: u8 = 75;
    pub(crate) const REFUSED: u8 = 77;
}

const EXIT_CODES: &str = "Exit codes: 0 well; 1 failed, or a check failed; 64 wrong usage or \
configuration; 69 the daemon is not running; 70 a core task ended (restart it); 75 the hub cannot \
be reached now, try again; 77 the hub refused this node.";

/// The Outpost node daemon: pods, devices and their twins, with or without a hub.
#[derive(Debug, Parser)]
#[command(name = "edgecore", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print a commented configuration file with every key and its default.
    #[arg(long)]
    pub defaultconfig: bool,
    /// Print a commented configuration file with the keys a node usually sets.
    #[arg(long)]
    pub minconfig: bool,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join a hub: exchange a one-time token for a certificate and write the configuration file.
    Join(JoinArgs),
    /// Run the daemon.
    Run(RunArgs),
    /// What the running daemon does: link, pods, devices, ledger, disk and memory. Works offline.
    Status(AskArgs),
    /// What was accepted for the hub and what became of it, by stream. Works offline and without
    /// the daemon; exits with 1 if a stream does not balance.
    Ledger(AskArgs),
    /// Look for what would keep this node from working, and say what to do.
    Check(AskArgs),
    /// The pods of this node. Works offline; without the daemon, containerd is asked.
    Pods(PodsArgs),
    /// What a container has written. Works offline and without the daemon.
    Logs(LogsArgs),
    /// Run a command in a container. Exits as the command does.
    Exec(ExecArgs),
    /// Join what a container runs: its output from now on, its input with -i.
    Attach(AttachArgs),
    /// What pods, or the node, use now.
    #[command(subcommand)]
    Top(TopCommand),
    /// The devices of this node, or one with its properties; sets desired values. Works offline.
    Device(DeviceArgs),
    /// What a property of a device reported lately. Works offline.
    History(HistoryArgs),
    /// Container images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Users of the MQTT broker.
    #[command(subcommand)]
    Mqtt(MqttCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum MqttCommand {
    /// Set a user's password, read as one line from standard input. The daemon sees it at the next
    /// login.
    Passwd {
        #[command(flatten)]
        config: ConfigArgs,
        /// The user; a device is named NAMESPACE/NAME or NAMESPACE.NAME.
        #[arg(value_name = "USER")]
        user: String,
        /// The file [default: outpost.mqtt.passwordFile of the configuration].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Take the user out instead.
        #[arg(long)]
        delete: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PodsArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Only pods of this namespace [default: of all].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Pods of all namespaces, which is the default.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: PodsOutput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodsOutput {
    Table,
    Wide,
    Json,
}

/// Which container.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArgs {
    /// The pod, as NAME or NAMESPACE/NAME.
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The pod's namespace [default: whichever has a pod of the name].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// The container, where the pod has several.
    #[arg(short, long)]
    pub container: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Wait for more until the container ends.
    #[arg(short, long)]
    pub follow: bool,
    /// The log of the run before this one.
    #[arg(short, long)]
    pub previous: bool,
    /// Only what is younger, e.g. 10m or 1h30m.
    #[arg(long, value_name = "SPAN", value_parser = span, conflicts_with = "since_time")]
    pub since: Option<jiff::SignedDuration>,
    /// Only what was written at this time (RFC 3339) or later.
    #[arg(long, value_name = "TIME")]
    pub since_time: Option<jiff::Timestamp>,
    /// Only so many lines at the end.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// The time before each line.
    #[arg(long)]
    pub timestamps: bool,
    /// Stop after so many bytes.
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Pass standard input on; the container must have `stdin: true`.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// The container has a terminal: pass every key and the window's size on.
    #[arg(short, long)]
    pub tty: bool,
    /// With -it, keys that leave while the container runs on; empty for none.
    #[arg(long, value_name = "KEYS", default_value = edgecore::console::DETACH_KEYS)]
    pub detach_keys: edgecore::console::DetachKeys,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopCommand {
    /// Pods.
    Pods {
        /// Only this pod, as NAME or NAMESPACE/NAME.
        #[arg(value_name = "POD")]
        pod: Option<String>,
        /// Only pods of this namespace [default: of all].
        #[arg(short, long)]
        namespace: Option<String>,
        /// One row for each container.
        #[arg(long)]
        containers: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// The node.
    Node {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

fn span(text: &str) -> Result<jiff::SignedDuration, String> {
    text.parse()
        .map_err(|error: jiff::Error| format!("{error}; e.g. 30s, 10m, 1h30m"))
}

#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// The device, as NAME or NAMESPACE/NAME [default: list all].
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,
    /// Set a desired value; `PROPERTY=` gives the one set here up.
    #[arg(long, value_name = "PROPERTY=VALUE", value_parser = key_value, requires = "device")]
    pub desire: Vec<(String, String)>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The device, as NAME or NAMESPACE/NAME.
    pub device: String,
    pub property: String,
    /// At most so many readings, the newest.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub last: u32,
    /// Only what is younger, e.g. 10m or 1h30m.
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub since: Option<jiff::SignedDuration>,
    /// Only what was reported at this time (RFC 3339) or later.
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    pub since_time: Option<jiff::Timestamp>,
    /// Only what was reported before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub until_time: Option<jiff::Timestamp>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Import an archive: OCI layout or `docker save`, plain or compressed (gzip, zstd).
    Import {
        /// The archive.
        file: PathBuf,
        /// Name the image so instead; the archive must then hold exactly one.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Pull an image, with the node's own credentials. One that was broken off goes on.
    Pull {
        image: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// The images of this node.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Remove an image by name. One that a container was made from stays.
    Rm {
        image: String,
        /// Also one that a container was made from; the container runs on.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Remove every image that no container was made from, no pod of this node names, and nobody
    /// pinned. Asks the running daemon, which knows the pods.
    Prune {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Keep an image from ever being collected.
    Pin {
        image: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Let an image be collected again.
    Unpin {
        image: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file [default: /etc/edgecore/edgecore.yaml if it exists].
    #[arg(long, value_name = "FILE", env = "EDGECORE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set one key, e.g. `--set modules.eventBus.mqttServerInternal=tcp://127.0.0.1:1884`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The node's name.
    #[arg(long)]
    pub node_name: Option<String>,
    /// error, warn, info, debug, trace, or a tracing filter; `RUST_LOG` beats it.
    #[arg(long)]
    pub log_level: Option<String>,
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The hub's certificate service, e.g. https://hub.example:10002.
    #[arg(long, value_name = "URL")]
    pub hub: String,
    /// The hub's WebSocket, host:port [default: the same host, port 10000].
    #[arg(long, value_name = "HOST:PORT")]
    pub websocket: Option<String>,
    /// Token from `cloudhub token create --node …`, or from `keadm gettoken`.
    #[arg(long, env = "EDGECORE_TOKEN", hide_env_values = true)]
    pub token: String,
    /// This node's name [default: the one in the token, else the host's name].
    #[arg(long)]
    pub node_name: Option<String>,
    /// Directory for the database, the certificates and pod volumes.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgecore")]
    pub data_dir: PathBuf,
    /// Configuration file to write.
    #[arg(long, value_name = "FILE", default_value = edgecore::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Further keys to write into the file.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Replace a configuration file that differs.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))
}
