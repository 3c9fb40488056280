//! What every mapper does.
