//! The ledger for a person and for machines: `edgecore ledger` reads the file itself, so that it
//! answers offline and without the daemon; `/metrics` of the local API says the same.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use super::{Balance, bytes, gaps, ledger};
use crate::store::StoreError;

/// One stream, as printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamReport {
    pub stream: String,
    pub accepted: u64,
    pub delivered: u64,
    /// Rows that are really there, not a counter.
    pub pending: u64,
    pub expired: u64,
    pub evicted: u64,
    /// Publishes that a full stream refused; not part of the sum.
    #[serde(default)]
    pub refused: u64,
    #[serde(default)]
    pub pending_bytes: u64,
    /// accepted = delivered + pending + expired + evicted
    pub balanced: bool,
}

/// A loss that the hub was not told yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GapReport {
    pub stream: String,
    pub fate: String,
    pub rows: u64,
    pub first_seq: u64,
    pub last_seq: u64,
}

/// The whole ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub streams: Vec<StreamReport>,
    pub gaps: Vec<GapReport>,
    /// Rows whose stream has no account.
    pub strays: u64,
    pub pending_bytes: u64,
    /// Every stream balances and no row is without one.
    pub balanced: bool,
}

impl From<Balance> for StreamReport {
    fn from(balance: Balance) -> Self {
        Self {
            balanced: balance.is_balanced(),
            stream: balance.stream,
            accepted: balance.accepted,
            delivered: balance.delivered,
            pending: balance.pending,
            expired: balance.expired,
            evicted: balance.evicted,
            refused: balance.refused,
            pending_bytes: balance.bytes,
        }
    }
}

impl Report {
    /// Reads it, in one view of the database.
    pub fn read(conn: &Connection) -> Result<Self, StoreError> {
        let tx = conn.unchecked_transaction()?;
        let streams: Vec<StreamReport> = ledger(&tx)?.into_iter().map(Into::into).collect();
        let strays = tx.query_row(
            "SELECT count(*) FROM outbox WHERE stream NOT IN (SELECT stream FROM streams)",
            [],
            |row| row.get(0),
        )?;
        let gaps = gaps(&tx)?;
        Ok(Self {
            balanced: strays == 0 && streams.iter().all(|stream| stream.balanced),
            pending_bytes: bytes(&tx)?,
            strays,
            gaps: gaps
                .into_iter()
                .map(|gap| GapReport {
                    stream: gap.stream,
                    fate: gap.fate,
                    rows: gap.rows,
                    first_seq: gap.first_seq,
                    last_seq: gap.last_seq,
                })
                .collect(),
            streams,
        })
    }

    /// Reads the ledger of a database file, whether or not the daemon runs.
    pub fn open(database: &Path) -> Result<Self, StoreError> {
        let at = |source| StoreError::Open {
            path: database.to_owned(),
            source,
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(database, flags).map_err(at)?;
        conn.execute_batch("PRAGMA busy_timeout=5000;")?;
        Self::read(&conn)
    }

    /// Heads and rows of the table.
    pub fn table(&self) -> (&'static [&'static str], Vec<Vec<String>>) {
        let heads = &[
            "STREAM",
            "ACCEPTED",
            "DELIVERED",
            "PENDING",
            "EXPIRED",
            "EVICTED",
            "REFUSED",
            "BYTES",
            "BALANCED",
        ];
        let rows = self.streams.iter().map(|s| {
            let mut row = vec![s.stream.clone()];
            let counts = [
                s.accepted,
                s.delivered,
                s.pending,
                s.expired,
                s.evicted,
                s.refused,
                s.pending_bytes,
            ];
            row.extend(counts.iter().map(u64::to_string));
            row.push(if s.balanced { "yes" } else { "NO" }.to_owned());
            row
        });
        (heads, rows.collect())
    }

    /// What stands under the table.
    pub fn footer(&self) -> String {
        let mut out = String::new();
        for gap in &self.gaps {
            out.push_str(&format!(
                "gap      {}: {} {} (numbers {} to {}); the hub is not told yet\n",
                gap.stream, gap.rows, gap.fate, gap.first_seq, gap.last_seq
            ));
        }
        if self.strays > 0 {
            out.push_str(&format!("strays   {} rows without a stream\n", self.strays));
        }
        let verdict = if self.balanced {
            "yes: accepted = delivered + pending + expired + evicted"
        } else {
            "NO: messages were lost or counted twice; keep the database and report it"
        };
        out.push_str(&format!("balanced {verdict}\n"));
        out
    }

    /// Prometheus text format 0.0.4.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, of: fn(&StreamReport) -> u64| {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            for stream in &self.streams {
                let label = escaped(&stream.stream);
                out.push_str(&format!("{name}{{stream=\"{label}\"}} {}\n", of(stream)));
            }
        };
        let total = "counter";
        family(
            "outpost_ledger_accepted_total",
            total,
            "Messages accepted for the hub.",
            |s| s.accepted,
        );
        family(
            "outpost_ledger_delivered_total",
            total,
            "Messages the hub has stored.",
            |s| s.delivered,
        );
        family(
            "outpost_ledger_expired_total",
            total,
            "Messages too old to be sent.",
            |s| s.expired,
        );
        family(
            "outpost_ledger_evicted_total",
            total,
            "Messages that gave way.",
            |s| s.evicted,
        );
        family(
            "outpost_ledger_refused_total",
            total,
            "Publishes refused by a full stream.",
            |s| s.refused,
        );
        family(
            "outpost_ledger_pending",
            "gauge",
            "Messages waiting for the hub.",
            |s| s.pending,
        );
        family(
            "outpost_ledger_pending_bytes",
            "gauge",
            "What they take.",
            |s| s.pending_bytes,
        );
        out.push_str(&format!(
            "# HELP outpost_ledger_balanced Whether every stream balances.\n# TYPE outpost_ledger_balanced gauge\noutpost_ledger_balanced {}\n",
            u8::from(self.balanced)
        ));
        out
    }
}

/// A label's value (Prometheus text format: backslash, quote and line feed are escaped).
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::append;
    use crate::store::Db;

    #[test]
    fn a_file_is_judged_without_the_daemon_and_a_lost_row_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.db");
        let (db, _) = Db::open(&path).unwrap();
        append(db.reader(), "upload/a\"b", b"x", 1).unwrap();
        append(db.reader(), "twin/a/b", b"x", 1).unwrap();
        let report = Report::open(&path).unwrap();
        assert!(report.balanced && report.streams.len() == 2);
        assert_eq!(report.pending_bytes, 2 * 65);
        let metrics = report.metrics();
        assert!(
            metrics.contains("outpost_ledger_pending{stream=\"upload/a\\\"b\"} 1\n"),
            "{metrics}"
        );
        assert!(metrics.ends_with("outpost_ledger_balanced 1\n"));
        db.reader()
            .execute("DELETE FROM outbox WHERE stream = 'twin/a/b'", [])
            .unwrap();
        let report = Report::open(&path).unwrap();
        assert!(!report.balanced);
        assert!(report.footer().contains("NO:"));
        assert_eq!(report.table().1[0].last().unwrap(), "NO");
        db.reader()
            .execute("DELETE FROM streams WHERE stream LIKE 'upload/%'", [])
            .unwrap();
        assert_eq!(Report::open(&path).unwrap().strays, 1);
        assert!(Report::open(&dir.path().join("none.db")).is_err());
    }
}
