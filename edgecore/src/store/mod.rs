//! The node's one SQLite file and its one writer.
//!
//! A change is a closure over a transaction. The writer thread takes whatever closures are
//! waiting, runs each inside its own savepoint of one `BEGIN IMMEDIATE … COMMIT`, and only then
//! tells the askers (group commit; design D4). `Ok` therefore always means *on disk*
//! (`synchronous=FULL`). Modules own their SQL; they share the transaction, so a twin change, its
//! outbox row and the broker's session rows are one unit of durability (design D3).
//!
//! [`Db`] is the synchronous core; the simulator drives it directly and crashes it at any commit.

mod db;
mod schema;
mod writer;

pub use db::{Db, Job, StoreError};
pub use writer::Store;
