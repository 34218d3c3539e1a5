//! The pod network's ranges: at most one for each family, the first that was given being that of the primary family.

use std::fmt;

use ipnet::IpNet;

use crate::family::{ByFamily, Family, OfFamily as _};

/// The ranges that all pod subnets are taken from: one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidrs {
    nets: ByFamily<IpNet>,
    primary: Family,
}

/// Why these cannot be the ranges of a pod network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it; the fields are the objects they name")]
pub enum CidrsError {
    #[error("is an empty list: give one range, or one of IPv4 and one of IPv6")]
    Empty,
    #[error("has two {0} ranges, {1} and {2}: give one for each family")]
    SameFamily(Family, IpNet, IpNet),
    #[error("{0} has host bits set: write {1}")]
    HostBits(IpNet, IpNet),
    #[error("{0} cannot be a pod network: use a private range such as {example}", example = example(*.0))]
    Unusable(IpNet),
}

const fn example(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "10.244.0.0/16",
        IpNet::V6(_) => "fd00:10:244::/56",
    }
}

impl Cidrs {
    /// Takes ranges, that of the primary family first.
    ///
    /// # Errors
    ///
    /// What is wrong with which of them, so worded that it follows the name of the setting.
    pub fn new(nets: impl IntoIterator<Item = IpNet>) -> Result<Self, CidrsError> {
        let (mut all, mut primary) = (ByFamily::default(), None);
        for net in nets {
            check(net)?;
            let family = net.family();
            primary.get_or_insert(family);
            if let Some(other) = all.set(family, net) {
                return Err(CidrsError::SameFamily(family, other, net));
            }
        }
        Ok(Self { nets: all, primary: primary.ok_or(CidrsError::Empty)? })
    }

    /// The family whose addresses come first.
    pub const fn primary(&self) -> Family {
        self.primary
    }

    /// Both families, the primary one first, whether there is a range of the other or not.
    pub const fn order(&self) -> [Family; 2] {
        [self.primary, self.primary.other()]
    }

    /// The range of a family.
    pub fn get(&self, family: Family) -> Option<IpNet> {
        self.nets.get(family).copied()
    }

    /// The ranges, each by its family.
    pub const fn by_family(&self) -> ByFamily<IpNet> {
        self.nets
    }

    /// The ranges, that of the primary family first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.order().into_iter().filter_map(|family| self.get(family))
    }

    /// The range that holds all of this.
    pub fn holder(&self, net: impl Into<IpNet>) -> Option<IpNet> {
        let net = net.into();
        self.get(net.family()).filter(|range| range.contains(&net))
    }
}

fn check(net: IpNet) -> Result<(), CidrsError> {
    if net.addr() != net.network() {
        return Err(CidrsError::HostBits(net, net.trunc()));
    }
    let special = match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        // With the addresses that stand for IPv4 ones.
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().to_ipv4_mapped().is_some(),
    };
    let ip = net.addr();
    if special || net.prefix_len() == 0 || ip.is_multicast() || ip.is_loopback() {
        return Err(CidrsError::Unusable(net));
    }
    Ok(())
}

impl From<IpNet> for Cidrs {
    /// Of one family alone; not validated.
    fn from(net: IpNet) -> Self {
        let primary = net.family();
        let mut nets = ByFamily::default();
        nets.set(primary, net);
        Self { nets, primary }
    }
}

impl fmt::Display for Cidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, net) in self.iter().enumerate() {
            write!(f, "{}{net}", if number == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(nets: &[&str]) -> Result<Cidrs, CidrsError> {
        Cidrs::new(nets.iter().map(|net| net.parse().unwrap()))
    }

    #[test]
    fn the_first_is_the_primary_one() {
        for (nets, primary) in [
            (["10.244.0.0/16", "fd00:10:244::/56"], Family::Ipv4),
            (["fd00:10:244::/56", "10.244.0.0/16"], Family::Ipv6),
        ] {
            let both = cidrs(&nets).unwrap();
            assert_eq!(both.primary(), primary);
            assert_eq!(both.to_string(), nets.join(", "));
            assert_eq!(both.holder(nets[0].parse::<IpNet>().unwrap()), both.get(primary));
        }
        let one = cidrs(&["fd00::/48"]).unwrap();
        assert_eq!((one.get(Family::Ipv4), one.primary()), (None, Family::Ipv6));
        assert_eq!(one, Cidrs::from("fd00::/48".parse::<IpNet>().unwrap()));
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        assert!(one.holder(ip("fd00::7")).is_some());
        assert!(one.holder(ip("fd01::7")).is_none() && one.holder(ip("10.0.0.1")).is_none());
    }

    #[test]
    fn what_cannot_be_a_pod_network_is_refused_in_both_families() {
        let says = |nets: &[&str], text: &str| {
            let error = cidrs(nets).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        says(&[], "is an empty list");
        says(
            &["10.244.0.0/16", "fd00::/48", "10.245.0.0/16"],
            "two IPv4 ranges, 10.244.0.0/16 and 10.245.0.0/16",
        );
        says(&["fd00::/48", "fd01::/48"], "has two IPv6 ranges");
        says(&["10.244.0.1/16"], "has host bits set: write 10.244.0.0/16");
        says(&["fd00::1/48"], "has host bits set: write fd00::/48");
        for bad in ["0.0.0.0/0", "224.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16"] {
            says(&[bad], "use a private range such as 10.244.0.0/16");
        }
        for bad in ["::/0", "ff00::/8", "::1/128", "fe80::/64", "::ffff:10.0.0.0/104"] {
            says(&[bad], "use a private range such as fd00:10:244::/56");
        }
    }
}
