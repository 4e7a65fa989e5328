//! Conformance suite, history oracle and broker launchers of ebus.
