//! The benchmark runs: one tiny round of one workload with all contenders. What it measures is of no interest here.

#![allow(clippy::unwrap_used, reason = "tests panic, to keep the line number")]

use std::process::Command;

use serde_json::Value;

#[test]
fn a_tiny_round_measures_every_contender() {
    let dir = std::env::temp_dir().join(format!("overlay-bench-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let (json, svg) = (dir.join("bench.json"), dir.join("bench.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--quick", "--only", "udp_rr", "--only", "programs", "--wire", "w1", "--cpus", "free"])
        .args(["--rounds", "1", "--turn", "2", "--json"])
        .arg(&json)
        .arg("--svg")
        .arg(&svg)
        .output()
        .unwrap();
    let [json, svg] = [json, svg].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    std::fs::remove_dir_all(dir).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let results: Value = serde_json::from_str(&json).unwrap();
    let contenders = results["rows"][0]["contenders"].as_array().unwrap();
    let names: Vec<&str> = contenders.iter().map(|entry| entry["contender"].as_str().unwrap()).collect();
    assert_eq!(names, ["wire", "routed", "routed_narrow", "flannel", "flannel_bare", "overlay"]);
    for entry in contenders {
        assert!(entry["absolute"].as_f64().unwrap() > 0.0, "{entry}");
        assert!(entry["ratio"]["median"].as_f64().unwrap() > 0.0, "{entry}");
    }
    let programs = results["programs"].as_array().unwrap();
    for hook in ["from_pod", "from_host", "from_wire", "to_pod"] {
        assert!(programs.iter().any(|program| program["program"] == hook), "{hook} in {programs:?}");
    }
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().any(|line| line.trim_start().starts_with("udp_rr ")), "{table}");
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
}
