use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;
use wire::message::{Content, Message, Operation, Route};

use super::history::newest_beyond;
use super::*;
use crate::store::Db;

/// 2026, so that rows are old enough to expire and the clock counts as set.
const NOW: UnixMillis = 1_780_000_000_000;

fn rule(pattern: &str, policy: &str) -> Rule {
    Rule::new(pattern, Policy::parse(policy).unwrap()).unwrap()
}

fn of(tx: &Connection, stream: &str) -> Balance {
    let ledger = ledger(tx).unwrap();
    assert!(ledger.iter().all(Balance::is_balanced), "{ledger:?}");
    ledger
        .into_iter()
        .find(|b| b.stream == stream)
        .unwrap_or_default()
}

#[test]
fn a_stream_that_refuses_keeps_what_it_took_and_says_no() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("upload/a", "bytes=2Ki,whenFull=refuse")]).unwrap();
    for _ in 0..3 {
        append(tx, "upload/a", &[0; 500], NOW).unwrap();
    }
    let refused = append(tx, "upload/a", &[0; 500], NOW).unwrap_err();
    assert!(matches!(&refused, StoreError::Quota { stream } if stream == "upload/a"));
    assert!(refused.is_transient());
    count_refused(tx, "upload/a").unwrap();
    append(tx, "upload/b", &[0; 5_000], NOW).unwrap();
    let now = of(tx, "upload/a");
    assert_eq!(
        (now.accepted, now.pending, now.evicted, now.refused),
        (3, 3, 0, 1)
    );
    assert_eq!(bytes(tx).unwrap(), 3 * 564 + 5_064);
    delivered_up_to(tx, 1).unwrap();
    append(tx, "upload/a", &[0; 500], NOW).unwrap();
}

#[test]
fn of_one_thing_only_the_newest_waits() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("twin/#", "whenFull=keepNewest")]).unwrap();
    for n in 0..10_u8 {
        append_about(
            tx,
            "twin/n/d",
            ["a+-", "b+-"][usize::from(n % 2)],
            &[n],
            NOW,
        )
        .unwrap();
        append(tx, "upload/t", &[n], NOW).unwrap();
    }
    let left = pending(tx, 0, 100).unwrap();
    let twin: Vec<_> = left.iter().filter(|r| r.stream == "twin/n/d").collect();
    assert_eq!(
        twin.iter().map(|r| r.message[0]).collect::<Vec<_>>(),
        [8, 9]
    );
    let now = of(tx, "twin/n/d");
    assert_eq!((now.accepted, now.pending, now.evicted), (10, 2, 8));
    assert_eq!(of(tx, "upload/t").pending, 10);
    assert!(
        gaps(tx).unwrap().is_empty(),
        "a value that was replaced is no gap"
    );
}

#[test]
fn what_is_too_old_expires_and_a_clock_that_was_not_set_expires_nothing() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("upload/+", "ttl=1m"), rule("#", "")]).unwrap();
    append(tx, "upload/t", b"1970", 5_000).unwrap();
    append(tx, "upload/t", b"old", NOW - 61_000).unwrap();
    append(tx, "upload/t", b"young", NOW - 59_000).unwrap();
    append(tx, "upload/t", b"future", NOW + 86_400_000).unwrap();
    append(tx, "twin/n/d", b"old", NOW - 61_000).unwrap();
    assert_eq!(expire(tx, NOW).unwrap(), 1);
    assert_eq!(expire(tx, NOW).unwrap(), 0);
    let left: Vec<Seq> = pending(tx, 0, 10).unwrap().iter().map(|r| r.seq).collect();
    assert_eq!(left, [1, 3, 4, 5]);
    assert_eq!(of(tx, "upload/t").expired, 1);
    let gap = gaps(tx).unwrap().remove(0);
    assert_eq!(
        (gap.fate.as_str(), gap.rows, gap.first_seq),
        ("expired", 1, 2)
    );
    assert_eq!(gap.first_ms, NOW - 61_000);
}

#[test]
fn the_lowest_priority_gives_way_and_never_makes_a_higher_one() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    let rules = [
        rule("upload/low", "priority=1"),
        rule("upload/kept", "whenFull=refuse"),
        rule("twin/#", "priority=8"),
    ];
    set_rules(tx, &rules).unwrap();
    set_bytes_max(tx, 20 * 1_064).unwrap();
    append(tx, "upload/kept", &[0; 1_000], NOW).unwrap();
    for _ in 0..15 {
        append(tx, "upload/low", &[0; 1_000], NOW).unwrap();
    }
    for _ in 0..19 {
        append(tx, "twin/n/d", &[0; 1_000], NOW).unwrap();
    }
    let low = of(tx, "upload/low");
    assert_eq!((low.pending, low.evicted), (0, 15));
    assert_eq!(of(tx, "upload/kept").evicted, 0);
    assert_eq!(of(tx, "twin/n/d").evicted, 0);
    append(tx, "upload/low", &[0; 1_000], NOW).unwrap();
    let low = of(tx, "upload/low");
    assert_eq!(
        (low.accepted, low.evicted),
        (16, 16),
        "accepted, lost and counted"
    );
    assert!(append(tx, "upload/kept", &[0; 1_000], NOW).is_err());
    append(tx, "twin/n/d", &[0; 1_000], NOW).unwrap();
    // A share of the quota at a time: one row, or two.
    assert!((1..=2).contains(&of(tx, "twin/n/d").evicted));
    assert!(bytes(tx).unwrap() <= 20 * 1_064);
}

#[test]
fn gaps_grow_and_are_told_once() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("upload/t", "bytes=1Ki")]).unwrap();
    for n in 0..100 {
        append(tx, "upload/t", &[0; 100], NOW + n).unwrap();
    }
    let gap = gaps(tx).unwrap().remove(0);
    let now = of(tx, "upload/t");
    assert_eq!(
        (gap.rows, gap.first_seq, gap.first_ms),
        (now.evicted, 1, NOW)
    );
    assert_eq!(gap.last_seq, now.evicted);
    assert!(queue_gaps(tx, NOW).unwrap());
    assert!(!queue_gaps(tx, NOW).unwrap());
    let row = pending(tx, 0, 1_000).unwrap().pop().unwrap();
    assert_eq!(row.stream, wire::extension::GAPS_STREAM);
    let told = Message::decode(&row.message).unwrap();
    let told: wire::extension::Gaps = told.content.decode().unwrap();
    assert_eq!(told.gaps, [gap]);
}

#[test]
fn an_annotation_beats_the_configuration_and_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let (db, _) = Db::open(&path).unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("twin/#", "bytes=1Ki,whenFull=refuse")]).unwrap();
    append(tx, "twin/n/d", &[0; 900], NOW).unwrap();
    assert!(append(tx, "twin/n/d", &[0; 900], NOW).is_err());
    let annotate =
        |tx: &Connection, text: Option<&str>| set_device_policy(tx, "n", "d", text).unwrap();
    annotate(tx, Some("bytes=1Mi")).unwrap();
    append(tx, "twin/n/d", &[0; 900], NOW).unwrap();
    assert!(annotate(tx, Some("bytes=lots")).is_err());
    drop(db);
    let (db, _) = Db::open(&path).unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("twin/#", "bytes=1Ki,whenFull=refuse")]).unwrap();
    append(tx, "twin/n/d", &[0; 900], NOW).unwrap();
    assert!(append(tx, "twin/n/other", &[0; 1_900], NOW).is_err());
    annotate(tx, None).unwrap();
    assert!(append(tx, "twin/n/d", &[0; 900], NOW).is_err());
}

#[derive(Clone, Debug)]
enum Act {
    Append(usize, usize, u8),
    Rule(usize, usize),
    Total(u64),
    Expire(i64),
    Deliver(u64),
}

const STREAMS: [&str; 4] = ["upload/a", "upload/b", "twin/n/d", "state/n/d"];
const POLICIES: [&str; 6] = [
    "",
    "priority=1",
    "priority=9,bytes=2Ki",
    "whenFull=refuse",
    "bytes=1Ki,whenFull=refuse,priority=3",
    "whenFull=keepNewest,ttl=5s",
];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0..4_usize, 0..500_usize, 0..3_u8).prop_map(|(s, len, key)| Act::Append(s, len, key)),
        2 => (0..4_usize, 0..6_usize).prop_map(|(s, p)| Act::Rule(s, p)),
        1 => (500..8_000_u64).prop_map(Act::Total),
        1 => (0..20_000_i64).prop_map(Act::Expire),
        1 => (0..60_u64).prop_map(Act::Deliver),
    ]
}

proptest! {
    #[test]
    fn policies_lose_nothing_without_counting_it(acts in prop::collection::vec(act(), 1..150)) {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let mut policies = [0_usize; 4];
        let mut now = NOW;
        let mut accepted: BTreeMap<&str, u64> = BTreeMap::new();
        for act in acts {
            let before: Vec<Balance> = STREAMS.iter().map(|s| of(tx, s)).collect();
            match act {
                Act::Append(stream, len, key) => {
                    now += 100;
                    let name = STREAMS[stream];
                    let message = vec![0; len];
                    match append_about(tx, name, &key.to_string(), &message, now) {
                        Ok(_) => *accepted.entry(name).or_default() += 1,
                        Err(StoreError::Quota { stream: told }) => {
                            prop_assert_eq!(told, name);
                            prop_assert!(POLICIES[policies[stream]].contains("refuse"));
                            prop_assert_eq!(&before[stream], &of(tx, name));
                        }
                        Err(other) => panic!("{other}"),
                    }
                    for (at, was) in before.iter().enumerate() {
                        if POLICIES[policies[at]].contains("refuse") {
                            prop_assert_eq!(was.evicted, of(tx, STREAMS[at]).evicted);
                        }
                    }
                    let held = of(tx, name).bytes;
                    if POLICIES[policies[stream]].contains("bytes=2Ki") {
                        prop_assert!(held <= 2_048, "{held}");
                    }
                }
                Act::Rule(stream, policy) => {
                    policies[stream] = policy;
                    let rules: Vec<Rule> = STREAMS
                        .iter()
                        .zip(policies)
                        .map(|(s, p)| rule(s, POLICIES[p]))
                        .collect();
                    set_rules(tx, &rules).unwrap();
                }
                Act::Total(bytes) => set_bytes_max(tx, bytes).unwrap(),
                Act::Expire(later) => {
                    now += later;
                    expire(tx, now).unwrap();
                }
                Act::Deliver(up_to) => drop(delivered_up_to(tx, up_to).unwrap()),
            }
            let held: u64 = STREAMS.iter().map(|s| of(tx, s).bytes).sum();
            prop_assert_eq!(held, bytes(tx).unwrap());
            let running: u64 = tx
                .query_row("SELECT bytes FROM temp.outbox_total", [], |r| r.get(0))
                .unwrap();
            prop_assert_eq!(held, running, "the running total drifts");
            for stream in STREAMS {
                prop_assert_eq!(of(tx, stream).accepted, accepted.get(stream).copied().unwrap_or(0));
            }
        }
    }
}

const LIVE_MAX: usize = 8;

fn report(device: usize, values: &[(usize, u32)], id: u32) -> Vec<u8> {
    let twin: serde_json::Map<String, serde_json::Value> = values
        .iter()
        .map(|(p, v)| (format!("p{p}"), json!({"actual": {"value": v.to_string()}})))
        .collect();
    let body = json!({"event_id": id.to_string(), "timestamp": 5, "twin": twin});
    let resource = format!("device/n/d{device}/twin/edge_updated");
    let route = Route::new("twin", "resource", &Operation::Update, resource);
    Message::new(id.to_string(), 5, route, Content::json(&body).unwrap()).encode()
}

/// A hub as naive as can be: numbers rise, history counts and changes nothing.
#[derive(Default)]
struct Hub {
    acked: Seq,
    received: BTreeMap<String, u32>,
    status: BTreeMap<(String, String), String>,
    late: u32,
}

impl Hub {
    fn take(&mut self, row: &Pending) {
        if row.seq <= self.acked {
            return;
        }
        self.acked = row.seq;
        let message = Message::decode(&row.message).unwrap();
        *self.received.entry(message.header.id.clone()).or_default() += 1;
        if row.is_history {
            self.late += 1;
            return;
        }
        let body: serde_json::Value = message.content.decode().unwrap();
        for (name, twin) in body["twin"].as_object().unwrap() {
            let value = twin["actual"]["value"].as_str().unwrap().to_owned();
            self.status
                .insert((row.stream.clone(), name.clone()), value);
        }
    }
}

#[derive(Clone, Debug)]
enum Move {
    Report {
        device: usize,
        props: Vec<usize>,
    },
    /// A connection breaks and the next one begins; so many rows came while the backlog was read.
    Connect {
        meanwhile: usize,
    },
    Send(usize),
    Release(usize),
    Delete,
}

fn moves() -> impl Strategy<Value = Move> {
    let report = (0..3_usize, prop::collection::vec(0..3_usize, 1..3))
        .prop_map(|(device, props)| Move::Report { device, props });
    prop_oneof![
        12 => report,
        1 => (0..4_usize).prop_map(|meanwhile| Move::Connect { meanwhile }),
        2 => (1..6_usize).prop_map(Move::Send),
        2 => (1..6_usize).prop_map(Move::Release),
        1 => Just(Move::Delete),
    ]
}

struct Node<'a> {
    tx: &'a Connection,
    cursor: Seq,
    told: Told,
    next: u32,
    truth: BTreeMap<(String, String), String>,
}

impl Node<'_> {
    fn report(&mut self, device: usize, props: &[usize]) {
        self.next += 1;
        let values: Vec<(usize, u32)> = props.iter().map(|p| (*p, self.next)).collect();
        let stream = format!("twin/n/d{device}");
        append(self.tx, &stream, &report(device, &values, self.next), NOW).unwrap();
        for (p, value) in values {
            self.truth
                .insert((stream.clone(), format!("p{p}")), value.to_string());
        }
    }

    fn connect(&mut self, hub: &Hub, meanwhile: usize) {
        let newest = newest_beyond(self.tx, hub.acked, LIVE_MAX).unwrap();
        for n in 0..meanwhile {
            self.report(n % 3, &[n % 2]);
        }
        self.cursor = resume(self.tx, hub.acked, newest).unwrap();
        self.told = Told::default();
    }

    fn send(&mut self, hub: &mut Hub, limit: usize) -> usize {
        let rows = pending(self.tx, self.cursor, limit).unwrap();
        for row in &rows {
            hub.take(row);
            self.cursor = row.seq;
        }
        rows.len()
    }
}

proptest! {
    #[test]
    fn live_values_come_first_and_every_report_comes_once(
        steps in prop::collection::vec(moves(), 1..150)
    ) {
        let db = Db::open_in_memory().unwrap();
        let mut hub = Hub::default();
        let mut node = Node {
            tx: db.reader(), cursor: 0, told: Told::default(), next: 0, truth: BTreeMap::new(),
        };
        for step in steps {
            match step {
                Move::Report { device, props } => node.report(device, &props),
                Move::Connect { meanwhile } => node.connect(&hub, meanwhile),
                Move::Send(limit) => drop(node.send(&mut hub, limit)),
                Move::Release(limit) => {
                    release(node.tx, &mut node.told, limit).unwrap();
                }
                Move::Delete => drop(delivered_up_to(node.tx, hub.acked).unwrap()),
            }
            prop_assert!(ledger(node.tx).unwrap().iter().all(Balance::is_balanced));
        }
        node.connect(&hub, 0);
        while node.send(&mut hub, 3) > 0 {}
        prop_assert_eq!(&hub.status, &node.truth, "live values first");
        while release(node.tx, &mut node.told, 3).unwrap() > 0 {
            while node.send(&mut hub, 3) > 0 {}
        }
        delivered_up_to(node.tx, hub.acked).unwrap();
        prop_assert_eq!(&hub.status, &node.truth, "history overwrites nothing");
        prop_assert_eq!(hub.received.len(), usize::try_from(node.next).unwrap());
        prop_assert!(hub.received.values().all(|n| *n == 1));
        prop_assert!(ledger(node.tx).unwrap().iter().all(|b| b.is_balanced() && b.pending == 0));
    }
}

#[test]
fn history_leaves_by_priority_and_a_plain_hub_gets_the_old_order() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_rules(tx, &[rule("upload/high", "priority=9")]).unwrap();
    for n in 0..20_u8 {
        append(
            tx,
            if n % 2 == 0 {
                "upload/low"
            } else {
                "upload/high"
            },
            &[n],
            NOW,
        )
        .unwrap();
    }
    let newest = newest_beyond(tx, 0, LIVE_MAX).unwrap();
    let mark = resume(tx, 0, newest).unwrap();
    let first = |after, n| -> Vec<(u8, bool)> {
        let rows = pending(tx, after, n).unwrap();
        rows.iter().map(|r| (r.message[0], r.is_history)).collect()
    };
    assert_eq!(first(mark, 10), [(18, false), (19, false)]);
    let mut told = Told::default();
    assert_eq!(release(tx, &mut told, 11).unwrap(), 11);
    let rows = first(mark + 2, 20);
    assert_eq!(rows[..3], [(1, true), (3, true), (5, true)]);
    assert_eq!(rows[9..], [(0, true), (2, true)]);
    assert!(resume_plain(tx).unwrap());
    let all: Vec<u8> = first(0, 100).iter().map(|(n, _)| *n).collect();
    assert_eq!(all[..18], (0..18).collect::<Vec<u8>>());
    assert!(first(0, 100).iter().all(|(_, is_history)| !is_history));
    assert!(!resume_plain(tx).unwrap());
}
