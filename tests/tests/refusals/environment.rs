//! The machine does not let it: privileges, file systems, the kernel, programs, what others have pinned, another agent.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use overlay_tests::lab::{AgentOptions, exec, overlay_binary};

use crate::bed::{Bed, changes};

#[test]
fn without_privileges() {
    let bed = Bed::new();
    // Where the binary is, an ordinary user may have no access.
    let binary = bed.lab.dir().join("overlay");
    fs::copy(overlay_binary(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let powerless = ["--bounding-set=-all", "--inh-caps=-all"];
    for arguments in [&nobody[..], &powerless[..]] {
        let command = bed.agent_by("setpriv", arguments, Some(&binary));
        bed.refuses(command, &["missing privileges", "run as root", "CAP_NET_ADMIN", "CAP_BPF"]);
    }
}

#[test]
fn without_a_bpf_file_system() {
    let bed = Bed::new();
    let pins = bed.lab.dir().join("no-bpffs");
    let mut command = bed.node.overlay(&["agent", "--node", "a", "--config"]);
    command.arg(bed.lab.cluster_file()).arg("--pins").arg(pins.join("overlay/v1"));
    bed.refuses(
        command,
        &["is not on a BPF file system", "mount -t bpf", &bed.lab.dir().display().to_string()],
    );
    assert!(!pins.exists());
}

#[test]
fn on_a_kernel_that_is_too_old() {
    let bed = Bed::new();
    // What shows no types is judged by its version.
    let script = "mount -t tmpfs none /sys/kernel/btf; exec setarch --uname-2.6 \"$@\"";
    let unshare = ["--mount", "--propagation", "private", "sh", "-ec", script, "sh"];
    let command = bed.agent_by("unshare", &unshare, None);
    bed.refuses(command, &["kernel 2.6.", "is too old", "Linux 5.13 or newer"]);
}

#[test]
fn without_nft_everything_is_taken_back() {
    let bed = Bed::new();
    let empty = bed.lab.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let before = bed.state();
    let mut command = bed.agent();
    let out = exec::output(command.env("PATH", &empty), b"", std::time::Duration::from_secs(15)).unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", out.stderr);
    // What it did before is in its log.
    let last = out.stderr.lines().last().unwrap();
    assert_eq!(last, "overlay: nft not found in PATH; install the package nftables");
    assert_eq!(changes(&before, &bed.state()), [""; 0], "{}", out.stderr);
    // Nothing stands in the way of the next start.
    bed.node.start_agent();
    assert_eq!(bed.programs_on("eth0"), 1);
}

#[test]
fn with_a_map_of_another_layout_pinned() {
    let bed = Bed::new();
    let maps = bed.node.pins().join("maps");
    fs::create_dir_all(&maps).unwrap();
    let pin = maps.join("NODES");
    let create = |value: &str| {
        let mut command = Command::new("bpftool");
        command.args(["map", "create"]).arg(&pin);
        command.args(["type", "hash", "key", "16", "value", value, "entries", "65536", "name", "NODES"]);
        exec::must(command.args(["flags", "1"]), "");
    };
    create("24");
    let path = pin.display().to_string();
    bed.refuses(bed.agent(), &["pinned map", &path, "value size 24", "needs 28", "remove"]);
    // The right one is adopted.
    fs::remove_file(&pin).unwrap();
    create("28");
    bed.node.start_agent();
}

#[test]
fn beside_another_agent() {
    let bed = Bed::new();
    bed.node.start_agent();
    let words = ["another overlay agent is running", "stop it first"];
    bed.refuses(bed.agent(), &words);
    // Also with pins of its own: it would fight over the anchor device.
    let pins = bed.node.pins().with_file_name("other");
    let mut command = bed.node.overlay(&["agent", "--node", "a", "--config"]);
    command.arg(bed.lab.cluster_file()).arg("--pins").arg(pins);
    bed.refuses(command, &words);
    assert_eq!(bed.node.status().unwrap()["ready"], true);
    // And after it, with nothing in the way.
    bed.node.restart_agent();
}

#[test]
fn with_the_pins_of_an_agent_elsewhere() {
    let bed = Bed::new();
    bed.node.start_agent();
    // Another node of the same name, in a namespace of its own, that was given the same pins.
    let other = bed.lab.namespace("other");
    bed.lan.attach(&other, "eth0");
    other.ip("addr add 192.0.2.2/24 dev eth0");
    let mut command = other.command(overlay_binary());
    command.args(["agent", "--node", "b", "--config"]).arg(bed.lab.cluster_file());
    command.arg("--pins").arg(bed.node.pins());
    let pins = bed.node.pins().display().to_string();
    bed.refuses(command, &["another overlay agent is running with the pins in", &pins, "stop it first"]);
    assert_eq!(other.ip_json("link show type vxlan").as_array().map_or(0, Vec::len), 0);
}

#[test]
fn with_a_path_to_the_file_that_leads_nowhere() {
    let bed = Bed::new();
    let link: PathBuf = bed.lab.dir().join("link.toml");
    symlink("nowhere/overlay.toml", &link).unwrap();
    let options = AgentOptions { config: Some(link.clone()), ..AgentOptions::default() };
    let path = link.display().to_string();
    bed.refuses(bed.node.agent_command(&options), &["read ", &path, "No such file", "--config"]);
}
