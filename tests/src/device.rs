//! A thermometer that knows what was promised to it: it publishes at QoS 1, counts what was
//! acknowledged, and sends again what was not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use serde_json::{Value, json};

/// How many readings may be on their way at once.
const IN_FLIGHT_MAX: usize = 40;

/// A result is waited for so long before everything without one goes again: the runtime keeps
/// readings, not what it says about them.
const RESULT_WITHIN: Duration = Duration::from_secs(5);

/// A device that publishes readings of its temperature.
pub struct Thermometer {
    broker: SocketAddr,
    /// `<namespace>/<name>`
    device: String,
    connections: u32,
    link: Option<(AsyncClient, EventLoop)>,
    queued: VecDeque<u64>,
    in_flight: BTreeMap<u16, u64>,
    /// Readings whose result is still to come, when a result is what counts.
    unanswered: Option<BTreeSet<u64>>,
    /// The first result that was an error.
    refusal: Option<Value>,
    /// Readings that were acknowledged, in the order of the acknowledgements.
    pub acknowledged: Vec<u64>,
    /// The same as a count that others may watch while this publishes.
    pub progress: Arc<AtomicU64>,
    /// Time from publish to PUBACK.
    pub latencies: Vec<Duration>,
    sent_at: BTreeMap<u64, Instant>,
    /// Delta documents received.
    pub deltas: Vec<Value>,
}

impl Thermometer {
    pub fn new(broker: SocketAddr, device: &str) -> Self {
        Self {
            broker,
            device: device.to_owned(),
            connections: 0,
            link: None,
            queued: VecDeque::new(),
            in_flight: BTreeMap::new(),
            unanswered: None,
            refusal: None,
            acknowledged: Vec::new(),
            progress: Arc::default(),
            latencies: Vec::new(),
            sent_at: BTreeMap::new(),
            deltas: Vec::new(),
        }
    }

    /// Takes the runtime's result for the acknowledgement: a broker that is not the runtime's may
    /// lose what it has acknowledged. Whatever has no result goes again over a new connection, which
    /// is made when results stay away.
    #[must_use]
    pub fn answered_by_results(mut self) -> Self {
        self.unanswered = Some(BTreeSet::new());
        self
    }

    pub fn topic(&self, suffix: &str) -> String {
        format!("$hw/events/device/{}/{suffix}", self.device)
    }

    /// The event id under which reading `n` travels; the hub's ledger shows it.
    pub fn event_id(n: u64) -> String {
        format!("reading-{n}")
    }

    /// The reading that a result tells to be stored. Takes note of a refusal.
    fn answered(&mut self, result: &[u8]) -> Option<u64> {
        let result: Value = serde_json::from_slice(result).ok()?;
        if result.get("twin").is_none() {
            self.refusal.get_or_insert(result);
            return None;
        }
        result["event_id"]
            .as_str()?
            .strip_prefix("reading-")?
            .parse()
            .ok()
    }

    fn payload(n: u64) -> Vec<u8> {
        let value = format!("{n}");
        json!({
            "event_id": Self::event_id(n), "timestamp": 0,
            "twin": {"temperature": {"actual": {"value": value}, "metadata": {"type": "int"}}},
        })
        .to_string()
        .into_bytes()
    }

    async fn connect(&mut self) -> Result<()> {
        self.connections += 1;
        let id = format!("thermometer-{}", self.device.replace('/', "-"));
        let mut options = MqttOptions::new(id, self.broker.ip().to_string(), self.broker.port());
        options
            .set_clean_session(true)
            .set_keep_alive(Duration::from_secs(20));
        options.set_max_packet_size(256 << 10, 256 << 10);
        let (client, mut events) = AsyncClient::new(options, IN_FLIGHT_MAX + 8);
        // A reading must not wait for the delayed acknowledgement of the one before.
        let mut network = events.network_options();
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        client
            .subscribe(self.topic("twin/update/delta"), QoS::AtLeastOnce)
            .await?;
        if self.unanswered.is_some() {
            client
                .subscribe(self.topic("twin/update/result"), QoS::AtLeastOnce)
                .await?;
        }
        // What was not acknowledged goes again, oldest first.
        let again = self.outstanding();
        self.in_flight.clear();
        self.queued.clear();
        self.link = Some((client, events));
        for n in again {
            self.enqueue(n).await?;
        }
        Ok(())
    }

    /// Readings that were published and not acknowledged.
    fn outstanding(&self) -> BTreeSet<u64> {
        match &self.unanswered {
            Some(unanswered) => unanswered.clone(),
            None => self
                .in_flight
                .values()
                .chain(&self.queued)
                .copied()
                .collect(),
        }
    }

    fn acknowledge(&mut self, n: u64) {
        self.acknowledged.push(n);
        self.progress.fetch_add(1, Ordering::Relaxed);
        if let Some(sent) = self.sent_at.remove(&n) {
            self.latencies.push(sent.elapsed());
        }
    }

    async fn enqueue(&mut self, n: u64) -> Result<()> {
        let topic = self.topic("twin/update");
        let Some((client, _)) = &self.link else {
            bail!("not connected")
        };
        client
            .publish(topic, QoS::AtLeastOnce, false, Self::payload(n))
            .await?;
        self.queued.push_back(n);
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.insert(n);
        }
        self.sent_at.entry(n).or_insert_with(Instant::now);
        Ok(())
    }

    /// Publishes readings `range` at `per_second`, however often the broker goes away meanwhile.
    /// Returns when each was acknowledged.
    pub async fn publish(
        &mut self,
        range: std::ops::Range<u64>,
        per_second: u32,
        limit: Duration,
    ) -> Result<()> {
        let started = Instant::now();
        let wanted = self.acknowledged.len() + usize::try_from(range.end - range.start)?;
        let mut next = range.start;
        let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut last = (0, tokio::time::Instant::now());
        while self.acknowledged.len() < wanted {
            if let Some(refusal) = &self.refusal {
                bail!("{} is refused: {refusal}", self.device);
            }
            if started.elapsed() > limit {
                bail!(
                    "{}: {} of {wanted} readings acknowledged after {limit:?}, {} of {:?} waiting",
                    self.device,
                    self.acknowledged.len(),
                    self.queued.len(),
                    self.outstanding(),
                );
            }
            if self.link.is_none() || self.acknowledged.len() > last.0 {
                last = (self.acknowledged.len(), tokio::time::Instant::now());
            }
            if self.link.is_none() {
                self.connect().await?;
            }
            let counts_results = self.unanswered.is_some();
            let waiting = self.queued.len() + self.in_flight.len();
            let room =
                waiting.max(self.unanswered.as_ref().map_or(0, BTreeSet::len)) < IN_FLIGHT_MAX;
            let Some((_, events)) = &mut self.link else {
                continue;
            };
            tokio::select! {
                event = events.poll() => if let Ok(event) = event {
                    self.handle(event);
                } else {
                    self.link_lost().await;
                },
                () = tokio::time::sleep_until(last.1 + RESULT_WITHIN), if counts_results => {
                    self.link_lost().await;
                }
                _ = tick.tick(), if room && next < range.end => {
                    self.enqueue(next).await?;
                    next += 1;
                }
            }
        }
        Ok(())
    }

    /// Waits for a delta that `accept` likes.
    pub async fn delta(
        &mut self,
        limit: Duration,
        mut accept: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let started = Instant::now();
        loop {
            if let Some(delta) = self.deltas.iter().find(|delta| accept(delta)) {
                return Ok(delta.clone());
            }
            if started.elapsed() > limit {
                bail!("no such delta after {limit:?}; seen: {:?}", self.deltas);
            }
            if self.link.is_none() {
                self.connect().await?;
            }
            let Some((_, events)) = &mut self.link else {
                continue;
            };
            match tokio::time::timeout(Duration::from_millis(100), events.poll()).await {
                Ok(Ok(event)) => self.handle(event),
                Ok(Err(_)) => {
                    self.link_lost().await;
                }
                Err(_) => {}
            }
        }
    }

    /// Connects and subscribes; returns once the broker has confirmed the subscription.
    pub async fn subscribe(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        self.connect().await?;
        loop {
            let Some((_, events)) = &mut self.link else {
                self.connect().await?;
                continue;
            };
            match tokio::time::timeout(limit, events.poll()).await {
                Ok(Ok(Event::Incoming(Packet::SubAck(_)))) => return Ok(()),
                Ok(Ok(event)) => self.handle(event),
                Ok(Err(error)) if started.elapsed() > limit => {
                    return Err(error).context("cannot subscribe");
                }
                Ok(Err(_)) => {
                    self.link_lost().await;
                }
                Err(_) => bail!("the broker did not confirm the subscription"),
            }
        }
    }

    /// The next connection is made a little later: nobody tells when a broker that is gone is back.
    async fn link_lost(&mut self) {
        self.link = None;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Outgoing(Outgoing::Publish(packet_id)) => {
                if let Some(n) = self.queued.pop_front() {
                    self.in_flight.insert(packet_id, n);
                }
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(n) = self.in_flight.remove(&ack.pkid)
                    && self.unanswered.is_none()
                {
                    self.acknowledge(n);
                }
            }
            Event::Incoming(Packet::Publish(publish)) if publish.topic.ends_with("/result") => {
                if let Some(n) = self.answered(&publish.payload)
                    && let Some(unanswered) = &mut self.unanswered
                    && unanswered.remove(&n)
                {
                    self.acknowledge(n);
                }
            }
            Event::Incoming(Packet::Publish(publish)) if publish.topic.ends_with("/delta") => {
                if let Ok(delta) = serde_json::from_slice(&publish.payload) {
                    self.deltas.push(delta);
                }
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

/// Publishes `count` uploads of 200 bytes at QoS 1 as fast as they are acknowledged.
pub async fn flood(broker: SocketAddr, connection: u32, count: u64, limit: Duration) -> Result<()> {
    let mut options = MqttOptions::new(
        format!("flood-{connection}"),
        broker.ip().to_string(),
        broker.port(),
    );
    options
        .set_inflight(100)
        .set_keep_alive(Duration::from_secs(20));
    let (client, mut events) = AsyncClient::new(options, 200);
    let topic = format!("bench/user/{connection}");
    let payload = vec![b'x'; 200];
    let publisher = tokio::spawn(async move {
        for _ in 0..count {
            client
                .publish(&topic, QoS::AtLeastOnce, false, payload.clone())
                .await?;
        }
        anyhow::Ok(client)
    });
    let mut acknowledged = 0;
    let drained = tokio::time::timeout(limit, async {
        while acknowledged < count {
            if let Event::Incoming(Packet::PubAck(_)) = events.poll().await? {
                acknowledged += 1;
            }
        }
        anyhow::Ok(())
    });
    drained
        .await
        .with_context(|| format!("{acknowledged} of {count} acknowledged"))??;
    publisher.await??;
    Ok(())
}
