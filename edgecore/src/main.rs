//! Flags to exit code.

mod cli;
mod node;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use cli::{
    AskArgs, Cli, Command, ConfigArgs, ImageCommand, JoinArgs, MqttCommand, Output, RunArgs, exit,
};
use edgecore::config::{self, Config, ConfigError, Flags, TlsFiles};
use edgecore::hub::join::{self, JoinError, Token};
use edgecore::hub::tls::Floor;
use edgecore::images::Images;
use edgecore::{app, check};

fn main() -> ExitCode {
    edgecore::heap::share_one();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not mistakes.
            let code = if error.use_stderr() {
                exit::USAGE
            } else {
                exit::OK
            };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tell("a TLS provider was installed already");
    }
    if cli.defaultconfig {
        return print(&config::default_file());
    }
    if cli.minconfig {
        return print(&config::minimal_file());
    }
    ExitCode::from(match cli.command {
        None => run(&cli.run),
        Some(Command::Run(args)) => run(&args),
        Some(Command::Join(args)) => join(&args),
        Some(Command::Status(args)) => status(&args),
        Some(Command::Ledger(args)) => node::ledger(&args),
        Some(Command::Check(args)) => check(&args),
        Some(Command::Pods(args)) => node::pods(&args),
        Some(Command::Device(args)) => node::device(&args),
        Some(Command::History(args)) => node::history(&args),
        Some(Command::Logs(args)) => node::logs(&args),
        Some(Command::Exec(args)) => node::exec(&args),
        Some(Command::Attach(args)) => node::attach(&args),
        Some(Command::Top(command)) => node::top(&command),
        Some(Command::Image(command)) => image(&command),
        Some(Command::Mqtt(command)) => mqtt(command),
    })
}

fn print(text: &str) -> ExitCode {
    // A reader that closed the pipe has seen enough.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
    ExitCode::from(exit::OK)
}

/// One line to standard error, with the causes.
fn tell(message: &str) {
    drop(writeln!(std::io::stderr().lock(), "edgecore: {message}"));
}

fn tell_error(error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    tell(&text);
}

fn load(args: &ConfigArgs, flags: Flags) -> Result<(Config, Option<PathBuf>), ConfigError> {
    let default = Path::new(config::DEFAULT_PATH);
    let file = args
        .config
        .clone()
        .or_else(|| default.exists().then(|| default.to_owned()));
    let flags = Flags {
        set: args.set.clone(),
        ..flags
    };
    let env = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    config::load(file.as_deref(), env, &flags).map(|config| (config, file))
}

/// A small runtime for the commands that ask and leave.
fn block_on<F: Future>(future: F) -> Result<F::Output, std::io::Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(future))
}

/// Asks the daemon on this node and prints its answer.
fn ask_daemon<T, E: std::error::Error>(
    question: impl Future<Output = Result<T, E>>,
    render: impl FnOnce(T) -> String,
) -> u8 {
    match block_on(question) {
        Ok(Ok(answer)) => {
            print(&render(answer));
            exit::OK
        }
        Ok(Err(error)) => {
            tell_error(&error);
            exit::UNAVAILABLE
        }
        Err(error) => {
            tell_error(&error);
            exit::SOFTWARE
        }
    }
}

fn run(args: &RunArgs) -> u8 {
    let flags = Flags {
        node_name: args.node_name.clone(),
        log_level: args.log_level.clone(),
        log_format: args.log_format.map(|f| f.as_str().to_owned()),
        set: Vec::new(),
    };
    let (config, file) = match load(&args.config, flags) {
        Ok(loaded) => loaded,
        Err(error) => {
            tell_error(&error);
            return exit::USAGE;
        }
    };
    edgecore::telemetry::init(&config.log);
    match app::run(config, file.as_deref()) {
        Ok(()) => exit::OK,
        Err(error) => {
            tell_error(&error);
            if matches!(error, app::AppError::Ended(_)) {
                exit::SOFTWARE
            } else {
                exit::FAILED
            }
        }
    }
}

fn join(args: &JoinArgs) -> u8 {
    let joined = match block_on(join_hub(args)) {
        Ok(joined) => joined,
        Err(error) => {
            tell_error(&error);
            return exit::SOFTWARE;
        }
    };
    match joined {
        Ok(told) => {
            print(&told);
            exit::OK
        }
        Err(error) => {
            tell_error(error.as_ref());
            match error.downcast_ref::<JoinError>() {
                Some(e) if e.is_transient() => exit::TRANSIENT,
                Some(
                    JoinError::Refused(_)
                    | JoinError::Expired
                    | JoinError::OtherNode { .. }
                    | JoinError::WrongAuthority,
                ) => exit::REFUSED,
                Some(JoinError::Write { .. }) => exit::FAILED,
                Some(_) | None => exit::USAGE,
            }
        }
    }
}

async fn join_hub(args: &JoinArgs) -> Result<String, Box<dyn std::error::Error>> {
    let token = Token::parse(&args.token)?;
    let node = token.node_name(args.node_name.as_deref(), &config::host_name())?;
    let authority = join::authority(&args.hub)?;
    let host = authority
        .rsplit_once(':')
        .map_or(authority.as_str(), |(host, _)| host);
    let websocket = args
        .websocket
        .clone()
        .unwrap_or_else(|| format!("{host}:10000"));
    let data = std::path::absolute(&args.data_dir)?;
    let at = |name: &str| data.join(name).display().to_string();
    let mut keys: Vec<(String, String)> = [
        ("database.dataSource", at("edgecore.db")),
        (
            "modules.edgeHub.httpServer",
            args.hub.trim_end_matches('/').to_owned(),
        ),
        ("modules.edgeHub.tlsCaFile", at("pki/ca.crt")),
        ("modules.edgeHub.tlsCertFile", at("pki/node.crt")),
        ("modules.edgeHub.tlsPrivateKeyFile", at("pki/node.key")),
        ("modules.edgeHub.websocket.server", websocket),
        ("modules.edged.hostnameOverride", node.clone()),
        ("modules.edged.rootDirectory", at("edged")),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    keys.extend(args.set.iter().cloned());
    let text = config::file_with(&keys)?;
    let files = TlsFiles {
        ca: data.join("pki/ca.crt"),
        cert: data.join("pki/node.crt"),
        key: data.join("pki/node.key"),
    };
    let had = join::has_joined(&files, &node)?;
    let differs = std::fs::read_to_string(&args.config).is_ok_and(|existing| existing != text);
    // A node that joins again keeps the file that somebody may have edited since.
    if differs && !had && !args.force {
        return Err(JoinError::ConfigExists {
            path: args.config.clone(),
        }
        .into());
    }
    if !had {
        join::enroll(&args.hub, &token, &node, &files, &Floor::default()).await?;
    }
    let keep = differs && !args.force;
    if !keep {
        edgecore::files::write_atomic(&args.config, text.as_bytes(), 0o600).map_err(|source| {
            JoinError::Write {
                path: args.config.clone(),
                source,
            }
        })?;
    }
    Ok(format!(
        "node `{node}` {}\ncertificate   {}\nconfiguration {}{}\nnext: edgecore run --config {}\n",
        if had {
            format!("had already joined; {authority} was not asked")
        } else {
            format!("joined hub {authority}")
        },
        files.cert.display(),
        args.config.display(),
        if keep {
            " (kept as it was; --force replaces it)"
        } else {
            ""
        },
        args.config.display(),
    ))
}

fn check(args: &AskArgs) -> u8 {
    let config = match load(&args.config, Flags::default()) {
        Ok((config, _)) => config,
        Err(error) => {
            tell_error(&error);
            return exit::USAGE;
        }
    };
    let findings = match block_on(check::run(&config)) {
        Ok(findings) => findings,
        Err(error) => {
            tell_error(&error);
            return exit::SOFTWARE;
        }
    };
    let text = match args.output {
        Output::Table => check::render(&findings),
        Output::Json => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
    };
    print(&text);
    if check::is_healthy(&findings) {
        exit::OK
    } else {
        exit::FAILED
    }
}

fn status(args: &AskArgs) -> u8 {
    let config = match load(&args.config, Flags::default()) {
        Ok((config, _)) => config,
        Err(error) => {
            tell_error(&error);
            return exit::USAGE;
        }
    };
    let socket = config.socket();
    ask_daemon(
        edgecore::api::client::status(&socket),
        |status| match args.output {
            Output::Table => status.render(),
            Output::Json => serde_json::to_string_pretty(&status).unwrap_or_default() + "\n",
        },
    )
}

fn image(command: &ImageCommand) -> u8 {
    let args = match command {
        ImageCommand::List { ask } => &ask.config,
        ImageCommand::Import { config, .. }
        | ImageCommand::Pull { config, .. }
        | ImageCommand::Rm { config, .. }
        | ImageCommand::Prune { config }
        | ImageCommand::Pin { config, .. }
        | ImageCommand::Unpin { config, .. } => config,
    };
    let config = match load(args, Flags::default()) {
        Ok((config, _)) => config,
        Err(error) => {
            tell_error(&error);
            return exit::USAGE;
        }
    };
    let Some(runtime) = &config.runtime else {
        tell("this node runs no pods (modules.edged.enable is false)");
        return exit::USAGE;
    };
    if matches!(command, ImageCommand::Prune { .. }) {
        return prune(&config.socket());
    }
    let done = block_on(async {
        let images = Images::connect(&config, runtime)?;
        match command {
            ImageCommand::Import { file, name, .. } => images.import(file, name.as_deref()).await,
            ImageCommand::Pull { image, .. } => {
                images.pull(image, Box::new(|text| tell(&text))).await
            }
            ImageCommand::List { ask } => images.list(ask.output == Output::Json).await,
            ImageCommand::Rm { image, force, .. } => images.remove(image, *force).await,
            ImageCommand::Pin { image, .. } => images.pin(image, true).await,
            ImageCommand::Unpin { image, .. } => images.pin(image, false).await,
            ImageCommand::Prune { .. } => Ok(String::new()),
        }
    });
    match done {
        Ok(Ok(told)) => {
            print(&told);
            exit::OK
        }
        Ok(Err(error)) => {
            tell_error(&error);
            exit::FAILED
        }
        Err(error) => {
            tell_error(&error);
            exit::SOFTWARE
        }
    }
}

/// The file that the configuration names; the exit code without one.
fn password_file(args: &ConfigArgs) -> Result<PathBuf, u8> {
    let (config, _) = load(args, Flags::default()).map_err(|error| {
        tell_error(&error);
        exit::USAGE
    })?;
    config
        .bus
        .and_then(|bus| bus.inside.passwords)
        .ok_or_else(|| {
            tell("no file: set outpost.mqtt.passwordFile, or give --file");
            exit::USAGE
        })
}

fn mqtt(command: MqttCommand) -> u8 {
    let MqttCommand::Passwd {
        config,
        user,
        file,
        delete,
    } = command;
    let file = match file.map_or_else(|| password_file(&config), Ok) {
        Ok(file) => file,
        Err(code) => return code,
    };
    let mut password = String::new();
    if !delete {
        if let Err(error) = std::io::stdin().read_line(&mut password) {
            tell_error(&error);
            return exit::FAILED;
        }
        password.truncate(password.trim_end_matches(['\r', '\n']).len());
        if password.is_empty() {
            tell("an empty password is none");
            return exit::USAGE;
        }
    }
    let password = (!delete).then_some(password.as_bytes());
    match edgecore::bus::change_password(&file, &user, password) {
        Ok(()) => exit::OK,
        Err(error) => {
            tell(&format!("cannot change `{}`: {error}", file.display()));
            exit::FAILED
        }
    }
}

fn prune(socket: &Path) -> u8 {
    ask_daemon(edgecore::api::client::prune_images(socket), |bytes| {
        let tenths = bytes.saturating_mul(10) >> 20;
        format!("{}.{} MiB freed\n", tenths / 10, tenths % 10)
    })
}
