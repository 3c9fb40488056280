//! The hub's own records (tokens, joined nodes, ledgers) in the same store as the API's objects.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::Mutex;

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
    #[error("store failed: {0}")]
    Store(String),
}

/// Compare-and-swap access to the hub's own records.
#[async_trait]
pub trait Facts: Send + Sync {
    /// Reads one record.
    async fn get(&self, key: &str) -> Result<Option<Fact>, FactsError>;
    /// Reads all records under a prefix, in key order.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Fact)>, FactsError>;
    /// Writes all or nothing.
    async fn commit(&self, writes: Vec<Write>) -> Result<(), FactsError>;
}

/// Records in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryFacts(Mutex<(u64, BTreeMap<String, Fact>)>);

#[async_trait]
impl Facts for MemoryFacts {
    async fn get(&self, key: &str) -> Result<Option<Fact>, FactsError> {
        Ok(self.0.lock().await.1.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Fact)>, FactsError> {
        let state = self.0.lock().await;
        Ok(state
            .1
            .iter()
            .filter(|(k, _)| k.starts_with(prefix))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<(), FactsError> {
        let mut state = self.0.lock().await;
        if writes
            .iter()
            .any(|w| state.1.get(&w.key).map_or(0, |f| f.revision) != w.expect)
        {
            return Err(FactsError::Conflict);
        }
        state.0 += 1;
        let revision = state.0;
        for write in writes {
            match write.value {
                Some(value) => state.1.insert(write.key, Fact { value, revision }),
                None => state.1.remove(&write.key),
            };
        }
        Ok(())
    }
}
