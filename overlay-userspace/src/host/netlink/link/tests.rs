//! Link operations against a real kernel, each in a namespace of its own, read back through `ip`.

use std::os::fd::AsFd as _;

use super::*;
use crate::host::netns::{
    NetNs,
    testing::{fresh_netns, in_fresh_netns, ip, ip_json},
};

const MAC: MacAddress = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];

fn anchor(name: &str) -> VxlanSpec<'_> {
    VxlanSpec { name, port: 8472, mac: MAC, mtu: 1450, index: None }
}

fn veth<'a>(host_name: &'a str, pod: &'a NetNs) -> VethSpec<'a> {
    VethSpec {
        host_name,
        host_mac: MAC,
        peer_name: "eth0",
        peer_mac: [0x02, 0, 0, 0, 0, 0x09],
        mtu: 1450,
        peer_netns: pod.as_fd(),
    }
}

#[test]
fn anchor_is_external_without_learning_arp_or_link_local_address() {
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.create_vxlan(&VxlanSpec { index: Some(79), ..anchor("overlay.1") }).unwrap();
        assert_eq!((link.index, link.mtu, link.mac), (79, 1450, Some(MAC)));
        assert!(link.noarp && !link.multicast && !link.up);
        assert_eq!(link.kind.as_deref(), Some("vxlan"));
        let vxlan = VxlanInfo {
            vni: None,
            port: 8472,
            collect_metadata: true,
            learning: false,
            zero_checksums: true,
        };
        assert_eq!(link.vxlan, Some(vxlan));

        netlink.set_up(link.index).unwrap();
        let seen = &ip_json("-d link show overlay.1")[0];
        assert_eq!(seen["mtu"], 1450);
        assert_eq!(seen["address"], "02:11:22:33:44:55");
        assert_eq!(seen["linkinfo"]["info_data"]["external"], true);
        assert_eq!(seen["linkinfo"]["info_data"]["learning"], false);
        assert_eq!(seen["linkinfo"]["info_data"]["port"], 8472);
        assert_eq!(seen["linkinfo"]["info_data"]["udp_zero_csum6_rx"], true);
        assert_eq!(seen["linkinfo"]["info_data"]["udp_zero_csum6_tx"], true);
        assert_eq!(seen["inet6_addr_gen_mode"], "none");
        let flags = seen["flags"].as_array().unwrap();
        assert_eq!(
            flags,
            &["BROADCAST", "NOARP", "UP", "LOWER_UP"].map(serde_json::Value::from),
            "{flags:?}"
        );
        assert!(ip_json("address show dev overlay.1")[0]["addr_info"].as_array().unwrap().is_empty());
    });
}

#[test]
fn plain_vxlan_shows_its_vni() {
    in_fresh_netns(|| {
        ip("link add flannel.1 type vxlan id 1 dstport 8472 nolearning dev lo");
        let link = Netlink::open().unwrap().link("flannel.1").unwrap().unwrap();
        let vxlan = VxlanInfo { vni: Some(1), port: 8472, ..VxlanInfo::default() };
        assert_eq!(link.vxlan, Some(vxlan));
    });
}

#[test]
fn creating_a_link_twice_is_eexist_with_its_name() {
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_vxlan(&anchor("overlay.1")).unwrap();
        let error = netlink.create_vxlan(&anchor("overlay.1")).unwrap_err();
        assert_eq!(error.errno(), Errno::EEXIST);
        assert!(error.to_string().starts_with("create link overlay.1: File exists"), "{error}");
        // Another name, but the same port in external mode.
        let error = netlink.create_vxlan(&anchor("overlay.2")).unwrap_err();
        assert_eq!(error.errno(), Errno::EEXIST);
        assert_eq!(netlink.link("overlay.2").unwrap(), None);
    });
}

#[test]
fn veth_peer_is_born_in_the_pods_namespace() {
    in_fresh_netns(|| {
        let pod = fresh_netns();
        let mut netlink = Netlink::open().unwrap();
        let host = netlink.create_veth(&veth("ov0123456789a", &pod)).unwrap();
        assert_eq!((host.mac, host.mtu, host.kind.as_deref()), (Some(MAC), 1450, Some("veth")));
        assert!(host.link_netnsid.is_some());
        assert_eq!(netlink.link("eth0").unwrap(), None);

        let peer = pod.run(|| Netlink::open().unwrap().link("eth0").unwrap().unwrap()).unwrap();
        assert_eq!((peer.mac, peer.mtu), (Some([2, 0, 0, 0, 0, 9]), 1450));
        assert_eq!(host.link, Some(peer.index));
        assert!(!peer.up && !host.up);
        let seen = pod.run(|| ip_json("link show eth0")).unwrap();
        assert_eq!(seen[0]["address"], "02:00:00:00:00:09");

        assert!(netlink.delete_link("ov0123456789a").unwrap());
        assert!(pod.run(|| Netlink::open().unwrap().link("eth0").unwrap().is_none()).unwrap());
    });
}

#[test]
fn both_ends_of_a_veth_are_ready_once_the_host_side_is_up_and_settled() {
    in_fresh_netns(|| {
        let pod = fresh_netns();
        let mut netlink = Netlink::open().unwrap();
        let host = netlink.create_veth(&veth("ov0", &pod)).unwrap();
        let mut inside = pod.run(|| Netlink::open().unwrap()).unwrap();
        let peer = inside.link("eth0").unwrap().unwrap();
        inside.set_up(peer.index).unwrap();
        assert!(!inside.settle_carrier("eth0").unwrap());
        netlink.set_up(host.index).unwrap();
        assert!(inside.settle_carrier("eth0").unwrap());
        assert!(inside.link("eth0").unwrap().unwrap().running);
        assert!(netlink.link("ov0").unwrap().unwrap().running);
        assert_eq!(inside.settle_carrier("missing").unwrap_err().errno(), Errno::ENODEV);
    });
}

#[test]
fn veth_whose_peer_name_is_taken_leaves_nothing_behind() {
    in_fresh_netns(|| {
        let pod = fresh_netns();
        pod.run(|| ip("link add eth0 type veth peer name eth0p")).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let error = netlink.create_veth(&veth("ov0", &pod)).unwrap_err();
        assert_eq!(error.errno(), Errno::EEXIST);
        assert_eq!(netlink.link("ov0").unwrap(), None);
    });
}

#[test]
fn settings_are_changed_one_by_one() {
    in_fresh_netns(|| {
        ip("link add br0 type bridge");
        ip("link add d0 type veth peer name d0p");
        ip("link set d0p up");
        ip("link set d0 master br0");
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("d0").unwrap().unwrap().index;
        netlink.set_mtu(index, 1400).unwrap();
        netlink.set_mac(index, MAC).unwrap();
        netlink.set_noarp(index, false).unwrap();
        netlink.set_multicast(index, false).unwrap();
        netlink.set_up(index).unwrap();
        let link = netlink.link_by_index(index).unwrap().unwrap();
        assert_eq!((link.mtu, link.mac), (1400, Some(MAC)));
        assert!(link.up && link.running && !link.noarp && !link.multicast);
        assert_eq!(link.master, netlink.link("br0").unwrap().map(|bridge| bridge.index));

        netlink.set_noarp(index, true).unwrap();
        netlink.set_multicast(index, true).unwrap();
        netlink.set_down(index).unwrap();
        let link = netlink.link("d0").unwrap().unwrap();
        assert!(!link.up && !link.running && link.noarp && link.multicast);
        let seen = &ip_json("link show d0")[0];
        assert_eq!((&seen["mtu"], &seen["address"]), (&1400.into(), &"02:11:22:33:44:55".into()));
    });
}

#[test]
fn listing_has_every_link_and_marks_loopback() {
    in_fresh_netns(|| {
        ip("link add d0 type veth peer name d0p");
        let links = Netlink::open().unwrap().links().unwrap();
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        let mut expected: Vec<_> = ip_json("link show")
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect();
        expected.sort();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        assert!(links.iter().all(|link| link.loopback == (link.name == "lo")));
    });
}

#[test]
fn absent_links_are_none_and_not_errors() {
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(netlink.link("nope").unwrap(), None);
        assert_eq!(netlink.link("").unwrap(), None);
        assert_eq!(netlink.link("a-name-longer-than-the-kernel-takes").unwrap(), None);
        assert_eq!(netlink.link_by_index(4711).unwrap(), None);
        assert!(!netlink.delete_link("nope").unwrap());
    });
}

#[test]
fn refused_setting_names_link_and_value_and_the_connection_stays_usable() {
    in_fresh_netns(|| {
        ip("link add d0 type veth peer name d0p");
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("d0").unwrap().unwrap().index;
        let error = netlink.set_mac(index, [0xff; 6]).unwrap_err();
        assert_eq!(error.errno(), Errno::EADDRNOTAVAIL);
        assert!(error.to_string().starts_with("set the address of link d0: "), "{error}");
        netlink.set_up(index).unwrap();
    });
}
