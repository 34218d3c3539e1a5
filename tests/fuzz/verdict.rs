//! What every verdict of the CNI plugin's parser has to be like, whatever it was asked.

use std::ffi::OsString;

use overlay_userspace::cni;
use serde_json::Value;

/// Versions that an answer may be in.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Has the call judged; panics where the verdict is not one that a runtime can read.
pub fn check(variable: impl Fn(&str) -> Option<OsString>, stdin: &[u8]) {
    let Err(object) = cni::parse(variable, stdin) else { return };
    // As it goes over the pipe.
    let object: Value = serde_json::from_str(&object.to_string()).expect("an answer is JSON");
    let version = object["cniVersion"].as_str().expect("an error object has a version");
    assert!(VERSIONS.contains(&version), "{object}");
    // A refusal of the parser is one of these: version, environment, decode, configuration.
    assert!(matches!(object["code"].as_u64(), Some(1 | 2 | 4 | 6 | 7 | 8)), "{object}");
    let message = object["msg"].as_str().expect("an error object has a message");
    assert!(!message.trim().is_empty(), "{object}");
    assert!(object.get("details").is_none_or(Value::is_string), "{object}");
}
