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

/// How a workload is measured: turns with a monitor and without, one after the other.
#[derive(Clone, Copy)]
struct Plan {
    /// CPU time of one turn.
    turn: Duration,
    /// Before each turn, with a monitor and without.
    rest: Duration,
    rounds: u32,
}

/// Many short turns, since what makes rates differ here (other guests of the machine, its clock) lasts longer than they do. No
/// rest: a look that was due while the monitor was stopped is taken, and counted, at the beginning of its turn.
const NO_DROPS: Plan = Plan { turn: Duration::from_millis(25), rest: Duration::ZERO, rounds: 1200 };
/// What was recorded while the monitor was stopped is printed in the rest, and is no turn's; a turn has some looks.
const DROPS: Plan = Plan { turn: Duration::from_millis(100), rest: Duration::from_millis(120), rounds: 150 };

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

impl Kind {
    const fn plan(self) -> Plan {
        match self {
            Self::Requests | Self::Bulk => NO_DROPS,
            Self::Flood | Self::RequestsInFlood => DROPS,
        }
    }
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
    fn rate(&mut self, kind: Kind, turn: Duration, monitor: Option<&Monitor>) -> f64 {
        let own = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap()).as_secs_f64();
        let taken = || monitor.map(Monitor::time).unwrap_or_default().as_secs_f64();
        let turn = turn.as_secs_f64();
        let mut buffer = vec![0; 32 << 10];
        let (start, began, before, mut done) = (Instant::now(), own(), taken(), 0.0);
        while own() - began < turn {
            for _ in 0..16 {
                self.once(kind, &mut buffer);
                done += 1.0;
            }
        }
        let rate = done / (own() - began);
        rate * (1.0 - (taken() - before) / start.elapsed().as_secs_f64())
    }
}

/// The median of the ratios with its 95 % interval by order statistics, which a few turns that were disturbed do not move.
#[derive(Debug)]
struct Summary {
    median: f64,
    low: f64,
    high: f64,
}

impl Summary {
    fn of(mut ratios: Vec<f64>) -> Self {
        ratios.sort_by(f64::total_cmp);
        let n = ratios.len();
        // Ranks by the normal approximation of the binomial distribution: 1.96 times half of the root of n.
        let half = (n * 97 / 100).isqrt().max(1);
        Self { median: ratios[n / 2], low: ratios[n / 2 - half], high: ratios[n / 2 + half] }
    }
}

/// Rates with the monitor that `begin` gives, as ratios to those without; in turn, in changing order.
fn compare<T: AsRef<Monitor>>(
    load: &mut Load,
    kind: Kind,
    plan: Plan,
    mut begin: impl FnMut() -> T,
    mut end: impl FnMut(T),
) -> Summary {
    let mut ratios = Vec::new();
    let mut without = 0.0;
    for round in 0..plan.rounds {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            // Each order as often as the other.
            if (round + turn) % 2 == 1 {
                let running = begin();
                std::thread::sleep(plan.rest);
                rates[1] = load.rate(kind, plan.turn, Some(running.as_ref()));
                end(running);
            } else {
                std::thread::sleep(plan.rest);
                rates[0] = load.rate(kind, plan.turn, None);
                without += rates[0] / f64::from(plan.rounds);
            }
        }
        ratios.push(rates[1] / rates[0]);
    }
    let summary = Summary::of(ratios);
    let Summary { median, low, high } = summary;
    println!("{kind:?}: {median:.4} [{low:.4} {high:.4}], {} rounds, {without:.0} per second", plan.rounds);
    summary
}

impl AsRef<Self> for Monitor {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// A monitor that shows all drops, started once: stopped it is as good as not there, since it asks the programs for nothing.
fn compare_monitor(kinds: &[Kind]) -> Vec<Summary> {
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
    kinds.iter().map(|kind| compare(&mut load, *kind, kind.plan(), resume, halt)).collect()
}

#[test]
#[ignore = "measures, for two minutes"]
fn a_monitor_costs_less_than_a_hundredth_at_no_drops() {
    for summary in compare_monitor(&[Kind::Requests, Kind::Bulk]) {
        assert!(summary.low > 0.99, "{summary:?}");
    }
}

#[test]
#[ignore = "measures, for two minutes"]
fn a_flood_of_drops_makes_a_monitor_cost_no_more_than_its_bound() {
    for summary in compare_monitor(&[Kind::Flood, Kind::RequestsInFlood]) {
        assert!(summary.low > 0.95, "{summary:?}");
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
        let summary = compare(&mut load, Kind::Requests, DROPS, begin, drop);
        assert!(summary.low > 0.7, "{summary:?}");
    }
}
