//! The file, its bounds and the forwarders' equation.

use proptest::prelude::*;

use super::*;

fn row(source: &str, property: &str, at: i64, value: &str) -> Row {
    Row {
        source: source.into(),
        property: property.into(),
        at,
        value: value.into(),
        history: false,
    }
}

fn open(dir: &tempfile::TempDir, bytes: u64) -> Readings {
    let bounds = Bounds {
        age_secs: 3600,
        bytes,
    };
    Readings::open(&dir.path().join("readings.db"), bounds).unwrap()
}

async fn values(readings: &Readings, series: Series, range: Range) -> Vec<String> {
    let found = readings.read(move |conn| db::query(conn, &series, &range));
    found.await.unwrap().into_iter().map(|k| k.value).collect()
}

fn of(source: &str) -> Series {
    Series {
        source: source.into(),
        ..Series::default()
    }
}

#[tokio::test]
async fn what_comes_again_is_not_written_again_and_ranges_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let readings = open(&dir, 1 << 20);
    let batch = |range: std::ops::RangeInclusive<i64>| {
        range
            .map(|n| {
                let seq = u64::try_from(n).unwrap();
                (
                    seq,
                    vec![
                        row("d/t", "c", n * 10, &n.to_string()),
                        row("d/t", "h", n * 10, "h"),
                    ],
                )
            })
            .collect::<Vec<_>>()
    };
    readings.append("e1", "x", batch(1..=20)).await.unwrap();
    readings.append("e1", "x", batch(10..=30)).await.unwrap();
    drop(readings);
    let readings = open(&dir, 1 << 20);
    readings.append("e1", "x", batch(30..=30)).await.unwrap();
    let celsius = Series {
        property: Some("c".into()),
        ..of("d/t")
    };
    let range = Range {
        limit: 100,
        ..Range::default()
    };
    let all: Vec<String> = (1..=30).map(|n| n.to_string()).collect();
    assert_eq!(values(&readings, celsius.clone(), range).await, all);
    assert_eq!(values(&readings, of("d/t"), range).await.len(), 60);
    let last = Range {
        limit: 2,
        last: true,
        ..range
    };
    assert_eq!(values(&readings, celsius.clone(), last).await, ["29", "30"]);
    let part = Range {
        since: Some(50),
        until: Some(70),
        ..range
    };
    assert_eq!(values(&readings, celsius.clone(), part).await, ["5", "6"]);
    let other = Series {
        node: Some("e2".into()),
        ..celsius
    };
    assert!(values(&readings, other, range).await.is_empty());
    // A node set up anew counts from one again, and others' numbers are their own.
    readings.append("e1", "y", batch(1..=1)).await.unwrap();
    readings.append("e2", "x", batch(1..=1)).await.unwrap();
    assert_eq!(values(&readings, of("d/t"), range).await.len(), 64);
}

#[tokio::test]
async fn the_oldest_go_and_forwarders_know_what_they_missed() {
    let dir = tempfile::tempdir().unwrap();
    let readings = open(&dir, 10_000);
    readings
        .append("e", "x", vec![(1, vec![row("d/t", "c", 1, "0")])])
        .await
        .unwrap();
    assert_eq!(
        readings.register("f").await.unwrap().accepted,
        0,
        "from now on"
    );
    for seq in 2..=101 {
        let rows = vec![row("d/t", "c", 1, &"v".repeat(136))];
        readings.append("e", "x", vec![(seq, rows)]).await.unwrap();
        if seq == 11 {
            let cursor = readings.register("f").await.unwrap().cursor;
            readings
                .advance("f", cursor + 4, Settled::Delivered)
                .await
                .unwrap();
        }
    }
    let progress = readings.register("f").await.unwrap();
    assert_eq!(
        (progress.accepted, progress.delivered, progress.pending),
        (100, 4, 50)
    );
    assert_eq!((progress.expired, progress.evicted), (0, 46));
    // An answer that comes after its readings went is not counted twice.
    let late = readings.advance("f", 20, Settled::Delivered).await.unwrap();
    assert_eq!(late, progress);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn the_equation_holds(steps in proptest::collection::vec((0_u8..4, 1_i64..40), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let readings = open(&dir, 4000);
            readings.register("f").await.unwrap();
            let mut seq = 0;
            for (what, n) in steps {
                let now = readings.register("f").await.unwrap();
                let to = (now.cursor + n).min(now.cursor + i64::try_from(now.pending).unwrap());
                match what {
                    0 => drop(readings.advance("f", to, Settled::Expired).await.unwrap()),
                    1 => drop(readings.advance("f", to, Settled::Delivered).await.unwrap()),
                    _ => {
                        let rows = (0..n).map(|_| row("t", "", 1, "value")).collect();
                        seq += 1;
                        readings.append("e", "x", vec![(seq, rows)]).await.unwrap();
                    }
                }
                let p = readings.register("f").await.unwrap();
                assert_eq!(p.accepted, p.delivered + p.pending + p.expired + p.evicted);
            }
        });
    }
}

#[tokio::test]
async fn a_file_of_the_first_version_opens_and_history_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("readings.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(
        "CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 1), newest INTEGER NOT NULL,
             gone INTEGER NOT NULL, bytes INTEGER NOT NULL, series INTEGER NOT NULL,
             refused INTEGER NOT NULL);
         INSERT INTO state VALUES (1, 1, 0, 65, 1, 0);
         CREATE TABLE series (id INTEGER PRIMARY KEY, node TEXT NOT NULL, source TEXT NOT NULL,
             property TEXT NOT NULL, UNIQUE (source, property, node));
         INSERT INTO series VALUES (1, 'e1', 'd/t', 'c');
         CREATE TABLE reading (id INTEGER PRIMARY KEY, series INTEGER NOT NULL,
             at INTEGER NOT NULL, received INTEGER NOT NULL, value TEXT NOT NULL);
         INSERT INTO reading VALUES (1, 1, 10, 9000000000000, 'old');
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(old);
    let readings = open(&dir, 1 << 20);
    let late = Row {
        history: true,
        ..row("d/t", "c", 5, "late")
    };
    readings
        .append("e1", "x", vec![(1, vec![late])])
        .await
        .unwrap();
    let found = readings
        .read(|conn| {
            db::query(
                conn,
                &of("d/t"),
                &Range {
                    limit: 9,
                    ..Range::default()
                },
            )
        })
        .await
        .unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|k| (k.value.as_str(), k.history))
        .collect();
    assert_eq!(found, [("late", true), ("old", false)]);
}
