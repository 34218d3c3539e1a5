//! What the node's packet filter has to do for pods, by way of the `nft` program.
//!
//! * [`source_nat`] – our own tables `ip overlay` and `ip6 overlay`: pods reach the world with the node's address, and pods' flows to a
//!   Service have sources that keep them apart from others and that other nodes believe;
//! * [`ports`] – our own table `ip overlay-ports`: ports of the node lead to pods;
//! * [`translation`] – whose rules send a packet to another destination;
//! * [`foreign`] – accepts in foreign chains that would drop what is forwarded for pods.
//!
//! [`own`] lists and removes the tables that are ours as a whole.
//!
//! Nothing else of anybody's rules is read or written. Every change is one transaction (`nft -f`), so that
//! no packet meets half of it. Called by the agent, [`ports`] also by the CNI plugin; runs in the network namespace of the
//! calling thread.

pub mod foreign;
pub mod own;
pub mod ports;
pub mod source_nat;
pub mod translation;

use std::{
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Seek as _, Write as _},
    path::Path,
    process::Command,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

use crate::family::Family;

/// Our table, in the families `ip` and `ip6`.
pub const TABLE: &str = "overlay";

/// Why the packet filter could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("{program} not found in PATH; install the package {package}")]
    Missing {
        /// What was to be run.
        program: &'static str,
        /// What brings it, on every common distribution.
        package: &'static str,
    },
    /// It did not run.
    #[error("run {program} to {action}: {cause}")]
    Run {
        /// What was to be run.
        program: &'static str,
        /// What for.
        action: String,
        /// The system's reason.
        cause: io::Error,
    },
    /// It ran and refused.
    #[error("{action}: {program} says: {message}")]
    Refused {
        /// What was run.
        program: &'static str,
        /// What for.
        action: String,
        /// Its first line of error output.
        message: String,
    },
    /// Its output is not what it should be.
    #[error("{action}: unexpected output of nft: {detail}")]
    Output {
        /// What it was run for.
        action: String,
        /// What is wrong.
        detail: String,
    },
}

/// Where programs of the system are, where there is no `PATH`: a runtime may start a plugin with no environment but the
/// specification's.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Runs a program with `input`, and returns its output.
fn run(
    program: &'static str,
    package: &'static str,
    arguments: &[&str],
    input: &str,
    action: &str,
) -> Result<String, NftError> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => NftError::Missing { program, package },
        _ => NftError::Run { program, action: action.to_owned(), cause },
    };
    // A file, not a pipe: the program finds all of it, also when this process is killed, and never takes a part of a
    // script for the whole.
    let mut file = File::from(memfd_create(c"nft", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.into()))?);
    file.write_all(input.as_bytes()).and_then(|()| file.rewind()).map_err(failed)?;
    let start = |path: &Path| Command::new(path).args(arguments).stdin(file.try_clone()?).output();
    let absent = |cause: &io::Error| cause.kind() == io::ErrorKind::NotFound;
    let mut output = start(Path::new(program));
    if std::env::var_os("PATH").is_none() {
        for dir in SYSTEM_DIRS.iter().map(Path::new) {
            if output.as_ref().is_err_and(absent) {
                output = start(&dir.join(program));
            }
        }
    }
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let message = stderr.lines().next().unwrap_or("nothing").trim().to_owned();
        return Err(NftError::Refused { program, action: action.to_owned(), message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Applies a script, in nft's language, as one transaction.
fn apply(script: &str, action: &str) -> Result<(), NftError> {
    run("nft", "nftables", &["-f", "-"], script, action).map(drop)
}

/// Applies commands, in nft's JSON, as one transaction; returns the objects that listing commands found.
///
/// JSON, since in the language a foreign chain called like a keyword (`fwd`) cannot be named.
fn json(commands: &[Value], action: &str) -> Result<Vec<Value>, NftError> {
    let input = serde_json::json!({ "nftables": commands }).to_string();
    let output = run("nft", "nftables", &["-j", "-f", "-"], &input, action)?;
    let unexpected = |detail: String| NftError::Output { action: action.to_owned(), detail };
    let mut objects = Vec::new();
    // A document for each listing command; commands that only change print nothing.
    for document in serde_json::Deserializer::from_str(&output).into_iter::<Value>() {
        match document.map(|mut document| document["nftables"].take()) {
            Ok(Value::Array(listed)) => objects.extend(listed),
            Ok(_) => return Err(unexpected("no list of objects".into())),
            Err(error) => return Err(unexpected(error.to_string())),
        }
    }
    Ok(objects)
}

/// Every table that has a chain and is not ours: family and name.
pub fn foreign_tables() -> Result<Vec<(String, String)>, NftError> {
    let objects = json(&[serde_json::json!({ "list": { "chains": null } })], "list chains")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tables = objects.iter().filter_map(|object| object.get("chain"));
    let mut tables: Vec<_> = tables.map(|chain| (text(&chain["family"]), text(&chain["table"]))).collect();
    tables.retain(|(family, name)| !is_own(family, name));
    tables.sort();
    tables.dedup();
    Ok(tables)
}

/// Whether a table of nft's family is ours as a whole.
fn is_own(family: &str, name: &str) -> bool {
    Family::ALL.iter().any(|own| own.nft() == family) && (name == TABLE || name == ports::TABLE)
}

/// What a rule of a table carries to tell which text the table was made from. Need not be the same in another build: a
/// different one costs one replacement.
fn digest(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("overlay {:016x}", hasher.finish())
}

impl NftError {
    /// Whether nft refused because an object does not exist (any more).
    fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("No such file or directory"))
    }
}

#[cfg(test)]
mod tests;
