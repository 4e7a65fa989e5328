//! What this backend does on a real nats-server beyond the conformance suite.

mod support;

fn main() {
    let args = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&args, Vec::new()).exit();
}
