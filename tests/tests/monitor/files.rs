//! Capture files of `monitor -o pcap`, read back by tcpdump.

use overlay_tests::lab::exec;
use overlay_tests::traffic::inject::inject;

use crate::bed::{Bed, NO_NODE, STRANGER, run, send, tcpdump};

#[test]
fn a_capture_file_of_drops_opens_in_tcpdump() {
    let bed = Bed::new();
    let cp = bed.cp();
    send(&bed.a, 4001, (NO_NODE, 5001), 1);
    inject(&bed.stranger, "eth0", &[bed.tunnel(STRANGER, bed.peer.addr(), bed.a.addr()).encode()]);
    let file = bed.cluster.lab().dir().join("drops.pcapng");
    let path = file.display().to_string();
    // Both are kept, since before anybody looked.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let text = loop {
        let out = run(cp, &["monitor", "-o", "pcap", "-w", &path, "--last", "10"]);
        assert!(out.status.success(), "{out:?}");
        let text = tcpdump(&file);
        if text.contains("VXLAN") || std::time::Instant::now() > deadline {
            break text;
        }
    };
    let first = format!("{}.4001 > {NO_NODE}.5001: ", bed.a.addr());
    assert!(text.contains(&first), "{text}");
    assert!(text.contains(&format!("{STRANGER}.50000 > {}.8472: VXLAN", cp.address())), "{text}");
    assert!(text.contains(&format!("{}.4000 > {}.7777", bed.peer.addr(), bed.a.addr())), "{text}");
    // What tcpdump of this age does not print.
    let bytes = std::fs::read(&file).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let device = bed.a.host_device();
    for text in ["dropped: no_node at from_pod", "dropped: unknown_vtep at from_wire", &device, "eth0"] {
        assert!(has(text), "no {text} in the file");
    }
}

#[test]
fn a_capture_file_can_be_piped() {
    let bed = Bed::new();
    send(&bed.a, 4001, (NO_NODE, 5001), 2);
    let mut command = bed.cp().namespace().command("sh");
    command.env("OVERLAY_PINS", bed.cp().pins()).env("OVERLAY", overlay_tests::lab::overlay_binary());
    command.args(["-c", "$OVERLAY monitor -o pcap --last 2 | tcpdump -nn -r - 2>/dev/null"]);
    let text = exec::must(&mut command, "");
    assert_eq!(text.matches(&format!("{}.4001 > {NO_NODE}.5001: UDP", bed.a.addr())).count(), 2, "{text}");
}
