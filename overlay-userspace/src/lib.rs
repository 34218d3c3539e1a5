//! The userspace of overlay, as a library: the binary is `main.rs` over [`cli`], the tests use the parts.
//!
//! - [`agent`]: the run loop that reconciles the node with the cluster
//! - [`cli`]: the command line
//! - [`cluster`]: where the list of nodes comes from
//! - [`cni`]: the CNI plugin
//! - [`config`]: the configuration file
//! - [`datapath`]: everything that talks to the eBPF side
//! - [`doctor`]: what is wrong with a node, and what helps
//! - [`family`]: IPv4, IPv6, and values that exist once for each
//! - [`host`]: links, addresses, routes, sysctls and nft of the node
//! - [`observe`]: what packets do, for people
//! - [`ports`]: host ports, map and rules together
//! - [`trace`]: what the datapath would do with a packet, and why

pub mod agent;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod datapath;
pub mod doctor;
pub mod family;
pub mod host;
pub mod mesh;
pub mod observe;
pub mod ports;
pub mod trace;
