//! The in-process broker of ebus: a partitioned log with groups.
