//! What is measured: the workloads, and a turn of one on the sockets of one contender.
//!
//! [`transactions`] and [`bulk`] and [`datagrams`] generate the load. Each starts the clients of a turn here and the servers at the
//! [`far`](crate::far) end, pins them, and leaves the sockets as they were, so that the next turn begins at once.

pub(crate) mod bulk;
pub(crate) mod datagrams;
pub(crate) mod transactions;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::far::Far;
use crate::placement::Placement;
use crate::sockets::{OneWay, Sockets};
use crate::statistics::quantile;

/// A workload. The order is that of tables and plots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(crate) enum Workload {
    /// One TCP stream, writes of 128 KiB
    TcpStream,
    /// Four TCP streams
    #[value(name = "tcp_stream_4")]
    #[serde(rename = "tcp_stream_4")]
    TcpStreams,
    /// One byte there and one back on one TCP connection
    TcpRr,
    /// A new TCP connection for each request
    TcpCrr,
    /// 64 bytes there and back by UDP
    UdpRr,
    /// Datagrams of 64 bytes, one way
    #[value(name = "udp_64")]
    #[serde(rename = "udp_64")]
    Udp64,
    /// Datagrams of 512 bytes, one way
    #[value(name = "udp_512")]
    #[serde(rename = "udp_512")]
    Udp512,
    /// Datagrams of 1400 bytes, one way
    #[value(name = "udp_1400")]
    #[serde(rename = "udp_1400")]
    Udp1400,
    /// `tcp_stream` between two pods of one node
    LocalTcpStream,
    /// `tcp_rr` between two pods of one node
    LocalTcpRr,
    /// `udp_rr` between two pods of one node
    LocalUdpRr,
}

/// How a turn is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// How long it may take.
    pub(crate) length: Duration,
    /// Where its threads run.
    pub(crate) placement: Placement,
}

/// What a turn gave.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// In the workload's unit.
    pub(crate) rate: f64,
    /// Times of single round trips, or of 32 datagrams one way, in nanoseconds.
    pub(crate) latency: Option<Latency>,
    /// Datagrams that did not arrive, as a share of those sent.
    pub(crate) loss: f64,
}

impl Sample {
    /// The median of the times; NaN where there are none.
    pub(crate) fn p50(&self) -> f64 {
        self.latency.map_or(f64::NAN, |latency| f64::from(latency.quantiles[0]))
    }
}

/// Quantiles of times within one turn, in nanoseconds. The median is what is least disturbed by whatever else the machine does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// The median, the 99th and the 99.9th hundredth.
    pub(crate) quantiles: [u32; 3],
}

impl Latency {
    /// The names of the quantiles.
    pub(crate) const NAMES: [&str; 3] = ["p50", "p99", "p99.9"];
    /// What they are, as shares.
    const SHARES: [f64; 3] = [0.5, 0.99, 0.999];

    /// The quantiles of these times; `None` if there are none.
    fn of(times: &mut [u32]) -> Option<Self> {
        let [p50, p99, p999] = Self::SHARES.map(|share| quantile(times, share));
        Some(Self { quantiles: [p50?, p99?, p999?] })
    }
}

impl Workload {
    /// All of them.
    pub(crate) const ALL: [Self; 11] = [
        Self::TcpStream,
        Self::TcpStreams,
        Self::TcpRr,
        Self::TcpCrr,
        Self::UdpRr,
        Self::Udp64,
        Self::Udp512,
        Self::Udp1400,
        Self::LocalTcpStream,
        Self::LocalTcpRr,
        Self::LocalUdpRr,
    ];

    /// As the command line spells it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TcpStream => "tcp_stream",
            Self::TcpStreams => "tcp_stream_4",
            Self::TcpRr => "tcp_rr",
            Self::TcpCrr => "tcp_crr",
            Self::UdpRr => "udp_rr",
            Self::Udp64 => "udp_64",
            Self::Udp512 => "udp_512",
            Self::Udp1400 => "udp_1400",
            Self::LocalTcpStream => "local_tcp_stream",
            Self::LocalTcpRr => "local_tcp_rr",
            Self::LocalUdpRr => "local_udp_rr",
        }
    }

    /// What its rate counts.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::TcpStream | Self::TcpStreams | Self::LocalTcpStream => "Gbit/s",
            Self::Udp64 | Self::Udp512 | Self::Udp1400 => "packets/s",
            Self::TcpRr | Self::TcpCrr | Self::UdpRr | Self::LocalTcpRr | Self::LocalUdpRr => "trips/s",
        }
    }

    /// Whether it is between two pods of one node.
    pub(crate) const fn is_local(self) -> bool {
        matches!(self, Self::LocalTcpStream | Self::LocalTcpRr | Self::LocalUdpRr)
    }

    /// Makes one turn.
    pub(crate) fn run(self, sockets: &Sockets, turn: Turn) -> Result<Sample> {
        let far = &*sockets.far;
        let result = match self {
            Self::TcpStream | Self::LocalTcpStream => bulk::run(far, &sockets.bulk[..1], turn),
            Self::TcpStreams => bulk::run(far, &sockets.bulk, turn),
            Self::TcpRr | Self::LocalTcpRr => transactions::tcp(far, &sockets.tcp, turn),
            Self::TcpCrr => transactions::connections(far, &sockets.connect, turn),
            Self::UdpRr | Self::LocalUdpRr => transactions::udp(far, &sockets.udp, turn),
            Self::Udp64 => datagrams::run(far, &sockets.one_way, 64, turn),
            Self::Udp512 => datagrams::run(far, &sockets.one_way, 512, turn),
            Self::Udp1400 => datagrams::run(far, &sockets.one_way, 1400, turn),
        };
        result.with_context(|| format!("run {}", self.name()))
    }
}

/// A turn of datagrams of 64 bytes on sockets of several flows.
pub(crate) fn flows(far: &Far, sockets: &OneWay, turn: Turn) -> Result<Sample> {
    datagrams::run(far, sockets, 64, turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line_and_of_json() {
        for workload in Workload::ALL {
            assert_eq!(workload.to_possible_value().unwrap().get_name(), workload.name());
            assert_eq!(serde_json::to_value(workload).unwrap(), workload.name());
        }
    }
}
