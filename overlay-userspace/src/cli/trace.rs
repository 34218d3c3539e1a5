//! `overlay trace`: what the datapath would do with a packet, and why.

use std::{
    io::{self, Read as _},
    net::IpAddr,
};

use anyhow::Context as _;
use clap::Args;

use super::{
    exit::Verdict,
    output::{Cell, OutputArgs, Text, print_object},
};
use crate::{
    datapath::{kernel, pins::Pins},
    trace::{self, Asked, Outcome, Protocol, Report, Traced},
};

/// More than any packet in hexadecimal, with its report.
const INPUT_MAX: u64 = 1 << 20;

/// What to ask.
#[derive(Debug, Args)]
pub(super) struct Trace {
    /// A pod of this node: its address, its name or namespace/name, or the beginning of its container's id
    #[arg(required_unless_present = "received")]
    pod: Option<String>,
    /// Where it sends to: a pod, a node, a Service, the world
    #[arg(required_unless_present = "received")]
    destination: Option<IpAddr>,
    /// Kind of packet: a SYN, a datagram or an echo request [default: tcp where there is a port, else icmp]
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    protocol: Option<Protocol>,
    /// Destination port [default: 80]
    #[arg(long, value_name = "PORT", conflicts_with = "received")]
    port: Option<u16>,
    /// Source port; the identifier of an echo
    #[arg(long, value_name = "PORT", default_value_t = 40000)]
    source_port: u16,
    /// Bytes of the packet from its IP header on
    #[arg(long, value_name = "BYTES", default_value_t = 84)]
    size: u16,
    /// Time to live
    #[arg(long, value_name = "HOPS", default_value_t = 64)]
    ttl: u8,
    /// Send from another address than the pod's
    #[arg(long, value_name = "ADDRESS")]
    from_address: Option<IpAddr>,
    /// The other half: a packet that came in by the wire, in hexadecimal, or the JSON that this command printed on the node
    /// that sends it; - reads it from standard input
    #[arg(long, value_name = "PACKET", conflicts_with_all = ["pod", "destination"])]
    received: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Trace {
    /// Asks, and prints the explanation.
    pub(super) fn run(self, pins: &Pins) -> anyhow::Result<Verdict> {
        kernel::check_privileges()?;
        let report = match (self.received, self.pod, self.destination) {
            (Some(received), ..) => trace::received(pins, &Traced::parse(&text(received)?)?)?,
            (None, Some(pod), Some(destination)) => {
                let by_port = if self.port.is_some() { Protocol::Tcp } else { Protocol::Icmp };
                let asked = Asked {
                    pod,
                    destination,
                    protocol: self.protocol.unwrap_or(by_port),
                    port: self.port.unwrap_or(80),
                    source_port: self.source_port,
                    size: self.size,
                    ttl: self.ttl,
                    from_address: self.from_address,
                };
                trace::from_pod(pins, &asked)?
            }
            // clap has asked for them.
            _ => anyhow::bail!("name a pod and a destination, or a packet with --received"),
        };
        print_object(self.output, &report, |out| print(out, &report))?;
        Ok(if report.verdict.outcome.is_fine() { Verdict::Fine } else { Verdict::Wrong })
    }
}

/// The packet as it was given, or from standard input.
fn text(received: String) -> anyhow::Result<String> {
    if received != "-" {
        return Ok(received);
    }
    let mut text = String::new();
    io::stdin().take(INPUT_MAX).read_to_string(&mut text).context("read the packet from standard input")?;
    Ok(text)
}

/// A numbered list, then what becomes of the packet.
fn print(out: &mut Text<'_>, report: &Report) -> io::Result<()> {
    let Report { node, packet, steps, verdict, wire, .. } = report;
    out.line(format!("on node {node}: {packet}"))?;
    out.gap()?;
    let width = steps.iter().map(|step| step.what.len()).max().unwrap_or(0);
    for (number, step) in (1..).zip(steps) {
        let line = format!("{number:>2}. {:width$}  {}", step.what, step.text);
        out.line(if step.what == trace::DIFFERS { Cell::bad(line) } else { line.into() })?;
        if out.is_wide() && !step.facts.is_empty() {
            let facts = serde_json::to_string(&step.facts).map_err(io::Error::other)?;
            out.line(format!("    {:width$}  {facts}", ""))?;
        }
    }
    out.gap()?;
    let line = format!("=> {}", verdict.text);
    out.line(match verdict.outcome {
        Outcome::Delivered | Outcome::Sent => Cell::good(line),
        Outcome::Stack => line.into(),
        Outcome::Dropped | Outcome::Refused => Cell::bad(line),
    })?;
    if let Some(remedy) = &verdict.remedy {
        out.line(format!("   {remedy}"))?;
    }
    if let Some(wire) = wire {
        out.gap()?;
        out.line(format!("on the wire; for the other half: overlay trace --received {}", wire.hex))?;
    }
    Ok(())
}
