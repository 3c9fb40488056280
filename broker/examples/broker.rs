//! The broker alone, durable by a small SQLite file, or in memory.
//!
//! ```text
//! cargo run -p broker --example broker -- 127.0.0.1:1883 /tmp/mqtt.db
//! cargo run -p broker --example broker -- 127.0.0.1:1883            # forgets everything
//! ```
//!
//! With a file every publish of QoS 1 and 2 is written to a log table, so that an acknowledgement
//! means "on disk" here as it does on a node.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use anyhow::Context;
use broker::{
    AllowAll, Batch, Broker, Busy, Done, Limits, LoadFuture, Loaded, MemoryStorage, Op, Qos,
    Storage, StorageError,
};
use rusqlite::{Connection, params};
use tokio_util::sync::CancellationToken;

/// Batches waiting for the writer thread.
const QUEUE_MAX: usize = 512;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:1883".into());
    let storage: Arc<dyn Storage> = match args.next() {
        Some(path) => Arc::new(SqliteStorage::open(Path::new(&path))?),
        None => Arc::new(MemoryStorage::default()),
    };
    let broker = Broker::load(Limits::default(), storage, Arc::new(AllowAll)).await?;
    let listener = tokio::net::TcpListener::bind(&listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    tracing::info!(%listen, "MQTT broker listens");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(broker.serve(vec![listener], stop.clone()));
    tokio::signal::ctrl_c().await?;
    stop.cancel();
    serving.await?;
    Ok(())
}

/// One writer thread that commits whatever is waiting as one transaction.
struct SqliteStorage {
    path: std::path::PathBuf,
    queue: SyncSender<(Batch, Done)>,
}

const SCHEMA: &str = "
    PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
    CREATE TABLE IF NOT EXISTS sessions (client TEXT PRIMARY KEY, state BLOB) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS queue (id INTEGER PRIMARY KEY, client TEXT, message BLOB);
    CREATE TABLE IF NOT EXISTS retained (topic TEXT PRIMARY KEY, message BLOB) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS received (client TEXT, id INTEGER, PRIMARY KEY (client, id))
        WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS wills (id INTEGER PRIMARY KEY, client TEXT, will BLOB);
    CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB);";

impl SqliteStorage {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let conn =
            Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        conn.execute_batch(SCHEMA)?;
        let (queue, inbox) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("sqlite".into())
            .spawn(move || write(conn, &inbox))?;
        Ok(Self {
            path: path.to_owned(),
            queue,
        })
    }

    fn read(&self) -> rusqlite::Result<Loaded> {
        let conn = Connection::open(&self.path)?;
        let mut loaded = Loaded::default();
        let mut query = conn.prepare("SELECT client, state FROM sessions")?;
        for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))? {
            loaded.sessions.push(row?);
        }
        let mut query = conn.prepare("SELECT id, client, message FROM queue ORDER BY id")?;
        for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))? {
            loaded.queue.push(row?);
        }
        let mut query = conn.prepare("SELECT topic, message FROM retained")?;
        for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))? {
            loaded.retained.push(row?);
        }
        let mut query = conn.prepare("SELECT client, id FROM received")?;
        for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))? {
            loaded.received.push(row?);
        }
        let mut query = conn.prepare("SELECT id, client, will FROM wills ORDER BY id")?;
        for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))? {
            loaded.wills.push(row?);
        }
        Ok(loaded)
    }
}

impl Storage for SqliteStorage {
    fn load(&self) -> LoadFuture<'_> {
        let loaded = self.read().map_err(|e| StorageError::Failed(e.to_string()));
        Box::pin(std::future::ready(loaded))
    }

    fn wants(&self, _topic: &str) -> bool {
        true
    }

    fn commit(&self, batch: Batch, done: Done) -> Result<(), Busy> {
        match self.queue.try_send((batch, done)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(back)) => Err(Busy(Box::new(back))),
            Err(TrySendError::Disconnected((_, done))) => {
                done(Err(StorageError::Failed("the writer has stopped".into())));
                Ok(())
            }
        }
    }
}

fn write(mut conn: Connection, inbox: &Receiver<(Batch, Done)>) {
    while let Ok(first) = inbox.recv() {
        let (mut batches, mut waiting) = (vec![first.0], vec![first.1]);
        while batches.len() < QUEUE_MAX
            && let Ok((batch, done)) = inbox.try_recv()
        {
            batches.push(batch);
            waiting.push(done);
        }
        let result = commit(&mut conn, &batches).map_err(|e| e.to_string());
        for done in waiting {
            done(result.clone().map_err(StorageError::Failed));
        }
    }
}

fn commit(conn: &mut Connection, batches: &[Batch]) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    for batch in batches {
        for op in &batch.ops {
            apply(&tx, op)?;
        }
        if let Some(publish) = &batch.publish
            && publish.message.qos != Qos::AtMostOnce
        {
            tx.prepare_cached("INSERT INTO log (topic, payload) VALUES (?1, ?2)")?
                .execute(params![publish.message.topic, &publish.message.payload[..]])?;
        }
    }
    tx.commit()
}

fn apply(tx: &Connection, op: &Op) -> rusqlite::Result<()> {
    match op {
        Op::SessionPut { client, state } => {
            tx.prepare_cached(
                "INSERT INTO sessions VALUES (?1, ?2) ON CONFLICT (client)
                 DO UPDATE SET state = excluded.state WHERE excluded.state > sessions.state",
            )?
            .execute(params![client, state])?;
        }
        Op::SessionDelete {
            client,
            before,
            rows_before,
        } => {
            tx.execute(
                "DELETE FROM sessions WHERE client = ?1 AND state < ?2",
                params![client, before],
            )?;
            let rows_before = i64::try_from(*rows_before).unwrap_or(i64::MAX);
            tx.execute(
                "DELETE FROM queue WHERE client = ?1 AND id < ?2",
                params![client, rows_before],
            )?;
            tx.execute("DELETE FROM received WHERE client = ?1", [client])?;
        }
        Op::QueuePut {
            id,
            client,
            message,
        } => {
            let id = i64::try_from(*id).unwrap_or(i64::MAX);
            tx.prepare_cached("REPLACE INTO queue VALUES (?1, ?2, ?3)")?
                .execute(params![id, client, message])?;
        }
        Op::QueueRemove { ids } => {
            let mut delete = tx.prepare_cached("DELETE FROM queue WHERE id = ?1")?;
            for id in ids {
                delete.execute([i64::try_from(*id).unwrap_or(i64::MAX)])?;
            }
        }
        Op::RetainedPut { topic, message } => {
            tx.prepare_cached("REPLACE INTO retained VALUES (?1, ?2)")?
                .execute(params![topic, message])?;
        }
        Op::RetainedDelete { topic } => {
            tx.prepare_cached("DELETE FROM retained WHERE topic = ?1")?
                .execute([topic])?;
        }
        Op::WillPut { id, client, will } => {
            tx.prepare_cached("REPLACE INTO wills VALUES (?1, ?2, ?3)")?
                .execute(params![id, client, will])?;
        }
        Op::WillDelete { id } => {
            tx.prepare_cached("DELETE FROM wills WHERE id = ?1")?
                .execute([id])?;
        }
        Op::ReceivedAdd { client, packet_id } => {
            tx.prepare_cached("REPLACE INTO received VALUES (?1, ?2)")?
                .execute(params![client, packet_id])?;
        }
        Op::ReceivedRemove { client, packet_id } => {
            tx.prepare_cached("DELETE FROM received WHERE client = ?1 AND id = ?2")?
                .execute(params![client, packet_id])?;
        }
    }
    Ok(())
}
