//! The `LOCAL` map: what the CNI plugin has to know of this node. Written last, because the plugin begins to work when it
//! says so, and only when it differs.

use log::info;
use overlay_common::maps::{Addr, AttachMode, Local, Subnet};

use crate::{
    cluster::gateway,
    config::Config,
    datapath::{DatapathError, pins::Pins, schema, tables::LocalTable},
    family::Family,
};

/// What `LOCAL` should hold.
pub(super) fn desired(config: &Config, anchor_ifindex: u32, mtu: u32, mode: AttachMode) -> Local {
    let Config { network, nodes, .. } = config;
    let own = nodes.own();
    let subnet =
        |net: ipnet::IpNet| Subnet { addr: net.network().into(), prefix_len: u32::from(net.prefix_len()) };
    let mut local = Local {
        ready: 1,
        attach_mode: mode as u32,
        mtu,
        anchor_ifindex,
        vni: network.vni,
        port: u32::from(network.port),
        subnet: [Subnet::default(); 2],
        gateway: [Addr::UNSPECIFIED; 2],
        cluster: [Subnet::default(); 2],
        vtep: config.vtep().into(),
        gateway_mac: own.mac(),
        node_name: [0; 61],
        primary: u8::from(network.cidrs.primary() == Family::Ipv6),
    };
    for (family, net) in own.subnets.iter() {
        local.subnet[family.index()] = subnet(*net);
        local.gateway[family.index()] = gateway(*net).into();
    }
    for (family, net) in network.cidrs.by_family().iter() {
        local.cluster[family.index()] = subnet(*net);
    }
    for (to, from) in local.node_name.iter_mut().zip(own.name.bytes()) {
        *to = from;
    }
    local
}

/// What an agent has published, of this build's schema or an older one; `None` before the first start on this node is
/// complete, and where a newer build's is in force.
pub(crate) fn published(pins: &Pins) -> Option<Local> {
    schema::readable(pins)
        .and_then(|pins| LocalTable::open(&pins))
        .and_then(|table| table.get())
        .ok()
        .filter(|local| local.ready == 1)
}

/// Writes it where it differs.
pub(super) fn publish(pins: &Pins, local: &Local) -> Result<(), DatapathError> {
    let mut table = LocalTable::open(pins)?;
    let before = table.get()?;
    if before == *local {
        return Ok(());
    }
    table.set(local)?;
    if before.ready == 1 && before.mtu != local.mtu {
        info!("new pods get MTU {}, was {}: pods that run keep theirs", local.mtu, before.mtu);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use overlay_common::maps::{FAMILY_V4, FAMILY_V6};

    use super::*;

    #[test]
    fn the_plugin_gets_all_that_it_asks_for() {
        let file = r#"
            node = "a"
            [network]
            cidr = "10.244.0.0/16"
            port = 4789
            [[nodes]]
            name = "a"
            address = "192.0.2.1"
            subnet = "10.244.1.0/24"
        "#;
        let config = Config::parse(file, Path::new("overlay.toml"), None).unwrap();
        let local = desired(&config, 7, 1450, AttachMode::Tcx);
        assert_eq!((local.ready, local.attach_mode, local.mtu), (1, AttachMode::Tcx as u32, 1450));
        assert_eq!((local.anchor_ifindex, local.vni, local.port), (7, 1, 4789));
        assert_eq!(local.subnet[FAMILY_V4].addr.to_ip().to_string(), "10.244.1.0");
        assert_eq!(local.subnet[FAMILY_V4].prefix_len, 24);
        assert_eq!(local.gateway[FAMILY_V4].to_ip().to_string(), "10.244.1.1");
        assert_eq!(local.cluster[FAMILY_V4].prefix_len, 16);
        assert_eq!(local.vtep.to_ip().to_string(), "192.0.2.1");
        assert_eq!(local.gateway_mac, [0x0a, 0x6f, 192, 0, 2, 1]);
        assert_eq!(&local.node_name[..2], b"a\0");
        assert_eq!(usize::from(local.primary), FAMILY_V4);
    }

    #[test]
    fn each_family_has_its_place_and_one_is_the_first() {
        let file = r#"
            node = "a"
            [network]
            cidr = ["fd00:10:244::/48", "10.244.0.0/16"]
            underlay = "ipv6"
            [[nodes]]
            name = "a"
            address = ["192.0.2.1", "2001:db8::1"]
            subnet = ["10.244.1.0/24", "fd00:10:244:1::/64"]
            [[nodes]]
            name = "b"
            address = "2001:db8::2"
            subnet = "fd00:10:244:2::/64"
        "#;
        let of = |name| {
            let config = Config::parse(file, Path::new("overlay.toml"), Some(name)).unwrap();
            desired(&config, 7, 1430, AttachMode::Tcx)
        };
        let a = of("a");
        assert_eq!(a.gateway.map(|gateway| gateway.to_ip().to_string()), ["10.244.1.1", "fd00:10:244:1::1"]);
        assert_eq!(a.subnet.map(|subnet| subnet.prefix_len), [24, 64]);
        assert_eq!(a.cluster.map(|cluster| cluster.prefix_len), [16, 48]);
        assert_eq!((a.vtep.to_ip().to_string().as_str(), a.gateway_mac[1]), ("2001:db8::1", 0x6f));
        assert_eq!(usize::from(a.primary), FAMILY_V6);
        let b = of("b");
        assert_eq!((b.subnet[FAMILY_V4], b.gateway[FAMILY_V4]), (Subnet::default(), Addr::UNSPECIFIED));
        assert_eq!((b.cluster[FAMILY_V4].prefix_len, b.gateway_mac[1]), (16, 0x76));
    }
}
