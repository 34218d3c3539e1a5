//! The two address families, and values that exist once for each.
//!
//! A node, a pod or the cluster has IPv4, IPv6 or both. Invariant of the whole program: the families do not depend on each
//! other, so code that does something for a family loops over a [`ByFamily`], and an error in one leaves the other alone.

use std::net::IpAddr;

use ipnet::IpNet;

/// An address family. In order: IPv4 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The index in per-family arrays of the maps ([`overlay_common::maps::FAMILY_V4`], `FAMILY_V6`).
    pub const fn index(self) -> usize {
        match self {
            Self::Ipv4 => overlay_common::maps::FAMILY_V4,
            Self::Ipv6 => overlay_common::maps::FAMILY_V6,
        }
    }

    /// The one that this is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Ipv4 => Self::Ipv6,
            Self::Ipv6 => Self::Ipv4,
        }
    }

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// As nft writes it.
    pub const fn nft(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What belongs to one family.
pub trait OfFamily {
    /// Which one.
    fn family(&self) -> Family;
}

impl OfFamily for IpAddr {
    fn family(&self) -> Family {
        if self.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

impl OfFamily for IpNet {
    fn family(&self) -> Family {
        if self.addr().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

/// At most one `T` for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByFamily<T> {
    /// That of IPv4.
    pub v4: Option<T>,
    /// That of IPv6.
    pub v6: Option<T>,
}

impl<T> Default for ByFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> ByFamily<T> {
    /// That of this family.
    pub const fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::Ipv4 => self.v4.as_ref(),
            Family::Ipv6 => self.v6.as_ref(),
        }
    }

    /// Sets that of a family, and gives what was there.
    pub const fn set(&mut self, family: Family, value: T) -> Option<T> {
        match family {
            Family::Ipv4 => self.v4.replace(value),
            Family::Ipv6 => self.v6.replace(value),
        }
    }

    /// Removes that of a family, and gives what was there.
    pub const fn take(&mut self, family: Family) -> Option<T> {
        match family {
            Family::Ipv4 => self.v4.take(),
            Family::Ipv6 => self.v6.take(),
        }
    }

    /// Takes from another what there is none of.
    pub fn fill(&mut self, other: Self) {
        self.v4 = self.v4.take().or(other.v4);
        self.v6 = self.v6.take().or(other.v6);
    }

    /// Those that there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// Those that there are, without their families.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    /// Of each family what `change` makes of it.
    pub fn map<U>(&self, mut change: impl FnMut(Family, &T) -> U) -> ByFamily<U> {
        ByFamily {
            v4: self.v4.as_ref().map(|value| change(Family::Ipv4, value)),
            v6: self.v6.as_ref().map(|value| change(Family::Ipv6, value)),
        }
    }

    /// Neither.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Both.
    pub const fn is_dual(&self) -> bool {
        self.v4.is_some() && self.v6.is_some()
    }
}

impl<T: OfFamily> ByFamily<T> {
    /// One of each family; the second of a family comes back as an error.
    ///
    /// # Errors
    ///
    /// The value whose family was taken.
    pub fn from_values(values: impl IntoIterator<Item = T>) -> Result<Self, T> {
        let mut all = Self::default();
        for value in values {
            let family = value.family();
            if all.get(family).is_some() {
                return Err(value);
            }
            all.set(family, value);
        }
        Ok(all)
    }
}

/// What there is, IPv4 first: `10.244.1.0/24, fd00:1::/64`, or `none`.
impl<T: std::fmt::Display> std::fmt::Display for ByFamily<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.v4, &self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4}, {v6}"),
            (Some(one), None) | (None, Some(one)) => one.fmt(f),
            (None, None) => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_family_in_any_order() {
        let (v4, v6): (IpNet, IpNet) = ("10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap());
        for values in [[v4, v6], [v6, v4]] {
            let both = ByFamily::from_values(values).unwrap();
            assert!(both.is_dual());
            assert_eq!(both.iter().collect::<Vec<_>>(), [(Family::Ipv4, &v4), (Family::Ipv6, &v6)]);
        }
        assert_eq!(ByFamily::from_values([v6, v4, v6]), Err(v6));
        assert!(ByFamily::<IpNet>::from_values([]).unwrap().is_empty());
    }

    #[test]
    fn written_as_people_do() {
        let both = ByFamily { v4: Some("10.0.0.0/8"), v6: Some("fd00::/48") };
        assert_eq!(both.to_string(), "10.0.0.0/8, fd00::/48");
        assert_eq!(ByFamily { v4: None, ..both }.to_string(), "fd00::/48");
        assert_eq!(ByFamily::<IpNet>::default().to_string(), "none");
        assert_eq!(Family::ALL.map(Family::other), [Family::Ipv6, Family::Ipv4]);
    }
}
