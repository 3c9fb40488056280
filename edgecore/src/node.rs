//! The commands that look at this node's pods, from flags to exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use edgecore::api::client;
use edgecore::api::target::Target;
use edgecore::clock;
use edgecore::config::{Config, Flags};
use edgecore::console::{
    self, ConsoleError, DetachKeys, Ended, LogsRequest, Shape, Source, TalkRequest,
};
use edgecore::edged::logs::Query;
use edgecore::outbox::report::Report;
use edgecore::twin::HistoryQuery;

use crate::cli::{
    AskArgs, AttachArgs, ConfigArgs, DeviceArgs, ExecArgs, HistoryArgs, LogsArgs, Output, PodsArgs,
    PodsOutput, TargetArgs, TopCommand, exit,
};
use crate::{block_on, load, print, tell, tell_error};

/// Loads the configuration, does the work, and says what went wrong.
fn with_config<T>(
    args: &ConfigArgs,
    work: impl AsyncFnOnce(&Config) -> Result<T, ConsoleError>,
) -> Result<T, u8> {
    let config = match load(args, Flags::default()) {
        Ok((config, _)) => config,
        Err(error) => {
            tell_error(&error);
            return Err(exit::USAGE);
        }
    };
    match block_on(work(&config)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tell_error(&error);
            Err(match error.exit_code() {
                Some(code) => exit_code(code),
                None if error.is_unavailable() => exit::UNAVAILABLE,
                None => exit::FAILED,
            })
        }
        Err(error) => {
            tell_error(&error);
            Err(exit::SOFTWARE)
        }
    }
}

/// Processes have codes of one byte.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn shown(text: Result<String, u8>) -> u8 {
    match text {
        Ok(text) => {
            let _: ExitCode = print(&text);
            exit::OK
        }
        Err(code) => code,
    }
}

/// The ledger, read from the database itself.
pub(crate) fn ledger(args: &AskArgs) -> u8 {
    let report = with_config(&args.config, async |config| {
        if !config.database.exists() {
            return Err(ConsoleError::NoDatabase {
                path: config.database.clone(),
            });
        }
        Ok(Report::open(&config.database)?)
    });
    let report = match report {
        Ok(report) => report,
        Err(code) => return code,
    };
    let text = match args.output {
        Output::Table => console::ledger(&report),
        Output::Json => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
    };
    let _: ExitCode = print(&text);
    if report.balanced {
        exit::OK
    } else {
        exit::FAILED
    }
}

fn target(args: &TargetArgs) -> Target {
    Target::new(
        args.namespace.as_deref(),
        &args.pod,
        args.container.as_deref(),
    )
}

/// Whether there will be a terminal: one is asked for, and input comes from one if there is input.
fn terminal(stdin: bool, tty: bool) -> bool {
    if tty && stdin && !std::io::stdin().is_terminal() {
        tell("standard input is no terminal; going on without one");
        return false;
    }
    tty
}

fn note(source: &Source) {
    if let Some(note) = source.note() {
        tell(note);
    }
}

pub(crate) fn pods(args: &PodsArgs) -> u8 {
    let shape = match args.output {
        PodsOutput::Table => Shape::Table,
        PodsOutput::Wide => Shape::Wide,
        PodsOutput::Json => Shape::Json,
    };
    shown(with_config(&args.config, async |config| {
        let (source, pods) = Source::find(config).await?;
        note(&source);
        let now_ms = clock::unix_millis();
        Ok(console::pods(
            &pods,
            args.namespace.as_deref(),
            shape,
            now_ms,
        ))
    }))
}

pub(crate) fn logs(args: &LogsArgs) -> u8 {
    let now = jiff::Timestamp::from_millisecond(clock::unix_millis()).unwrap_or_default();
    let request = LogsRequest {
        target: target(&args.target),
        previous: args.previous,
        query: Query {
            follow: args.follow,
            tail: args.tail,
            since: args
                .since_time
                .or_else(|| now.checked_sub(args.since?).ok()),
            timestamps: args.timestamps,
            limit_bytes: args.limit_bytes,
        },
    };
    let printed = with_config(&args.config, async |config| {
        console::logs(config, &request).await
    });
    printed.err().unwrap_or(exit::OK)
}

pub(crate) fn exec(args: &ExecArgs) -> u8 {
    let request = TalkRequest {
        target: target(&args.target),
        command: args.command.clone(),
        stdin: args.stdin,
        tty: terminal(args.stdin, args.tty),
        detach_keys: DetachKeys::default(),
    };
    talked(with_config(&args.config, async |config| {
        let (source, pods) = Source::find(config).await?;
        console::exec(&source, &pods, &request).await
    }))
}

pub(crate) fn attach(args: &AttachArgs) -> u8 {
    let request = TalkRequest {
        target: target(&args.target),
        command: Vec::new(),
        stdin: args.stdin,
        tty: terminal(args.stdin, args.tty),
        detach_keys: args.detach_keys.clone(),
    };
    let ended = with_config(&args.config, async |config| {
        let (source, pods) = Source::find(config).await?;
        console::attach(&source, &pods, &request).await
    });
    if ended == Ok(Ended::Left) {
        tell("left; the container runs on");
    }
    talked(ended.map(|ended| match ended {
        Ended::Exited(code) => code,
        Ended::Left => 0,
    }))
}

fn talked(ended: Result<i32, u8>) -> u8 {
    match ended {
        Ok(code) => exit_code(code),
        Err(code) => code,
    }
}

pub(crate) fn top(command: &TopCommand) -> u8 {
    match command {
        TopCommand::Pods {
            pod,
            namespace,
            containers,
            config,
        } => {
            let only = Target::new(
                namespace.as_deref(),
                pod.as_deref().unwrap_or_default(),
                None,
            );
            shown(with_config(config, async |config| {
                let (source, _) = Source::find(config).await?;
                note(&source);
                console::top_pods(&source, &only, *containers).await
            }))
        }
        TopCommand::Node { config } => shown(with_config(config, async |config| {
            let (source, _) = Source::find(config).await?;
            console::top_node(&source, &config.node_name).await
        })),
    }
}

fn as_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

pub(crate) fn device(args: &DeviceArgs) -> u8 {
    let is_json = args.ask.output == Output::Json;
    shown(with_config(&args.ask.config, async |config| {
        let socket = config.socket();
        let status = client::status(&socket).await?;
        let Some(name) = &args.device else {
            return Ok(if is_json {
                as_json(&status.devices)
            } else {
                console::devices(&status)
            });
        };
        let (namespace, name) = console::find(&status, name).map_err(ConsoleError::Device)?;
        let found = if args.desire.is_empty() {
            client::device(&socket, &namespace, &name).await?
        } else {
            let values = args.desire.iter().cloned().collect();
            client::set_desired(&socket, &namespace, &name, &values).await?
        };
        Ok(if is_json {
            as_json(&found)
        } else {
            console::device(&found, clock::unix_millis())
        })
    }))
}

pub(crate) fn history(args: &HistoryArgs) -> u8 {
    shown(with_config(&args.ask.config, async |config| {
        let socket = config.socket();
        let status = client::status(&socket).await?;
        let (namespace, name) =
            console::find(&status, &args.device).map_err(ConsoleError::Device)?;
        let span_ms = |span: jiff::SignedDuration| i64::try_from(span.as_millis()).ok();
        let ago = args.since.and_then(span_ms);
        let query = HistoryQuery {
            last: args.last,
            since_ms: ago
                .map(|ms| clock::unix_millis().saturating_sub(ms))
                .or(args.since_time.map(jiff::Timestamp::as_millisecond)),
            until_ms: args.until_time.map(jiff::Timestamp::as_millisecond),
        };
        let readings = client::history(&socket, (&namespace, &name), &args.property, query).await?;
        Ok(if args.ask.output == Output::Json {
            as_json(&readings)
        } else {
            console::history(&readings)
        })
    }))
}
