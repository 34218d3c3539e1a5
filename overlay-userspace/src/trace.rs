//! What the datapath would do with a packet, and why: the programs asked with a crafted packet, beside what they look up.
//!
//! Two halves, one for each node, because no node has rights on another: [`from_pod`] ends where the packet leaves the
//! node, and describes it as it is then on the wire; [`received`] begins with that. The programs decide
//! ([`crate::datapath::replica`]); what is said beside is read from the same maps and from the kernel, step by step in
//! the programs' order, and compared with what they did: a step "differs" says where this explanation is wrong.
//!
//! Nothing of what is explained is changed: no counter, no record, no flow. Called by the command line.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod asked;
mod deliver;
mod hook;
mod packet;
mod pod;
mod remedy;
mod site;
mod stack;
mod tunnel;
mod wire;

pub use asked::{Asked, Protocol, Traced};
pub use pod::from_pod;
pub use wire::received;

/// The step that says what a program did.
pub const DID: &str = "program did";

/// The step that says where the programs did otherwise than the steps before it.
pub const DIFFERS: &str = "differs";

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No pod of this node is called so.
    #[error("no pod of this node is {asked}{}", offer(.near))]
    NoPod {
        /// As asked.
        asked: String,
        /// What it may have been meant to be.
        near: Vec<String>,
    },
    /// Several pods are.
    #[error("{asked} may be any of {}: say more of the container's id", .found.join(", "))]
    Ambiguous {
        /// As asked.
        asked: String,
        /// Pods that it fits.
        found: Vec<String>,
    },
    /// A packet cannot be of that kind.
    #[error("{0}")]
    Packet(String),
    /// What came from the peer is no packet.
    #[error("read the received packet: {0}")]
    Received(String),
    /// Maps or programs.
    #[error(transparent)]
    Datapath(#[from] crate::datapath::DatapathError),
    /// Devices or routes.
    #[error(transparent)]
    Netlink(#[from] crate::host::netlink::NetlinkError),
}

fn offer(pods: &[String]) -> String {
    match pods {
        [] => ", which has none; `overlay endpoints` lists the pods of a node".to_owned(),
        pods => format!("; there are {}", pods.join(", ")),
    }
}

/// The explanation: one half of a packet's way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The node's name.
    pub node: String,
    /// Which half.
    pub half: Half,
    /// The packet, in words.
    pub packet: String,
    /// The packet in hexadecimal, as the first program sees it, from the Ethernet header on.
    pub frame: String,
    /// One after the other.
    pub steps: Vec<Step>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The packet on the wire, where it gets there: the input of the other half.
    pub wire: Option<Wire>,
}

/// Which half of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// From a pod to where it leaves this node.
    FromPod,
    /// From the wire to where it ends on this node.
    FromWire,
}

/// A decision, with what it rests on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What it is about: `sender`, `fib`, ….
    pub what: String,
    /// For people.
    pub text: String,
    /// For machines: what was looked up, and found.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub facts: Map<String, Value>,
}

/// What becomes of the packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// In a word.
    pub outcome: Outcome,
    /// For people.
    pub text: String,
    /// The name of the reason, where a program drops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The pod that it is delivered to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<IpAddr>,
    /// The device by which it leaves, or by which it is delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The tunnel address of the node that it is sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<IpAddr>,
}

/// In a word, what becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A program puts it into a pod's namespace.
    Delivered,
    /// Into the tunnel, to another node.
    Sent,
    /// The node's stack goes on with it.
    Stack,
    /// A program drops it on purpose.
    Dropped,
    /// The kernel refuses or loses it: no route, too long, expired, no program attached that would.
    Refused,
}

impl Outcome {
    /// Does the packet get on?
    pub const fn is_fine(self) -> bool {
        matches!(self, Self::Delivered | Self::Sent | Self::Stack)
    }
}

/// A packet as it is on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wire {
    /// From the Ethernet header on, in hexadecimal.
    pub hex: String,
    /// The VTEP that it is sent to.
    pub to: IpAddr,
    /// The anchor device encapsulates: the outer header is what it is known to write, not what came out of a program, and
    /// the outer source port is one of those that it may choose.
    pub by_anchor: bool,
}

impl Verdict {
    fn new(outcome: Outcome, text: impl Into<String>) -> Self {
        Self {
            outcome,
            text: text.into(),
            reason: None,
            remedy: None,
            endpoint: None,
            device: None,
            vtep: None,
        }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }
}

/// The steps so far.
#[derive(Debug, Default)]
struct Steps(Vec<Step>);

impl Steps {
    /// Adds one; `facts` is an object, or null for none.
    fn add(&mut self, what: &str, text: impl Into<String>, facts: Value) {
        let facts = match facts {
            Value::Object(facts) => facts,
            _ => Map::new(),
        };
        self.0.push(Step { what: what.to_owned(), text: text.into(), facts });
    }
}

/// A MAC address as people write it.
fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
