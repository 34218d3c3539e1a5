//! `overlay capture`: what a pod really sends and gets, seen inside of its own namespace, where all of it passes: packets
//! that programs deliver do not pass the device on the node. Needs no agent, and no program in the pod.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    datapath::pins::Pins,
    observe::{
        decode::{self, Decoded},
        filter::FlowArgs,
        names::{Names, Pod},
        pcapng::{Packet, PcapNg},
        record::{end, local_time},
        sandbox,
        sink::{Show, SinkArgs},
        until::{self, Until, Wake},
        wiretap::{Tapped, Wiretap},
    },
};

/// Packets between two looks at the clock and at signals.
const BURST: usize = 256;
/// Longest pause between these, where nothing comes.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Capture {
    /// A pod of this node: its address, name, namespace/name or container id
    #[arg(value_name = "POD")]
    pod: String,
    #[command(flatten)]
    flow: FlowArgs,
    #[command(flatten)]
    sink: SinkArgs,
    /// End after this many packets
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// End after this time, such as 30s
    #[arg(long, value_name = "TIME", value_parser = until::duration)]
    timeout: Option<Duration>,
    /// Bytes to keep of each packet
    #[arg(short, long, value_name = "BYTES", default_value_t = 262_144,
          value_parser = clap::value_parser!(u32).range(64..=524_288))]
    snaplen: u32,
}

impl Capture {
    pub(super) fn run(&self, pins: &Pins) -> anyhow::Result<()> {
        let mut names = Names::read(pins)?;
        let pod = find(&names, &self.pod)?;
        let (netns, ifindex) = sandbox::open(&pod)?;
        let device = sandbox::device_name(&netns, ifindex)?;
        let snap = self.snaplen as usize;
        let tap = netns.run(|| Wiretap::open(ifindex, snap))?;
        let mut tap = tap.with_context(|| format!("listen to {device} of pod {}", pod.address))?;
        let until = Until::new(self.timeout)?;
        let mut sink = self.sink.open(self.snaplen)?;
        let whose = pod.full_name().unwrap_or_else(|| pod.container.clone());
        // Not of interest to who has closed it.
        let _ = writeln!(
            io::stderr(),
            "overlay: listening to {device} of {whose} ({}); Ctrl-C ends it",
            pod.address
        );

        let mut left = self.count;
        while left != Some(0) && until.wait(Some(std::os::fd::AsFd::as_fd(&tap)), PAUSE)? == Wake::GoOn {
            names.refresh(pod.ifindex)?;
            for _ in 0..BURST {
                let packet = match tap.next_packet() {
                    Ok(Some(packet)) => packet,
                    Ok(None) => break,
                    Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => {
                        eprintln!("overlay: {device} of {whose} went down");
                        left = Some(0);
                        break;
                    }
                    Err(e) => return Err(e).context("read packets"),
                };
                let decoded = decode::decode(packet.bytes);
                if !self.flow.matches(&decoded.flow, &names) {
                    continue;
                }
                if until::unless_closed(sink.show(&One { packet, decoded, device: &device, names: &names }))?
                    == Wake::End
                {
                    return Ok(());
                }
                left = left.map(|left| left - 1);
                if left == Some(0) {
                    break;
                }
            }
            if until::unless_closed(sink.flush())? == Wake::End {
                return Ok(());
            }
        }
        let lost = tap.lost().context("read the number of lost packets")?;
        if lost > 0 {
            eprintln!("overlay: {lost} packets came faster than they could be written and are missing");
        }
        Ok(())
    }
}

/// The pod that a person means.
fn find(names: &Names, text: &str) -> anyhow::Result<Pod> {
    let mut pods: Vec<&Pod> = names.pods_called(text).collect();
    match (pods.pop(), pods.len()) {
        (Some(pod), 0) => Ok(pod.clone()),
        (None, _) => bail!("no pod of this node is called {text}: `overlay endpoints` lists them"),
        (Some(pod), _) => {
            pods.push(pod);
            let addresses: Vec<_> = pods.iter().map(|pod| pod.address.to_string()).collect();
            bail!("{text} may be any of {}: say which, by its address", addresses.join(", "))
        }
    }
}

/// A packet that is to be shown.
struct One<'a> {
    packet: Tapped<'a>,
    decoded: Decoded,
    device: &'a str,
    names: &'a Names,
}

impl One<'_> {
    fn time(&self) -> Timestamp {
        Timestamp::try_from(std::time::SystemTime::UNIX_EPOCH + self.packet.time).unwrap_or_default()
    }
}

impl Show for One<'_> {
    fn line(&self) -> String {
        let flow = &self.decoded.flow;
        format!(
            "{}: {} -> {} {} ({}; {} bytes)",
            local_time(self.time()),
            end(flow.src, flow.src_port, self.names),
            end(flow.dst, flow.dst_port, self.names),
            if self.packet.outbound { "SENT" } else { "RECEIVED" },
            self.decoded.what,
            self.packet.len,
        )
    }

    fn json(&self) -> Value {
        let flow = &self.decoded.flow;
        json!({
            "time": self.time().to_string(),
            "device": self.device,
            "direction": if self.packet.outbound { "sent" } else { "received" },
            "source": flow.src,
            "source_port": flow.src_port,
            "destination": flow.dst,
            "destination_port": flow.dst_port,
            "protocol": flow.protocol,
            "summary": self.decoded.what,
            "length": self.packet.len,
        })
    }

    fn write(&self, file: &mut PcapNg<Box<dyn Write>>) -> io::Result<()> {
        file.write(&Packet {
            time: self.packet.time,
            interface: self.device,
            outbound: self.packet.outbound,
            bytes: self.packet.bytes,
            len: u32::try_from(self.packet.len).unwrap_or(u32::MAX),
            comment: "",
        })
    }
}
