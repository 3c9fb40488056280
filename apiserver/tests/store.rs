//! What every store must do, run against each implementation.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test helper that fails is a failed test"
)]

use std::sync::Arc;
use std::time::Duration;

use apiserver::store::sqlite::History;
use apiserver::store::{
    ListQuery, MemoryStore, Require, SqliteStore, Store, StoreError, Txn, Watcher,
};

struct Place {
    store: Arc<dyn Store>,
    _dir: Option<tempfile::TempDir>,
}

fn places() -> Vec<(&'static str, Place)> {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(&dir.path().join("hub.db")).unwrap();
    vec![
        (
            "memory",
            Place {
                store: Arc::new(MemoryStore::new()),
                _dir: None,
            },
        ),
        (
            "sqlite",
            Place {
                store: Arc::new(sqlite),
                _dir: Some(dir),
            },
        ),
    ]
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("did not happen")
}

async fn keys(store: &dyn Store, query: ListQuery) -> Vec<String> {
    let listing = store.list(query).await.unwrap();
    listing.entries.iter().map(|e| e.key.to_string()).collect()
}

fn prefix(prefix: &str) -> ListQuery {
    ListQuery {
        prefix: prefix.into(),
        ..ListQuery::default()
    }
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing_and_takes_one_revision() {
    for (name, place) in places() {
        let store = &place.store;
        assert_eq!(store.revision().await.unwrap(), 1, "{name}");
        let r = store
            .txn(
                Txn::new()
                    .require(Require::Absent("/a/1".into()))
                    .put("/a/1", "x")
                    .put("/ledger/1", "7"),
            )
            .await
            .unwrap();
        assert_eq!(r, 2, "{name}");
        let a = store.get("/a/1").await.unwrap().unwrap();
        let l = store.get("/ledger/1").await.unwrap().unwrap();
        assert_eq!(
            (a.revision, a.create_revision, l.revision),
            (2, 2, 2),
            "{name}"
        );

        let refused = store
            .txn(
                Txn::new()
                    .require(Require::At("/a/1".into(), 2))
                    .require(Require::Absent("/ledger/1".into()))
                    .put("/a/1", "y"),
            )
            .await
            .unwrap_err();
        assert!(
            matches!(&refused, StoreError::Conflict { key, found: Some(2) } if key == "/ledger/1"),
            "{name}: {refused}"
        );
        assert_eq!(&store.get("/a/1").await.unwrap().unwrap().value[..], b"x");
        assert_eq!(store.revision().await.unwrap(), 2, "{name}");

        let r = store
            .txn(
                Txn::new()
                    .require(Require::At("/a/1".into(), 2))
                    .put("/a/1", "y"),
            )
            .await
            .unwrap();
        let a = store.get("/a/1").await.unwrap().unwrap();
        assert_eq!((r, a.revision, a.create_revision), (3, 3, 2), "{name}");

        let twice = store.txn(Txn::new().put("/b", "1").delete("/b")).await;
        assert!(matches!(twice, Err(StoreError::Refused(_))), "{name}");
    }
}

#[tokio::test]
async fn writers_that_race_have_one_winner() {
    for (name, place) in places() {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..50 {
            let store = Arc::clone(&place.store);
            tasks.spawn(async move {
                let txn = Txn::new()
                    .require(Require::Absent("/one".into()))
                    .put("/one", n.to_string());
                store.txn(txn).await.is_ok()
            });
        }
        let mut won = 0;
        while let Some(result) = soon(tasks.join_next()).await {
            won += usize::from(result.unwrap());
        }
        assert_eq!(won, 1, "{name}");
        assert_eq!(place.store.revision().await.unwrap(), 2, "{name}");
    }
}

#[tokio::test]
async fn lists_are_ordered_paged_and_can_look_back() {
    for (name, place) in places() {
        let store = &*place.store;
        for key in ["/r/a/2", "/r/a/1", "/r/a/3", "/r/ab", "/r/b/1"] {
            store.txn(Txn::new().put(key, "1")).await.unwrap();
        }
        let page = store
            .list(ListQuery {
                limit: 2,
                ..prefix("/r/a/")
            })
            .await
            .unwrap();
        assert_eq!(
            (page.entries.len(), page.remaining, page.revision),
            (2, 1, 6),
            "{name}"
        );
        store.txn(Txn::new().delete("/r/a/3")).await.unwrap();
        store.txn(Txn::new().put("/r/a/4", "1")).await.unwrap();
        store.txn(Txn::new().put("/r/a/1", "2")).await.unwrap();
        store.txn(Txn::new().put("/r/a/1", "3")).await.unwrap();
        let rest = ListQuery {
            limit: 2,
            after: Some("/r/a/2".into()),
            at: Some(6),
            ..prefix("/r/a/")
        };
        assert_eq!(keys(store, rest).await, ["/r/a/3"], "{name}");
        assert_eq!(
            keys(store, prefix("/r/a/")).await,
            ["/r/a/1", "/r/a/2", "/r/a/4"],
            "{name}"
        );
        for (at, value) in [(6, "1"), (8, "1"), (9, "2"), (10, "3")] {
            let then = store
                .list(ListQuery {
                    at: Some(at),
                    ..prefix("/r/a/1")
                })
                .await
                .unwrap();
            assert_eq!(then.entries[0].value, value.as_bytes(), "{name} at {at}");
        }
        let future = store
            .list(ListQuery {
                at: Some(11),
                ..prefix("/")
            })
            .await;
        assert!(
            matches!(future, Err(StoreError::Future { current: 10, .. })),
            "{name}"
        );
    }
}

async fn next_keys(watcher: &mut Box<dyn Watcher>) -> Vec<(String, bool)> {
    let events = soon(watcher.next()).await.unwrap();
    events
        .iter()
        .map(|e| (e.key.to_string(), e.value.is_some()))
        .collect()
}

#[tokio::test]
async fn watchers_see_their_prefix_in_order_and_move_along_when_idle() {
    for (name, place) in places() {
        let store = &place.store;
        store.txn(Txn::new().put("/p/1", "1")).await.unwrap();
        let mut watcher = store.watch("/p/", 1).await.unwrap();
        assert_eq!(
            next_keys(&mut watcher).await,
            [("/p/1".into(), true)],
            "{name}"
        );
        store.txn(Txn::new().put("/q/1", "1")).await.unwrap();
        assert_eq!(watcher.position(), 3, "{name}: nothing concerned it");
        store
            .txn(Txn::new().put("/p/1", "2").put("/p/2", "1"))
            .await
            .unwrap();
        store.txn(Txn::new().delete("/p/1")).await.unwrap();
        let mut got = Vec::new();
        while got.len() < 3 {
            got.extend(soon(watcher.next()).await.unwrap());
        }
        assert_eq!(got[0].revision, 4, "{name}");
        assert_eq!(got[0].prev.as_ref().unwrap().value, "1", "{name}");
        assert_eq!(
            (got[2].revision, got[2].value.is_none()),
            (5, true),
            "{name}"
        );
        assert_eq!(got[2].prev.as_ref().unwrap().value, "2", "{name}");
        assert_eq!(watcher.position(), 5, "{name}");
    }
}

#[tokio::test]
async fn a_slow_watcher_reads_the_log_and_misses_nothing() {
    for (name, place) in places() {
        let store = &place.store;
        let mut watcher = store.watch("/p/", 1).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..3000 {
            let store = Arc::clone(store);
            tasks.spawn(async move { store.txn(Txn::new().put(format!("/p/{n}"), "v")).await });
        }
        while let Some(result) = soon(tasks.join_next()).await {
            result.unwrap().unwrap();
        }
        let mut revisions = Vec::new();
        while revisions.len() < 3000 {
            revisions.extend(
                soon(watcher.next())
                    .await
                    .unwrap()
                    .iter()
                    .map(|e| e.revision),
            );
        }
        assert_eq!(revisions, (2..=3001).collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test]
async fn sqlite_compacts_and_tells_who_asks_for_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let history = History {
        rows_max: 50,
        bytes_max: 1 << 20,
        rows_kept: 10,
    };
    let store = SqliteStore::open_with(&path, history).unwrap();
    for n in 0..200 {
        store
            .txn(Txn::new().put("/p/1", n.to_string()))
            .await
            .unwrap();
        store
            .txn(Txn::new().put(format!("/t/{n}"), "x"))
            .await
            .unwrap();
        store
            .txn(Txn::new().delete(format!("/t/{n}")))
            .await
            .unwrap();
    }
    assert!(matches!(
        store.watch("/p/", 2).await,
        Err(StoreError::Expired { asked: 2, .. })
    ));
    let old = ListQuery {
        at: Some(2),
        ..prefix("/p/")
    };
    assert!(matches!(
        store.list(old).await,
        Err(StoreError::Expired { .. })
    ));
    let rows: u64 = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM log", [], |r| r.get(0))
        .unwrap();
    assert!(rows < 60, "{rows} rows are left");
    assert_eq!(store.get("/p/1").await.unwrap().unwrap().value, "199");
}

#[tokio::test]
async fn sqlite_remembers_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let store = SqliteStore::open(&path).unwrap();
    store.txn(Txn::new().put("/p/1", "1")).await.unwrap();
    drop(store);
    for entry in dir.path().read_dir().unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let entry = entry.unwrap();
        let Ok(data) = entry.metadata() else {
            continue; // a side file that has just been removed
        };
        let mode = data.permissions().mode();
        assert_eq!(
            mode & 0o077,
            0,
            "{} is for its owner only",
            entry.path().display()
        );
    }
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), 2);
    let mut watcher = store.watch("/p/", 1).await.unwrap();
    assert_eq!(next_keys(&mut watcher).await, [("/p/1".into(), true)]);
    assert_eq!(store.txn(Txn::new().put("/p/1", "2")).await.unwrap(), 3);
}
