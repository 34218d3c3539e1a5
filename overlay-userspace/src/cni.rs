//! The CNI plugin: `overlay` as container runtimes call it, once for each pod that comes or goes.
//!
//! - `env`, `wanted`: the request from the environment, and the address that it asks for
//! - `types`: network configuration and result, versions 0.3.1 to 1.1.0
//! - `parse`: both as one pure function
//! - `failure`: the error object
//! - `inside`: the schema in force, held for a call
//! - `local`: what the agent left about this node
//! - `lease`, `pool`: addresses, and in which order they are proposed
//! - `ports`: host ports
//! - `owner`: who holds an address, and its device's name
//! - `names`: what Kubernetes calls the pod
//! - `interface`, `sandbox`: the two sides of a pod's veth pair
//! - `add`, `check`, `del`, `gc`, `status`: the verbs
//! - `install`: the plugin where runtimes look for it
//!
//! The plugin needs what is pinned and nothing else: no agent, no file, and it loads no object. Calls for different
//! containers run in parallel, without a lock but while they change host ports; runtimes keep those for one container in order. Standard output carries one JSON
//! document or nothing.

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
    time::Instant,
};

use serde_json::Value;

use crate::datapath::calls::Calls;

mod add;
mod check;
mod del;
mod env;
mod failure;
mod gc;
mod inside;
pub(crate) mod install;
mod interface;
mod lease;
mod local;
mod names;
mod owner;
mod parse;
mod pool;
mod ports;
mod sandbox;
mod status;
mod types;
mod wanted;

use env::Request;
use failure::{Code, Failure};
pub(crate) use interface::settings as device_settings;
pub use owner::{device_name, is_pod_device, owner_text};
pub use parse::parse;
use types::{Conf, Version, result};

/// How many addresses pods of the node hold, and how many there are. Needs an agent to have been ready once.
pub(crate) fn room(pins: &crate::datapath::pins::Pins) -> anyhow::Result<(usize, usize)> {
    let read =
        || lease::occupied(&crate::datapath::tables::Endpoints::open(pins)?, &local::Node::read(pins)?);
    read().map_err(|failure: Failure| anyhow::anyhow!(failure.message))
}

/// More than any network configuration; what is longer is not read.
const STDIN_MAX: u64 = 4 << 20;

/// Answers the call that the process's environment and standard input describe, on standard output.
///
/// The exit code is 0, or 1 after the error object of the specification.
pub fn run() -> ExitCode {
    let mut stdin = Vec::new();
    let read = io::stdin().take(STDIN_MAX + 1).read_to_end(&mut stdin);
    let answer = match read {
        Ok(length) if length as u64 > STDIN_MAX => {
            Err(Failure::new(Code::Decode, "the network configuration is longer than 4 MiB"))
        }
        Ok(_) => Request::read(|name| std::env::var_os(name)).and_then(|request| answer(&request, &stdin)),
        Err(error) => Err(Failure::new(
            Code::Io,
            format!("read the network configuration from standard input: {error}"),
        )),
    };
    let (text, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(failure) => {
            if let Some(build) = inside::successor(&failure)
                && let Ok(Some(code)) = inside::hand_over(&build, &stdin)
            {
                return ExitCode::from(u8::try_from(code).unwrap_or(1));
            }
            let version = Version::asked_for(&stdin).unwrap_or(Version::NEWEST);
            (failure.to_json(version.as_str()), ExitCode::FAILURE)
        }
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => code,
        // Nobody reads the answer: the runtime has given up, and calls DEL.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Does what is asked; `None` where success has no words.
fn answer(request: &Request, stdin: &[u8]) -> Result<Option<Value>, Failure> {
    if *request == Request::Version {
        return Ok(Some(types::versions(Version::asked_for(stdin))));
    }
    let mut conf = Conf::parse(stdin)?;
    // Before anything is made: afterwards it is too late to refuse.
    let is_add = matches!(request, Request::Add { .. });
    let previous = is_add.then(|| conf.previous()).transpose()?;
    let _inside = inside::enter(&mut conf).map_err(|failure| match request {
        Request::Status => Failure { code: Code::Unavailable, ..failure },
        _ => failure,
    })?;
    match request {
        Request::Version => Ok(None),
        Request::Add { attachment, netns, wanted, pod } => counted("ADD", &conf, || {
            let added = add::add(attachment, netns, *wanted, pod.as_deref(), &conf)?;
            Ok(previous.map(|previous| result::result(&added, &conf, previous)))
        }),
        Request::Check { attachment, netns } => {
            counted("CHECK", &conf, || check::check(attachment, netns, &conf).map(|()| None))
        }
        Request::Del { attachment } => {
            counted("DEL", &conf, || del::del(attachment, &conf.pins).map(|()| None))
        }
        Request::Gc => counted("GC", &conf, || gc::gc(&conf).map(|()| None)),
        Request::Status => counted("STATUS", &conf, || status::status(&conf).map(|()| None)),
    }
}

/// Does the work of a verb and counts it for the agent's metrics.
fn counted(
    verb: &str,
    conf: &Conf,
    work: impl FnOnce() -> Result<Option<Value>, Failure>,
) -> Result<Option<Value>, Failure> {
    let began = Instant::now();
    let result = work();
    let code = result.as_ref().err().map_or(0, |failure| failure.code as u32);
    // No pod waits for a metric, and none goes without network for it.
    if let Ok(calls) = Calls::open(&conf.pins) {
        calls.count(verb, code, began.elapsed());
    }
    result
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;
