//! Pins that nobody owns.

use std::fs;

use crate::bed::{Bed, names};

#[test]
pub(crate) fn a_link_that_has_outlived_its_device_is_removed_by_remedy_or_fix() {
    let bed = Bed::start();
    bed.a.stop_agent();
    // The underlay's device is replaced, as by a driver that is loaded anew.
    let links = bed.a.pins().join("links");
    let before = names(&links);
    let wire = before.iter().find(|name| name.starts_with("wire_")).unwrap();
    bed.run("ip link add dummy7 type veth peer name dummy8");
    let index = bed.a.namespace().ip_json("link show dev dummy7")[0]["ifindex"].as_u64().unwrap();
    let stale = format!("wire_{index}_from_wire");
    let path = links.join(&stale).display().to_string();
    for by_fix in [false, true] {
        // A second link on a device that then goes.
        bed.run(&format!(
            "ip link del dummy7 2>/dev/null; ip link add dummy7 index {index} type veth peer name dummy8"
        ));
        attach(&bed, "dummy7", &path);
        bed.run("ip link del dummy7");
        let finding = &bed.doctor(&["--only", "pins"]).expect(&[("pins", &path)])[0];
        if by_fix {
            let seen = bed.doctor(&["--only", "pins", "--fix"]);
            seen.expect_fine();
            assert_eq!(seen.did, format!("did remove the pin {path}\n"));
        } else {
            bed.follow(finding);
            bed.doctor(&["--only", "pins"]).expect_fine();
        }
        assert_eq!(names(&links), before);
    }
    assert!(before.contains(wire));
    bed.expect_traffic();
}

/// Attaches the pinned program to a device by a tcx link, and pins that.
#[track_caller]
fn attach(bed: &Bed, device: &str, link: &str) {
    use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions};
    bed.a.namespace().run(|| {
        let mut program = SchedClassifier::from_pin(bed.a.pins().join("programs/from_wire")).unwrap();
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(device, TcAttachType::Ingress, options).unwrap();
        let fd: FdLink = program.take_link(id).unwrap().try_into().unwrap();
        fd.pin(link).unwrap();
    });
}

#[test]
pub(crate) fn a_pod_whose_device_is_gone_gives_its_address_back_by_fix_alone() {
    let bed = Bed::start();
    let address = bed.pod_a.addr();
    bed.run(&format!("ip link del {}", bed.pod_a.host_device()));
    let object = format!("pod {address}");
    let finding = &bed.doctor(&[]).expect(&[("pins", &object)])[0];
    assert!(finding.evidence.contains("device index"), "{finding:?}");
    let seen = bed.doctor(&["--fix", "--dry-run"]);
    assert!(seen.did.starts_with(&format!("would give back the address {address}")), "{seen:?}");
    seen.expect(&[("pins", &object)]);
    let seen = bed.doctor(&["--fix"]);
    seen.expect_fine();
    assert!(seen.did.starts_with(&format!("did give back the address {address}")), "{seen:?}");
    assert_eq!(bed.a.show("endpoints"), serde_json::json!([]));
    // The runtime's DEL finds nothing to do, and that is fine.
    bed.pod_a.del();
    let pod = bed.a.add_pod(&bed.lab, "next");
    overlay_tests::traffic::ping::ping(pod.namespace(), bed.pod_b.addr().into()).unwrap();
    bed.doctor(&[]).expect_fine();
}

#[test]
pub(crate) fn the_pins_of_another_schema_are_named_and_go_only_when_nothing_hangs_on_them() {
    let bed = Bed::start();
    let other = bed.a.pins().parent().unwrap().join("v999");
    for directory in ["maps", "links"] {
        fs::create_dir_all(other.join(directory)).unwrap();
    }
    let object = other.display().to_string();
    let finding = &bed.doctor(&[]).expect(&[("pins", &object)])[0];
    bed.follow(finding);
    bed.doctor(&["--only", "pins"]).expect_fine();

    fs::create_dir_all(other.join("links")).unwrap();
    bed.run("ip link add dummy7 type veth peer name dummy8");
    attach(&bed, "dummy7", &other.join("links/wire_7_from_wire").display().to_string());
    let seen = bed.doctor(&["--only", "pins", "--fix"]);
    let finding = &seen.expect(&[("pins", &object)])[0];
    assert!(finding.evidence.contains("1 links are pinned there") && finding.fix.is_none(), "{finding:?}");
    fs::remove_file(other.join("links/wire_7_from_wire")).unwrap();
    let seen = bed.doctor(&["--only", "pins", "--fix"]);
    seen.expect_fine();
    assert!(!other.exists());
    bed.expect_traffic();
}
