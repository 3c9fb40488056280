use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::Db;

#[test]
fn the_ledger_balances_through_append_and_both_kinds_of_delivery() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    for n in 0..6_u8 {
        append(tx, if n % 2 == 0 { "a" } else { "b" }, &[n], 1).unwrap();
    }
    assert_eq!(
        pending(tx, 0, 2)
            .unwrap()
            .iter()
            .map(|p| p.seq)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(delivered_up_to(tx, 3).unwrap(), 3);
    assert!(delivered_one(tx, 5).unwrap());
    assert!(
        !delivered_one(tx, 5).unwrap(),
        "a second acknowledgement changes nothing"
    );
    assert!(expired_one(tx, 6).unwrap() && !expired_one(tx, 6).unwrap());
    let ledger = ledger(tx).unwrap();
    assert!(ledger.iter().all(Balance::is_balanced), "{ledger:?}");
    assert_eq!(ledger[0].delivered, 3);
    assert_eq!((ledger[1].pending, ledger[1].expired), (1, 1));
    assert_eq!(epoch(tx).unwrap(), epoch(tx).unwrap());
}

fn rows(tx: &Connection) -> Vec<(Seq, String)> {
    pending(tx, 0, 10_000)
        .unwrap()
        .into_iter()
        .map(|row| (row.seq, row.stream))
        .collect()
}

fn of<'a>(ledger: &'a [Balance], stream: &str) -> &'a Balance {
    ledger.iter().find(|b| b.stream == stream).unwrap()
}

#[test]
fn a_talkative_upload_gives_way_to_itself_and_a_twin_to_the_largest() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_bytes_max(tx, 32 * 1_064).unwrap();
    append(tx, "twin/a/b", &[0; 1_000], 1).unwrap();
    append(tx, "upload/quiet", &[0; 1_000], 1).unwrap();
    for _ in 0..200 {
        append(tx, "upload/loud", &[0; 1_000], 1).unwrap();
    }
    for _ in 0..3 {
        append(tx, "state/a/b", &[0; 1_000], 1).unwrap();
    }
    let now = ledger(tx).unwrap();
    assert!(now.iter().all(Balance::is_balanced), "{now:?}");
    for untouched in ["twin/a/b", "upload/quiet", "state/a/b"] {
        assert_eq!(of(&now, untouched).evicted, 0, "{untouched}");
    }
    let loud = of(&now, "upload/loud");
    assert!(loud.evicted > 170 && loud.pending > 20, "{loud:?}");
    assert!(bytes(tx).unwrap() <= 32 * 1_064);
    let left = rows(tx);
    let newest = left.iter().rfind(|(_, stream)| stream == "upload/loud");
    assert_eq!(newest.unwrap().0, 202, "the newest stay");
}

#[test]
fn among_many_like_streams_the_oldest_rows_go() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_bytes_max(tx, 100 * 164).unwrap();
    for n in 0..120 {
        append(tx, &format!("twin/a/{}", n % 20), &[0; 100], 1).unwrap();
    }
    let left = rows(tx);
    assert!(left.len() > 90 && left.len() <= 100, "{}", left.len());
    assert_eq!(left.last().unwrap().0, 120);
    let span = left.last().unwrap().0 - left[0].0 + 1;
    assert_eq!(span, u64::try_from(left.len()).unwrap(), "no gap");
}

#[test]
fn a_row_that_was_evicted_is_delivered_without_counting_twice() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_bytes_max(tx, 10 * 164).unwrap();
    for _ in 0..15 {
        append(tx, "upload/t", &[0; 100], 1).unwrap();
    }
    assert!(!delivered_one(tx, 1).unwrap() && !expired_one(tx, 2).unwrap());
    let waited = rows(tx).len();
    assert_eq!(
        delivered_up_to(tx, 15).unwrap(),
        u64::try_from(waited).unwrap()
    );
    let now = ledger(tx).unwrap();
    assert!(now[0].is_balanced() && now[0].pending == 0, "{now:?}");
    assert_eq!(bytes(tx).unwrap(), 0);
}

#[test]
fn a_message_larger_than_the_quota_is_taken_alone() {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_bytes_max(tx, 1_000).unwrap();
    append(tx, "upload/t", &[0; 100], 1).unwrap();
    append(tx, "twin/a/b", &[0; 5_000], 1).unwrap();
    assert_eq!(rows(tx), [(2, "twin/a/b".to_owned())]);
    append(tx, "upload/t", &[0; 100], 1).unwrap();
    assert_eq!(rows(tx), [(3, "upload/t".to_owned())]);
    assert!(ledger(tx).unwrap().iter().all(Balance::is_balanced));
}

#[test]
fn topics_beyond_the_bound_share_a_stream_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let (db, _) = Db::open(&path).unwrap();
    let tx = db.reader();
    tx.execute_batch("BEGIN").unwrap();
    for n in 0..=UPLOAD_STREAMS_MAX {
        append(tx, &format!("upload/{n}"), b"x", 1).unwrap();
    }
    tx.execute_batch("COMMIT").unwrap();
    let before = bytes(tx).unwrap();
    drop(db);
    let (db, _) = Db::open(&path).unwrap();
    let tx = db.reader();
    append(tx, "upload/new", b"x", 1).unwrap();
    append(tx, "upload/0", b"x", 1).unwrap();
    append(tx, "twin/a/b", b"x", 1).unwrap();
    let now = ledger(tx).unwrap();
    assert_eq!(of(&now, UPLOADS_OTHER).pending, 2);
    assert_eq!(of(&now, "upload/0").pending, 2);
    assert_eq!(of(&now, "twin/a/b").pending, 1);
    assert_eq!(bytes(tx).unwrap(), before + 3 * 65);
    let total: u64 = tx
        .query_row("SELECT bytes FROM temp.outbox_total", [], |r| r.get(0))
        .unwrap();
    assert_eq!(total, bytes(tx).unwrap());
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        stream: usize,
        len: usize,
    },
    DeliverUpTo(u64),
    DeliverOne(u64),
    Expire(u64),
    Quota(u64),
    /// The transaction so far is undone.
    Undo,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..STREAMS.len(), 0..400_usize).prop_map(|(stream, len)| Step::Append { stream, len }),
        1 => (1..80_u64).prop_map(Step::DeliverUpTo),
        1 => (1..80_u64).prop_map(Step::DeliverOne),
        1 => (1..80_u64).prop_map(Step::Expire),
        1 => (200..6_000_u64).prop_map(Step::Quota),
        1 => Just(Step::Undo),
        2 => Just(Step::Commit),
    ]
}

const STREAMS: [&str; 4] = ["upload/a", "upload/b", "twin/n/d", "state/n/d"];

/// A second, naive keeper of the books: it believes the outbox only about which rows gave way.
#[derive(Clone, Debug, Default)]
struct Model {
    rows: BTreeMap<Seq, (String, u64)>,
    accepted: BTreeMap<String, u64>,
    delivered: BTreeMap<String, u64>,
    expired: BTreeMap<String, u64>,
    evicted: BTreeMap<String, u64>,
}

impl Model {
    fn remove(&mut self, seq: Seq, fate: Fate) -> bool {
        let Some((stream, _)) = self.rows.remove(&seq) else {
            return false;
        };
        let book = match fate {
            Fate::Delivered => &mut self.delivered,
            Fate::Expired => &mut self.expired,
            Fate::Evicted => &mut self.evicted,
        };
        *book.entry(stream).or_default() += 1;
        true
    }

    fn append(&mut self, tx: &Connection, stream: &str, len: usize, quota: u64) {
        let seq = append(tx, stream, &vec![0; len], 1).unwrap();
        let left: Vec<Seq> = rows(tx).into_iter().map(|(seq, _)| seq).collect();
        let gone: Vec<Seq> = self
            .rows
            .keys()
            .copied()
            .filter(|s| !left.contains(s))
            .collect();
        let cost = u64::try_from(len).unwrap() + 64;
        let held: u64 = self.rows.values().map(|(_, cost)| cost).sum();
        if held + cost <= quota {
            assert!(gone.is_empty(), "nobody gives way without need");
        }
        for seq in gone {
            let (stream, _) = self.rows[&seq].clone();
            let older = self.rows.range(..seq).any(|(_, (s, _))| *s == stream);
            assert!(!older, "the oldest of a stream goes first");
            self.remove(seq, Fate::Evicted);
        }
        *self.accepted.entry(stream.to_owned()).or_default() += 1;
        self.rows.insert(seq, (stream.to_owned(), cost));
        let held: u64 = self.rows.values().map(|(_, cost)| cost).sum();
        assert!(held <= quota || self.rows.len() == 1, "{held} of {quota}");
    }

    fn check(&self, tx: &Connection) {
        for balance in ledger(tx).unwrap() {
            assert!(balance.is_balanced(), "{balance:?}");
            let of = |book: &BTreeMap<String, u64>| book.get(&balance.stream).copied().unwrap_or(0);
            let waiting = self
                .rows
                .values()
                .filter(|(s, _)| *s == balance.stream)
                .count();
            assert_eq!(
                balance,
                Balance {
                    stream: balance.stream.clone(),
                    accepted: of(&self.accepted),
                    delivered: of(&self.delivered),
                    expired: of(&self.expired),
                    evicted: of(&self.evicted),
                    pending: u64::try_from(waiting).unwrap(),
                    refused: 0,
                    bytes: self
                        .rows
                        .values()
                        .filter(|(s, _)| *s == balance.stream)
                        .map(|(_, cost)| cost)
                        .sum(),
                }
            );
        }
        let held: u64 = self.rows.values().map(|(_, cost)| cost).sum();
        assert_eq!(bytes(tx).unwrap(), held);
        let total: u64 = tx
            .query_row("SELECT bytes FROM temp.outbox_total", [], |r| r.get(0))
            .unwrap();
        assert_eq!(total, held, "the running total drifts");
    }
}

proptest! {
    #[test]
    fn the_books_agree_with_a_naive_model(steps in prop::collection::vec(step(), 1..120)) {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let (mut model, mut quota) = (Model::default(), BYTES_MAX);
        let (mut kept, mut kept_quota) = (model.clone(), quota);
        tx.execute_batch("BEGIN").unwrap();
        for step in steps {
            match step {
                Step::Append { stream, len } => model.append(tx, STREAMS[stream], len, quota),
                Step::DeliverUpTo(seq) => {
                    let due: Vec<Seq> = model.rows.range(..=seq).map(|(seq, _)| *seq).collect();
                    let told = delivered_up_to(tx, seq).unwrap();
                    prop_assert_eq!(told, u64::try_from(due.len()).unwrap());
                    for seq in due {
                        model.remove(seq, Fate::Delivered);
                    }
                }
                Step::DeliverOne(seq) => prop_assert_eq!(
                    delivered_one(tx, seq).unwrap(), model.remove(seq, Fate::Delivered)),
                Step::Expire(seq) => prop_assert_eq!(
                    expired_one(tx, seq).unwrap(), model.remove(seq, Fate::Expired)),
                Step::Quota(bytes) => {
                    set_bytes_max(tx, bytes).unwrap();
                    quota = bytes;
                }
                Step::Undo => {
                    tx.execute_batch("ROLLBACK; BEGIN").unwrap();
                    (model, quota) = (kept.clone(), kept_quota);
                }
                Step::Commit => {
                    tx.execute_batch("COMMIT; BEGIN").unwrap();
                    (kept, kept_quota) = (model.clone(), quota);
                }
            }
            model.check(tx);
        }
    }
}
