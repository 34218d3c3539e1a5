//! What overlay stands on: the kernel and the BPF file system.

use overlay_tests::lab::{Docker, Network, exec};

use crate::bed::{Bed, Finding, configure, diagnosis, in_mounts, lan, node};

#[test]
pub(crate) fn a_kernel_that_is_too_old_is_named() {
    let bed = Bed::start();
    // What shows no types is judged by its version.
    let script = "mount -t tmpfs none /sys/kernel/btf; \
                  exec setarch --uname-2.6 \"$OVERLAY\" doctor -o json --only kernel";
    let seen = diagnosis(&mut in_mounts(&bed.lab, &bed.a, script));
    let finding = seen.problems()[0].clone();
    assert_eq!((seen.problems().len(), seen.status), (1, 3), "{seen:#?}");
    assert!(finding.object.starts_with("Linux 2.6."), "{finding:?}");
    assert!(finding.evidence.contains("needs Linux 5.13 or newer"), "{finding:?}");
}

#[test]
pub(crate) fn a_kernel_that_hides_its_types_and_one_that_does_not_compile_are_named() {
    let bed = Bed::start();
    let script = "mount -t tmpfs none /sys/kernel/btf; exec \"$OVERLAY\" doctor -o json --only kernel";
    let seen = diagnosis(&mut in_mounts(&bed.lab, &bed.a, script));
    seen.expect(&[("kernel", "/sys/kernel/btf/vmlinux")]);
    // The setting is the node's, and not to be touched: another directory of settings, where it is off.
    let script = "mkdir -p $LAB/sys/net/core; echo 0 > $LAB/sys/net/core/bpf_jit_enable; \
                  OVERLAY_PROC_SYS=$LAB/sys exec \"$OVERLAY\" doctor -o json --only kernel";
    let seen = diagnosis(&mut in_mounts(&bed.lab, &bed.a, script));
    let finding = &seen.expect(&[("kernel", "net/core/bpf_jit_enable")])[0];
    let (path, value) = finding.remedy.strip_prefix("sysctl -w ").unwrap().split_once('=').unwrap();
    std::fs::write(bed.lab.dir().join("sys").join(path), value).unwrap();
    let script = "OVERLAY_PROC_SYS=$LAB/sys exec \"$OVERLAY\" doctor -o json --only kernel";
    diagnosis(&mut in_mounts(&bed.lab, &bed.a, script)).expect_fine();
}

#[test]
pub(crate) fn a_place_for_pins_that_is_no_bpf_file_system_is_named() {
    let (lab, lan) = lan();
    let (a, b) = (node(&lab, &lan, "a", 1, Docker::Down), node(&lab, &lan, "b", 2, Docker::Down));
    configure(&lab, &[&a, &b], Network::default(), "");
    let script = "umount \"$LAB/bpf\"; exec \"$OVERLAY\" doctor -o json";
    let seen = diagnosis(&mut in_mounts(&lab, &a, script));
    let place = lab.dir().join("bpf").display().to_string();
    let finding: Finding = seen.expect(&[("bpffs", &place)])[0].clone();
    let script = format!(
        "umount \"$LAB/bpf\"; overlay() {{ \"$OVERLAY\" \"$@\"; }}; {} >&2; exec \"$OVERLAY\" doctor -o json",
        finding.remedy
    );
    diagnosis(&mut in_mounts(&lab, &a, &script)).expect_fine();
    assert!(exec::must(a.namespace().command("findmnt").arg("-n").arg(&place), "").contains("bpf"));
}
