//! The program `ebus`.
fn main() {}
