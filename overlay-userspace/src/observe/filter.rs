//! Which packets are meant: the filters of `overlay monitor` and `overlay capture`.
//!
//! What a program can look at cheaply is handed to it ([`Filter::in_kernel`]), so that other packets use up nothing of
//! the budget for traces; everything is looked at again here, for the programs' filter is coarser.

use std::{fmt, net::IpAddr, str::FromStr};

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use overlay_common::{
    maps::{Event, TraceFilter},
    reason::Reason,
};

use super::{decode::Flow, names::Names};

/// Filters that any packet can be held against.
#[derive(Clone, Debug, Default, Args)]
pub struct FlowArgs {
    /// From this address, range (10.244.1.0/24) or pod of this node
    #[arg(long, value_name = "PEER")]
    pub from: Option<Peer>,
    /// To this address, range or pod of this node
    #[arg(long, value_name = "PEER")]
    pub to: Option<Peer>,
    /// With this port, source or destination
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// tcp, udp, icmp, sctp, or a number
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<Protocol>,
}

/// All filters of `overlay monitor`.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// From or to this pod of this node: its address, name, namespace/name or container id
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// From or to this node, or a pod of it: its name or address
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Dropped for this reason; may be repeated
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    pub reason: Vec<ReasonName>,
    /// What any packet can be held against.
    #[command(flatten)]
    pub flow: FlowArgs,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Addresses.
    Net(IpNet),
    /// A pod's name.
    Pod(String),
}

impl FromStr for Peer {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net =
            text.parse::<IpNet>().map(|net| net.trunc()).or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        Ok(net.map_or_else(|_| Self::Pod(text.to_owned()), Self::Net))
    }
}

impl Peer {
    fn is(&self, address: Option<IpAddr>, names: &Names) -> bool {
        let Some(address) = address else { return false };
        match self {
            Self::Net(net) => net.contains(&address),
            Self::Pod(text) => names.pod(address).is_some_and(|pod| pod.is_called(text)),
        }
    }

    /// The address, where it is one.
    fn single(&self, names: &Names) -> Option<IpAddr> {
        match self {
            Self::Net(net) => (net.prefix_len() == net.max_prefix_len()).then(|| net.addr()),
            Self::Pod(text) => single(names, text),
        }
    }
}

fn single(names: &Names, pod: &str) -> Option<IpAddr> {
    let mut called = names.pods_called(pod);
    called.next().filter(|_| called.next().is_none()).map(|pod| pod.address)
}

/// An IP protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u8);

const PROTOCOLS: [(&str, u8); 5] = [("icmp", 1), ("tcp", 6), ("udp", 17), ("sctp", 132), ("udplite", 136)];

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named =
            PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| *number);
        let number = named.or_else(|| text.parse().ok().filter(|number| *number != 0));
        number.map(Self).ok_or_else(|| "is no protocol: use tcp, udp, icmp, sctp or a number".to_owned())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(&name.to_ascii_uppercase()),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

/// A reason, by the name that metrics and records give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonName(pub Reason);

impl ValueEnum for ReasonName {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [ReasonName; Reason::COUNT] = {
            let mut all = [ReasonName(Reason::PodSourceAddress); Reason::COUNT];
            let mut index = 0;
            while index < Reason::COUNT {
                all[index] = ReasonName(Reason::ALL[index]);
                index += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()).help(self.0.describe()))
    }
}

impl FlowArgs {
    /// Is this packet meant?
    pub fn matches(&self, flow: &Flow, names: &Names) -> bool {
        let Self { from, to, port, protocol } = self;
        from.as_ref().is_none_or(|peer| peer.is(flow.src, names))
            && to.as_ref().is_none_or(|peer| peer.is(flow.dst, names))
            && port.is_none_or(|port| port == flow.src_port || port == flow.dst_port)
            && protocol.is_none_or(|protocol| protocol.0 == flow.protocol)
    }
}

impl Filter {
    /// Refuses what nothing can ever match, where that is sure.
    pub fn check(&self, names: &Names) -> anyhow::Result<()> {
        if let Some(pod) = &self.pod {
            let known = pod.parse::<IpAddr>().is_ok() || names.pods_called(pod).next().is_some();
            ensure!(known, "no pod of this node is called {pod}: `overlay endpoints` lists them");
        }
        for peer in [&self.flow.from, &self.flow.to].into_iter().flatten() {
            if let Peer::Pod(pod) = peer
                && names.pods_called(pod).next().is_none()
            {
                bail!("{pod} is neither an address nor a pod of this node: `overlay endpoints` lists them");
            }
        }
        if let Some(node) = &self.node {
            let known = node.parse::<IpAddr>().is_ok() || names.is_node(node);
            ensure!(known, "no node is called {node}: `overlay nodes` lists them");
        }
        Ok(())
    }

    /// Is this record meant?
    pub fn matches(&self, event: &Event, names: &Names) -> bool {
        let flow = Flow::of(event);
        let is_reason = |wanted: &ReasonName| u32::from(event.code) == wanted.0 as u32;
        (self.reason.is_empty() || event.kind == 0 && self.reason.iter().any(is_reason))
            && self.pod.as_ref().is_none_or(|pod| Self::is_of_pod(pod, event, &flow, names))
            && self.node.as_ref().is_none_or(|node| Self::is_of_node(node, event, &flow, names))
            && self.flow.matches(&flow, names)
    }

    /// By either address, or by the pod's device: it may have sent from an address that is not its own.
    fn is_of_pod(text: &str, event: &Event, flow: &Flow, names: &Names) -> bool {
        let wanted: Option<IpAddr> = text.parse().ok();
        let is = |address: Option<IpAddr>| {
            address.is_some()
                && (address == wanted
                    || address.and_then(|a| names.pod(a)).is_some_and(|pod| pod.is_called(text)))
        };
        is(flow.src) || is(flow.dst) || names.pod_of(event.ifindex).is_some_and(|pod| pod.is_called(text))
    }

    fn is_of_node(text: &str, event: &Event, flow: &Flow, names: &Names) -> bool {
        let wanted = text.parse::<IpAddr>().ok();
        let name = wanted.and_then(|address| names.node(address)).unwrap_or(text);
        let outer = (!event.outer_src.is_unspecified()).then(|| event.outer_src.to_ip());
        let mut ends = [flow.src, flow.dst, outer].into_iter().flatten();
        ends.any(|address| wanted == Some(address) || names.node(address) == Some(name))
    }

    /// What the programs can look at.
    pub fn in_kernel(&self, names: &Names) -> TraceFilter {
        let address = |address: Option<IpAddr>| address.map(Into::into).unwrap_or_default();
        let pod = self.pod.as_ref().and_then(|pod| pod.parse().ok().or_else(|| single(names, pod)));
        TraceFilter {
            either: address(pod),
            src: address(self.flow.from.as_ref().and_then(|peer| peer.single(names))),
            dst: address(self.flow.to.as_ref().and_then(|peer| peer.single(names))),
            port: self.flow.port.unwrap_or(0),
            protocol: self.flow.protocol.map_or(0, |protocol| protocol.0),
            reserved: [0; 5],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_addresses_ranges_or_names() {
        let peer = |text: &str| text.parse::<Peer>().unwrap();
        assert_eq!(peer("10.244.0.2"), Peer::Net("10.244.0.2/32".parse().unwrap()));
        assert_eq!(peer("10.244.1.7/24"), Peer::Net("10.244.1.0/24".parse().unwrap()));
        assert_eq!(peer("shop/web-0"), Peer::Pod("shop/web-0".into()));
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        for (text, number) in [("tcp", 6), ("UDP", 17), ("icmp", 1), ("sctp", 132), ("47", 47)] {
            assert_eq!(text.parse::<Protocol>(), Ok(Protocol(number)), "{text}");
        }
        for text in ["", "0", "256", "http"] {
            assert!(text.parse::<Protocol>().is_err(), "{text}");
        }
        assert_eq!(Protocol(6).to_string(), "TCP");
        assert_eq!(Protocol(47).to_string(), "protocol 47");
    }

    #[test]
    fn every_reason_can_be_asked_for() {
        let names: Vec<_> =
            ReasonName::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
        assert_eq!(names.len(), Reason::COUNT);
        assert!(names.iter().zip(Reason::ALL).all(|(value, reason)| value.get_name() == reason.name()));
    }
}
