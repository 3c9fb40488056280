//! Message ids without a source of randomness: a prefix from the shell and a counter.

/// Makes ids that are unique as long as the prefix is.
#[derive(Clone, Debug)]
pub struct Ids {
    prefix: String,
    next: u64,
}

impl Ids {
    /// `prefix` must be unique per process start, e.g. a UUID.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            next: 0,
        }
    }

    /// The next id.
    pub fn fresh(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.prefix, self.next)
    }
}
