//! MetaManager: the desired objects of this node, as the hub pushed them.
//!
//! The order is *commit, then acknowledge, then notify* (design §2): a push is applied inside a
//! store job, the hub gets its OK after the commit, and only then does the generation rise that
//! Edged waits on. Objects stay the JSON documents they came as; they are typed where they are
//! read ([`handle::MetaHandle`]).

mod apply;
mod devices;
mod handle;
mod objects;
mod routes;
mod seal;
mod tokens;

pub use apply::{Applied, apply, apply_in_order};
pub use handle::MetaHandle;
pub use objects::{Key, Object, inventory, mark_if_rebuilt};
pub use seal::{SealError, Sealer};

#[cfg(test)]
mod tests;
