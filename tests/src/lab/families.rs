//! Which address families a lab has, for its pods and for its underlay.

use std::net::IpAddr;

use clap::ValueEnum;
use ipnet::IpNet;
use overlay_userspace::family::{ByFamily, Family};

/// IPv4, IPv6 or both. In an IPv6-only lab nothing has an IPv4 address but 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Families {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both.
    Dual,
}

impl Families {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Ipv4, Self::Ipv6, Self::Dual];

    /// The families that there is a value of; there must be one.
    #[track_caller]
    pub fn of<T>(each: &ByFamily<T>) -> Self {
        match (each.v4.is_some(), each.v6.is_some()) {
            (true, false) => Self::Ipv4,
            (false, true) => Self::Ipv6,
            (true, true) => Self::Dual,
            (false, false) => panic!("neither family"),
        }
    }

    /// Whether this family is one of them.
    pub const fn has(self, family: Family) -> bool {
        !matches!((self, family), (Self::Ipv4, Family::Ipv6) | (Self::Ipv6, Family::Ipv4))
    }

    /// The families, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.has(*family))
    }

    /// What `make` gives for each of the families.
    pub fn map<T>(self, mut make: impl FnMut(Family) -> T) -> ByFamily<T> {
        let mut all = ByFamily::default();
        for family in self.iter() {
            all.set(family, make(family));
        }
        all
    }

    /// Those that are in one of both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ipv4, Self::Ipv4) => Self::Ipv4,
            (Self::Ipv6, Self::Ipv6) => Self::Ipv6,
            _ => Self::Dual,
        }
    }
}

/// Networks or addresses with their prefix lengths, at most one of each family: `nets(&["192.0.2.1/24"])`.
#[track_caller]
pub fn nets(texts: &[&str]) -> ByFamily<IpNet> {
    let parse = |text: &&str| -> IpNet { text.parse().unwrap_or_else(|_| panic!("not a network: {text}")) };
    ByFamily::from_values(texts.iter().map(parse))
        .unwrap_or_else(|net| panic!("{net}: a second of its family"))
}

/// The first address of a node's subnet that a host can have: the gateway's.
#[track_caller]
pub fn first_host(subnet: IpNet) -> IpAddr {
    host(subnet, 1)
}

/// Address `number` of a network.
#[track_caller]
pub fn host(net: IpNet, number: u32) -> IpAddr {
    let address: IpAddr = match net.network() {
        IpAddr::V4(first) => (u32::from(first) + number).to_be_bytes().into(),
        IpAddr::V6(first) => (u128::from(first) + u128::from(number)).to_be_bytes().into(),
    };
    assert!(net.contains(&address), "{net} has no address {number}");
    address
}

/// The option of `ip` for a family.
pub const fn option(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "-4",
        Family::Ipv6 => "-6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_counted_from_the_network_address() {
        let nets = nets(&["fd00:10:244:3::/64", "10.244.3.0/24"]);
        let first = nets.map(|_, net| first_host(*net).to_string());
        assert_eq!(first.v4.as_deref(), Some("10.244.3.1"));
        assert_eq!(first.v6.as_deref(), Some("fd00:10:244:3::1"));
    }

    #[test]
    fn families_know_what_they_have() {
        let names = |families: Families| families.iter().map(Family::name).collect::<Vec<_>>();
        assert_eq!(names(Families::Ipv4), ["IPv4"]);
        assert_eq!(names(Families::Ipv6), ["IPv6"]);
        assert_eq!(names(Families::Dual), ["IPv4", "IPv6"]);
        assert_eq!(Families::Ipv4.or(Families::Ipv6), Families::Dual);
        assert_eq!(Families::Ipv6.or(Families::Ipv6), Families::Ipv6);
    }
}
