//! Schema migrations, forward only: one entry a version, each applied in one transaction.
//! `PRAGMA user_version` says how many have been applied. Never edit an entry that was released.

/// Applied in order; index + 1 is the resulting `user_version`.
pub(super) const MIGRATIONS: &[&str] = &[
    // 1: first release
    "
    -- small facts about this node: outbox epoch, last good time, node uid
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    -- desired objects as the hub sent them (MetaManager); value is JSON, encrypted for secrets
    CREATE TABLE objects (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        uid TEXT NOT NULL, resource_version TEXT NOT NULL, sealed INTEGER NOT NULL DEFAULT 0,
        value BLOB NOT NULL,
        PRIMARY KEY (kind, namespace, name)
    ) WITHOUT ROWID;

    -- upstream messages that must not be lost; seq is the ledger's order and is never reused
    CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        stream TEXT NOT NULL, created_ms INTEGER NOT NULL, message BLOB NOT NULL
    );
    -- per stream: accepted = delivered + pending + expired + evicted, always; bytes is what the
    -- pending rows cost
    CREATE TABLE streams (
        stream TEXT PRIMARY KEY,
        accepted INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0,
        expired INTEGER NOT NULL DEFAULT 0, evicted INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;

    -- device twins (DeviceTwin); document is the device-twin crate's own JSON, recent the prints
    -- of the last events
    CREATE TABLE devices (
        namespace TEXT NOT NULL, name TEXT NOT NULL, document BLOB NOT NULL,
        recent BLOB NOT NULL DEFAULT x'',
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;

    -- the broker inside: persistent sessions, queued messages, retained messages, QoS 2 ids
    CREATE TABLE mqtt_sessions (client TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE mqtt_queue (
        id INTEGER PRIMARY KEY, client TEXT NOT NULL, message BLOB NOT NULL
    );
    CREATE INDEX mqtt_queue_client ON mqtt_queue (client, id);
    CREATE TABLE mqtt_retained (topic TEXT PRIMARY KEY, message BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE mqtt_received (client TEXT NOT NULL, packet_id INTEGER NOT NULL,
        PRIMARY KEY (client, packet_id)) WITHOUT ROWID;
    ",
    // 2: stream policies, backlog as history, gaps, prints of events apart from the twin
    "
    -- same_key: what the row tells about, in streams that keep the newest of a key; origin: the
    -- sequence number of a row of the backlog before it was put at the end, to be sent as history
    ALTER TABLE outbox ADD COLUMN same_key TEXT;
    ALTER TABLE outbox ADD COLUMN origin INTEGER;
    CREATE INDEX outbox_same_key ON outbox (stream, same_key) WHERE same_key IS NOT NULL;
    CREATE INDEX outbox_origin ON outbox (origin) WHERE origin IS NOT NULL;
    -- publishes that a stream's policy refused; they were never accepted
    ALTER TABLE streams ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
    -- policies from annotations of Device objects; those of the configuration are not stored
    CREATE TABLE stream_policies (stream TEXT PRIMARY KEY, policy TEXT NOT NULL) WITHOUT ROWID;
    -- what left without reaching the hub and was not told to it yet
    CREATE TABLE gaps (
        stream TEXT NOT NULL, fate TEXT NOT NULL, rows INTEGER NOT NULL,
        first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
        first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
        PRIMARY KEY (stream, fate)
    ) WITHOUT ROWID;

    -- prints of a device's last events, a few in a row: a reading rewrites one short row
    CREATE TABLE recent (
        namespace TEXT NOT NULL, name TEXT NOT NULL, part INTEGER NOT NULL, prints BLOB NOT NULL,
        PRIMARY KEY (namespace, name, part)
    ) WITHOUT ROWID;
    ALTER TABLE devices DROP COLUMN recent;
    ",
    // 3: mappers of the Device Mapper Interface, and what each was told
    "
    CREATE TABLE mappers (
        name TEXT PRIMARY KEY, protocol TEXT NOT NULL, address TEXT NOT NULL,
        version TEXT NOT NULL, api_version TEXT NOT NULL, uid INTEGER NOT NULL,
        number INTEGER NOT NULL, registered_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE mapper_items (
        mapper TEXT NOT NULL, is_device INTEGER NOT NULL, namespace TEXT NOT NULL,
        name TEXT NOT NULL, print INTEGER NOT NULL,
        PRIMARY KEY (mapper, is_device, namespace, name)
    ) WITHOUT ROWID;
    ",
    // 4: local history of device properties (twin/history.rs); version is the edge's count of reports
    "
    CREATE TABLE history_series (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL, device TEXT NOT NULL, property TEXT NOT NULL,
        UNIQUE (namespace, device, property)
    );
    CREATE TABLE history (
        series INTEGER NOT NULL, at_ms INTEGER NOT NULL, version INTEGER NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (series, at_ms, version)
    ) WITHOUT ROWID;
    ",
    // 5: wills of MQTT clients that are connected
    "
    CREATE TABLE mqtt_wills (id INTEGER PRIMARY KEY, client TEXT NOT NULL, will BLOB NOT NULL);
    ",
    // 6: the outbox's messages are folded (outbox/fold.rs); rows of before read as they are
    "",
];
