//! What Flannel has left on a node.

use overlay_tests::lab::{Docker, Network, exec};

use crate::bed::{Bed, configure, diagnosis, doctor, follow, in_mounts, lan, node};

/// The rules of Flannel, as it writes them into iptables and into nft.
const IPTABLES: &str = "\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
";
const NFT: &str = "table ip flannel-ipv4 {
    chain postrtg { type nat hook postrouting priority srcnat; policy accept; ip saddr 10.244.0.0/16 masquerade; }
}
";

const CHAINS: [(&str, &str); 2] = [
    ("flannel", "chain FLANNEL-POSTRTG of iptables-nft's table nat"),
    ("flannel", "chain FLANNEL-FWD of iptables-nft's table filter"),
];
const TABLE: (&str, &str) = ("flannel", "nft table ip flannel-ipv4");

fn leave(bed: &Bed) {
    let host = bed.a.namespace();
    host.ip("link add name cni0 type bridge");
    host.ip("link add name flannel.7 type vxlan id 7 local 192.0.2.1 dev eth0 dstport 4790 nolearning");
    exec::must(host.command("iptables-nft-restore").arg("--noflush"), IPTABLES);
    exec::must(host.command("nft").args(["-f", "-"]), NFT);
}

#[test]
pub(crate) fn leftovers_are_named_and_each_remedy_removes_one() {
    let bed = Bed::start();
    leave(&bed);
    let mut wanted = vec![("flannel", "cni0"), ("flannel", "flannel.7"), TABLE];
    wanted.extend(CHAINS);
    let findings = bed.doctor(&[]).expect(&wanted);
    for (number, finding) in findings.iter().enumerate() {
        assert_eq!(
            (finding.severity.as_str(), finding.fix.as_deref()),
            ("warning", Some("flannel")),
            "{finding:?}"
        );
        bed.follow(finding);
        bed.doctor(&["--only", "flannel"]).expect(&wanted[number + 1..]);
    }
    bed.doctor(&[]).expect_fine();
    bed.expect_traffic();
}

#[test]
pub(crate) fn leftovers_are_removed_only_when_asked_for_by_name() {
    let bed = Bed::start();
    leave(&bed);
    bed.a.namespace().ip("link add name pod type veth peer name podp");
    bed.a.namespace().ip("link set pod master cni0");
    let count = bed.doctor(&["--only", "flannel"]).problems().len();
    assert_eq!(count, 5);
    let seen = bed.doctor(&["--only", "flannel", "--fix"]);
    assert_eq!((seen.problems().len(), seen.did.as_str()), (count, ""), "{seen:#?}");
    let seen = bed.doctor(&["--only", "flannel", "--fix=flannel", "--dry-run"]);
    assert_eq!((seen.problems().len(), seen.did.matches("would remove").count()), (count, 4), "{seen:#?}");
    // A bridge with a pod stays.
    let seen = bed.doctor(&["--fix=flannel"]);
    let finding = &seen.expect(&[("flannel", "cni0")])[0];
    assert!(finding.what.contains("1 pods are still on it") && finding.fix.is_none(), "{finding:?}");
    assert_eq!(seen.did.matches("did remove").count(), 4, "{seen:#?}");
    bed.a.namespace().ip("link del pod");
    let seen = bed.doctor(&["--fix=flannel"]);
    seen.expect_fine();
    assert_eq!(seen.did, "did remove device cni0\n");
    bed.expect_traffic();
}

#[test]
pub(crate) fn the_device_of_a_flannel_that_has_the_port_is_found_before_overlay_comes() {
    let (lab, lan) = lan();
    let host = node(&lab, &lan, "a", 1, Docker::Absent);
    configure(&lab, &[&host], Network::default(), "");
    host.namespace()
        .ip("link add name flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning");
    let seen = doctor(&lab, &host, &[]);
    let findings = seen.expect(&[("ports", "UDP port 8472"), ("flannel", "flannel.1")]);
    assert_eq!(findings[0].remedy, findings[1].remedy);
    follow(&lab, &host, &findings[0]);
    doctor(&lab, &host, &[]).expect_fine();
}

#[test]
pub(crate) fn the_file_of_flannels_plugin_is_named_and_removed_by_the_remedy() {
    let bed = Bed::start();
    // A `/run` of its own, with all that is in the real one.
    let script = |then: &str| {
        format!(
            "mkdir -p $LAB/run; mount -t tmpfs none $LAB/run; \
             for d in overlay-lab netns; do mkdir $LAB/run/$d; mount --rbind /run/$d $LAB/run/$d; done; \
             mkdir $LAB/run/flannel; echo FLANNEL_NETWORK=10.244.0.0/16 > $LAB/run/flannel/subnet.env; \
             mount --rbind $LAB/run /run; {then} exec \"$OVERLAY\" doctor -o json"
        )
    };
    let seen = diagnosis(&mut in_mounts(&bed.lab, &bed.a, &script("")));
    let finding = &seen.expect(&[("flannel", "/run/flannel/subnet.env")])[0];
    assert!(finding.evidence.contains("FLANNEL_NETWORK"), "{finding:?}");
    let then = format!("{};", finding.remedy);
    diagnosis(&mut in_mounts(&bed.lab, &bed.a, &script(&then))).expect_fine();
}
