//! How a call fails: the error object of the CNI specification and its codes.
//!
//! Every part of the plugin returns a [`Failure`]; only the entry point prints it.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    datapath::DatapathError,
    host::{netlink::NetlinkError, netns::NetNsError},
};

/// What a runtime can branch on: the specification's codes below 100, our own from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Code {
    /// The configuration asks for a version that this plugin does not speak.
    IncompatibleVersion = 1,
    /// A key of the configuration asks for what this plugin does not do; the message has key and value.
    Unsupported = 2,
    /// Nothing of the container is on this node: there is nothing to clean up.
    UnknownContainer = 3,
    /// A `CNI_*` variable is missing or invalid.
    Environment = 4,
    /// Reading, or talking to the kernel, failed before anything was changed.
    Io = 5,
    /// The configuration is not JSON.
    Decode = 6,
    /// The configuration is JSON, but makes no sense.
    InvalidConfig = 7,
    /// `CNI_NETNS` is no network namespace that a pod can have.
    InvalidNetns = 8,
    /// The node is not ready for pods yet.
    TryAgainLater = 11,
    /// STATUS: pods cannot be added.
    Unavailable = 50,
    /// STATUS: pods cannot be added, and those that are there may be cut off.
    Degraded = 51,
    /// The pod has an interface of that name.
    InterfaceExists = 100,
    /// This container and interface have been added.
    AlreadyAdded = 101,
    /// No address is free in the node's subnet.
    PoolExhausted = 102,
    /// A step of ADD failed and was undone.
    Step = 103,
    /// A part of DEL or GC failed.
    Teardown = 104,
    /// The address that was asked for is held by another pod.
    AddressTaken = 105,
    /// CHECK found that the pod is not connected as ADD left it.
    Unsound = 106,
    /// A host port that was asked for is another pod's.
    PortTaken = 107,
}

/// The reason why a call fails, for the runtime's log and its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: Code,
    /// One line.
    pub(super) message: String,
    /// More lines, or empty.
    pub(super) details: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// A failed step of ADD or DEL; the cause brings its errno along.
    pub(super) fn step(what: &str, cause: impl fmt::Display) -> Self {
        Self::new(Code::Step, format!("{what}: {cause}"))
    }

    pub(super) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The error object.
    pub(super) fn to_json(&self, version: &str) -> Value {
        let mut object = json!({ "cniVersion": version, "code": self.code as u32, "msg": self.message });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.details.as_str() {
            "" => f.write_str(&self.message),
            details => write!(f, "{}; {details}", self.message),
        }
    }
}

/// From opening and reading maps. Without pins there is no datapath yet: the runtime tries again.
impl From<DatapathError> for Failure {
    fn from(error: DatapathError) -> Self {
        Self::new(Code::from(&error), error.to_string())
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        Self::new(Code::Io, error.to_string())
    }
}

impl From<NetNsError> for Failure {
    fn from(error: NetNsError) -> Self {
        Self::new(Code::InvalidNetns, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_object_has_the_fields_of_the_specification() {
        let failure =
            Failure::step("create the veth pair", "File exists (os error 17)").with_details("undone");
        assert_eq!(
            failure.to_json("0.4.0"),
            json!({
                "cniVersion": "0.4.0",
                "code": 103,
                "msg": "create the veth pair: File exists (os error 17)",
                "details": "undone",
            })
        );
        assert_eq!(
            Failure { details: String::new(), ..failure.clone() }.to_json("1.0.0").get("details"),
            None
        );
        assert_eq!(failure.to_string(), "create the veth pair: File exists (os error 17); undone");
    }

    #[test]
    fn a_node_without_pins_is_one_to_try_again() {
        let failure = Failure::from(DatapathError::NotPinned { path: "/x/maps/LOCAL".into() });
        assert_eq!(failure.code, Code::TryAgainLater);
        assert!(failure.message.contains("agent"), "{failure}");
    }
}
