//! What helps against each reason for a drop.

use overlay_common::reason::Reason;

/// One sentence for whoever operates the node.
pub(super) const fn of(reason: Reason) -> &'static str {
    match reason {
        Reason::PodSourceAddress => {
            "a pod may send from the address alone that `overlay endpoints` shows for its device: look for addresses that something has added in the pod"
        }
        Reason::PodSourceMac => {
            "the pod's device must keep the MAC address that `overlay endpoints` shows: look for what changed it, or restart the pod"
        }
        Reason::PodTunnelPort => {
            "nodes trust tunnel packets by their source, so pods may not send to that UDP port: use another one, or give the tunnel another (network.port)"
        }
        Reason::PodProtocol => {
            "this network carries ARP and IP of the families of the node's subnets (`overlay status`), without VLANs: turn the rest off in the pod"
        }
        Reason::UnknownVtep => {
            "the sender must be a node with that address: compare `overlay nodes` on both nodes; after a change of a node's address its peers have to hear of it"
        }
        Reason::InnerSource => {
            "the sender's subnet here must be the one that it has: compare `overlay nodes` here with `overlay status` there"
        }
        Reason::InnerDestination => {
            "no pod of this node has that address any more: compare `overlay nodes` at the sender with `overlay endpoints` here"
        }
        Reason::InnerProtocol => {
            "the tunnel carries IP of the families of network.cidr: look for what else sends to the tunnel port"
        }
        Reason::Vni => "all nodes need the same network.vni; look for another VXLAN network on the same port",
        Reason::Ecn => {
            "something on the underlay marks packets that are not ECN-capable: look at the routers on the path"
        }
        Reason::NoNode => {
            "`overlay nodes` lists the subnets that there are: the address is of a pod or node that is gone, or the agent does not hear of nodes (`overlay status`)"
        }
        Reason::NoEndpoint => {
            "`overlay endpoints` lists the pods of this node: the pod is gone, or its address belongs to another node"
        }
        Reason::Multicast => "send unicast: the tunnel has no multicast",
        Reason::HostProtocol => "the tunnel carries IP of the families of network.cidr alone",
        Reason::Truncated => "look at what sends packets that are shorter than their headers say",
        Reason::HeaderRoom => {
            "the kernel is out of memory or refuses to grow this packet: see its log (dmesg)"
        }
        Reason::TunnelKey => {
            "what came in by the anchor device came out of no tunnel: look for routes and other programs that send packets there"
        }
        Reason::PodAddressOnWire => {
            "a node sends pods' addresses outside of the tunnel: look at its masquerade (network.masquerade) and its routes"
        }
        Reason::PodRouter => {
            "pods are no routers: turn off what sends router advertisements or redirects in the pod"
        }
        Reason::PodExtensions => {
            "look at what sends such packets in the pod: no protocol needs that many headers"
        }
    }
}
