//! An agent with nothing to do writes nothing, neither to the kernel nor to its log.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use overlay_tests::lab::Namespace;

use crate::bed::{Bed, cpu_ticks, map};

/// Longer than the time between two periodic passes.
const WINDOW: Duration = Duration::from_millis(6500);

/// A program that prints what happens; killed at the end.
struct Observer(Child);

impl Observer {
    fn start(namespace: &Namespace, program: &str, arguments: &[&str]) -> Self {
        let mut command = namespace.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Ends it; gives what it has printed.
    fn stop(mut self) -> String {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_pass_that_finds_nothing_writes_nothing() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    // What the start of pods and agents leaves to be done.
    thread::sleep(Duration::from_millis(500));
    let before = (map(&bed.a), cpu_ticks(&bed.a), bed.a.show("links"));
    let log = bed.a.log_mark();
    let network = Observer::start(host, "ip", &["-4", "monitor", "link", "address", "route", "netconf"]);
    let filter = Observer::start(host, "nft", &["monitor"]);
    thread::sleep(WINDOW);
    let (network, filter) = (network.stop(), filter.stop());
    let used = cpu_ticks(&bed.a) - before.1;
    assert_eq!((network.as_str(), filter.as_str()), ("", ""));
    assert_eq!(log.lines(), Vec::<String>::new());
    assert_eq!((map(&bed.a), bed.a.show("links")), (before.0, before.2));
    println!("idle for {WINDOW:?}, one periodic pass: {used} ticks of 10 ms, nft included");
    assert!(used <= 40, "{used} ticks of 10 ms in {WINDOW:?}");
}
