//! Tower layers for ebus publishers and handlers.
