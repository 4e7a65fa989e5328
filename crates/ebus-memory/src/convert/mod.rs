//! From what ebus says to what the log needs: the partition of a key.

mod partition;

pub(crate) use partition::partition_of;
