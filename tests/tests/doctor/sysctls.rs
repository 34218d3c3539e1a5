//! Kernel settings that somebody has changed. The agent is not there to put them back.

use crate::bed::{Bed, diagnosis, in_mounts};

#[test]
pub(crate) fn settings_that_others_have_changed_are_named_and_set_by_remedy_or_fix() {
    let bed = Bed::start();
    bed.a.stop_agent();
    let agent = ("agent", "agent");
    let forward = "net/ipv4/ip_forward";
    let pod = format!("net/ipv4/conf/{}/forwarding", bed.pod_a.host_device());
    let cases: [(&str, &str, &[&str]); 3] = [
        (forward, "0", &[forward]),
        (&pod, "0", &[&pod]),
        ("net/ipv4/conf/all/send_redirects", "1", &["net/ipv4/conf/all/send_redirects"]),
    ];
    for (path, value, found) in cases {
        let mut wanted = vec![agent];
        wanted.extend(found.iter().map(|path| ("sysctls", *path)));
        bed.a.namespace().sysctl(path, value);
        let finding = bed.doctor(&[]).expect(&wanted).pop().unwrap();
        assert_eq!((finding.severity.as_str(), finding.fix.as_deref()), ("error", Some("own")));
        bed.follow(&finding);
        bed.doctor(&["--only", "sysctls"]).expect_fine();

        bed.a.namespace().sysctl(path, value);
        let seen = bed.doctor(&["--only", "sysctls", "--fix"]);
        seen.expect_fine();
        assert!(seen.did.starts_with(&format!("did set {path} = ")), "{seen:?}");
    }
    bed.expect_traffic();
}

#[test]
pub(crate) fn the_file_that_sets_it_is_named() {
    let bed = Bed::start();
    bed.a.stop_agent();
    bed.a.namespace().sysctl("net.ipv4.ip_forward", "0");
    let script = "mkdir -p $LAB/sysctl.d; printf '# hardening\\nnet.ipv4.ip_forward = 0\\n' > $LAB/sysctl.d/90-hard.conf; \
                  mount --bind $LAB/sysctl.d /etc/sysctl.d; exec \"$OVERLAY\" doctor -o json --only sysctls";
    let seen = diagnosis(&mut in_mounts(&bed.lab, &bed.a, script));
    let finding = &seen.expect(&[("sysctls", "net/ipv4/ip_forward")])[0];
    let said = "/etc/sysctl.d/90-hard.conf says so in line 2: net.ipv4.ip_forward = 0";
    assert!(finding.evidence.contains(said), "{finding:?}");
}
