//! Whether `xdp_wire` is attached to the underlay device, and what it does there: the setting `network.xdp` against what
//! the device can do. A device that does without it loses nothing but speed under attack: the tc programs make the same
//! checks. So nothing here fails a pass; why there is none is said once.

use log::{Level, info, log};

use crate::{
    config::Xdp,
    datapath::{
        attach::{Attached, Device, xdp},
        kernel,
        pins::Pins,
    },
    host::{
        netdev::{self, XDP_BASIC, XDP_RX_SG},
        netlink::{Link, Netlink},
    },
};

/// Bytes of MTU up to which every driver has a packet in one part: a page, less the Ethernet header and what XDP keeps
/// before and behind a packet (`XDP_PACKET_HEADROOM`, `struct skb_shared_info`).
const ONE_PART: u32 = 4096 - 256 - 320 - 18;

/// Drivers that give something up for any XDP program, and what.
const GIVES_UP: [(&str, &str); 2] = [
    // `veth_xdp_set`, drivers/net/veth.c.
    ("veth", "the other end of the pair sends without segmentation offload"),
    // `virtnet_xdp_set`, drivers/net/virtio_net.c.
    ("virtio_net", "the host no longer hands over large packets in one"),
];

/// What decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    device: String,
    mtu: u32,
    /// Of the NICs of a bond, which get the program each.
    below: Vec<String>,
    /// Not an Ethernet device where there is none.
    mac: Option<[u8; 6]>,
    driver: String,
    /// Flags of `host::netdev`; none where the kernel does not say.
    features: Option<u64>,
    /// The kernel's reason, where it cannot run the program.
    kernel: Option<String>,
    /// An XDP program that is not ours.
    foreign: Option<u32>,
    /// A VLAN device on top.
    vlan: Option<String>,
}

/// What is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Without,
    /// And why, although something else was asked for.
    Refused(String),
    /// For the device of this MAC.
    With([u8; 6]),
}

fn decide(wanted: Xdp, facts: &Facts) -> Decision {
    let Facts { device, mtu, below, mac, driver, features, kernel, foreign, vlan } = facts;
    let refused = |why: String| Decision::Refused(why);
    if wanted == Xdp::Off {
        return Decision::Without;
    }
    if let Some(why) = kernel {
        return refused(why.clone());
    }
    let Some(mac) = *mac else { return refused(format!("{device} is no Ethernet device")) };
    if let Some(id) = foreign {
        return refused(format!(
            "somebody else's XDP program (id {id}) is there and stays: detach it with `ip link set dev {device} xdp off`, \
             or set network.xdp = \"off\""
        ));
    }
    if let Some(vlan) = vlan {
        return refused(format!(
            "it carries the VLAN device {vlan}, whose packets XDP cannot tell from others"
        ));
    }
    if features.is_some_and(|features| features & XDP_BASIC == 0) {
        return refused(format!("its driver {driver} has no native XDP"));
    }
    if *mtu > ONE_PART && features.is_some_and(|features| features & XDP_RX_SG == 0) {
        return refused(format!("its driver {driver} runs XDP up to MTU {ONE_PART}, and it has {mtu}"));
    }
    if wanted == Xdp::Auto {
        if features.is_none() {
            return refused("the kernel does not say what its driver can do (Linux 6.3)".into());
        }
        if let Some((driver, loss)) = losses(driver, below).next() {
            return refused(format!("with XDP on {driver} {loss}"));
        }
    }
    Decision::With(mac)
}

/// What a pass would change about `xdp_wire`; none for nothing. Where `auto` has none, the driver may have refused: that is
/// as good as it gets, and the agent's log says so.
pub(super) fn look(netlink: &mut Netlink, pins: &Pins, wanted: Xdp, wire: &Link) -> Option<&'static str> {
    let device = Device { name: &wire.name, ifindex: wire.index };
    let runs = xdp::program_of_link(pins, device);
    let is_wanted =
        wanted != Xdp::Off && matches!(decide(wanted, &facts(netlink, pins, wire)), Decision::With(_));
    match (is_wanted, runs) {
        (true, None) if wanted == Xdp::Guard => Some("is not attached"),
        (true, Some(id)) if xdp::pinned_id(pins) != Some(id) => Some("is one of an earlier load"),
        (true, Some(_)) if wire.xdp != runs => Some("has been detached from the device"),
        (false, Some(_)) => Some("is attached, although it should not be"),
        (true, _) | (false, None) => None,
    }
}

/// What a device's own driver, and those of the NICs below it, give up.
fn losses<'a>(driver: &'a str, below: &'a [String]) -> impl Iterator<Item = (&'a str, &'static str)> {
    let drivers = std::iter::once(driver).chain(below.iter().map(String::as_str));
    drivers.filter_map(|driver| Some((driver, given_up(driver)?)))
}

fn given_up(driver: &str) -> Option<&'static str> {
    GIVES_UP.iter().find(|(name, _)| *name == driver).map(|(_, loss)| *loss)
}

/// What has been decided, and what has been said of it.
#[derive(Default)]
pub(super) struct XdpWire {
    planned: Option<[u8; 6]>,
    /// Index and MTU of a device whose driver has refused: not to be tried again every few seconds, for which some drivers
    /// restart.
    refused: Option<(u32, u32)>,
    said: Option<String>,
}

impl XdpWire {
    /// The MAC that `xdp_wire` is to be loaded for.
    pub(super) fn planned(&self) -> Option<[u8; 6]> {
        self.planned
    }

    /// Looks at the device and decides.
    pub(super) fn plan(&mut self, netlink: &mut Netlink, pins: &Pins, wanted: Xdp, wire: &Link) {
        self.planned = None;
        // Nothing is looked at for nobody.
        let decision =
            if wanted == Xdp::Off { Decision::Without } else { decide(wanted, &facts(netlink, pins, wire)) };
        let name = &wire.name;
        match decision {
            Decision::Without => {
                self.refused = None;
                self.said = None;
            }
            Decision::Refused(why) => {
                let level = if wanted == Xdp::Auto { Level::Info } else { Level::Warn };
                self.say(level, format!("network.xdp is {wanted}, but {name} does without xdp_wire: {why}"));
            }
            Decision::With(mac) => {
                if self.refused != Some((wire.index, wire.mtu)) {
                    self.refused = None;
                    self.planned = Some(mac);
                }
            }
        }
    }

    /// Attaches, updates or detaches as planned.
    pub(super) fn apply(&mut self, netlink: &mut Netlink, pins: &Pins, wire: &Link) -> anyhow::Result<()> {
        let device = Device { name: &wire.name, ifindex: wire.index };
        for link in xdp::detach_others(pins, self.planned.map(|_| device))? {
            info!("detached xdp_wire (link {link})");
        }
        if self.planned.is_none() {
            return Ok(());
        }
        let name = &wire.name;
        match xdp::ensure(pins, device) {
            Ok(Attached::Kept) => {}
            Ok(Attached::New) => {
                info!("attached xdp_wire to {name} (index {})", wire.index);
                match netlink.driver(name).ok().and_then(|driver| Some((given_up(&driver)?, driver))) {
                    Some((loss, driver)) => {
                        self.say(Level::Warn, format!("with XDP on {name} ({driver}) {loss}"));
                    }
                    None => self.said = None,
                }
            }
            Err(error) => {
                self.refused = Some((wire.index, wire.mtu));
                self.say(Level::Warn, format!("{name} does without xdp_wire: {error}"));
            }
        }
        Ok(())
    }

    fn say(&mut self, level: Level, line: String) {
        if self.said.as_ref() != Some(&line) {
            log!(level, "{line}");
            self.said = Some(line);
        }
    }
}

fn facts(netlink: &mut Netlink, pins: &Pins, wire: &Link) -> Facts {
    let device = Device { name: &wire.name, ifindex: wire.index };
    let foreign = wire.xdp.filter(|id| xdp::program_of_link(pins, device) != Some(*id));
    let above = |link: &Link| {
        link.kind.as_deref() == Some("vlan") && link.link == Some(wire.index) && link.link_netnsid.is_none()
    };
    let links = netlink.links().unwrap_or_default();
    let bond = wire.kind.as_deref() == Some("bond");
    let nics = links.iter().filter(|link| bond && link.master == Some(wire.index));
    let below = nics.filter_map(|nic| netlink.driver(&nic.name).ok().or(nic.kind.clone())).collect();
    Facts {
        below,
        device: wire.name.clone(),
        mtu: wire.mtu,
        mac: wire.mac,
        driver: netlink.driver(&wire.name).ok().or(wire.kind.clone()).unwrap_or_else(|| "unknown".into()),
        // What cannot be asked is found out by trying.
        features: netdev::xdp_features(wire.index).unwrap_or(None),
        kernel: kernel::lacks_xdp(),
        foreign,
        vlan: links.into_iter().find(above).map(|link| link.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn nic() -> Facts {
        Facts {
            device: "eth0".into(),
            mtu: 1500,
            mac: Some(MAC),
            driver: "mlx5_core".into(),
            features: Some(XDP_BASIC | XDP_RX_SG),
            ..Facts::default()
        }
    }

    const GUARD: Decision = Decision::With(MAC);

    #[test]
    fn a_nic_with_native_xdp_gets_what_is_asked_for() {
        for (wanted, expected) in [(Xdp::Off, Decision::Without), (Xdp::Guard, GUARD), (Xdp::Auto, GUARD)] {
            assert_eq!(decide(wanted, &nic()), expected, "{wanted}");
        }
    }

    #[test]
    fn auto_gives_nothing_up_and_does_not_guess() {
        for driver in ["veth", "virtio_net"] {
            let facts = Facts { driver: driver.into(), ..nic() };
            assert!(matches!(decide(Xdp::Auto, &facts), Decision::Refused(_)), "{driver}");
            assert_eq!(decide(Xdp::Guard, &facts), GUARD, "{driver}");
        }
        let bond = |below: [&str; 2]| Facts {
            driver: "bonding".into(),
            below: below.map(str::to_owned).to_vec(),
            ..nic()
        };
        assert!(matches!(decide(Xdp::Auto, &bond(["mlx5_core", "veth"])), Decision::Refused(_)));
        assert_eq!(decide(Xdp::Auto, &bond(["mlx5_core", "mlx5_core"])), GUARD);
        let silent = Facts { features: None, ..nic() };
        assert!(matches!(decide(Xdp::Auto, &silent), Decision::Refused(_)));
        assert_eq!(decide(Xdp::Guard, &silent), GUARD);
    }

    #[test]
    fn nobody_gets_it_where_it_cannot_be_or_would_be_wrong() {
        let cases = [
            (Facts { kernel: Some("too old".into()), ..nic() }, "too old"),
            (Facts { mac: None, ..nic() }, "no Ethernet device"),
            (Facts { foreign: Some(7), ..nic() }, "program (id 7) is there and stays"),
            (Facts { vlan: Some("eth0.5".into()), ..nic() }, "VLAN device eth0.5"),
            (Facts { features: Some(0), ..nic() }, "mlx5_core has no native XDP"),
            (Facts { features: Some(XDP_BASIC), mtu: 9000, ..nic() }, "and it has 9000"),
        ];
        for (facts, said) in cases {
            for wanted in [Xdp::Guard, Xdp::Auto] {
                let Decision::Refused(why) = decide(wanted, &facts) else { panic!("{wanted}: {facts:?}") };
                assert!(why.contains(said), "{why}");
            }
            assert_eq!(decide(Xdp::Off, &facts), Decision::Without);
        }
        assert_eq!(decide(Xdp::Auto, &Facts { mtu: 9000, ..nic() }), GUARD, "in several parts");
    }
}
