//! The hub's own records (tokens, joined nodes, ledgers) in the same store as the API's objects.

use std::sync::Arc;

use apiserver::store::{ListQuery, Op, Require, Store, StoreError, Txn};

/// One record and the revision that last wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Bytes as written.
    pub value: Vec<u8>,
    /// Revision of the last write.
    pub revision: u64,
}

/// One conditional write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Full key.
    pub key: String,
    /// Revision the record must have; 0 means it must not exist.
    pub expect: u64,
    /// New bytes; `None` deletes.
    pub value: Option<Vec<u8>>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// Somebody else wrote meanwhile: read again and decide again.
    #[error("record was changed meanwhile")]
    Conflict,
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for FactsError {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Conflict { .. }) {
            Self::Conflict
        } else {
            Self::Store(error)
        }
    }
}

/// Compare-and-swap access to the hub's own records.
#[derive(Clone)]
pub struct Facts(Arc<dyn Store>);

impl Facts {
    /// Records in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    /// Reads one record.
    pub async fn get(&self, key: &str) -> Result<Option<Fact>, FactsError> {
        let entry = self.0.get(key).await?;
        Ok(entry.map(|e| Fact {
            value: e.value.to_vec(),
            revision: e.revision,
        }))
    }

    /// Reads all records under a prefix, in key order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, Fact)>, FactsError> {
        let query = ListQuery {
            prefix: prefix.to_owned(),
            ..ListQuery::default()
        };
        let listing = self.0.list(query).await?;
        Ok(listing
            .entries
            .into_iter()
            .map(|e| {
                (
                    e.key.to_string(),
                    Fact {
                        value: e.value.to_vec(),
                        revision: e.revision,
                    },
                )
            })
            .collect())
    }

    /// Writes all or nothing.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), FactsError> {
        let mut txn = Txn::new();
        for write in writes {
            txn.require.push(match write.expect {
                0 => Require::Absent(write.key.clone()),
                revision => Require::At(write.key.clone(), revision),
            });
            txn.ops.push(match write.value {
                Some(value) => Op::Put(write.key, value.into()),
                None => Op::Delete(write.key),
            });
        }
        self.0.txn(txn).await?;
        Ok(())
    }
}
