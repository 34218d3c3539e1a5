//! Standard input and the errors about it (§1, §2 "Errors", §5 "Error").

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::case::{Case, Verdict};
use crate::plugin::Answer;
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

const DECODE: &str = "Failed to decode content. For example, failed to unmarshal network config from bytes or failed \
                      to decode version info from string.";
const ERROR_KEYS: &str =
    "Plugins should output a JSON object with the following keys if they encounter an error:";

pub(super) const CASES: &[Case] = &[
    Case::must(
        "failure-exits-non-zero",
        "§2 Errors",
        "A plugin must exit with a return code of 0 on success, and non-zero on failure.",
        failure_exits_non_zero,
    ),
    Case::should("error-is-a-json-object-on-stdout", "§5 Error", ERROR_KEYS, error_object),
    Case::should(
        "error-has-the-cniversion",
        "§5 Error",
        "`cniVersion`: The protocol version in use - \"1.1.0\"",
        error_has_the_version,
    ),
    Case::must("input-that-is-not-json-is-code-6", "§5 Error, code 6", DECODE, not_json),
    Case::must(
        "empty-input-is-code-5-or-6",
        "§5 Error, code 5",
        "I/O failure. For example, failed to read network config bytes from stdin.",
        empty,
    ),
    Case::must("input-that-is-no-object-is-code-6-or-7", "§5 Error, code 6", DECODE, not_an_object),
    Case::must(
        "unsupported-cniversion-is-code-1",
        "§5 Error, code 1",
        "Incompatible CNI version",
        unsupported_version,
    ),
    Case::must(
        "invalid-network-name-is-code-7",
        "§1 Configuration format",
        "Must start with an alphanumeric character, optionally followed by any combination of one or more \
         alphanumeric characters, underscore, dot (.) or hyphen (-). Must not contain characters disallowed in file \
         paths.",
        network_names,
    ),
    Case::should(
        "unknown-keys-are-tolerated-or-named",
        "§1 Plugin configuration objects",
        "Plugins may define additional fields that they accept and may generate an error if called with unknown \
         fields.",
        unknown_keys,
    ),
];

/// ADD of the first plugin with `input`.
fn add(suite: &Suite<'_>, input: &[u8]) -> anyhow::Result<Answer> {
    let container = suite.container()?;
    let call = suite.attachment_call("ADD", &container.target(IFNAME)).stdin(input);
    let answer = suite.call(0, &call)?;
    if answer.succeeded()
        && let Some(version) = suite.newest()
    {
        let _ = suite.del(version, &container.target(IFNAME), None);
    }
    Ok(answer)
}

fn failure_exits_non_zero(suite: &Suite<'_>, _: Version) -> Verdict {
    let answer = add(suite, b"no JSON")?;
    ensure!(!answer.succeeded(), "ADD with input that is not JSON exits with 0");
    Ok(())
}

fn error_object(suite: &Suite<'_>, _: Version) -> Verdict {
    let answer = add(suite, b"no JSON")?;
    let object = answer.only_json()?;
    ensure!(object.is_object(), "the error is no object: {object}");
    ensure!(object["code"].as_u64().is_some_and(|code| code > 0), "`code` is no positive number: {object}");
    ensure!(object["msg"].as_str().is_some_and(|msg| !msg.trim().is_empty()), "no `msg`: {object}");
    ensure!(object["details"].is_null() || object["details"].is_string(), "`details` is no string: {object}");
    Ok(())
}

fn error_has_the_version(suite: &Suite<'_>, version: Version) -> Verdict {
    let mut conf = suite.conf(0, version, None)?;
    conf["name"] = json!("/");
    let answer = add(suite, conf.to_string().as_bytes())?;
    answer.refused(&[])?;
    let seen = &answer.json()?["cniVersion"];
    ensure!(seen == version.as_str(), "`cniVersion` of the error is {seen}, called with {version}");
    Ok(())
}

fn not_json(suite: &Suite<'_>, version: Version) -> Verdict {
    let whole = suite.conf(0, version, None)?.to_string();
    let cut = whole.get(..whole.len() - 1).unwrap_or_default();
    for input in ["no JSON", "{", cut, "\u{feff}{}", "\0"] {
        add(suite, input.as_bytes())?.refused(&[6]).with_context(|| format!("input {input:?}"))?;
    }
    add(suite, b"{\"name\":\"\xff\xfe\"}x")?.refused(&[6]).context("input that is not UTF-8")?;
    Ok(())
}

fn empty(suite: &Suite<'_>, _: Version) -> Verdict {
    add(suite, b"")?.refused(&[5, 6]).map(drop)
}

fn not_an_object(suite: &Suite<'_>, _: Version) -> Verdict {
    for input in ["[]", "\"text\"", "7"] {
        add(suite, input.as_bytes())?.refused(&[6, 7]).with_context(|| format!("input {input}"))?;
    }
    Ok(())
}

fn unsupported_version(suite: &Suite<'_>, version: Version) -> Verdict {
    let mut conf = suite.conf(0, version, None)?;
    conf["cniVersion"] = json!("99.0.0");
    add(suite, conf.to_string().as_bytes())?.refused(&[1]).map(drop)
}

fn network_names(suite: &Suite<'_>, version: Version) -> Verdict {
    for name in [json!("-a"), json!("a/b"), json!("../a"), json!("a b"), json!(""), Value::Null] {
        let mut conf = suite.conf(0, version, None)?;
        conf["name"] = name.clone();
        let answer = add(suite, conf.to_string().as_bytes())?;
        answer.refused(&[7]).with_context(|| format!("network name {name}"))?;
    }
    Ok(())
}

fn unknown_keys(suite: &Suite<'_>, version: Version) -> Verdict {
    for (key, value) in [
        ("keyA", json!(["some more", "plugin specific", "configuration"])),
        ("args", json!({"cni": {"labels": []}})),
        ("cni.dev/some-key", json!({})),
        ("cniVersions", json!([version.as_str()])),
    ] {
        let mut conf = suite.conf(0, version, None)?;
        conf[key] = value.clone();
        let answer = add(suite, conf.to_string().as_bytes())?;
        if !answer.succeeded() {
            // "Unsupported field in network configuration. The error message must contain the key and value […]"
            let refusal = answer.refused(&[2])?;
            ensure!(refusal.text.contains(key), "the message does not name {key:?}: {}", refusal.text);
        }
    }
    Ok(())
}
