//! An MQTT broker to be embedded: 3.1.1 and 5, QoS 0 to 2, and an acknowledgement that means *on
//! disk*.
//!
//! A publish is acknowledged after the program's [`Storage`] has committed it: the broker's own
//! rows (sessions, queues, retained messages, packet ids) and the program's handling of the message
//! are one [`Batch`], so one transaction. Many commits may be in flight for each connection;
//! acknowledgements leave in the order of arrival. What needs no row writes none: a publish without
//! a persistent subscriber, sessions that end with their connection, and idle time.
//!
//! TLS and WebSocket are the embedding program's: it hands over [`Listener`]s with an [`Upgrade`].
//! It does not do bridges, extended authentication, or topic aliases towards clients. Wills are
//! kept in memory: a broker that is killed leaves none.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use broker::{AllowAll, Broker, Limits, MemoryStorage, Qos};
//!
//! let storage = Arc::new(MemoryStorage::default());
//! let broker = Broker::load(Limits::default(), storage, Arc::new(AllowAll)).await?;
//! let handle = broker.handle();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:1883").await?;
//! let stop = tokio_util::sync::CancellationToken::new();
//! let serving = tokio::spawn(broker.serve(vec![listener], stop.clone()));
//! handle.publish("greeting", "hello", Qos::AtMostOnce, true)?;
//! stop.cancel();
//! serving.await?;
//! # Ok(())
//! # }
//! ```

mod access;
mod broker;
mod connection;
mod core;
pub mod limits;
mod listener;
mod message;
mod pace;
mod pipeline;
mod proto;
mod record;
mod router;
mod session;
mod stats;
mod storage;
mod sys;
pub mod topic;
mod trie;

pub use access::{Access, AllowAll, ConnectRequest, Grant, Refused, Rights};
pub use broker::{Broker, BrokerHandle, PublishError};
pub use limits::Limits;
pub use listener::{Listener, Transport, Upgrade, UpgradeFuture, Upgraded};
pub use message::{Message, Qos};
pub use stats::Stats;
pub use storage::{
    Batch, Busy, Chain, Done, LoadFuture, Loaded, MemoryStorage, Op, Publish, Storage, StorageError,
};
