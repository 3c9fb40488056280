//! Hands readings on, in order, to an MQTT broker or an HTTP endpoint. What was not taken is tried
//! again, ever more rarely, until it is too old: nothing is passed over.
//!
//! At least once: a batch whose answer was lost is handed on again. Each reading carries its id,
//! which rises with every reading and never changes, so that a receiver can tell.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Kept, Readings, ReadingsError, Settled, api::shown, db};
use crate::clock;

/// Readings handed on together.
const BATCH_MAX: usize = 256;
/// The first pause after a failure; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Settings that could not be used are read again after this.
const SETTINGS_AGAIN: Duration = Duration::from_secs(5);
/// A receiver that has not taken a batch within this has failed.
const TAKE_WITHIN: Duration = Duration::from_secs(30);

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    /// The endpoint could not be reached, or did not answer.
    #[error("endpoint could not be reached: {0}")]
    Http(String),
    /// It answered, with something else than 2xx.
    #[error("endpoint answered {0}")]
    Status(u16),
    /// The broker could not be reached, or went away.
    #[error("broker could not be reached: {0}")]
    Mqtt(String),
    /// Nothing came within the time.
    #[error("not taken within {} s", TAKE_WITHIN.as_secs())]
    Late,
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `POST` of a JSON array.
    Http {
        /// The endpoint.
        url: String,
        /// Bearer token; empty: none.
        token: String,
    },
    /// One publish at QoS 1 each.
    Mqtt {
        /// `host:port`
        broker: String,
        /// Whether it speaks TLS.
        tls: bool,
        /// Prefix of the topics: `<prefix>/<node>/<device>/<property>`.
        prefix: String,
        /// User; empty: none.
        user: String,
        /// Its password.
        password: String,
    },
}

/// One forwarder.
#[derive(Debug, Clone)]
pub struct Forwarder {
    /// Unique; its progress is kept under this name.
    pub name: String,
    /// Where to.
    pub target: Target,
    /// Readings that wait longer are not handed on.
    pub ttl_secs: u64,
    /// Certificates trusted beside the system's, PEM.
    pub ca_pem: Option<String>,
}

/// What went wrong last, by forwarder.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, String>>>);

impl Health {
    /// Empty while all is well.
    pub fn last_error(&self, name: &str) -> String {
        let errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        errors.get(name).cloned().unwrap_or_default()
    }

    fn note(&self, name: &str, error: Option<&ForwardError>) {
        let mut errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => errors.insert(name.to_owned(), error.to_string()),
            None => errors.remove(name),
        };
    }
}

/// Runs until `stop`. Settings that cannot be used end nobody: what comes waits, the error is in the
/// forwarder's `lastError`, and they are read again, since a file of theirs may be mended.
pub async fn run(
    readings: Readings,
    name: String,
    make: impl Fn() -> Result<Forwarder, String> + Send,
    health: Health,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    readings.register(&name).await?;
    let mut told = String::new();
    let (forwarder, sink) = loop {
        let made = make().map_err(ForwardError::Settings);
        match made.and_then(|forwarder| Ok((Sink::new(&forwarder)?, forwarder))) {
            Ok((sink, forwarder)) => break (forwarder, sink),
            Err(error) => {
                health.note(&name, Some(&error));
                let error = error.to_string();
                if error != told {
                    tracing::error!(
                        forwarder = name,
                        error,
                        "settings of a forwarder cannot be used; readings wait for it"
                    );
                    told = error;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(SETTINGS_AGAIN) => {}
        }
    };
    health.note(&name, None);
    serve(readings, forwarder, sink, health, stop).await
}

async fn serve(
    readings: Readings,
    forwarder: Forwarder,
    sink: Sink,
    health: Health,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    let mut pause = RETRY_FIRST;
    let mut newest = readings.newest();
    let mut failing = false;
    loop {
        newest.borrow_and_update();
        let step = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            step = step(&readings, &forwarder, &sink) => step,
        };
        let wait = match step {
            Ok(Step::Nothing) => None,
            Ok(Step::Taken) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(forwarder = forwarder.name, "readings are taken again");
                }
                health.note(&forwarder.name, None);
                pause = RETRY_FIRST;
                continue;
            }
            Err(StepError::Forward(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(forwarder = forwarder.name, %error, "readings are not taken; they are kept and tried again");
                }
                health.note(&forwarder.name, Some(&error));
                let wait = pause;
                pause = (pause * 2).min(RETRY_MAX);
                Some(wait)
            }
            Err(StepError::Readings(ReadingsError::Closed)) => return Ok(()),
            Err(StepError::Readings(error)) => {
                tracing::warn!(forwarder = forwarder.name, %error, "readings could not be read");
                Some(RETRY_MAX)
            }
        };
        let pausing = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => drop(newest.changed().await),
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = pausing => {}
        }
    }
}

enum Step {
    Nothing,
    Taken,
}

enum StepError {
    Forward(ForwardError),
    Readings(ReadingsError),
}

impl From<ReadingsError> for StepError {
    fn from(error: ReadingsError) -> Self {
        Self::Readings(error)
    }
}

/// Hands on what comes next.
async fn step(readings: &Readings, forwarder: &Forwarder, sink: &Sink) -> Result<Step, StepError> {
    let progress = readings.register(&forwarder.name).await?;
    let cursor = progress.cursor;
    let batch = readings
        .read(move |conn| db::after(conn, cursor, BATCH_MAX))
        .await?;
    let ttl_ms = i64::try_from(forwarder.ttl_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
    let oldest = clock::unix_millis().saturating_sub(ttl_ms);
    let expired = batch.partition_point(|kept| kept.received < oldest);
    if let Some(last) = expired.checked_sub(1).and_then(|at| batch.get(at)) {
        readings
            .advance(&forwarder.name, last.id, Settled::Expired)
            .await?;
    }
    let fresh = batch.get(expired..).unwrap_or_default();
    let Some(last) = fresh.last() else {
        return Ok(if expired > 0 {
            Step::Taken
        } else {
            Step::Nothing
        });
    };
    let taken = tokio::time::timeout(TAKE_WITHIN, sink.take(fresh)).await;
    taken
        .unwrap_or(Err(ForwardError::Late))
        .map_err(StepError::Forward)?;
    readings
        .advance(&forwarder.name, last.id, Settled::Delivered)
        .await?;
    Ok(Step::Taken)
}

enum Sink {
    Http {
        client: reqwest::Client,
        url: String,
        token: String,
    },
    Mqtt {
        options: Box<MqttOptions>,
        prefix: String,
    },
}

impl Sink {
    fn new(forwarder: &Forwarder) -> Result<Self, ForwardError> {
        match &forwarder.target {
            Target::Http { url, token } => Ok(Self::Http {
                client: crate::outward::client(forwarder.ca_pem.as_deref())
                    .map_err(ForwardError::Settings)?,
                url: url.clone(),
                token: token.clone(),
            }),
            Target::Mqtt {
                broker,
                tls,
                prefix,
                user,
                password,
            } => {
                let wrong = || ForwardError::Settings(format!("`{broker}` is not host:port"));
                let (host, port) = broker.rsplit_once(':').ok_or_else(wrong)?;
                let port = port.parse().map_err(|_| wrong())?;
                let id = format!("outpost-forward-{}", forwarder.name);
                let mut options = MqttOptions::new(id, host, port);
                options.set_keep_alive(Duration::from_secs(20));
                options.set_max_packet_size(1 << 20, 1 << 20);
                if !user.is_empty() {
                    options.set_credentials(user, password);
                }
                if *tls {
                    let config = crate::outward::tls(forwarder.ca_pem.as_deref())
                        .map_err(ForwardError::Settings)?;
                    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
                        config,
                    )));
                }
                Ok(Self::Mqtt {
                    options: Box::new(options),
                    prefix: prefix.clone(),
                })
            }
        }
    }

    /// `Ok`: the receiver has all of it.
    async fn take(&self, batch: &[Kept]) -> Result<(), ForwardError> {
        match self {
            Self::Http { client, url, token } => post(client, url, token, batch).await,
            Self::Mqtt { options, prefix } => publish(options, prefix, batch).await,
        }
    }
}

async fn post(
    client: &reqwest::Client,
    url: &str,
    token: &str,
    batch: &[Kept],
) -> Result<(), ForwardError> {
    let body = Value::Array(batch.iter().map(shown).collect()).to_string();
    let mut request = client
        .post(url)
        .header("content-type", "application/json")
        .body(body);
    if !token.is_empty() {
        request = request.bearer_auth(token);
    }
    let answer = request
        .send()
        .await
        .map_err(|error| ForwardError::Http(error.without_url().to_string()))?;
    let status = answer.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(ForwardError::Status(status.as_u16()))
    }
}

/// One connection for one batch: a broker that was away, or a session that was lost, is found out
/// at once, and there is nothing to keep alive between.
async fn publish(options: &MqttOptions, prefix: &str, batch: &[Kept]) -> Result<(), ForwardError> {
    let failed = |error: &dyn std::fmt::Display| ForwardError::Mqtt(error.to_string());
    let (client, mut events) = AsyncClient::new(options.clone(), BATCH_MAX + 8);
    for kept in batch {
        let mut topic = format!("{prefix}/{}/{}", kept.node, kept.source);
        if !kept.property.is_empty() {
            topic = format!("{topic}/{}", kept.property);
        }
        // What would be a filter, or an upload of the broker's own topics.
        let topic = topic.replace(['+', '#', '\0'], "_");
        client
            .publish(topic, QoS::AtLeastOnce, false, shown(kept).to_string())
            .await
            .map_err(|error| failed(&error))?;
    }
    let mut missing = batch.len();
    while missing > 0 {
        match events.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => missing -= 1,
            Ok(_) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    // The broker has everything; whether it hears the goodbye matters to nobody.
    let _ = client.disconnect().await;
    let _ = tokio::time::timeout(Duration::from_millis(100), events.poll()).await;
    Ok(())
}
