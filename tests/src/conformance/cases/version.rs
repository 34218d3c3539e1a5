//! VERSION (§2 "`VERSION`", §5 "VERSION Success"), asked of each plugin of the list.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::case::{Case, Verdict};
use crate::plugin::Call;
use crate::suite::Suite;
use crate::version::{Version, is_semantic};

pub(super) const CASES: &[Case] = &[
    Case::must(
        "version-needs-only-the-command",
        "§2 VERSION",
        "Required environment parameters: `CNI_COMMAND`",
        needs_only_the_command,
    ),
    Case::must(
        "version-outputs-a-json-object",
        "§5 VERSION Success",
        "Plugins must output a JSON object with the following keys upon a `VERSION` operation:",
        outputs_an_object,
    )
    .each(),
    Case::must(
        "version-echoes-the-cniversion",
        "§5 VERSION Success",
        "`cniVersion`: The value of `cniVersion` specified on input",
        echoes_the_version,
    )
    .each(),
    Case::must(
        "version-lists-supported-versions",
        "§5 VERSION Success",
        "`supportedVersions`: A list of supported specification versions",
        lists_versions,
    ),
    Case::practice(
        "version-answers-a-version-it-does-not-support",
        "§2 VERSION",
        "probe plugin version support",
        answers_an_unknown_version,
    ),
];

fn ask(suite: &Suite<'_>, index: usize, version: &str) -> anyhow::Result<Value> {
    let answer = suite.call(index, &Call::new("VERSION").conf(&json!({ "cniVersion": version })))?;
    answer.accepted()?;
    answer.json()
}

fn needs_only_the_command(suite: &Suite<'_>, version: Version) -> Verdict {
    for index in 0..suite.plugins.len() {
        ask(suite, index, version.as_str())?;
    }
    Ok(())
}

fn outputs_an_object(suite: &Suite<'_>, version: Version) -> Verdict {
    for index in 0..suite.plugins.len() {
        let call = Call::new("VERSION").conf(&json!({ "cniVersion": version.as_str() }));
        let answer = suite.call(index, &call)?.only_json()?;
        ensure!(answer["cniVersion"].is_string(), "`cniVersion` is no string: {answer}");
        ensure!(answer["supportedVersions"].is_array(), "`supportedVersions` is no list: {answer}");
    }
    Ok(())
}

fn echoes_the_version(suite: &Suite<'_>, version: Version) -> Verdict {
    for (index, plugin) in suite.plugins.iter().enumerate() {
        let answer = ask(suite, index, version.as_str())?;
        let seen = &answer["cniVersion"];
        ensure!(seen == version.as_str(), "{} answers {seen} when asked with {version}", plugin.kind);
    }
    Ok(())
}

fn lists_versions(suite: &Suite<'_>, version: Version) -> Verdict {
    for (index, plugin) in suite.plugins.iter().enumerate() {
        let answer = ask(suite, index, version.as_str())?;
        let list = answer["supportedVersions"].as_array().context("`supportedVersions` is no list")?;
        ensure!(!list.is_empty(), "{} supports no version", plugin.kind);
        for (at, entry) in list.iter().enumerate() {
            let text = entry.as_str().with_context(|| format!("{entry} is no string"))?;
            ensure!(is_semantic(text), "{text:?} is no semantic version");
            ensure!(list.iter().position(|other| other == entry) == Some(at), "{text} is listed twice");
        }
    }
    Ok(())
}

fn answers_an_unknown_version(suite: &Suite<'_>, _: Version) -> Verdict {
    for index in 0..suite.plugins.len() {
        let answer = ask(suite, index, "99.0.0")?;
        ensure!(answer["supportedVersions"].is_array(), "`supportedVersions` is no list: {answer}");
    }
    Ok(())
}
