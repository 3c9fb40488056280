//! Devices, node, hub and the links between them, driven by one seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use wire::message::Message;
use wire::session::Transmit;

use crate::cloud::Cloud;
use crate::net::{Faults, Pipe};
use crate::node::{NODE, Node};
use crate::rng::Rng;
use crate::things::{Publish, Thing};

const DEVICES: usize = 3;
const PODS: u64 = 4;
const STEPS: u32 = 250;
/// Steps without faults after which both sides must agree.
const SETTLE: u32 = 200;

/// What a schedule did.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) readings: u64,
    pub(crate) crashes_before_commit: u64,
    pub(crate) crashes_after_commit: u64,
    pub(crate) hub_crashes: u64,
    pub(crate) cuts: u64,
    pub(crate) disk_full: u64,
    pub(crate) messages_lost: u64,
    pub(crate) events_sent_again: u64,
}

impl Told {
    pub(crate) fn add(&mut self, other: &Self) {
        self.readings += other.readings;
        self.crashes_before_commit += other.crashes_before_commit;
        self.crashes_after_commit += other.crashes_after_commit;
        self.hub_crashes += other.hub_crashes;
        self.cuts += other.cuts;
        self.disk_full += other.disk_full;
        self.messages_lost += other.messages_lost;
        self.events_sent_again += other.events_sent_again;
    }
}

pub(crate) struct World {
    rng: Rng,
    now: Instant,
    faults: Faults,
    things: Vec<Thing>,
    local: Pipe<Publish>,
    node: Node,
    cloud: Cloud,
    up: Pipe<Message>,
    down: Pipe<Message>,
    versions: BTreeMap<usize, i64>,
    told: Told,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults {
            lose: rng.below(80),
            double: rng.below(80),
            delay_ms_max: rng.below(400),
        };
        let mut cloud = Cloud::new();
        for device in 0..DEVICES {
            put_device(&mut cloud, device, 0);
        }
        Self {
            rng,
            now: Instant::now(),
            faults,
            things: (0..DEVICES).map(|_| Thing::default()).collect(),
            local: Pipe::new(),
            node: Node::new(),
            cloud,
            up: Pipe::new(),
            down: Pipe::new(),
            versions: BTreeMap::new(),
            told: Told::default(),
        }
    }

    pub(crate) fn run(mut self) -> Told {
        for _ in 0..STEPS {
            self.act();
            self.step(true);
            self.check_safety();
        }
        self.faults = Faults {
            delay_ms_max: 20,
            ..Faults::default()
        };
        for settled in 0..SETTLE {
            if settled % 20 == 0 {
                self.devices_again();
            }
            self.step(false);
            self.check_safety();
        }
        self.check_convergence();
        self.told.messages_lost = self.up.lost + self.down.lost + self.local.lost;
        self.told.disk_full = self.node.disk_full;
        self.told.readings = self.things.iter().map(|thing| thing.published).sum();
        self.told
    }

    /// What users, devices and fate do.
    fn act(&mut self) {
        for device in 0..DEVICES {
            if self.rng.chance(400)
                && let Some(publish) = self.things[device].publish(device)
            {
                self.send_local(publish);
            }
        }
        if self.rng.chance(60) {
            let device = usize::try_from(self.rng.below(DEVICES as u64)).unwrap();
            let rate = self.rng.below(100);
            put_device(&mut self.cloud, device, rate);
        }
        if self.rng.chance(80) {
            let path = format!("dev/pod/p{}", self.rng.below(PODS));
            if self.rng.chance(300) {
                self.cloud.remove(&path);
            } else {
                self.cloud.put(&path, |uid, version| {
                    let name = path.rsplit('/').next().unwrap_or_default();
                    json!({
                        "kind": "Pod", "apiVersion": "v1",
                        "metadata": {"name": name, "namespace": "dev", "uid": uid,
                                     "resourceVersion": version.to_string()},
                        "spec": {"nodeName": NODE, "containers": []},
                    })
                });
            }
        }
        if self.rng.chance(40) {
            self.devices_again();
        }
        if self.rng.chance(15) {
            self.cut();
        }
        if self.rng.chance(10) {
            self.told.hub_crashes += 1;
            self.cut();
        }
    }

    fn devices_again(&mut self) {
        for device in 0..DEVICES {
            for publish in self.things[device].again(device) {
                self.told.events_sent_again += 1;
                self.send_local(publish);
            }
        }
    }

    /// A device's connection is TCP to the same machine: it may break, it does not reorder.
    fn send_local(&mut self, publish: Publish) {
        if self.rng.chance(self.faults.lose / 4) {
            publish.connection.shut();
        }
        if !publish.connection.is_shut() {
            self.local
                .send(publish, self.now, Faults::default(), &mut self.rng);
        }
    }

    fn cut(&mut self) {
        self.told.cuts += u64::from(self.node.is_connected());
        self.up.clear();
        self.down.clear();
        self.cloud.disconnected();
        self.node.disconnected();
    }

    fn connect(&mut self) {
        let epoch = self.node.epoch();
        let acked = self.cloud.connected(&epoch, self.now);
        self.node.connected(acked, self.now);
    }

    fn step(&mut self, faulty: bool) {
        self.now += Duration::from_millis(50 + self.rng.below(400));
        if !self.node.is_connected() && (!faulty || self.rng.chance(300)) {
            self.connect();
        }
        let full = |rng: &mut Rng| faulty && rng.chance(30);
        for publish in self.local.arrived(self.now) {
            let full = full(&mut self.rng);
            self.node.mqtt(publish, full);
        }
        for message in self.down.arrived(self.now) {
            self.node.message(message, self.now);
        }
        self.commit_node(faulty);
        let full_now = full(&mut self.rng);
        let (answered, dead) = self.node.work(full_now, self.now);
        for publish in answered {
            // The PUBACK may be lost with the device's connection.
            if faulty && self.rng.chance(20) {
                publish.connection.shut();
            }
            if !publish.connection.is_shut() {
                self.things[publish.device].acknowledged(publish.n);
            }
        }
        if dead {
            self.cut();
        }
        while let Some(transmit) = self.node.transmit(self.now) {
            match transmit {
                Transmit::Message(message) => {
                    let message = Message::decode(&message.encode()).unwrap();
                    self.up.send(message, self.now, self.faults, &mut self.rng);
                }
                // The transport answers pings; a whole link is heard on both sides.
                Transmit::Ping => {
                    if let Some(session) = &mut self.cloud.session {
                        session.handle_heard(self.now);
                        self.node.heard(self.now);
                    }
                }
                Transmit::Close(_) => self.cut(),
            }
        }
        self.step_hub(faulty);
    }

    fn commit_node(&mut self, faulty: bool) {
        if faulty && self.rng.chance(8) {
            self.told.crashes_before_commit += 1;
            self.crash_node();
        }
        self.node.commit();
        if faulty && self.rng.chance(8) {
            // Everything is on disk; nobody was told.
            self.told.crashes_after_commit += 1;
            self.crash_node();
        }
    }

    /// Every connection of the process breaks with it.
    fn crash_node(&mut self) {
        self.node.crash();
        self.cut();
        self.local.clear();
        for thing in &mut self.things {
            thing.disconnect();
        }
    }

    fn step_hub(&mut self, faulty: bool) {
        let arrived = self.up.arrived(self.now);
        if let Some(session) = &mut self.cloud.session {
            for message in arrived {
                session.handle_message(message, self.now);
            }
            if session.poll_timeout() <= self.now {
                session.handle_timeout(self.now);
            }
        }
        if !self.cloud.work() {
            self.cut();
        }
        if faulty && self.rng.chance(5) {
            self.told.hub_crashes += 1;
            self.cut();
        }
        self.cloud.commit();
        if faulty && self.rng.chance(5) {
            self.told.hub_crashes += 1;
            self.cut();
        }
        while let Some(transmit) = self
            .cloud
            .session
            .as_mut()
            .and_then(|session| session.poll_transmit(self.now))
        {
            if let Transmit::Message(message) = transmit {
                let message = Message::decode(&message.encode()).unwrap();
                self.down
                    .send(message, self.now, self.faults, &mut self.rng);
            }
        }
    }

    /// Readings of a device in the hub's store, in the order in which they were stored.
    fn received(&self, device: usize) -> Vec<u64> {
        let all = self.cloud.stored.received.iter();
        all.filter(|(of, _)| *of == device)
            .map(|(_, n)| *n)
            .collect()
    }

    fn check_safety(&mut self) {
        let pending = self.node.pending(self.cloud.stored.seq);
        for device in 0..DEVICES {
            let received = self.received(device);
            assert!(
                received.windows(2).all(|pair| pair[0] < pair[1]),
                "device {device}: twice or out of order: {received:?}"
            );
            for n in &self.things[device].acknowledged {
                assert!(
                    received.binary_search(n).is_ok() || pending.contains(&(device, *n)),
                    "device {device}: reading {n} was acknowledged and is nowhere"
                );
            }
            if let Some((version, _)) = self.node.device(device) {
                let last = self.versions.entry(device).or_insert(0);
                assert!(
                    version >= *last,
                    "device {device}: version went from {last} to {version}"
                );
                *last = version;
            }
        }
    }

    fn check_convergence(&self) {
        for (device, thing) in self.things.iter().enumerate() {
            assert!(
                thing.is_settled(),
                "device {device} still waits for an answer"
            );
            let wanted: Vec<u64> = (1..=thing.published).collect();
            assert_eq!(self.received(device), wanted, "device {device}");
            let path = format!("dev/device/d{device}");
            let object = &self.cloud.stored.objects[&path];
            let desired = object.body["spec"]["properties"][0]["desired"]["value"].as_str();
            let (_, has) = self.node.device(device).unwrap();
            assert_eq!(has.as_deref(), desired, "device {device}: desired value");
        }
        assert!(self.node.pending(0).is_empty(), "the outbox is not empty");
        let wanted: Vec<(String, String)> = self
            .cloud
            .stored
            .objects
            .iter()
            .map(|(path, object)| (path.clone(), object.version.to_string()))
            .collect();
        let mut held = self.node.held();
        held.sort();
        assert_eq!(held, wanted, "the node holds what is wanted");
    }
}

fn put_device(cloud: &mut Cloud, device: usize, rate: u64) {
    let path = format!("dev/device/d{device}");
    cloud.put(&path, |uid, version| {
        json!({
            "kind": "Device", "apiVersion": "devices.kubeedge.io/v1beta1",
            "metadata": {"name": format!("d{device}"), "namespace": "dev", "uid": uid,
                         "resourceVersion": version.to_string()},
            "spec": {"nodeName": NODE, "deviceModelRef": {"name": "m"},
                     "properties": [{"name": "rate", "desired": {"value": rate.to_string()}}]},
        })
    });
}
