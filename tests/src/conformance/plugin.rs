//! One call of one plugin: environment and input as the specification has them (§2), and what came back.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::exec::{self, Finished};

/// A plugin binary that was found.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    /// `type` of its configuration.
    pub(crate) kind: String,
    /// The binary.
    pub(crate) path: PathBuf,
}

/// What a plugin is called with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    env: BTreeMap<&'static str, String>,
    stdin: Vec<u8>,
}

impl Call {
    /// A call with `CNI_COMMAND` alone.
    pub(crate) fn new(command: &str) -> Self {
        Self::default().set("CNI_COMMAND", command)
    }

    /// Sets a variable.
    #[must_use]
    pub(crate) fn set(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.env.insert(key, value.into());
        self
    }

    /// Leaves a variable out.
    #[must_use]
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.env.remove(key);
        self
    }

    /// Gives it this input.
    #[must_use]
    pub(crate) fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Gives it this configuration as input.
    #[must_use]
    pub(crate) fn conf(self, conf: &Value) -> Self {
        self.stdin(conf.to_string())
    }

    /// `CNI_COMMAND`, for messages.
    pub(crate) fn command(&self) -> &str {
        self.env.get("CNI_COMMAND").map_or("a call without CNI_COMMAND", String::as_str)
    }
}

impl Plugin {
    /// Calls the plugin; the environment is this process's, with no `CNI_*` but the call's.
    ///
    /// Errors: it cannot be started, or has not ended within `limit`.
    pub(crate) fn call(&self, call: &Call, limit: Duration) -> Result<Answer> {
        let mut command = Command::new(&self.path);
        for (key, _) in env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"CNI_")) {
            command.env_remove(key);
        }
        let finished = exec::run(command.envs(&call.env), &call.stdin, limit);
        let what = format!("{} of {}", call.command(), self.kind);
        let finished = finished.with_context(|| format!("run {what}"))?;
        Ok(Answer { what, finished })
    }
}

/// What a plugin answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The call, for messages.
    pub(crate) what: String,
    finished: Finished,
}

/// The error object of the specification (§5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorObject {
    /// `code`.
    pub(crate) code: u64,
    /// `msg` and `details`.
    pub(crate) text: String,
}

impl Answer {
    /// Whether the exit code is 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.finished.status.success()
    }

    /// Standard output.
    pub(crate) fn stdout(&self) -> &str {
        &self.finished.stdout
    }

    /// From fork to exit.
    pub(crate) fn elapsed(&self) -> Duration {
        self.finished.elapsed
    }

    /// Standard output as one JSON value and nothing else.
    pub(crate) fn only_json(&self) -> Result<Value> {
        serde_json::from_str(self.stdout()).with_context(|| {
            format!("{}: stdout is not one JSON value: {}", self.what, quoted(self.stdout()))
        })
    }

    /// The first JSON value on standard output: what follows it is for one case alone to judge.
    pub(crate) fn json(&self) -> Result<Value> {
        let mut values = serde_json::Deserializer::from_str(self.stdout()).into_iter();
        match values.next() {
            Some(Ok(value)) => Ok(value),
            _ => bail!("{}: stdout does not begin with JSON: {}", self.what, quoted(self.stdout())),
        }
    }

    /// It must have succeeded.
    pub(crate) fn accepted(&self) -> Result<()> {
        ensure!(self.succeeded(), "{self}");
        Ok(())
    }

    /// It must have failed with an error object that has one of `codes` (any code if that is empty).
    pub(crate) fn refused(&self, codes: &[u64]) -> Result<ErrorObject> {
        ensure!(!self.succeeded(), "{} succeeded, an error was expected", self.what);
        let object = self.error_object()?;
        ensure!(
            codes.is_empty() || codes.contains(&object.code),
            "{} failed with code {} ({}), expected {}",
            self.what,
            object.code,
            object.text,
            codes.iter().map(u64::to_string).collect::<Vec<_>>().join(" or "),
        );
        Ok(object)
    }

    /// The error object on standard output.
    pub(crate) fn error_object(&self) -> Result<ErrorObject> {
        let json = self.json().with_context(|| format!("{} failed without an error object", self.what))?;
        let code = json["code"].as_u64();
        let code =
            code.with_context(|| format!("{}: error object without numeric code: {json}", self.what))?;
        let text = |key: &str| json[key].as_str().filter(|text| !text.is_empty());
        let parts: Vec<&str> = ["msg", "details"].into_iter().filter_map(text).collect();
        Ok(ErrorObject { code, text: parts.join("; ") })
    }
}

/// How it ended, in one line.
impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended with {}", self.what, self.finished.status)?;
        match self.error_object() {
            Ok(object) => write!(f, ", code {}: {}", object.code, object.text),
            Err(_) => write!(
                f,
                ", stdout {}, stderr {}",
                quoted(&self.finished.stdout),
                quoted(&self.finished.stderr)
            ),
        }
    }
}

/// A text for an error message: one line, not too long.
pub(crate) fn quoted(text: &str) -> String {
    const LIMIT: usize = 200;
    let text = text.trim();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn answer(status: i32, stdout: &str) -> Answer {
        use std::os::unix::process::ExitStatusExt as _;
        let finished = Finished {
            status: ExitStatus::from_raw(status << 8),
            stdout: stdout.to_owned(),
            stderr: String::new(),
            elapsed: Duration::ZERO,
        };
        Answer { what: "ADD of x".to_owned(), finished }
    }

    #[test]
    fn a_refusal_needs_status_object_and_code() {
        let object = r#"{"cniVersion":"1.0.0","code":4,"msg":"bad","details":"CNI_IFNAME"}"#;
        let seen = answer(1, object).refused(&[4]).unwrap();
        assert_eq!(seen, ErrorObject { code: 4, text: "bad; CNI_IFNAME".to_owned() });
        assert!(answer(1, object).refused(&[]).is_ok());
        assert!(answer(0, object).refused(&[4]).is_err());
        assert!(answer(1, object).refused(&[6, 7]).is_err());
        assert!(answer(1, "").refused(&[]).is_err());
        assert!(answer(1, r#"{"msg":"no code"}"#).refused(&[]).is_err());
    }

    #[test]
    fn what_follows_the_json_is_seen_by_the_strict_reading_only() {
        let chatty = answer(0, "{\"ips\":[]}\nall done\n");
        assert_eq!(chatty.json().unwrap(), serde_json::json!({"ips": []}));
        assert!(chatty.only_json().is_err());
        assert!(answer(0, "ready\n{}").json().is_err());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(quoted(" a\n"), "\"a\"");
        assert!(quoted(&"ä".repeat(300)).chars().count() < 210);
    }
}
