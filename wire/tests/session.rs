//! Both halves of the session against each other over a link that loses, cuts and delays, and
//! against the transcript of a real first connect.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use wire::extension::{Extensions, Inventory};
use wire::limits;
use wire::message::{Content, Message, Operation, Route};
use wire::session::edge::{EdgeSession, Event as EdgeEvent};
use wire::session::hub::{Event as HubEvent, HubSession};
use wire::session::{Ids, Transmit};

fn report(seq: u64) -> Message {
    let path = format!("device/default/t{}/twin/edge_updated", seq % 3);
    let route = Route::new("twin", "resource", &Operation::Update, path);
    Message::new(
        format!("m{seq}"),
        0,
        route,
        Content::string(&seq.to_string()),
    )
}

fn push(version: u64) -> Message {
    let route = Route::new(
        "edgecontroller",
        "resource",
        &Operation::Update,
        "default/pod/p",
    );
    Message::new("", 0, route, Content::string(&version.to_string()))
        .with_resource_version(version.to_string())
}

/// The world both halves live in: what is durable on each side, and the socket between them.
struct World {
    now: Instant,
    extensions: Extensions,
    edge: EdgeSession,
    hub: Option<HubSession>,
    up: VecDeque<Message>,
    down: VecDeque<Message>,
    outbox: BTreeMap<u64, Message>,
    next_seq: u64,
    /// The hub's store: sequence numbers in the order of arrival, exactly once.
    received: Vec<u64>,
    held: u64,
    wanted: u64,
    /// What the node must hold when it is told that it holds everything.
    due: u64,
    connections: u64,
}

impl World {
    fn new(extensions: Extensions) -> Self {
        Self {
            now: Instant::now(),
            extensions,
            edge: EdgeSession::new(Ids::new("e"), "epoch"),
            hub: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
            outbox: BTreeMap::new(),
            next_seq: 1,
            received: Vec::new(),
            held: 0,
            wanted: 0,
            due: 0,
            connections: 0,
        }
    }

    fn connect(&mut self) {
        self.cut();
        self.connections += 1;
        let ids = Ids::new(format!("h{}", self.connections));
        let stored = self.received.iter().copied().max();
        let mut hub = HubSession::new(ids, self.extensions, self.now)
            .with_stored("epoch", stored.unwrap_or(0));
        if self.wanted > self.held {
            hub.offer("pod", push(self.wanted));
        }
        hub.tell_synced();
        self.due = self.wanted;
        self.hub = Some(hub);
        let acked = self.received.iter().copied().max();
        self.edge
            .handle_connected(self.extensions, acked, Inventory::default(), self.now);
    }

    fn cut(&mut self) {
        self.hub = None;
        self.up.clear();
        self.down.clear();
        self.edge.handle_disconnected();
    }

    fn publish(&mut self) {
        self.outbox.insert(self.next_seq, report(self.next_seq));
        self.next_seq += 1;
    }

    fn want(&mut self) {
        self.wanted += 1;
        if let Some(hub) = &mut self.hub {
            hub.offer("pod", push(self.wanted));
        }
    }

    fn pump_edge(&mut self) {
        let after = self.edge.last_pushed().map_or(0, |seq| seq + 1);
        for (seq, message) in self.outbox.range(after..) {
            if self.edge.push(*seq, "s".into(), message.clone()).is_err() {
                break;
            }
        }
        while let Some(event) = self.edge.poll_event() {
            match event {
                EdgeEvent::Delivered { up_to } => {
                    self.outbox = self.outbox.split_off(&(up_to + 1));
                }
                EdgeEvent::DeliveredOne { seq } => drop(self.outbox.remove(&seq)),
                EdgeEvent::Push(message) => {
                    let version = message.header.resource_version.parse::<u64>().unwrap();
                    self.held = self.held.max(version);
                    self.edge.ack(&message);
                }
                EdgeEvent::LinkDead => self.cut(),
                EdgeEvent::Synced => {
                    assert!(
                        self.extensions.synced,
                        "said to a peer that does not know it"
                    );
                    assert!(self.held >= self.due, "said before it was so");
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        while let Some(transmit) = self.edge.poll_transmit(self.now) {
            if let Transmit::Message(message) = transmit {
                self.up
                    .push_back(Message::decode(&message.encode()).unwrap());
            } else {
                // A ping: the hub's transport answers it if the link is whole.
                if let Some(hub) = &mut self.hub {
                    hub.handle_heard(self.now);
                    self.edge.handle_heard(self.now);
                }
            }
        }
    }

    fn pump_hub(&mut self) {
        let Some(hub) = &mut self.hub else { return };
        while let Some(message) = self.up.pop_front() {
            hub.handle_message(message, self.now);
        }
        while let Some(event) = hub.poll_event() {
            match event {
                HubEvent::Batch(batch) => {
                    for entry in &batch.entries {
                        if self
                            .received
                            .iter()
                            .max()
                            .is_none_or(|last| entry.seq > *last)
                        {
                            self.received.push(entry.seq);
                        }
                    }
                    let last = self.received.last().copied().unwrap_or(0);
                    hub.ack_batch(&batch.epoch, last);
                }
                HubEvent::Request(message) => {
                    let seq = message.content.text().unwrap().parse().unwrap();
                    if !self.received.contains(&seq) {
                        self.received.push(seq);
                    }
                    hub.send(message.reply("r", 0, "devicecontroller", Content::string("OK")));
                }
                HubEvent::Acked { .. } | HubEvent::Inventory(_) => {}
                HubEvent::Dead { .. } => return self.cut(),
                HubEvent::Refused { .. } => panic!("nothing was refused"),
            }
        }
        while let Some(transmit) = hub.poll_transmit(self.now) {
            if let Transmit::Message(message) = transmit {
                self.down
                    .push_back(Message::decode(&message.encode()).unwrap());
            }
        }
    }

    fn deliver_down(&mut self) {
        while let Some(message) = self.down.pop_front() {
            self.edge.handle_message(message, self.now);
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        if self.edge.poll_timeout().is_some_and(|due| due <= self.now) {
            self.edge.handle_timeout(self.now);
        }
        if let Some(hub) = &mut self.hub
            && hub.poll_timeout() <= self.now
        {
            hub.handle_timeout(self.now);
        }
    }

    fn round(&mut self) {
        self.pump_edge();
        self.pump_hub();
        self.deliver_down();
        self.pump_edge();
        self.pump_hub();
    }

    fn check_safety(&self) {
        let mut sorted = self.received.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(
            sorted.len(),
            self.received.len(),
            "twice: {:?}",
            self.received
        );
        for seq in 1..self.next_seq {
            assert!(
                self.outbox.contains_key(&seq) || self.received.contains(&seq),
                "{seq} left the outbox and is not at the hub"
            );
        }
        if self.extensions.batch {
            assert!(
                self.received.is_sorted(),
                "out of order: {:?}",
                self.received
            );
        }
    }

    fn settle(&mut self) {
        self.connect();
        for _ in 0..20 {
            self.round();
            self.advance(Duration::from_secs(6));
            self.check_safety();
        }
        assert!(
            self.outbox.is_empty(),
            "undelivered: {:?}",
            self.outbox.keys()
        );
        assert_eq!(self.received.len() as u64, self.next_seq - 1);
        assert_eq!(self.held, self.wanted);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish,
    Want,
    Edge,
    Hub,
    Down,
    Connect,
    Cut,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Publish), 2 => Just(Step::Want), 6 => Just(Step::Edge),
        6 => Just(Step::Hub), 6 => Just(Step::Down), 2 => Just(Step::Connect),
        2 => Just(Step::Cut), 2 => (0_u64..12_000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..120)
}

fn run(extensions: Extensions, steps: Vec<Step>) {
    let mut world = World::new(extensions);
    for step in steps {
        match step {
            Step::Publish => world.publish(),
            Step::Want => world.want(),
            Step::Edge => world.pump_edge(),
            Step::Hub => world.pump_hub(),
            Step::Down => world.deliver_down(),
            Step::Connect => world.connect(),
            Step::Cut => world.cut(),
            Step::Wait(ms) => world.advance(Duration::from_millis(ms)),
        }
        world.check_safety();
    }
    world.settle();
}

proptest! {
    #[test]
    fn fault_02_nothing_acknowledged_is_lost_doubled_or_reordered(steps in steps()) {
        run(Extensions::ALL, steps);
    }

    #[test]
    fn fault_09_a_plain_peer_gets_everything_too(steps in steps()) {
        run(Extensions::NONE, steps);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::decode(&bytes) {
            let mut world = World::new(Extensions::ALL);
            world.connect();
            world.edge.handle_message(message.clone(), world.now);
            if let Some(hub) = &mut world.hub { hub.handle_message(message, world.now); }
        }
        let _ = wire::tunnel::Frame::decode(&bytes);
        let _ = wire::packed::decode(&bytes);
    }
}

#[test]
fn a_half_open_link_is_found_within_ten_seconds() {
    let mut world = World::new(Extensions::ALL);
    world.connect();
    world.round();
    let start = world.now;
    world.hub = None; // the hub vanishes without a word; the socket stays open
    loop {
        world.now = world.edge.poll_timeout().unwrap();
        world.edge.handle_timeout(world.now);
        let _ = world.edge.poll_transmit(world.now);
        if world.edge.poll_event() == Some(EdgeEvent::LinkDead) {
            break;
        }
    }
    assert!(
        world.now - start <= Duration::from_secs(10),
        "{:?}",
        world.now - start
    );
}

#[test]
fn a_hub_restored_from_a_backup_goes_on_with_what_the_edge_still_has() {
    let mut world = World::new(Extensions::ALL);
    let settle = |world: &mut World| {
        for _ in 0..4 {
            world.pump_edge();
            world.pump_hub();
            world.deliver_down();
        }
    };
    world.connect();
    for _ in 0..5 {
        world.publish();
    }
    settle(&mut world);
    assert_eq!(world.received, [1, 2, 3, 4, 5]);
    assert!(world.outbox.is_empty());
    // Two more are under way when the hub goes; it comes back knowing only the first two. What it
    // acknowledged and lost is lost with it, what the edge has is not, and nothing is waited for.
    world.publish();
    world.publish();
    world.pump_edge();
    world.received.truncate(2);
    world.connect();
    world.publish();
    settle(&mut world);
    assert!(world.hub.is_some(), "the session stands");
    assert_eq!(world.received, [1, 2, 6, 7, 8]);
    assert!(world.outbox.is_empty());
}

#[test]
fn a_status_that_the_hub_could_not_store_is_told_again() {
    use wire::body::{Status, object_error};
    let t0 = Instant::now();
    let mut edge = EdgeSession::new(Ids::new("e"), "epoch");
    edge.handle_connected(Extensions::ALL, Some(0), Inventory::default(), t0);
    let status = report(1);
    edge.set_latest("pod", status.clone()).unwrap();
    let sent = |edge: &mut EdgeSession, now| {
        let mut ids = Vec::new();
        while let Some(transmit) = edge.poll_transmit(now) {
            if let Transmit::Message(message) = transmit
                && message.route.resource == status.route.resource
            {
                ids.push(message.header.id.clone());
            }
        }
        ids
    };
    let answer = |edge: &mut EdgeSession, id: &str, code| {
        let failed = Status {
            reason: "x".into(),
            code,
            ..Status::default()
        };
        let mut asked = status.clone();
        id.clone_into(&mut asked.header.id);
        edge.handle_message(asked.reply("r", 0, "hub", object_error(&failed)), t0);
    };
    let first = sent(&mut edge, t0);
    assert_eq!(first.len(), 1);
    answer(&mut edge, &first[0], 500);
    assert!(edge.is_telling("pod"), "the hub's store stumbled");
    let late = t0 + limits::CONFIRM_WITHIN;
    edge.handle_heard(late);
    edge.handle_timeout(late);
    let again = sent(&mut edge, late);
    assert_eq!(again.len(), 1);
    answer(&mut edge, &again[0], 404);
    assert!(!edge.is_telling("pod"), "no such pod: nothing to tell");
}

#[test]
fn one_object_is_never_in_flight_twice_and_the_newest_wins() {
    let now = Instant::now();
    let mut hub = HubSession::new(Ids::new("h"), Extensions::ALL, now);
    hub.offer("pod", push(1));
    let Some(Transmit::Message(first)) = hub.poll_transmit(now) else {
        panic!("an offer leaves")
    };
    hub.offer("pod", push(2));
    hub.offer("pod", push(3));
    assert_eq!(
        hub.poll_transmit(now),
        None,
        "waits for the acknowledgement"
    );
    hub.handle_message(first.acknowledgement("a", 0), now);
    let Some(Transmit::Message(second)) = hub.poll_transmit(now) else {
        panic!("the newest")
    };
    assert_eq!(second.header.resource_version, "3");
    let later = now + limits::RESEND_AFTER;
    hub.handle_timeout(later);
    let Some(Transmit::Message(again)) = hub.poll_transmit(later) else {
        panic!("again")
    };
    assert_eq!(again.header.resource_version, "3");
}

#[test]
fn the_node_is_told_when_it_has_stored_everything() {
    let now = Instant::now();
    let take = |hub: &mut HubSession| match hub.poll_transmit(now) {
        Some(Transmit::Message(message)) => Some(*message),
        _ => None,
    };
    let is_notice = |message: &Message| message.route.operation() == Operation::Synced;
    let mut hub = HubSession::new(Ids::new("h"), Extensions::ALL, now);
    hub.offer("a", push(1));
    let early = take(&mut hub).unwrap();
    hub.offer("a", push(2));
    hub.offer("b", push(1));
    hub.tell_synced();
    let b = take(&mut hub).unwrap();
    hub.handle_message(early.acknowledgement("1", 0), now);
    hub.handle_message(b.acknowledgement("2", 0), now);
    let a = take(&mut hub).unwrap();
    assert!(!is_notice(&a), "the newer one is not there yet");
    // What comes later is not waited for.
    hub.offer("c", push(1));
    hub.handle_message(a.acknowledgement("3", 0), now);
    assert!(is_notice(&take(&mut hub).unwrap()));
    assert!(!is_notice(&take(&mut hub).unwrap()), "once");

    let mut hub = HubSession::new(Ids::new("h"), Extensions::ALL, now);
    hub.tell_synced();
    let notice = take(&mut hub).unwrap();
    assert!(is_notice(&notice), "nothing is everything, too");
    let mut edge = EdgeSession::new(Ids::new("e"), "epoch");
    edge.handle_connected(Extensions::ALL, None, Inventory::default(), now);
    while edge.poll_event().is_some() {}
    edge.handle_message(Message::decode(&notice.encode()).unwrap(), now);
    assert_eq!(edge.poll_event(), Some(EdgeEvent::Synced));

    let older = Extensions {
        synced: false,
        ..Extensions::ALL
    };
    let mut hub = HubSession::new(Ids::new("h"), older, now);
    hub.tell_synced();
    assert_eq!(
        hub.poll_transmit(now),
        None,
        "the peer does not know the word"
    );
    edge.handle_connected(older, None, Inventory::default(), now);
    while edge.poll_event().is_some() {}
    edge.handle_message(notice, now);
    assert_eq!(edge.poll_event(), None, "nor is it believed unasked");
}

#[test]
fn fault_08_the_window_bounds_what_is_in_flight() {
    let now = Instant::now();
    let mut hub = HubSession::new(Ids::new("h"), Extensions::ALL, now);
    for n in 0..limits::DOWNSTREAM_WINDOW + 10 {
        hub.offer(format!("pod/{n}"), push(1));
    }
    let mut sent = 0;
    while hub.poll_transmit(now).is_some() {
        sent += 1;
    }
    assert_eq!(sent, limits::DOWNSTREAM_WINDOW);
    assert_eq!(hub.outstanding(), limits::DOWNSTREAM_WINDOW + 10);
}

#[test]
fn the_transcript_of_a_real_first_connect_replays_through_both_sessions() {
    #[derive(serde::Deserialize)]
    struct Line {
        t_ms: u64,
        direction: String,
        text: String,
    }
    let start = Instant::now();
    let mut edge = EdgeSession::new(Ids::new("e"), "epoch");
    let mut hub = HubSession::new(Ids::new("h"), Extensions::NONE, start);
    edge.handle_connected(Extensions::NONE, None, Inventory::default(), start);
    let (mut requests, mut acked, mut pushes, mut acks) = (0, 0, 0, 0);
    for line in include_str!("golden/transcript.jsonl").lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        let now = start + Duration::from_millis(line.t_ms);
        let message = Message::decode(line.text.as_bytes()).unwrap();
        if line.direction == "edge->cloud" {
            hub.handle_message(message, now);
        } else {
            if wire::delivery::downstream_is_acked(&message) {
                // The hub sends what the recording sent, under the same id.
                hub.offer(
                    format!("{}#{}", message.route.resource, message.header.id),
                    message.clone(),
                );
                assert!(hub.poll_transmit(now).is_some());
            }
            edge.handle_message(message, now);
        }
        while let Some(event) = hub.poll_event() {
            match event {
                HubEvent::Request(_) => requests += 1,
                HubEvent::Acked { .. } => acked += 1,
                other => panic!("{other:?}"),
            }
        }
        while let Some(event) = edge.poll_event() {
            match event {
                EdgeEvent::Push(push) => {
                    pushes += 1;
                    edge.ack(&push);
                }
                other => panic!("{other:?}"),
            }
        }
        while let Some(transmit) = edge.poll_transmit(now) {
            if let Transmit::Message(message) = transmit
                && message.route.operation() == Operation::Response
            {
                acks += 1;
            }
        }
        hub.handle_timeout(now);
    }
    assert!(
        requests > 20 && pushes > 5,
        "{requests} requests, {pushes} pushes"
    );
    assert_eq!(
        acked, pushes,
        "the recorded edge acknowledged every push, and we saw it"
    );
    assert!(
        acks >= pushes,
        "our edge acknowledges every push and every late reply"
    );
    assert_eq!(hub.outstanding(), 0);
}
