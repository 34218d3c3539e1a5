//! Programs that are not those of the binary that asks, or not there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use overlay_tests::lab::{exec, overlay_binary};

use crate::ask::{ask, ask_with};
use crate::bed::{Bed, Counters};

/// A copy of the binary in which the programs have other instructions: another build. Removed when it is dropped.
struct OtherBuild {
    dir: PathBuf,
}

impl OtherBuild {
    /// Beside other temporary files: the binary is too large for a file system in memory.
    fn make(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("overlay-trace-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let build = Self { dir };
        let object =
            fs::read(std::env::var_os("OVERLAY_BPF_OBJECT").expect("the tests know the object")).unwrap();
        let mut binary = fs::read(overlay_binary()).unwrap();
        let at = find(&binary, &object).expect("the binary holds the object");
        // Each call of helper 5, bpf_ktime_get_ns, becomes one of 125, bpf_ktime_get_boot_ns.
        let call = [0x85, 0, 0, 0, 5, 0, 0, 0];
        let mut from = 0;
        while let Some(next) = find(&object[from..], &call) {
            binary[at + from + next + 4] = 125;
            from += next + call.len();
        }
        assert!(from > 0, "some program asks for the time");
        let data = build.dir.join("data");
        fs::write(&data, binary).unwrap();
        // Not what this process has written: a child of another thread may still hold that open, and then it cannot run.
        exec::must(Command::new("install").args(["-m", "755"]).arg(&data).arg(build.path()), "");
        fs::remove_file(&data).unwrap();
        build
    }

    fn path(&self) -> PathBuf {
        self.dir.join("overlay")
    }
}

impl Drop for OtherBuild {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let mut from = 0;
    while let Some(next) = haystack[from..].iter().position(|byte| byte == first) {
        let at = from + next;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[test]
fn programs_of_another_build_are_said_to_be_and_asked_themselves() {
    let bed = Bed::new();
    let other = OtherBuild::make(bed.cluster.lab().id());
    let (pod, to) = (bed.pod.addr().to_string(), bed.near.addr().to_string());
    let asked = |arguments: &[&str]| {
        let mut command = bed.cp().namespace().command(other.path());
        command.env("OVERLAY_PINS", bed.cp().pins());
        ask_with(command, arguments, "")
    };
    let before = Counters::read(bed.cp());
    let answer = asked(&[&pod, &to]);
    answer.is("another build", "sent");
    assert_eq!(answer.step("program")["facts"]["same_build"], false);
    assert!(answer.step("program")["text"].as_str().unwrap().contains("ANOTHER BUILD"));
    // As is said, the programs that were asked count.
    assert_eq!(before.since(bed.cp(), &answer.counted()), answer.counted());
    let own = ask(bed.cp(), &[&pod, &to]);
    assert_eq!(own.step("program")["facts"]["same_build"], true);
    assert_eq!(own.report["verdict"], answer.report["verdict"]);
    assert_eq!(own.wire(), answer.wire());

    let answer = asked(&[&pod, "10.244.99.1"]);
    answer.is("another build drops", "dropped");
    assert_eq!(answer.report["verdict"]["reason"], "no_node");
}

#[test]
fn a_device_without_a_program_is_noticed() {
    let bed = Bed::new();
    bed.cp().kill_agent(Signal::SIGKILL);
    let (pod, to) = (bed.pod.addr().to_string(), bed.near.addr().to_string());
    ask(bed.cp(), &[&pod, &to]).is("attached", "sent");
    let device = bed.pod.host_device();
    let mut tc = bed.cp().namespace().command("tc");
    exec::must(tc.args(["filter", "del", "dev", &device, "ingress"]), "");
    let answer = ask(bed.cp(), &[&pod, &to]);
    answer.is("not attached", "refused");
    assert!(answer.step("program")["text"].as_str().unwrap().contains("not attached"), "{:#}", answer.report);
    // And so it is: the stack forwards what no program has seen.
    let before = Counters::read(bed.cp());
    bed.send(answer.frame());
    let counted = before.since(bed.cp(), &[("encap_native".to_owned(), 1)].into());
    assert!(!counted.contains_key("pod_to_stack"), "{counted:?}");
}
