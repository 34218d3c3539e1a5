//! Addresses: which one a new pod gets, and which ones an attachment holds.
//!
//! `ENDPOINTS` is the database. Inserting with `BPF_NOEXIST` decides who gets an address, in the kernel, without a lock;
//! what is here only proposes. An address that was given back is proposed last, so that stragglers of its last holder do
//! not meet the next one. Families do not know of each other, but that a pod gets all of its addresses or none.

use std::net::IpAddr;

use overlay_common::maps::{Addr, ENDPOINTS_MAX, Endpoint, Owner};

use super::{
    failure::{Code, Failure},
    local::{Net, Node},
    owner::owner_text,
    pool::{candidates, is_candidate, size},
    wanted::Wanted,
};
use crate::{
    datapath::{
        DatapathError,
        pins::Pins,
        schema,
        tables::{Endpoints, LeaseCursor},
    },
    family::{ByFamily, Family, OfFamily as _},
};

/// What a pod's MAC is: a locally administered prefix and the last four bytes of its address, as the plugins of
/// containernetworking do it for IPv4. Nobody but the node sees it.
pub(super) fn mac(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => (v6.to_bits() as u32).to_be_bytes(),
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Who asks for addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applicant {
    /// The attachment.
    pub(super) owner: Owner,
    /// The tag of its network.
    pub(super) network: u32,
    /// The addresses and the MAC that it is to have.
    pub(super) wanted: Wanted,
}

/// The addresses that an attachment has taken, and what is known of it at each of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leased {
    /// One of each family that the node carries.
    pub(super) addresses: ByFamily<IpAddr>,
    /// The entry of each.
    pub(super) endpoint: Endpoint,
}

/// Takes an address of each family that the node carries, or none. The entries are incomplete (`ifindex` 0: nothing is
/// delivered) until [`complete`].
///
/// # Errors
///
/// [`Code::PoolExhausted`] with the pool's size and holders when no address of a family is free; for a wanted address
/// [`Code::InvalidConfig`] when no pod of this node can have it, [`Code::AddressTaken`] when one has it.
pub(super) fn take(
    endpoints: &mut Endpoints,
    pins: &Pins,
    cursor: &mut LeaseCursor,
    node: &Node,
    applicant: &Applicant,
) -> Result<Leased, Failure> {
    for (family, address) in applicant.wanted.addresses.iter() {
        if node.nets.get(family).is_none() {
            return Err(Failure::new(
                Code::InvalidConfig,
                format!("{address} was asked for, but this node carries no {family}: ask for none"),
            ));
        }
    }
    let mut addresses: ByFamily<IpAddr> = ByFamily::default();
    // The first address gives the MAC of the pod's device, if nobody else does.
    let mut lease_of = *applicant;
    for (family, net) in node.nets.iter() {
        match take_one(endpoints, cursor, node, net, &lease_of) {
            Ok((address, mac)) => {
                lease_of.wanted.mac = Some(mac);
                addresses.set(family, address);
            }
            Err(failure) => {
                let kept: Vec<_> = addresses
                    .values()
                    .filter_map(|address| release(endpoints, pins, (*address).into()).err())
                    .map(|error| error.to_string())
                    .collect();
                return Err(match kept.as_slice() {
                    [] => failure,
                    _ => failure.with_details(format!(
                        "undoing it failed too, DEL can be repeated: {}",
                        kept.join("; ")
                    )),
                });
            }
        }
    }
    let mac = lease_of.wanted.mac.unwrap_or_default();
    let endpoint = Endpoint::lease(applicant.network, mac, node.gateway_mac, applicant.owner);
    Ok(Leased { addresses, endpoint })
}

/// Takes an address of one family; also gives the MAC that its entry has.
fn take_one(
    endpoints: &mut Endpoints,
    cursor: &mut LeaseCursor,
    node: &Node,
    net: &Net,
    applicant: &Applicant,
) -> Result<(IpAddr, [u8; 6]), Failure> {
    let Applicant { owner, network, wanted } = *applicant;
    let family = net.subnet.family();
    let entry = |address| {
        let mac = wanted.mac.unwrap_or_else(|| mac(address));
        Endpoint::lease(network, mac, node.gateway_mac, owner)
    };
    if let Some(address) = wanted.addresses.get(family).copied() {
        let entry = entry(address);
        take_wanted(endpoints, net, address, entry)?;
        return Ok((address, entry.mac));
    }
    let last = cursor.get(family.index())?.to_ip();
    for address in candidates(net, last) {
        let entry = entry(address);
        if lease(endpoints, address, entry)? {
            // Only a hint; an address that is leased must not be lost for the sake of it.
            if let Err(error) = cursor.set(family.index(), address.into()) {
                log::warn!("{error}");
            }
            return Ok((address, entry.mac));
        }
    }
    Err(exhausted(endpoints, net))
}

fn take_wanted(
    endpoints: &mut Endpoints,
    net: &Net,
    address: IpAddr,
    endpoint: Endpoint,
) -> Result<(), Failure> {
    if !is_candidate(net, address) {
        let Net { subnet, gateway, .. } = net;
        let others = match subnet.family() {
            Family::Ipv4 => "its first, its last and",
            Family::Ipv6 => "its first and",
        };
        return Err(Failure::new(
            Code::InvalidConfig,
            format!(
                "{address} was asked for, but is no address for a pod of this node: ask for one of {subnet} other than {others} {gateway}"
            ),
        ));
    }
    if lease(endpoints, address, endpoint)? {
        return Ok(());
    }
    let holder = endpoints.get(address.into())?.map_or_else(|| "nobody any more".to_owned(), holder);
    Err(Failure::new(
        Code::AddressTaken,
        format!(
            "{address} was asked for, but is held by {holder}: delete that pod, or ask for another address"
        ),
    ))
}

/// `false` where somebody holds the address.
fn lease(endpoints: &mut Endpoints, address: IpAddr, endpoint: Endpoint) -> Result<bool, Failure> {
    endpoints.lease(address.into(), endpoint).map_err(|error| match error.errno() {
        // The map holds fewer entries than a subnet shorter than /18 has addresses.
        Some(libc::E2BIG) => Failure::new(
            Code::PoolExhausted,
            format!("the map ENDPOINTS is full: a node has room for {ENDPOINTS_MAX} addresses of pods"),
        ),
        _ => Failure::step("lease an address", error),
    })
}

/// How many holders an error names.
const HOLDERS_NAMED: usize = 5;

fn holder(endpoint: Endpoint) -> String {
    let (container, ifname) = owner_text(&endpoint.owner);
    format!("{ifname} of container {container}")
}

/// Why no address of a subnet is free.
pub(super) fn exhausted(endpoints: &Endpoints, net: &Net) -> Failure {
    let subnet = net.subnet;
    let mut entries = endpoints.entries().unwrap_or_default();
    entries.retain(|(address, _)| subnet.contains(&address.to_ip()));
    entries.sort_unstable_by_key(|(address, _)| *address);
    let held = entries.len();
    let named = entries.into_iter().take(HOLDERS_NAMED);
    let named: Vec<_> =
        named.map(|(address, endpoint)| format!("{} by {}", address.to_ip(), holder(endpoint))).collect();
    let more = if held > named.len() { format!(" and {} more", held - named.len()) } else { String::new() };
    let message = format!(
        "no address is free in {subnet}: {held} of {} are held; list the holders with `overlay endpoints`, or give the node a larger subnet",
        size(net)
    );
    Failure::new(Code::PoolExhausted, message).with_details(format!("held: {}{more}", named.join(", ")))
}

/// How many addresses of the node's subnet are held, and how many there are: in the family that has the fewest left.
pub(super) fn occupied(endpoints: &Endpoints, node: &Node) -> Result<(usize, usize), Failure> {
    let entries = endpoints.entries()?;
    let count = |net: &Net| {
        let held = entries.iter().filter(|(address, _)| net.subnet.contains(&address.to_ip())).count();
        (held, usize::try_from(size(net)).unwrap_or(usize::MAX))
    };
    let fewest_left = node.nets.values().map(count).min_by_key(|(held, size)| size.saturating_sub(*held));
    Ok(fewest_left.unwrap_or_default())
}

/// The subnet that has no address for a new pod, if there is one. Reads single entries: one of each family, unless a subnet
/// is nearly full.
pub(super) fn full<'a>(
    endpoints: &Endpoints,
    cursor: &LeaseCursor,
    node: &'a Node,
) -> Result<Option<&'a Net>, Failure> {
    for (family, net) in node.nets.iter() {
        let mut free = false;
        for address in candidates(net, cursor.get(family.index())?.to_ip()) {
            if endpoints.get(address.into())?.is_none() {
                free = true;
                break;
            }
        }
        if !free {
            return Ok(Some(net));
        }
    }
    Ok(None)
}

/// Makes the entries complete, so that the programs deliver to the pod by this device.
pub(super) fn complete(endpoints: &mut Endpoints, leased: &Leased, ifindex: u32) -> Result<(), Failure> {
    for address in leased.addresses.values() {
        match endpoints.update((*address).into(), Endpoint { ifindex, ..leased.endpoint }) {
            Ok(true) => {}
            Ok(false) => {
                let what = format!("the lease of {address} is gone");
                return Err(Failure::step("complete the endpoint", what));
            }
            Err(error) => return Err(Failure::step("complete the endpoint", error)),
        }
    }
    Ok(())
}

/// Gives an address back.
pub(super) fn release(endpoints: &mut Endpoints, pins: &Pins, address: Addr) -> Result<(), DatapathError> {
    // First: afterwards it may be somebody's again.
    schema::forget_endpoint(pins, address)?;
    endpoints.release(address).map(drop)
}

/// The leases of one owner among all: one of each family, unless a call was killed or repeated.
pub(super) fn held_by(entries: &[(Addr, Endpoint)], owner: &Owner) -> Vec<(Addr, Endpoint)> {
    entries.iter().filter(|(_, endpoint)| endpoint.owner == *owner).copied().collect()
}

/// Whether a device of this index belongs to somebody else's endpoint.
pub(super) fn is_foreign(entries: &[(Addr, Endpoint)], owner: &Owner, ifindex: u32) -> bool {
    entries.iter().any(|(_, endpoint)| endpoint.ifindex == ifindex && endpoint.owner != *owner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn macs_are_local_unicast_and_unlike_for_unlike_addresses() {
        let mac = |text: &str| super::mac(text.parse().unwrap());
        assert_eq!(mac("10.244.1.5"), [0x0a, 0x58, 10, 244, 1, 5]);
        assert_eq!(mac("fd00:244:0:1::1:5"), [0x0a, 0x58, 0, 1, 0, 5]);
        assert_eq!(mac("fd00::5")[0] & 3, 2);
    }
}
