//! The whole parser as one pure function: everything that a call may be refused for before anything is looked up or
//! touched. For the fuzz target `cni` and whoever else wants a verdict without a node.

use std::ffi::OsString;

use serde_json::Value;

use super::{
    check,
    env::Request,
    failure::Failure,
    gc, status,
    types::{Conf, Version},
};

/// Judges a call by its variables and its standard input.
///
/// Errors: the error object that the plugin would print.
#[doc(hidden)]
pub fn parse(variable: impl Fn(&str) -> Option<OsString>, stdin: &[u8]) -> Result<(), Value> {
    judge(variable, stdin).map_err(|failure| {
        let version = Version::asked_for(stdin).unwrap_or(Version::NEWEST);
        failure.to_json(version.as_str())
    })
}

fn judge(variable: impl Fn(&str) -> Option<OsString>, stdin: &[u8]) -> Result<(), Failure> {
    match Request::read(variable)? {
        // Never fails, whatever it is given.
        Request::Version => Ok(()),
        Request::Add { .. } => {
            let conf = Conf::parse(stdin)?;
            conf.supported()?;
            conf.wanted()?;
            conf.ports()?;
            conf.previous().map(drop)
        }
        Request::Check { attachment, .. } => check::judge(&attachment, &Conf::parse(stdin)?),
        Request::Del { .. } => Conf::parse(stdin).map(drop),
        Request::Gc => gc::judge(&Conf::parse(stdin)?).map(drop),
        Request::Status => status::judge(&Conf::parse(stdin)?),
    }
}
