//! The event envelope of ebus and its wire formats.
