//! The `lab` binary, which `cargo xtask run --lab` runs: builds the default cluster, proves what it can do, and
//! keeps it up to be looked at.
//!
//! Progress goes to standard error; standard output is the table, or the JSON, and nothing else.

use std::any::Any;
use std::io::{self, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use overlay_tests::lab::interrupt::{self, Interrupted};
use overlay_tests::lab::{AgentOptions, Cluster, Families, Link, Listed, WireMode, sweep};
use overlay_tests::proof::Stage;

/// Exit code after Ctrl-C or SIGTERM: 128 + SIGINT, as a shell has it.
const INTERRUPTED: u8 = 130;

/// A cluster on this machine, made of network namespaces.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build a three-node cluster, prove what it does, and keep it up until Ctrl-C
    Run(Run),
    /// Remove what killed labs have left behind
    Sweep,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Exit after the table, with a status other than 0 if a row failed
    #[arg(long)]
    once: bool,
    /// Print the rows as JSON: an array of {name, ok, seen}
    #[arg(long)]
    json: bool,
    /// How the underlay's wires behave
    #[arg(long, value_enum, default_value_t)]
    wire: Wire,
    /// Address families of the pods
    #[arg(long, value_enum, default_value_t)]
    families: Families,
    /// Address families of the underlay; those of the pods if not said
    #[arg(long, value_enum)]
    underlay: Option<Families>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Wire {
    /// Veth pairs as the kernel makes them
    #[default]
    W1,
    /// Like a NIC: segmentation at the sender, GRO at the receiver
    W2,
}

impl From<Wire> for WireMode {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire::W1 => Self::Veth,
            Wire::W2 => Self::Nic,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::on_signals();
    // The lab panics with messages made for people; where in the lab it was is of no interest here.
    panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Interrupted>() {
            eprintln!("error: {}", message(info.payload()));
        }
    }));
    let work = || match cli.command {
        Verb::Run(run) => run.execute(),
        Verb::Sweep => {
            for id in sweep::sweep() {
                eprintln!("removed {id}");
            }
            Ok(true)
        }
    };
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: cannot print: {error}");
            ExitCode::FAILURE
        }
        Err(payload) if payload.is::<Interrupted>() => {
            eprintln!("interrupted; the lab is removed");
            ExitCode::from(INTERRUPTED)
        }
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
    }
}

impl Run {
    /// Gives whether every row holds.
    fn execute(&self) -> io::Result<bool> {
        let start = Instant::now();
        progress("building nodes cp, w1, w2, a router and a world");
        let cluster = Cluster::builder()
            .link(Link::new(self.wire.into()))
            .families(self.families)
            .underlay(self.underlay.unwrap_or(self.families))
            .build();
        progress("starting agents");
        cluster.start_agents_with(AgentOptions::seen);
        progress("adding two pods to each node");
        let stage = Stage::new(cluster);
        let report = stage.prove(progress);
        progress(&format!("done after {:.1?}", start.elapsed()));
        if self.json {
            println!("{}", report.to_json());
        } else {
            report.print_table()?;
        }
        if !self.once {
            self.stay(&stage)?;
        }
        Ok(report.ok())
    }

    /// Says how to look around, and waits for Ctrl-C or SIGTERM.
    fn stay(&self, stage: &Stage) -> io::Result<()> {
        // With --json, standard output is data.
        let result =
            if self.json { hints(stage, &mut io::stderr()) } else { hints(stage, &mut io::stdout()) };
        result?;
        while !interrupt::requested() {
            thread::sleep(Duration::from_millis(100));
        }
        progress("removing the lab");
        Ok(())
    }
}

fn hints(stage: &Stage, out: &mut impl Write) -> io::Result<()> {
    let cluster = stage.cluster();
    writeln!(out, "\nThe cluster stays up until Ctrl-C.\n")?;
    for node in cluster.nodes() {
        let (name, entry) = (node.name(), node.entry());
        let (address, subnet) = (entry.address, entry.subnet);
        writeln!(out, "node {name}  {address}  pods {subnet}  netns {}", node.namespace().name())?;
        for pod in stage.pods().iter().filter(|pod| pod.node() == name) {
            let addrs = pod.addrs();
            let addrs = Listed::new(addrs.values());
            writeln!(out, "  pod {}  {addrs}  netns {}", pod.name(), pod.namespace().name())?;
        }
    }
    let world = cluster.world();
    let addresses = world.addresses();
    let addresses = Listed::new(addresses.values());
    writeln!(out, "world    {addresses}  netns {}\n", world.namespace().name())?;
    if let (Some(pod), Some(node)) = (stage.pods().first(), cluster.nodes().first()) {
        let maps = node.pins().join("maps");
        writeln!(out, "enter a pod    ip netns exec {} sh", pod.namespace().name())?;
        for map in ["NODES", "ENDPOINTS"] {
            writeln!(out, "see the maps   bpftool map dump pinned {}", maps.join(map).display())?;
        }
    }
    if let Some(node) = cluster.nodes().first() {
        let netns = node.namespace().name();
        let page = format!("http://{}/", SocketAddr::new(node.primary_address(), AgentOptions::HTTP_PORT));
        writeln!(out, "see the page   ip netns exec {netns} curl {page}metrics, or a browser on {page}")?;
    }
    writeln!(out, "agent logs     {}/<node>.log", cluster.lab().dir().display())?;
    writeln!(out, "cluster file   {}", cluster.lab().cluster_file().display())?;
    out.flush()
}

/// Says what happens now; on a terminal and in a log alike.
fn progress(step: &str) {
    let (dim, plain) = if io::stderr().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    eprintln!("{dim}lab: {step}{plain}");
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("the lab failed without a message")
}
