//! What a monitor costs: rates with and without one, in turn, everything on one CPU. Measured, not part of a normal run:
//! `OVERLAY_BIN=… cargo test -p overlay-tests --test monitor -- --ignored --nocapture --test-threads 1`, with an optimised binary
//! (the one of `cargo xtask image` for instance). The numbers are in docs/monitor.md.
//!
//! A rate is what a second of CPU time does, less the part of a CPU that the monitor takes: what would be left of a CPU that
//! does nothing else, whatever else this machine does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use overlay_tests::lab::exec;
use overlay_tests::traffic::{tcp, udp};

use crate::bed::{Bed, NO_NODE};

/// CPU time of one turn of one workload: some looks of the monitor.
const TURN: Duration = Duration::from_millis(100);
/// Before each turn, with a monitor and without: what was recorded while it was stopped is printed in it, and is no turn's.
const REST: Duration = Duration::from_millis(120);
const ROUNDS: u32 = 60;

fn pin(pid: Pid) {
    let mut cpu = CpuSet::new();
    cpu.set(0).unwrap();
    sched_setaffinity(pid, &cpu).unwrap();
}

/// A monitor on the measured CPU, whose output nobody reads: what a reader does with it is the reader's cost. Ends when it is
/// dropped.
struct Monitor(Child);

impl Monitor {
    #[track_caller]
    fn start(bed: &Bed, arguments: &[&str]) -> Self {
        let mut command = bed.cp().overlay(&["monitor", "-o", "json"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut monitor = Self(exec::spawn_tied(command).unwrap());
        pin(monitor.pid());
        let mut line = String::new();
        let errors = monitor.0.stderr.as_mut().unwrap();
        BufReader::new(errors).read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{line}");
        monitor
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// The CPU time that it has taken.
    fn time(&self) -> Duration {
        clock_gettime(clock_getcpuclockid(self.pid()).unwrap()).unwrap().into()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Things to do again and again, in one thread: no wake-up of another one is measured.
struct Load {
    client: UdpSocket,
    server: UdpSocket,
    sender: TcpStream,
    receiver: TcpStream,
    flood: UdpSocket,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A datagram to a pod of another node, and its answer.
    Requests,
    /// 32 KiB to a pod of another node.
    Bulk,
    /// Datagrams that are dropped.
    Flood,
    /// A request among ten datagrams that are dropped.
    RequestsInFlood,
}

impl Load {
    fn new(bed: &Bed) -> Self {
        let server = udp::bind(bed.peer.namespace(), (bed.peer.addr(), 6000).into()).unwrap();
        let client = udp::bind(bed.a.namespace(), (bed.a.addr(), 6000).into()).unwrap();
        client.connect((bed.peer.addr(), 6000)).unwrap();
        server.connect((bed.a.addr(), 6000)).unwrap();
        let at = (bed.peer.addr(), 0).into();
        let (sender, receiver) = tcp::connect(bed.a.namespace(), bed.peer.namespace(), at, at).unwrap();
        let flood = udp::bind(bed.a.namespace(), (bed.a.addr(), 6001).into()).unwrap();
        Self { client, server, sender, receiver, flood }
    }

    fn request(&self) {
        let mut buffer = [0; 64];
        self.client.send(&[1; 32]).unwrap();
        self.server.recv(&mut buffer).unwrap();
        self.server.send(&[2; 32]).unwrap();
        self.client.recv(&mut buffer).unwrap();
    }

    fn once(&mut self, kind: Kind, buffer: &mut [u8]) {
        match kind {
            Kind::Requests => self.request(),
            Kind::Bulk => {
                self.sender.write_all(buffer).unwrap();
                self.receiver.read_exact(buffer).unwrap();
            }
            Kind::Flood => {
                self.flood.send_to(&[3; 32], (NO_NODE, 5000)).unwrap();
            }
            Kind::RequestsInFlood => {
                for _ in 0..10 {
                    self.flood.send_to(&[3; 32], (NO_NODE, 5000)).unwrap();
                }
                self.request();
            }
        }
    }

    /// How often in a second of CPU time, of which a monitor has its part.
    fn rate(&mut self, kind: Kind, monitor: Option<&Monitor>) -> f64 {
        let own = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let taken = || monitor.map(Monitor::time).unwrap_or_default();
        let mut buffer = vec![0; 32 << 10];
        let (start, began, before, mut done) = (Instant::now(), own(), taken(), 0.0);
        while own() - began < TURN {
            for _ in 0..16 {
                self.once(kind, &mut buffer);
                done += 1.0;
            }
        }
        let rate = done / (own() - began).as_secs_f64();
        rate * (1.0 - (taken() - before).as_secs_f64() / start.elapsed().as_secs_f64())
    }
}

/// Mean of the ratios and half of the 95 % interval.
fn summary(ratios: &[f64]) -> (f64, f64) {
    let n = f64::from(u32::try_from(ratios.len()).unwrap());
    let mean = ratios.iter().sum::<f64>() / n;
    let variance = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, 1.96 * (variance / n).sqrt())
}

/// Rates with the monitor that `begin` gives, as ratios to those without; in turn, in changing order.
fn compare<T: AsRef<Monitor>>(
    load: &mut Load,
    kind: Kind,
    mut begin: impl FnMut() -> T,
    mut end: impl FnMut(T),
) -> (f64, f64) {
    let mut ratios = Vec::new();
    let mut without = 0.0;
    for round in 0..ROUNDS {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            // Each order as often as the other.
            if (round + turn) % 2 == 1 {
                let running = begin();
                std::thread::sleep(REST);
                rates[1] = load.rate(kind, Some(running.as_ref()));
                end(running);
            } else {
                std::thread::sleep(REST);
                rates[0] = load.rate(kind, None);
                without += rates[0] / f64::from(ROUNDS);
            }
        }
        ratios.push(rates[1] / rates[0]);
    }
    let (mean, half) = summary(&ratios);
    println!("{kind:?}: {mean:.4} ± {half:.4} of {without:.0} per second");
    (mean, half)
}

impl AsRef<Self> for Monitor {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// A monitor that shows all drops, started once: stopped it is as good as not there, since it asks the programs for nothing.
fn compare_monitor(kinds: &[Kind]) -> Vec<(f64, f64)> {
    let bed = Bed::new();
    let mut load = Load::new(&bed);
    pin(Pid::from_raw(0));
    let monitor = Rc::new(Monitor::start(&bed, &[]));
    let pid = monitor.pid();
    kill(pid, Signal::SIGSTOP).unwrap();
    println!("overlay monitor, as a ratio to none");
    let resume = || {
        kill(pid, Signal::SIGCONT).unwrap();
        Rc::clone(&monitor)
    };
    let halt = |_| kill(pid, Signal::SIGSTOP).unwrap();
    kinds.iter().map(|kind| compare(&mut load, *kind, resume, halt)).collect()
}

#[test]
#[ignore = "measures, for two minutes"]
fn a_monitor_costs_less_than_a_hundredth_at_no_drops() {
    for (mean, half) in compare_monitor(&[Kind::Requests, Kind::Bulk]) {
        assert!(mean - half > 0.99, "{mean} ± {half}");
    }
}

#[test]
#[ignore = "measures, for two minutes"]
fn a_flood_of_drops_makes_a_monitor_cost_no_more_than_its_bound() {
    for (mean, half) in compare_monitor(&[Kind::Flood, Kind::RequestsInFlood]) {
        assert!(mean - half > 0.9, "{mean} ± {half}");
    }
}

#[test]
#[ignore = "measures, for two minutes"]
fn tracing_costs_no_more_than_its_budget() {
    let bed = Bed::new();
    let mut load = Load::new(&bed);
    pin(Pid::from_raw(0));
    for arguments in [&["-t", "trace", "--pod", "b"][..], &["-t", "trace"]] {
        println!("overlay monitor {}, as a ratio to none", arguments.join(" "));
        let begin = || Monitor::start(&bed, arguments);
        let (mean, half) = compare(&mut load, Kind::Requests, begin, drop);
        assert!(mean - half > 0.7, "{mean} ± {half}");
    }
}
