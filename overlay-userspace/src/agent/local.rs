//! The `LOCAL` map: what the CNI plugin has to know of this node. Written last, because the plugin begins to work when it
//! says so, and only when it differs. What it must not give out any more is taken out of it first ([`withdraw`]).

use std::time::Duration;

use log::{debug, info};
use overlay_common::maps::{Addr, AttachMode, Local, Subnet};

use crate::{
    cluster::gateway,
    config::Config,
    datapath::{
        DatapathError,
        pins::Pins,
        schema::{self, lock},
        tables::LocalTable,
    },
    family::Family,
};

/// What a change of families waits at most for calls of the plugin, which take some milliseconds each.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// What the plugin may give out while the node changes over from one to the other: nothing of a family that goes, and
/// nothing at all where a pod would miss one that it is to have.
fn narrowed(before: &Local, wanted: &Local) -> Local {
    let mut narrowed = *before;
    for family in Family::ALL.map(Family::index) {
        let there = before.subnet[family] != Subnet::default();
        let of = |local: &Local| (local.subnet[family], local.gateway[family]);
        if !there || of(before) == of(wanted) {
            continue;
        }
        if wanted.subnet[family] != Subnet::default() {
            narrowed.ready = 0;
        }
        (narrowed.subnet[family], narrowed.gateway[family]) = (Subnet::default(), Addr::UNSPECIFIED);
    }
    if narrowed.subnet == [Subnet::default(); 2] {
        narrowed.ready = 0;
    }
    // Whoever reads it without asking whether it is ready finds what was true.
    if narrowed.ready == 0 { Local { ready: 0, ..*before } } else { narrowed }
}

/// Has the plugin give out no more of what is on its way out of `wanted`; before the addresses go that it needs for that.
/// When this returns no call is at work that began before, but for one that hangs.
pub(super) fn withdraw(pins: &Pins, wanted: &Local) -> Result<(), DatapathError> {
    let mut table = match LocalTable::open(pins) {
        Err(DatapathError::NotPinned { .. }) => return Ok(()),
        table => table?,
    };
    let before = table.get()?;
    if before.ready == 0 {
        return Ok(());
    }
    let narrowed = narrowed(&before, wanted);
    if narrowed == before {
        return Ok(());
    }
    table.set(&narrowed)?;
    // Its step fails, and is undone.
    if let Err(error) = lock::wait_for_calls(pins, PATIENCE) {
        debug!("a call of the CNI plugin that is at work may fail: {error}");
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
    #[test]
    fn what_goes_is_not_given_out_and_no_pod_misses_what_it_is_to_have() {
        let of = |subnets: &str| {
            let file = format!(
                "node = \"a\"\n[network]\ncidr = [\"10.244.0.0/16\", \"fd00:10:244::/48\"]\n\
                 [[nodes]]\nname = \"a\"\naddress = \"192.0.2.1\"\nsubnet = [{subnets}]\n"
            );
            let config = Config::parse(&file, Path::new("overlay.toml"), None).unwrap();
            desired(&config, 7, 1450, AttachMode::Tcx)
        };
        let (v4, v6) = ("\"10.244.1.0/24\"", "\"fd00:10:244:1::/64\"");
        let dual = of(&format!("{v4}, {v6}"));
        let (four, six) = (of(v4), of(v6));
        for (one, family) in [(&four, FAMILY_V6), (&six, FAMILY_V4)] {
            let left = narrowed(&dual, one);
            assert_eq!((left.ready, left.subnet, left.gateway), (1, one.subnet, one.gateway));
            assert_eq!(left.subnet[family], Subnet::default());
            // What comes is given out when it is all there.
            assert_eq!(narrowed(one, &dual), *one);
        }
        for (before, wanted) in [
            (&dual, of("\"10.244.1.0/24\", \"fd00:10:244:9::/64\"")),
            (&dual, of("\"10.244.9.0/24\"")),
            (&four, of("\"10.244.9.0/24\"")),
            (&four, six),
        ] {
            assert_eq!(narrowed(before, &wanted), Local { ready: 0, ..*before });
        }
        // Nothing but subnets is about that.
        assert_eq!(narrowed(&dual, &Local { mtu: 1300, primary: 1, ..dual }), dual);
    }
}
