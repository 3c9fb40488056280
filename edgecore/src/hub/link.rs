//! The outer loop: connect, drive the session over the socket, and again. It never returns by
//! itself; while offline its only timer is the backoff.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{self, Message as Ws};
use tokio_util::sync::CancellationToken;
use wire::limits;
use wire::message::{DecodeError, Message};
use wire::session::Transmit;

use super::backoff::Backoff;
use super::connect::{Connected, Socket, connect};
use super::driver::Driver;
use super::handle::{HubHandle, Inbox, LinkPhase, channel};
use super::join::{self, Token};
use super::tls::Floor;
use crate::clock;
use crate::config::HubConfig;
use crate::meta::{self, MetaHandle};
use crate::outbox;
use crate::servicebus::Calls;
use crate::store::{Store, StoreError};
use crate::twin::LocalPublish;

/// Hands publishes to local MQTT clients; must not block.
pub type Publisher = Box<dyn Fn(Vec<LocalPublish>) + Send + Sync>;

/// One attempt may take this long during the first minute of an outage: SYNs sent into a cut
/// cable are not worth waiting for.
const ATTEMPT_EARLY: Duration = Duration::from_secs(4);
/// A connection that ends sooner than this counts as a failed attempt.
const SHORT_LIVED: Duration = Duration::from_secs(5);
/// The last good time is written at most once a day: it is only a floor.
const FLOOR_EVERY_MS: i64 = 86_400_000;
const FLOOR_FACT: &str = "last_good_ms";

/// What the link is made of.
pub struct LinkParts {
    pub config: HubConfig,
    pub node: String,
    pub store: Store,
    pub meta: MetaHandle,
    pub publish: Publisher,
    /// Takes calls to services of this node.
    pub calls: Calls,
    pub floor: Floor,
}

/// The link before it runs.
pub struct Link {
    inbox: Inbox,
}

impl Link {
    /// The handle first (others need it to be made), the link to run later.
    pub fn new() -> (HubHandle, Self) {
        let (handle, inbox) = channel(LinkPhase::Connecting);
        (handle, Self { inbox })
    }

    /// Runs until `stop`. An error is the store's: nothing else ends a link.
    pub async fn run(self, parts: LinkParts, stop: CancellationToken) -> Result<(), StoreError> {
        let epoch = parts.store.write(outbox::epoch).await?;
        let mut running = Running {
            driver: Driver::new(
                &parts.node,
                &epoch,
                self.inbox,
                parts.store.clone(),
                parts.meta,
                parts.publish,
                parts.config.history_rows_per_second,
            )
            .with_calls(parts.calls),
            config: parts.config,
            node: parts.node,
            store: parts.store,
            floor: parts.floor,
            epoch,
            backoff: Backoff::default(),
            offline_since: clock::monotonic(),
            reason: String::new(),
            join_trouble: String::new(),
        };
        running.raise_floor().await?;
        while !stop.is_cancelled() {
            running.turn(&stop).await?;
        }
        Ok(())
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("this node is stopping")]
    Stopping,
    #[error("nothing was heard from the hub for too long")]
    Silent,
    #[error("the hub closed the link{}{}", if .0.is_empty() { "" } else { ": " }, .0)]
    Closed(String),
    #[error("a write did not finish within {0:?}")]
    WriteStalled(Duration),
    #[error("the link broke: {0}")]
    Socket(#[from] tungstenite::Error),
    #[error("the hub sent what is no message: {0}")]
    Malformed(#[from] DecodeError),
}

struct Running {
    driver: Driver,
    config: HubConfig,
    node: String,
    store: Store,
    floor: Floor,
    epoch: String,
    backoff: Backoff,
    offline_since: Instant,
    reason: String,
    /// Why joining by token failed last.
    join_trouble: String,
}

impl Running {
    /// One attempt and, if it succeeds, one connection.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        let offline_for = clock::monotonic() - self.offline_since;
        let wait = self.backoff.next(offline_for, rand::random());
        if !wait.is_zero() {
            self.tell(LinkPhase::Offline);
            self.wait_offline(wait, stop).await;
        }
        if stop.is_cancelled() {
            return Ok(());
        }
        self.tell(LinkPhase::Connecting);
        self.enroll_by_token().await;
        let within = if offline_for < Duration::from_secs(60) {
            ATTEMPT_EARLY.min(self.config.handshake_timeout)
        } else {
            self.config.handshake_timeout
        };
        let attempt = connect(&self.config, &self.node, &self.epoch, &self.floor, within);
        let connected = tokio::select! {
            connected = attempt => connected,
            () = stop.cancelled() => return Ok(()),
        };
        match connected {
            Ok(connected) => self.serve(connected, stop).await,
            Err(error) => {
                self.lost(error.to_string());
                Ok(())
            }
        }
    }

    /// Waits out the backoff; requests are answered at once, completions are taken in.
    async fn wait_offline(&mut self, wait: Duration, stop: &CancellationToken) {
        // What is too old makes room also while nobody takes it. A busy store is asked next time.
        let now = clock::unix_millis();
        drop(
            self.store
                .submit_fn(move |tx| outbox::expire(tx, now), drop),
        );
        let until = tokio::time::Instant::now() + wait;
        loop {
            // Every arm is cancel-safe: a timer, two channel receives, a token.
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = stop.cancelled() => return,
                Some(ask) = self.driver.inbox.asks.recv() => {
                    self.driver.handle_ask(ask, clock::monotonic());
                }
                Some(done) = self.driver.completions.recv() => self.driver.handle_done(done),
            }
        }
    }

    /// A node without a certificate and with a token in its file joins by itself, as KubeEdge's
    /// edgecore does.
    async fn enroll_by_token(&mut self) {
        let files = &self.config.tls;
        if self.config.token.is_empty() || (files.cert.exists() && files.ca.exists()) {
            return;
        }
        let enrolled = async {
            let token = Token::parse(&self.config.token)?;
            join::enroll(
                &self.config.http_server,
                &token,
                &self.node,
                files,
                &self.floor,
            )
            .await
        };
        match enrolled.await {
            Ok(()) => tracing::info!("joined the hub with the configured token"),
            Err(error) => {
                // Tried again with every attempt, maybe for weeks: told when it changes.
                let error = error.to_string();
                if error != self.join_trouble {
                    tracing::warn!(error, "could not join with the configured token");
                    self.join_trouble = error;
                }
            }
        }
    }

    async fn serve(
        &mut self,
        connected: Connected,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let Connected {
            mut socket,
            extensions,
            acked,
        } = connected;
        if let Some(acked) = acked.filter(|_| extensions.batch)
            && self.leave_epoch_if_behind(acked).await?
        {
            return Ok(());
        }
        self.driver
            .resume(extensions.batch.then_some(acked.unwrap_or(0)))
            .await?;
        let inventory = self.store.read(meta::inventory).await?;
        let began = clock::monotonic();
        self.driver.session.set_wall_time(clock::unix_millis());
        self.driver
            .session
            .handle_connected(extensions, acked, inventory, began);
        self.driver.handle_connected(extensions, began);
        self.reason.clear();
        self.driver.inbox.link.send_modify(|state| {
            state.phase = LinkPhase::Connected;
            state.reason.clear();
            state.since = began;
            state.extensions = extensions;
            state.connects += 1;
        });
        self.driver.inbox.shared.set_connected(true);
        tracing::info!(hub = %self.config.server, extensions = extensions.to_header(), "link is up");
        self.remember_time().await;
        let ended = self.drive(&mut socket, stop).await;
        self.driver.inbox.shared.set_connected(false);
        self.driver.session.handle_disconnected();
        // Answers the waiters whose replies will not come.
        self.driver.pump(clock::monotonic()).await;
        if clock::monotonic() - began >= SHORT_LIVED {
            self.backoff.reset();
        }
        self.offline_since = clock::monotonic();
        self.driver.inbox.link.send_modify(|state| {
            state.phase = LinkPhase::Offline;
            state.since = self.offline_since;
        });
        tracing::info!(reason = %ended, "link is down");
        self.lost(ended.to_string());
        Ok(())
    }

    /// A hub that has more of our epoch than was ever written here: this database is an older copy
    /// of the one that sent it (a restored image, a disk that lied about its writes). The hub would
    /// take what is written next for repeats, and so would we by its acknowledgement: the rest goes
    /// under a new epoch.
    async fn leave_epoch_if_behind(&mut self, acked: u64) -> Result<bool, StoreError> {
        if self.store.read(last_seq).await? >= acked {
            return Ok(false);
        }
        let fresh = uuid::Uuid::new_v4().to_string();
        let epoch = fresh.clone();
        self.store
            .write(move |tx| {
                tx.execute(
                    "UPDATE facts SET value = ?1 WHERE name = 'outbox_epoch'",
                    [epoch],
                )?;
                Ok(())
            })
            .await?;
        tracing::warn!(
            acked,
            "the hub has more of the outbox than this database ever held: it is an older copy, and gets a new epoch"
        );
        self.driver.session.set_epoch(fresh.as_str());
        self.epoch = fresh;
        Ok(true)
    }

    /// Until the connection ends.
    async fn drive(&mut self, socket: &mut Socket, stop: &CancellationToken) -> Ended {
        loop {
            let now = clock::monotonic();
            self.driver.pump(now).await;
            if self.driver.link_dead {
                return Ended::Silent;
            }
            if let Err(ended) = self.transmit(socket).await {
                return ended;
            }
            let due = self
                .driver
                .due()
                .unwrap_or_else(|| now + limits::PING_AFTER);
            let may_read = self.driver.may_read();
            // Cancel-safe arms: a WebSocket read keeps partial frames, the rest are channel
            // receives, a notification that stays set, a timer and a token.
            tokio::select! {
                frame = socket.next(), if may_read => {
                    if let Err(ended) = self.handle_frame(frame) {
                        return ended;
                    }
                }
                Some(done) = self.driver.completions.recv() => {
                    self.driver.handle_done(done);
                    while let Ok(done) = self.driver.completions.try_recv() {
                        self.driver.handle_done(done);
                    }
                }
                Some(ask) = self.driver.inbox.asks.recv() => {
                    self.driver.handle_ask(ask, clock::monotonic());
                }
                () = self.driver.inbox.shared.woken() => {}
                () = self.driver.inbox.shared.outbox_woken() => self.driver.more_rows = true,
                () = tokio::time::sleep_until(due.into()) => {
                    self.driver.session.handle_timeout(clock::monotonic());
                }
                () = stop.cancelled() => {
                    self.say_goodbye(socket).await;
                    return Ended::Stopping;
                }
            }
        }
    }

    fn handle_frame(&mut self, frame: Option<Result<Ws, tungstenite::Error>>) -> Result<(), Ended> {
        let now = clock::monotonic();
        match frame {
            None => Err(Ended::Closed(String::new())),
            Some(Err(tungstenite::Error::ConnectionClosed)) => Err(Ended::Closed(String::new())),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(Ws::Text(text))) => {
                let message = Message::decode(text.as_bytes())?;
                self.driver.session.handle_message(message, now);
                Ok(())
            }
            Some(Ok(Ws::Binary(bytes))) => {
                let message = Message::decode(&bytes)?;
                self.driver.session.handle_message(message, now);
                Ok(())
            }
            Some(Ok(Ws::Ping(_) | Ws::Pong(_) | Ws::Frame(_))) => {
                self.driver.session.handle_heard(now);
                Ok(())
            }
            Some(Ok(Ws::Close(frame))) => Err(Ended::Closed(
                frame.map(|f| f.reason.to_string()).unwrap_or_default(),
            )),
        }
    }

    /// Everything the session has, then one flush.
    async fn transmit(&mut self, socket: &mut Socket) -> Result<(), Ended> {
        let deadline = self.config.write_deadline;
        let mut sent = false;
        while let Some(transmit) = self.driver.session.poll_transmit(clock::monotonic()) {
            sent = true;
            let put = async {
                match transmit {
                    Transmit::Message(message) => put_message(socket, &message).await,
                    Transmit::Ping => socket.feed(Ws::Ping(bytes::Bytes::new())).await,
                    Transmit::Close(reason) => socket.close(Some(close_frame(reason))).await,
                }
            };
            tokio::time::timeout(deadline, put)
                .await
                .map_err(|_| Ended::WriteStalled(deadline))??;
            // Deliveries that need no answer free the window for the next rows.
            self.driver.pump(clock::monotonic()).await;
        }
        if sent {
            tokio::time::timeout(deadline, socket.flush())
                .await
                .map_err(|_| Ended::WriteStalled(deadline))??;
        }
        Ok(())
    }

    /// Flushes what is ready and closes politely, within a second.
    async fn say_goodbye(&mut self, socket: &mut Socket) {
        let goodbye = async {
            self.transmit(socket).await?;
            socket.close(Some(close_frame("node stops"))).await?;
            Ok::<_, Ended>(())
        };
        if tokio::time::timeout(Duration::from_secs(1), goodbye)
            .await
            .is_err()
        {
            tracing::debug!("hub did not take the goodbye in time");
        }
    }

    fn lost(&mut self, reason: String) {
        if reason != self.reason && self.driver.inbox.link.borrow().phase != LinkPhase::Offline {
            tracing::warn!(%reason, "hub is not reached; trying again");
        }
        self.reason = reason;
        self.tell(LinkPhase::Offline);
    }

    fn tell(&self, phase: LinkPhase) {
        self.driver.inbox.link.send_if_modified(|state| {
            let changed = state.phase != phase || state.reason != self.reason;
            state.phase = phase;
            state.reason.clone_from(&self.reason);
            changed
        });
    }

    /// The floor of the clock: what was good before, and the day our own certificate was made.
    async fn raise_floor(&mut self) -> Result<(), StoreError> {
        let stored = self.store.read(read_floor).await?;
        self.floor.raise(stored);
        if let Ok(chain) = super::tls::certificates(&self.config.tls.cert)
            && let Some((from, _)) = chain.first().and_then(|leaf| join::validity(leaf))
        {
            self.floor.raise(from.saturating_mul(1000));
        }
        Ok(())
    }

    /// A hub whose certificate we believe has just agreed to talk: the time is plausible.
    async fn remember_time(&mut self) {
        let now = clock::unix_millis();
        if now < self.floor.now_ms() {
            return;
        }
        let written = self.store.read(read_floor).await.unwrap_or(i64::MAX);
        if now.saturating_sub(written) < FLOOR_EVERY_MS {
            return;
        }
        self.floor.raise(now);
        let stored = self
            .store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO facts (name, value) VALUES (?1, ?2)
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    (FLOOR_FACT, now.to_string()),
                )?;
                Ok(())
            })
            .await;
        if let Err(error) = stored {
            tracing::warn!(%error, "last good time was not stored");
        }
    }
}

/// The highest sequence number that the outbox ever gave out.
fn last_seq(tx: &rusqlite::Connection) -> Result<u64, StoreError> {
    Ok(tx.query_row(
        "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'",
        [],
        |row| row.get(0),
    )?)
}

fn read_floor(tx: &rusqlite::Connection) -> Result<i64, StoreError> {
    use rusqlite::OptionalExtension;
    let text: Option<String> = tx
        .query_row(
            "SELECT value FROM facts WHERE name = ?1",
            [FLOOR_FACT],
            |row| row.get(0),
        )
        .optional()?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn close_frame(reason: &'static str) -> CloseFrame {
    CloseFrame {
        code: CloseCode::Normal,
        reason: reason.into(),
    }
}

/// One message in frames of at most [`limits::FRAME_BYTES_MAX`]: the receiver's buffer keeps the
/// size of the largest frame it saw.
async fn put_message(socket: &mut Socket, message: &Message) -> Result<(), tungstenite::Error> {
    let bytes = bytes::Bytes::from(message.encode());
    let count = bytes.len().div_ceil(limits::FRAME_BYTES_MAX);
    for index in 0..count {
        let from = index * limits::FRAME_BYTES_MAX;
        let to = bytes.len().min(from + limits::FRAME_BYTES_MAX);
        let data = if index == 0 {
            Data::Text
        } else {
            Data::Continue
        };
        let frame = Frame::message(
            bytes.slice(from..to),
            OpCode::Data(data),
            index + 1 == count,
        );
        socket.feed(Ws::Frame(frame)).await?;
    }
    Ok(())
}
