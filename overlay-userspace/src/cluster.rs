//! Where the list of nodes comes from. A source hands out whole, validated [`Snapshot`]s; what to do about the
//! difference to the one before is the agent's business.
//!
//! - `cidrs`: the ranges of the pod network
//! - `spec`: a node, and how another reaches it
//! - `snapshot`: a consistent list of nodes
//! - `file`, `kubernetes`: the sources

mod cidrs;
pub mod file;
pub mod kubernetes;
mod snapshot;
mod spec;

pub use cidrs::{Cidrs, CidrsError};
pub use snapshot::{Snapshot, SnapshotError};
pub(crate) use snapshot::{check_address, check_subnet};
pub use spec::{NodeSpec, Tunnel, gateway, vtep_mac};
