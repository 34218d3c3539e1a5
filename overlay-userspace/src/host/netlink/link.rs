//! Links: reading them, creating the anchor and pods' veth pairs, and their settings.
//!
//! Called by the agent (anchor device, underlay) and by the CNI plugin (veth pairs).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
    },
};
use nix::errno::Errno;

use super::{Failure, Netlink, NetlinkError};

/// linux/sockios.h and linux/ethtool.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GLINK: u32 = 0x0a;
const ETHTOOL_GDRVINFO: u32 = 0x03;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo` of linux/ethtool.h; of the rest nothing is read.
#[repr(C)]
struct EthtoolDriver {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// An Ethernet address, in the order of the wire.
pub type MacAddress = [u8; 6];

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags of the kernel")]
pub struct Link {
    /// Interface index, unique within its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Link-layer address, where it is an Ethernet one.
    pub mac: Option<MacAddress>,
    /// Largest packet it carries, in bytes, without the link-layer header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Up and able to carry packets (`IFF_RUNNING`).
    pub running: bool,
    /// Does not resolve neighbours (`IFF_NOARP`).
    pub noarp: bool,
    /// Takes part in multicast (`IFF_MULTICAST`).
    pub multicast: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// Driver name of a virtual interface, such as `vxlan` or `veth`.
    pub kind: Option<String>,
    /// What a vxlan device is set to.
    pub vxlan: Option<VxlanInfo>,
    /// The other end of a veth, or the lower device; in namespace `link_netnsid` if that is given.
    pub link: Option<u32>,
    /// Id of the namespace that holds `link`, where that is another one.
    pub link_netnsid: Option<i32>,
    /// The bridge, bond or VRF that this link belongs to.
    pub master: Option<u32>,
    /// The kernel's id of the XDP program that it runs, in whatever mode.
    pub xdp: Option<u32>,
}

/// Settings of a vxlan device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VxlanInfo {
    /// Its VNI; none in external mode, where each packet brings its own.
    pub vni: Option<u32>,
    /// UDP destination port (host byte order).
    pub port: u16,
    /// External (collect_md) mode.
    pub collect_metadata: bool,
    /// Learns VTEPs from packets.
    pub learning: bool,
    /// Takes UDP checksums of zero over IPv6 (RFC 6935); over IPv4 every device does.
    pub zero_checksums: bool,
}

/// The anchor device: vxlan in external mode, no learning, no neighbour resolution, UDP checksums of zero over IPv6 as over
/// IPv4.
#[derive(Debug, Clone)]
pub struct VxlanSpec<'a> {
    /// Interface name.
    pub name: &'a str,
    /// UDP destination port (host byte order).
    pub port: u16,
    /// Its own address: the inner destination of packets to this node.
    pub mac: MacAddress,
    /// MTU in bytes.
    pub mtu: u32,
    /// Interface index to ask for, so that programs that hold it stay right; any when none.
    pub index: Option<u32>,
}

/// A pod's veth pair, the peer inside of the pod's namespace.
#[derive(Debug, Clone)]
pub struct VethSpec<'a> {
    /// Name of the end on the node.
    pub host_name: &'a str,
    /// Address of the end on the node.
    pub host_mac: MacAddress,
    /// Name of the end in the pod.
    pub peer_name: &'a str,
    /// Address of the end in the pod.
    pub peer_mac: MacAddress,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Network namespace of the pod.
    pub peer_netns: BorrowedFd<'a>,
}

impl Netlink {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let replies =
            self.dump(&get(LinkMessage::default())).map_err(|failure| failure.during("list links".into()))?;
        Ok(replies.into_iter().filter_map(into_link).collect())
    }

    /// The link of that name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        if !is_name(name) {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find(message).map_err(|failure| failure.during(format!("read link {name}")))
    }

    /// The link of that index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.find(at(index)).map_err(|failure| failure.during(format!("read link #{index}")))
    }

    fn find(&mut self, message: LinkMessage) -> Result<Option<Link>, Failure> {
        match self.get(get(message)) {
            Ok(reply) => Ok(reply.and_then(into_link)),
            Err(failure) if failure.is(Errno::ENODEV) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Creates a vxlan device in external mode, down, without neighbour resolution and multicast. On an error no device is left behind.
    ///
    /// `EEXIST` when the name, the index or (in external mode) the port is taken.
    pub fn create_vxlan(&mut self, spec: &VxlanSpec<'_>) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = spec.index.unwrap_or(0);
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp | LinkFlags::Multicast;
        message.attributes = vec![
            LinkAttribute::IfName(spec.name.to_owned()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Address(spec.mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::CollectMetadata(true),
                    InfoVxlan::Learning(false),
                    InfoVxlan::Port(spec.port),
                    // What it sends goes by each packet's tunnel key; what its socket takes is set here, once for all.
                    InfoVxlan::UDPZeroCsumTX(true),
                    InfoVxlan::UDPZeroCsumRX(true),
                ])),
            ]),
        ];
        let link = self.create(spec.name, message)?;
        // Not taken at creation by the kernel (rtnl_newlink_create ignores IFLA_AF_SPEC).
        if let Err(error) = self.disable_link_local(link.index) {
            let _ = self.delete_link(spec.name);
            return Err(error);
        }
        Ok(link)
    }

    /// Creates a veth pair, both ends down, the peer directly in its namespace. Returns the end on the node.
    ///
    /// `EEXIST` when either name is taken.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<Link, NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(spec.peer_name.to_owned()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Address(spec.peer_mac.to_vec()),
            LinkAttribute::NetNsFd(spec.peer_netns.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(spec.host_name.to_owned()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Address(spec.host_mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.create(spec.host_name, message)
    }

    fn create(&mut self, name: &str, message: LinkMessage) -> Result<Link, NetlinkError> {
        self.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|failure| failure.during(format!("create link {name}")))?;
        self.link(name)?.ok_or_else(|| {
            Failure::from(io::Error::from(Errno::ENODEV)).during(format!("read the new link {name}"))
        })
    }

    /// Deletes a link; false when there was none of that name. A veth takes its peer along.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, NetlinkError> {
        if !is_name(name) {
            return Ok(false);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.execute(RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is(Errno::ENODEV) => Ok(false),
            Err(failure) => Err(failure.during(format!("delete link {name}"))),
        }
    }

    /// The request that deletes the link of this index, to be sent on this connection by a process that cannot make it.
    pub fn encode_delete(&mut self, index: u32) -> Vec<u8> {
        self.encode(RouteNetlinkMessage::DelLink(at(index)), 0)
    }

    /// Brings a link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.set(index, "bring up", up(index))
    }

    /// Finishes what the kernel has begun when the carrier of a link of this connection's namespace came up: a link that
    /// has no queueing discipline yet drops what it is to send. `false` when there is no carrier.
    ///
    /// Since Linux 6.8 the query for the link state handles the pending link-watch event (`linkwatch_sync_dev`,
    /// net/core/link_watch.c). Before, the event is handled by a kernel worker: look for [`Link::running`].
    pub fn settle_carrier(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let mut value = EthtoolValue { command: ETHTOOL_GLINK, data: 0 };
        // SAFETY: `value` is of the size that ETHTOOL_GLINK fills.
        match unsafe { self.ethtool(name, &mut value) } {
            Ok(()) => Ok(value.data != 0),
            Err(cause) => Err(NetlinkError::new(format!("read the link state of {name}"), cause)),
        }
    }

    /// The name of a link's driver, as `ethtool -i` shows it.
    pub fn driver(&mut self, name: &str) -> Result<String, NetlinkError> {
        let mut info = EthtoolDriver { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        // SAFETY: `info` is of the size that ETHTOOL_GDRVINFO fills.
        unsafe { self.ethtool(name, &mut info) }
            .map_err(|cause| NetlinkError::new(format!("read the driver of {name}"), cause))?;
        let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Asks a driver.
    ///
    /// # Safety
    ///
    /// `value` begins with a command, and is as large as what the kernel writes for that.
    unsafe fn ethtool<T>(&self, name: &str, value: &mut T) -> io::Result<()> {
        if !is_name(name) {
            return Err(io::Error::from(Errno::ENODEV));
        }
        // SAFETY: all zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
        // SAFETY: the request names a buffer that the caller answers for, and both outlive the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        Errno::result(result).map(drop).map_err(Into::into)
    }

    /// Takes a link down.
    pub fn set_down(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.set(index, "take down", flag(index, LinkFlags::Up, false))
    }

    /// Turns neighbour resolution off (`true`) or on.
    pub fn set_noarp(&mut self, index: u32, noarp: bool) -> Result<(), NetlinkError> {
        self.set(index, "set noarp of", flag(index, LinkFlags::Noarp, noarp))
    }

    /// Lets the kernel and daemons use multicast on a link (`true`) or not.
    pub fn set_multicast(&mut self, index: u32, multicast: bool) -> Result<(), NetlinkError> {
        self.set(index, "set multicast of", flag(index, LinkFlags::Multicast, multicast))
    }

    /// Sets the MTU in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = at(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(index, &format!("set mtu {mtu} of"), message)
    }

    /// Sets the Ethernet address.
    pub fn set_mac(&mut self, index: u32, mac: MacAddress) -> Result<(), NetlinkError> {
        let mut message = at(index);
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        self.set(index, "set the address of", message)
    }

    /// Gives the link no automatic IPv6 link-local address (`addrgenmode none`); nothing to do without IPv6.
    pub fn disable_link_local(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = at(index);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
        match self.execute(RouteNetlinkMessage::SetLink(message), 0) {
            Err(failure) if failure.is(Errno::EAFNOSUPPORT) => Ok(()),
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("turn off link-local addresses of link {device}")))
            }
            Ok(()) => Ok(()),
        }
    }

    fn set(&mut self, index: u32, action: &str, message: LinkMessage) -> Result<(), NetlinkError> {
        self.execute(RouteNetlinkMessage::SetLink(message), 0).map_err(|failure| {
            let device = self.device(index);
            failure.during(format!("{action} link {device}"))
        })
    }
}

/// What the kernel can hold as a name (`IFNAMSIZ` is 16, with the terminator); it refuses others with errors
/// that say nothing about the link.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() < libc::IFNAMSIZ
}

fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// The request to bring a link up.
pub(super) fn up(index: u32) -> LinkMessage {
    flag(index, LinkFlags::Up, true)
}

fn flag(index: u32, flag: LinkFlags, value: bool) -> LinkMessage {
    let mut message = at(index);
    message.header.change_mask = flag;
    message.header.flags = if value { flag } else { LinkFlags::empty() };
    message
}

/// A request that leaves out the statistics, the largest part of a reply.
fn get(mut message: LinkMessage) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn into_link(reply: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = reply else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        noarp: flags.contains(LinkFlags::Noarp),
        multicast: flags.contains(LinkFlags::Multicast),
        loopback: flags.contains(LinkFlags::Loopback),
        kind: None,
        vxlan: None,
        link: None,
        link_netnsid: None,
        master: None,
        xdp: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(index) => link.link = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.link_netnsid = Some(id),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Xdp(attributes) => link.xdp = into_xdp(&attributes),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(into_vxlan(&data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn into_xdp(attributes: &[LinkXdp]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match *attribute {
        // Without the first one where there is one in each of several modes.
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(id)
        }
        _ => None,
    })
}

fn into_vxlan(data: &[InfoVxlan]) -> VxlanInfo {
    let mut info = VxlanInfo::default();
    for datum in data {
        match *datum {
            InfoVxlan::Id(vni) => info.vni = Some(vni),
            InfoVxlan::Port(port) => info.port = port,
            InfoVxlan::CollectMetadata(value) => info.collect_metadata = value,
            InfoVxlan::Learning(value) => info.learning = value,
            InfoVxlan::UDPZeroCsumRX(value) => info.zero_checksums = value,
            _ => {}
        }
    }
    // The kernel reports VNI 0 for a device that has none.
    if info.collect_metadata {
        info.vni = None;
    }
    info
}

#[cfg(test)]
mod tests;
