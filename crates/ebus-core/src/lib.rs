//! The words and traits of ebus: messages, sources, tokens, ledgers, positions.
