//! Addresses: which one a new pod gets, and which ones an attachment holds.
//!
//! `ENDPOINTS` is the database. Inserting with `BPF_NOEXIST` decides who gets an address, in the kernel, without a lock;
//! what is here only proposes. An address that was given back is proposed last, so that stragglers of its last holder do
//! not meet the next one.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use overlay_common::maps::{Addr, ENDPOINTS_MAX, Endpoint, FAMILY_V4, Owner};

use super::{
    failure::{Code, Failure},
    local::Node,
    owner::owner_text,
    wanted::Wanted,
};
use crate::datapath::{
    DatapathError,
    pins::Pins,
    schema,
    tables::{Endpoints, LeaseCursor},
};

/// The addresses of `subnet` that pods can have, each once, beginning after `last` (at the first where `last` is not in
/// the subnet) and wrapping round.
///
/// Left out are the network and broadcast addresses and the gateway; a subnet without others gives none.
pub(super) fn candidates(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    last: Ipv4Addr,
) -> impl Iterator<Item = Ipv4Addr> {
    // In 64 bits even 0.0.0.0/0 does not overflow.
    let network = u64::from(subnet.network().to_bits());
    let size = 1_u64 << (32 - u32::from(subnet.prefix_len()));
    let start = if subnet.contains(&last) { u64::from(last.to_bits()) - network + 1 } else { 0 };
    (0..size)
        .map(move |step| (start + step) % size)
        .filter(move |offset| *offset != 0 && *offset != size - 1)
        .filter_map(move |offset| u32::try_from(network + offset).ok())
        .map(Ipv4Addr::from_bits)
        .filter(move |address| *address != gateway)
}

/// What a pod's MAC is: a locally administered prefix and the address, as the plugins of containernetworking do it.
pub(super) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Who asks for an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applicant {
    /// The attachment.
    pub(super) owner: Owner,
    /// The tag of its network.
    pub(super) network: u32,
    /// The address and the MAC that it is to have.
    pub(super) wanted: Wanted,
}

/// Takes an address. The entry is incomplete (`ifindex` 0: nothing is delivered) until [`complete`].
///
/// # Errors
///
/// [`Code::PoolExhausted`] with the pool's size and holders when no address is free; for a wanted address
/// [`Code::InvalidConfig`] when no pod of this node can have it, [`Code::AddressTaken`] when one has it.
pub(super) fn take(
    endpoints: &mut Endpoints,
    cursor: &mut LeaseCursor,
    node: &Node,
    applicant: &Applicant,
) -> Result<(Ipv4Addr, Endpoint), Failure> {
    let Applicant { owner, network, wanted } = *applicant;
    let endpoint = |address| {
        let mac = wanted.mac.unwrap_or_else(|| mac(address));
        Endpoint::lease(network, mac, node.gateway_mac, owner)
    };
    if let Some(address) = wanted.address {
        let endpoint = endpoint(address);
        take_wanted(endpoints, node, address, endpoint)?;
        return Ok((address, endpoint));
    }
    let last = Ipv4Addr::from(cursor.get(FAMILY_V4)?.v4_bytes());
    for address in candidates(node.subnet, node.gateway, last) {
        let endpoint = endpoint(address);
        if lease(endpoints, address, endpoint)? {
            // Only a hint; an address that is leased must not be lost for the sake of it.
            if let Err(error) = cursor.set(FAMILY_V4, address.into()) {
                log::warn!("{error}");
            }
            return Ok((address, endpoint));
        }
    }
    Err(exhausted(endpoints, node))
}

fn take_wanted(
    endpoints: &mut Endpoints,
    node: &Node,
    address: Ipv4Addr,
    endpoint: Endpoint,
) -> Result<(), Failure> {
    let Node { subnet, gateway, .. } = node;
    // Proposed first where it can be had at all: its turn is after the one before it.
    let before = Ipv4Addr::from_bits(address.to_bits().wrapping_sub(1));
    if candidates(*subnet, *gateway, before).next() != Some(address) {
        return Err(Failure::new(
            Code::InvalidConfig,
            format!(
                "{address} was asked for, but is no address for a pod of this node: ask for one of {subnet} other than its first, its last and {gateway}"
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
fn lease(endpoints: &mut Endpoints, address: Ipv4Addr, endpoint: Endpoint) -> Result<bool, Failure> {
    endpoints.lease(address.into(), endpoint).map_err(|error| match error.errno() {
        // The map holds fewer entries than a subnet shorter than /18 has addresses.
        Some(libc::E2BIG) => Failure::new(
            Code::PoolExhausted,
            format!("the map ENDPOINTS is full: a node has room for {ENDPOINTS_MAX} pods"),
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

/// Why no address is free.
pub(super) fn exhausted(endpoints: &Endpoints, node: &Node) -> Failure {
    let Node { subnet, gateway, .. } = node;
    let size = candidates(*subnet, *gateway, subnet.network()).count();
    let mut entries = endpoints.entries().unwrap_or_default();
    entries.retain(|(address, _)| matches!(address.to_ip(), IpAddr::V4(v4) if subnet.contains(&v4)));
    entries.sort_unstable_by_key(|(address, _)| *address);
    let held = entries.len();
    let named = entries.into_iter().take(HOLDERS_NAMED);
    let named: Vec<_> =
        named.map(|(address, endpoint)| format!("{} by {}", address.to_ip(), holder(endpoint))).collect();
    let more = if held > named.len() { format!(" and {} more", held - named.len()) } else { String::new() };
    let message = format!(
        "no address is free in {subnet}: {held} of {size} are held; list the holders with `overlay endpoints`, or give the node a larger subnet"
    );
    Failure::new(Code::PoolExhausted, message).with_details(format!("held: {}{more}", named.join(", ")))
}

/// How many addresses of the node's subnet are held, and how many there are.
pub(super) fn occupied(endpoints: &Endpoints, node: &Node) -> Result<(usize, usize), Failure> {
    let Node { subnet, gateway, .. } = node;
    let entries = endpoints.entries()?;
    let inside = |address: &Addr| matches!(address.to_ip(), IpAddr::V4(v4) if subnet.contains(&v4));
    let held = entries.iter().filter(|(address, _)| inside(address)).count();
    Ok((held, candidates(*subnet, *gateway, subnet.network()).count()))
}

/// Whether a new pod would get an address. Reads single entries: one, unless the subnet is nearly full.
pub(super) fn has_room(endpoints: &Endpoints, cursor: &LeaseCursor, node: &Node) -> Result<bool, Failure> {
    let last = Ipv4Addr::from(cursor.get(FAMILY_V4)?.v4_bytes());
    for address in candidates(node.subnet, node.gateway, last) {
        if endpoints.get(address.into())?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the entry complete, so that the programs deliver to the pod.
pub(super) fn complete(
    endpoints: &mut Endpoints,
    address: Ipv4Addr,
    endpoint: Endpoint,
) -> Result<(), Failure> {
    match endpoints.update(address.into(), endpoint) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::step("complete the endpoint", format!("the lease of {address} is gone"))),
        Err(error) => Err(Failure::step("complete the endpoint", error)),
    }
}

/// Gives an address back.
pub(super) fn release(endpoints: &mut Endpoints, pins: &Pins, address: Addr) -> Result<(), DatapathError> {
    // First: afterwards it may be somebody's again.
    schema::forget_endpoint(pins, address)?;
    endpoints.release(address).map(drop)
}

/// The leases of one owner among all: one, unless a call was killed or repeated.
pub(super) fn held_by(entries: &[(Addr, Endpoint)], owner: &Owner) -> Vec<(Addr, Endpoint)> {
    entries.iter().filter(|(_, endpoint)| endpoint.owner == *owner).copied().collect()
}

/// Whether a device of this index belongs to somebody else's endpoint.
pub(super) fn is_foreign(entries: &[(Addr, Endpoint)], owner: &Owner, ifindex: u32) -> bool {
    entries.iter().any(|(_, endpoint)| endpoint.ifindex == ifindex && endpoint.owner != *owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(subnet: &str, gateway: &str, last: &str) -> Vec<String> {
        let (subnet, gateway, last) =
            (subnet.parse().unwrap(), gateway.parse().unwrap(), last.parse().unwrap());
        candidates(subnet, gateway, last).map(|address| address.to_string()).collect()
    }

    #[test]
    fn the_first_pod_gets_the_first_address_after_the_gateway() {
        let all = all("10.244.1.0/24", "10.244.1.1", "0.0.0.0");
        assert_eq!(all.len(), 253);
        assert_eq!((all[0].as_str(), all[252].as_str()), ("10.244.1.2", "10.244.1.254"));
    }

    #[test]
    fn the_order_goes_on_after_the_last_address_and_wraps() {
        assert_eq!(
            all("10.244.1.0/29", "10.244.1.1", "10.244.1.4"),
            ["10.244.1.5", "10.244.1.6", "10.244.1.2", "10.244.1.3", "10.244.1.4"]
        );
        assert_eq!(all("10.244.1.0/29", "10.244.1.1", "10.244.1.6")[0], "10.244.1.2");
    }

    #[test]
    fn a_cursor_of_another_subnet_is_no_cursor() {
        assert_eq!(all("10.244.1.0/29", "10.244.1.1", "10.244.9.4")[0], "10.244.1.2");
    }

    #[test]
    fn the_smallest_and_the_largest_subnets_do_not_overflow() {
        assert_eq!(all("10.244.1.0/30", "10.244.1.1", "0.0.0.0"), ["10.244.1.2"]);
        assert!(all("10.244.1.0/31", "10.244.1.1", "0.0.0.0").is_empty());
        assert!(all("10.244.1.1/32", "10.244.1.1", "10.244.1.1").is_empty());
        let first = |subnet: &str, last: [u8; 4]| {
            candidates(subnet.parse().unwrap(), Ipv4Addr::new(0, 0, 0, 1), last.into())
                .next()
                .unwrap()
                .octets()
        };
        assert_eq!(first("0.0.0.0/0", [255; 4]), [0, 0, 0, 2]);
        assert_eq!(first("255.255.255.0/24", [255, 255, 255, 254]), [255, 255, 255, 1]);
    }

    #[test]
    fn macs_are_local_unicast_and_unlike_for_unlike_addresses() {
        let mac = mac(Ipv4Addr::new(10, 244, 1, 5));
        assert_eq!(mac, [0x0a, 0x58, 10, 244, 1, 5]);
        assert_eq!(mac[0] & 3, 2);
    }
}
