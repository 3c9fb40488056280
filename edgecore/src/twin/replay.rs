//! Which events of a device were handled already.
//!
//! A device that saw no PUBACK sends its event again: the node was killed between the commit and
//! the acknowledgement, or the link to it broke. An event is the same when its bytes are and it
//! has an id; devices that leave the id empty, or reuse one for different readings, are never
//! held back.

use device_twin::DeviceId;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use crate::store::StoreError;

/// Events remembered per device. A client has at most as many unacknowledged (rumqttc: 100).
const REMEMBERED: usize = 128;
const PRINT_BYTES: usize = 8;

/// An event with an id, and what the device's row remembers.
pub(super) struct Replay {
    recent: Vec<u8>,
    print: [u8; PRINT_BYTES],
}

impl Replay {
    /// `None` for an event without an id or a device that is not known.
    pub(super) fn of(
        tx: &Connection,
        device: &DeviceId,
        event_id: &str,
        payload: &[u8],
    ) -> Result<Option<Self>, StoreError> {
        if event_id.is_empty() {
            return Ok(None);
        }
        let recent: Option<Vec<u8>> = tx
            .prepare_cached("SELECT recent FROM devices WHERE namespace = ?1 AND name = ?2")?
            .query_row([&device.namespace, &device.name], |row| row.get(0))
            .optional()?;
        let mut print = [0; PRINT_BYTES];
        for (to, from) in print.iter_mut().zip(Sha256::digest(payload)) {
            *to = from;
        }
        Ok(recent.map(|recent| Self { recent, print }))
    }

    /// Whether it was handled before.
    pub(super) fn is_repeat(&self) -> bool {
        self.recent
            .chunks_exact(PRINT_BYTES)
            .any(|seen| seen == self.print)
    }

    /// Remembers it, in the transaction that handles it.
    pub(super) fn remember(mut self, tx: &Connection, device: &DeviceId) -> Result<(), StoreError> {
        let surplus = (self.recent.len() + PRINT_BYTES).saturating_sub(REMEMBERED * PRINT_BYTES);
        self.recent.drain(..surplus.min(self.recent.len()));
        self.recent.extend_from_slice(&self.print);
        tx.prepare_cached("UPDATE devices SET recent = ?3 WHERE namespace = ?1 AND name = ?2")?
            .execute(params![device.namespace, device.name, self.recent])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wire::topic::{DeviceRef, Inbound, TwinAction};

    use crate::outbox;
    use crate::store::Db;
    use crate::twin;

    #[test]
    fn an_event_sent_again_is_answered_and_counted_once() {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let device = serde_json::json!({
            "metadata": {"namespace": "dev", "name": "t"}, "spec": {"properties": []},
        });
        twin::device_upserted(tx, &device, 1).unwrap();
        let topic = Inbound::DeviceTwin {
            device: DeviceRef {
                namespace: "dev".into(),
                name: "t".into(),
            },
            action: TwinAction::Update,
        };
        let update = |id: &str, value: &str| {
            let body = format!(
                r#"{{"event_id":"{id}","twin":{{"x":{{"actual":{{"value":"{value}"}}}}}}}}"#
            );
            twin::handle_publish(tx, &topic, body.as_bytes(), 2).unwrap()
        };
        let pending = || outbox::pending(tx, 0, 100).unwrap().len();
        for (name, id, value, rows) in [
            ("first", "1", "a", 1),
            ("sent again", "1", "a", 1),
            ("another reading under the same id", "1", "b", 2),
            ("no id", "", "c", 3),
            ("no id is never a repeat", "", "c", 4),
        ] {
            let outcome = update(id, value);
            assert_eq!(pending(), rows, "{name}");
            assert!(
                outcome.publishes[0].topic.ends_with("twin/update/result"),
                "{name}"
            );
        }
    }
}
