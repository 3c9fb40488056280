//! cloudhub
