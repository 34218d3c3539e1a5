//! What a device's driver can do with XDP, by the generic netlink family `netdev` (Linux 6.3,
//! Documentation/netlink/specs/netdev.yaml). Runs in the network namespace of the calling thread.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

use super::netlink::messages;

/// Runs programs, and takes each of the basic verdicts (`NETDEV_XDP_ACT_BASIC`).
pub const XDP_BASIC: u64 = 1 << 0;
/// Runs programs on packets in several parts, as those above a page are (`NETDEV_XDP_ACT_RX_SG`).
pub const XDP_RX_SG: u64 = 1 << 5;

/// The family that knows the others: `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `…_NAME`.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
const DEV_GET: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// The headers of a netlink message, of generic netlink behind it (`struct genlmsghdr`), and of an attribute.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;

/// The flags of the device of this index; `None` where the kernel has no such family.
///
/// # Errors
///
/// The kernel's: `ENODEV` for a device that there is not.
pub fn xdp_features(index: u32) -> io::Result<Option<u64>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = match ask(&socket, CONTROLLER, GET_FAMILY, (FAMILY_NAME, b"netdev\0"), FAMILY_ID) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        answer => answer?.and_then(|value| value.get(..2)?.try_into().ok()).map(u16::from_ne_bytes),
    };
    let Some(family) = family else { return Ok(None) };
    let features = ask(&socket, family, DEV_GET, (IFINDEX, &index.to_ne_bytes()), XDP_FEATURES)?;
    Ok(features.and_then(|value| value.get(..8)?.try_into().ok()).map(u64::from_ne_bytes))
}

/// Sends a request with one attribute; gives the value of another one in the answer.
fn ask(
    socket: &Socket,
    family: u16,
    command: u8,
    (kind, value): (u16, &[u8]),
    wanted: u16,
) -> io::Result<Option<Vec<u8>>> {
    let length = HEADER + GENERIC + (ATTRIBUTE + value.len()).next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and port: one request is under way at a time, and its answer is read to the end.
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(length, 0);
    socket.send(&request, 0)?;

    let mut found = None;
    loop {
        let datagram = match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?.0,
        };
        for message in messages(&datagram) {
            let message = message?;
            if message.header.message_type == NLMSG_ERROR {
                return match message.payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(0) => Ok(found),
                    Some(code) => Err(io::Error::from_raw_os_error(-code)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            let attributes = NlasIterator::new(message.payload.get(GENERIC..).unwrap_or_default());
            found = attributes
                .filter_map(Result::ok)
                .find(|attribute| attribute.kind() == wanted)
                .map(|attribute| attribute.value().to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn a_veth_has_native_xdp_and_a_bridge_has_not() {
        in_fresh_netns(|| {
            ip("link add v0 type veth peer name v1");
            ip("link add br0 type bridge");
            let features = |name| xdp_features(if_nametoindex(name).unwrap()).unwrap();
            // A kernel before 6.3 does not say.
            if let Some(veth) = features("v0") {
                assert_eq!(veth & (XDP_BASIC | XDP_RX_SG), XDP_BASIC | XDP_RX_SG, "{veth:#x}");
                assert_eq!(features("br0").unwrap() & XDP_BASIC, 0);
            }
        });
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        in_fresh_netns(|| {
            if let Err(error) = xdp_features(77) {
                assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
            } else {
                assert_eq!(xdp_features(1).unwrap(), None, "only a kernel without the family gives no error");
            }
        });
    }
}
