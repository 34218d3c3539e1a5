//! Asking: `overlay trace -o json`, and what its answer says.

use std::collections::BTreeMap;
use std::process::Command;

use overlay_tests::lab::{Node, exec};
use serde_json::Value;

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) report: Value,
}

/// Asks on `node`.
#[track_caller]
pub(crate) fn ask(node: &Node, arguments: &[&str]) -> Answer {
    ask_with(node.overlay(&[]), arguments, "")
}

/// The second half, on `node`, of what was asked first elsewhere.
#[track_caller]
pub(crate) fn go_on(node: &Node, first: &Answer) -> Answer {
    ask_with(node.overlay(&[]), &["--received", "-"], &first.report.to_string())
}

/// Asks by another command than the binary under test.
#[track_caller]
pub(crate) fn ask_with(mut command: Command, arguments: &[&str], stdin: &str) -> Answer {
    command.arg("trace").args(arguments).args(["-o", "json"]);
    let out = exec::output(&mut command, stdin.as_bytes(), exec::COMMAND_LIMIT).unwrap();
    let report = serde_json::from_str(&out.stdout);
    let report =
        report.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}{}", out.stdout, out.stderr));
    Answer { code: out.status.code(), report }
}

impl Answer {
    pub(crate) fn outcome(&self) -> &str {
        self.report["verdict"]["outcome"].as_str().expect("a verdict has an outcome")
    }

    /// What it was counted under, and how often: paths and reasons of all programs that were asked.
    pub(crate) fn counted(&self) -> BTreeMap<String, u64> {
        let mut counted = BTreeMap::new();
        for did in self.steps("program did") {
            let facts = &did["facts"];
            let paths = facts["paths"].as_array().expect("paths").iter();
            for name in paths.chain([&facts["reason"]]).filter_map(Value::as_str) {
                *counted.entry(name.to_owned()).or_default() += 1;
            }
        }
        counted
    }

    /// All steps about this.
    pub(crate) fn steps(&self, what: &str) -> Vec<&Value> {
        let steps = self.report["steps"].as_array().expect("steps").iter();
        steps.filter(|step| step["what"] == what).collect()
    }

    /// The only step about this.
    #[track_caller]
    pub(crate) fn step(&self, what: &str) -> &Value {
        let steps = self.steps(what);
        assert_eq!(steps.len(), 1, "steps about {what} in {:#}", self.report);
        steps[0]
    }

    /// The packet as the sender's first program saw it.
    pub(crate) fn frame(&self) -> Vec<u8> {
        bytes(&self.report["frame"])
    }

    /// The packet on the wire.
    pub(crate) fn wire(&self) -> Vec<u8> {
        bytes(&self.report["wire"]["hex"])
    }

    /// The explanation and the programs agree, the exit status says what the verdict does, and it is this.
    #[track_caller]
    pub(crate) fn is(&self, what: &str, outcome: &str) {
        assert_eq!(self.outcome(), outcome, "{what}: {:#}", self.report);
        assert!(self.steps("differs").is_empty(), "{what}: {:#}", self.report);
        let fine = ["delivered", "sent", "stack"].contains(&outcome);
        assert_eq!(self.code, Some(if fine { 0 } else { 3 }), "{what}");
    }
}

/// Bytes of hexadecimal.
#[track_caller]
pub(crate) fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap_or_else(|| panic!("not hexadecimal: {hex}"));
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// As an argument of `--received`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
