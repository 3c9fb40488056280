//! `cloudhub`: the hub of Outpost.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use cloudhub::{
    app::Hub,
    cli::{client::Client, token},
    clock,
    config::{self, Config, Overrides},
    supervise::Exit,
    telemetry::{self, LogFormat},
};
use tokio_util::sync::CancellationToken;

/// The hub: a Kubernetes-compatible API, and sessions for edge nodes.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the hub.
    Run(Run),
    /// Tokens by which nodes join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print the configuration with its defaults.
    Defaultconfig,
}

#[derive(Args)]
struct Run {
    /// Configuration file (YAML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Directory of the store, the keys and the kubeconfig.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Name or address by which nodes and people reach the hub (repeatable).
    #[arg(long)]
    advertise: Vec<String>,
    /// Address of the Kubernetes API.
    #[arg(long)]
    api_listen: Option<SocketAddr>,
    /// Address of the nodes' sessions.
    #[arg(long)]
    websocket_listen: Option<SocketAddr>,
    /// Address for joining.
    #[arg(long)]
    bootstrap_listen: Option<SocketAddr>,
    /// Log lines for people or machines.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Log filter, such as `info` or `cloudhub=debug`.
    #[arg(long)]
    log: Option<String>,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Create a token that joins one node once.
    Create {
        /// Name of the node.
        #[arg(long)]
        node: String,
        /// How long it may be used: 90s, 30m, 24h, 7d.
        #[arg(long, default_value = "24h", value_parser = token::parse_ttl)]
        ttl: u64,
        /// The node has joined already: this token takes its place (its certificate stops working).
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        hub: HubArgs,
    },
    /// List tokens.
    List {
        #[command(flatten)]
        hub: HubArgs,
    },
    /// Revoke a token.
    Revoke {
        /// Its identifier, from `token list`.
        id: String,
        #[command(flatten)]
        hub: HubArgs,
    },
}

#[derive(Args)]
struct HubArgs {
    /// Data directory of the hub on this machine.
    #[arg(long, default_value = "/var/lib/cloudhub")]
    data_dir: PathBuf,
    /// Kubeconfig of the administrator [default: <data-dir>/admin.kubeconfig].
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

impl HubArgs {
    fn client(&self) -> Result<Client, anyhow::Error> {
        let path = self
            .kubeconfig
            .clone()
            .unwrap_or_else(|| self.data_dir.join("admin.kubeconfig"));
        Client::from_kubeconfig(&path)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error)),
    };
    let result = match cli.command {
        Command::Run(args) => runtime.block_on(run(args)),
        Command::Token(command) => runtime.block_on(token_command(command)),
        Command::Defaultconfig => default_config(),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say(&mut std::io::stderr(), &format!("cloudhub: {error:#}\n"));
    ExitCode::FAILURE
}

/// Writes for a person; a closed pipe is nobody's problem.
fn say(to: &mut impl std::io::Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

fn default_config() -> Result<ExitCode, anyhow::Error> {
    let text = serde_saphyr::to_string(&Config::default())?;
    say(&mut std::io::stdout(), &text);
    Ok(ExitCode::SUCCESS)
}

async fn run(args: Run) -> Result<ExitCode, anyhow::Error> {
    telemetry::init(args.log_format, args.log.as_deref());
    let mut overrides = Overrides::default();
    if let Some(dir) = &args.data_dir {
        overrides
            .0
            .push(("dataDir", dir.to_string_lossy().into_owned().into()));
    }
    if !args.advertise.is_empty() {
        overrides
            .0
            .push(("advertise", args.advertise.clone().into()));
    }
    for (key, address) in [
        ("listen.api", args.api_listen),
        ("listen.websocket", args.websocket_listen),
        ("listen.bootstrap", args.bootstrap_listen),
    ] {
        if let Some(address) = address {
            overrides.0.push((key, address.to_string().into()));
        }
    }
    let environment = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config = config::load(args.config.as_deref(), environment, overrides)?;
    let stop = CancellationToken::new();
    let signal = stop.clone();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        signal.cancel();
    });
    match Hub::start(config, stop).await?.run().await {
        Exit::Asked => Ok(ExitCode::SUCCESS),
        Exit::Fatal(task) => anyhow::bail!("{task} ended; restart the hub"),
    }
}

async fn token_command(command: TokenCommand) -> Result<ExitCode, anyhow::Error> {
    let out = &mut std::io::stdout();
    match command {
        TokenCommand::Create {
            node,
            ttl,
            replace,
            hub,
        } => {
            let created = token::create(&hub.client()?, &node, ttl, replace).await?;
            say(out, &format!("{}\n", created.token));
        }
        TokenCommand::List { hub } => {
            say(out, &token::list(&hub.client()?, clock::unix_secs()).await?);
        }
        TokenCommand::Revoke { id, hub } => {
            token::revoke(&hub.client()?, &id).await?;
            say(out, &format!("token {id} revoked\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
