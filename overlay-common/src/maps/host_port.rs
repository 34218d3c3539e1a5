//! Keys and values of `HOST_PORTS`: the ports of the node that lead to a pod.
//!
//! As `ENDPOINTS` is the lease database of addresses, this is that of host ports: a port is taken by inserting it
//! with `BPF_NOEXIST`. The rules of the packet filter are made from it.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use super::Addr;
#[cfg(not(feature = "next-schema"))]
use super::Owner;

/// Entries of `HOST_PORTS`: all ports of one protocol.
pub const HOST_PORTS_MAX: usize = 65_536;

/// A port of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct HostPort {
    /// The address of the node that it is on; the family's unspecified address (`0.0.0.0` mapped, `::`) stands for all of
    /// that family.
    pub addr: Addr,
    /// The port, host order.
    pub port: u16,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Reserved, 0.
    pub reserved: u8,
}

/// Where packets to such a port go, and who holds it.
#[cfg(not(feature = "next-schema"))]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HostPortTarget {
    /// The pod.
    pub pod: Addr,
    /// Its port, host order.
    pub port: u16,
    /// Reserved, 0.
    pub reserved: u16,
    /// Whose it is: the owner of the pod's entry in `ENDPOINTS`.
    pub owner: Owner,
}

impl HostPort {
    /// The address, where the port is not on all of them.
    pub fn address(&self) -> Option<Addr> {
        let any = self.addr == Addr::v4([0; 4]) || self.addr.is_unspecified();
        (!any).then_some(self.addr)
    }

    /// Whether a packet to one can be a packet to the other: then they cannot be two pods'.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && self.addr.to_ip().is_ipv4() == other.addr.to_ip().is_ipv4()
            && match (self.address(), other.address()) {
                (Some(one), Some(two)) => one == two,
                _ => true,
            }
    }
}

/// `0.0.0.0:8080/tcp`.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr.to_ip() {
            core::net::IpAddr::V4(ip) => write!(f, "{ip}:{}/", self.port)?,
            core::net::IpAddr::V6(ip) => write!(f, "[{ip}]:{}/", self.port)?,
        }
        match PortProtocol::from_number(self.protocol) {
            Some(protocol) => f.write_str(protocol.name()),
            None => write!(f, "{}", self.protocol),
        }
    }
}

/// A protocol that has ports.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortProtocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl PortProtocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// In small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The protocol with this IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| *protocol as u8 == number)
    }

    /// The protocol with this name, in letters of either case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(addr: [u8; 4], port: u16, protocol: PortProtocol) -> HostPort {
        HostPort { addr: Addr::v4(addr), port, protocol: protocol as u8, reserved: 0 }
    }

    #[test]
    fn a_port_on_all_addresses_overlaps_with_it_on_each() {
        use PortProtocol::{Tcp, Udp};
        let any = port([0; 4], 80, Tcp);
        let (one, two) = (port([192, 0, 2, 1], 80, Tcp), port([192, 0, 2, 2], 80, Tcp));
        assert!(any.overlaps(&one) && two.overlaps(&any) && any.overlaps(&any) && one.overlaps(&one));
        assert!(!one.overlaps(&two));
        assert!(!any.overlaps(&port([0; 4], 81, Tcp)) && !any.overlaps(&port([0; 4], 80, Udp)));
        assert_eq!((any.address(), one.address()), (None, Some(Addr::v4([192, 0, 2, 1]))));
        let six = |addr: &str| HostPort { addr: addr.parse::<core::net::IpAddr>().unwrap().into(), ..any };
        assert_eq!(six("::").address(), None);
        assert!(six("::").overlaps(&six("fd00::1")) && six("::").overlaps(&six("::")));
        assert!(!six("fd00::2").overlaps(&six("fd00::1")));
        // Families have nothing to do with each other.
        assert!(!any.overlaps(&six("::")) && !six("::").overlaps(&one) && !six("fd00::1").overlaps(&any));
    }

    #[test]
    fn it_is_written_as_people_write_it() {
        assert_eq!(port([0; 4], 80, PortProtocol::Tcp).to_string(), "0.0.0.0:80/tcp");
        let other = HostPort { addr: Addr::UNSPECIFIED, port: 53, protocol: 47, reserved: 0 };
        assert_eq!(other.to_string(), "[::]:53/47");
    }

    #[test]
    fn protocols_are_known_by_number_and_name() {
        for protocol in PortProtocol::ALL {
            assert_eq!(PortProtocol::from_number(protocol as u8), Some(protocol));
            assert_eq!(PortProtocol::from_name(&protocol.name().to_uppercase()), Some(protocol));
        }
        assert_eq!((PortProtocol::from_name("icmp"), PortProtocol::from_number(1)), (None, None));
    }
}
