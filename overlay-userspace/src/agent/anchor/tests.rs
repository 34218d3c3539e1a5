//! The device against a real kernel, in the families that a node may use.

use super::*;
use crate::{
    family::ByFamily,
    host::netns::testing::{in_fresh_netns, ip, ip_json, run},
};

/// Pods of these families, a tunnel over those.
fn anchor(pods: &[Family], tunnel: &[Family]) -> Anchor {
    let parts = |family: &Family| match family {
        Family::Ipv4 => ("10.244.0.0/16", "10.244.1.0/24", "192.0.2.1"),
        Family::Ipv6 => ("fd00:244::/48", "fd00:244:0:1::/64", "2001:db8::1"),
    };
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let families = Families {
        clusters: ByFamily::from_values(pods.iter().map(|family| net(parts(family).0))).unwrap(),
        subnets: ByFamily::from_values(pods.iter().map(|family| net(parts(family).1))).unwrap(),
        vteps: ByFamily::from_values(tunnel.iter().map(|family| parts(family).2.parse().unwrap())).unwrap(),
    };
    Anchor { vni: 1, port: 8472, mac: [0x0a, 0x6f, 192, 0, 2, 1], mtu: 1450, families, last_index: None }
}

/// Device and both families, as a pass does it.
fn ensure(anchor: &Anchor, netlink: &mut Netlink) -> anyhow::Result<Link> {
    let (link, made) = anchor.ensure(netlink)?;
    for family in Family::ALL {
        anchor.ensure_family(netlink, (&link, made), family)?;
    }
    assert_eq!(anchor.look(netlink)?.1, [], "nothing is left to do");
    Ok(link)
}

/// Its addresses, and the routes of ours, sorted: the order in which the kernel lists those of IPv6 is its own business.
fn state() -> (Vec<String>, Vec<String>) {
    let addresses = ip_json("address show dev overlay.1")[0]["addr_info"].as_array().unwrap().clone();
    let text = |one: &serde_json::Value| format!("{}/{}", one["local"].as_str().unwrap(), one["prefixlen"]);
    let routes = ["-4", "-6"].map(|flag| run(&format!("ip {flag} route show proto 79")));
    let route = |line: &str| line.split(" metric ").next().unwrap().trim().to_owned();
    let mut routes: Vec<_> = routes.iter().flat_map(|text| text.lines()).map(route).collect();
    routes.sort();
    (addresses.iter().map(text).collect(), routes)
}

fn disabled() -> String {
    sysctl::get(&sysctl::interface(Family::Ipv6, "overlay.1", "disable_ipv6")).unwrap()
}

const V4: [&str; 2] = ["10.244.0.0/16 dev overlay.1 scope link src 10.244.1.1", "unreachable 10.244.1.0/24"];
const V6: [&str; 2] =
    ["fd00:244::/48 dev overlay.1 src fd00:244:0:1::1", "unreachable fd00:244:0:1::/64 dev lo"];

#[test]
fn every_vni_has_a_name_that_the_kernel_takes() {
    assert_eq!(Anchor::name_of(1), "overlay.1");
    assert_eq!(Anchor::name_of(9_999_999), "overlay.9999999");
    assert_eq!(Anchor::name_of(0xff_ffff), "overlay.xffffff");
    assert_eq!(Anchor::name_of(10_000_000).len(), 15);
}

#[test]
fn the_device_has_what_the_families_need_and_nothing_of_others() {
    use Family::{Ipv4, Ipv6};
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let (v4, v6) = ("10.244.1.1/32".to_owned(), "fd00:244:0:1::1/128".to_owned());
        let first = ensure(&anchor(&[Ipv4], &[Ipv4]), &mut netlink).unwrap();
        assert_eq!(
            (state().0, state().1.as_slice(), disabled().as_str()),
            (vec![v4.clone()], &V4.map(str::to_owned)[..], "1")
        );
        // IPv6 comes, is all there is, and goes again: the device is the same all the time.
        for (pods, addresses, routes, disabled_is) in [
            (&[Ipv4, Ipv6][..], vec![v4.clone(), v6.clone()], [V4, V6].concat(), "0"),
            (&[Ipv6][..], vec![v6], V6.to_vec(), "0"),
            (&[Ipv4][..], vec![v4], V4.to_vec(), "1"),
        ] {
            for _ in 0..2 {
                let link = ensure(&anchor(pods, pods), &mut netlink).unwrap();
                assert_eq!(link.index, first.index);
                let mut routes: Vec<_> = routes.iter().map(|route| (*route).to_owned()).collect();
                routes.sort();
                assert_eq!(state(), (addresses.clone(), routes));
                assert_eq!(disabled(), disabled_is);
            }
        }
    });
}

#[test]
fn an_address_of_ipv6_comes_back_with_the_device_usable_at_once() {
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let anchor = anchor(&Family::ALL, &Family::ALL);
        ensure(&anchor, &mut netlink).unwrap();
        let good = state();
        for damage in ["link set overlay.1 down", "-6 address flush dev overlay.1", "-6 route flush proto 79"]
        {
            ip(damage);
            assert_ne!(state(), good, "{damage}");
            ensure(&anchor, &mut netlink).unwrap();
            assert_eq!(state(), good, "{damage}");
        }
        // Whoever adds one takes it off again.
        ip("address add fe80::7/64 dev overlay.1 nodad");
        sysctl::set("net/ipv6/conf/overlay.1/disable_ipv6", "1").unwrap();
        ensure(&anchor, &mut netlink).unwrap();
        assert_eq!(state(), good);
        let listed = ip_json("-6 address show dev overlay.1 tentative");
        assert!(listed.as_array().unwrap().iter().all(|link| link["addr_info"].is_null()), "{listed}");
    });
}

#[test]
fn a_device_of_older_versions_stops_its_reports_of_groups() {
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let anchor = anchor(&Family::ALL, &Family::ALL);
        let first = ensure(&anchor, &mut netlink).unwrap();
        assert!(!first.multicast);
        ip("link set overlay.1 multicast on");
        let found = anchor.look(&mut netlink).unwrap().1;
        assert!(found.len() == 1 && found[0].1.contains("multicast"), "{found:?}");
        let second = ensure(&anchor, &mut netlink).unwrap();
        assert_eq!((second.index, second.multicast), (first.index, false));
    });
}

#[test]
fn what_one_family_cannot_have_the_other_has() {
    in_fresh_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let anchor = Anchor { mtu: 1200, ..anchor(&Family::ALL, &[Family::Ipv4]) };
        let (link, made) = anchor.ensure(&mut netlink).unwrap();
        anchor.ensure_family(&mut netlink, (&link, made), Family::Ipv4).unwrap();
        let error = anchor.ensure_family(&mut netlink, (&link, made), Family::Ipv6).unwrap_err().to_string();
        assert_eq!(error, "overlay.1 has no IPv6: its MTU is 1200, and IPv6 takes 1280: raise network.mtu");
        assert_eq!(state(), (vec!["10.244.1.1/32".to_owned()], V4.map(str::to_owned).to_vec()));
    });
}

#[test]
fn a_device_that_refuses_checksums_of_zero_is_made_anew_where_the_tunnel_goes_over_ipv6() {
    in_fresh_netns(|| {
        ip("link add overlay.1 type vxlan external dstport 8472 nolearning");
        let mut netlink = Netlink::open().unwrap();
        let found = netlink.link("overlay.1").unwrap().unwrap();
        let kept = ensure(&anchor(&[Family::Ipv4], &[Family::Ipv4]), &mut netlink).unwrap();
        assert_eq!(kept.index, found.index);
        let made = ensure(&anchor(&[Family::Ipv4], &[Family::Ipv6]), &mut netlink).unwrap();
        assert_ne!(made.index, found.index);
        assert!(made.vxlan.unwrap().zero_checksums);
    });
}
