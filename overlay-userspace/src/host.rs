//! The node's own network: everything the agent and the CNI plugin read from or write to the kernel
//! outside of BPF.
//!
//! * [`bpffs`] – the file system of the pins;
//! * [`netlink`] – links, addresses, routes and neighbours, synchronously;
//! * [`netdev`] – what a driver can do with XDP;
//! * [`conntrack`] – connections that the kernel tracks;
//! * [`monitor`] – a stream of what changed, so that the agent reconciles on events;
//! * [`netns`] – pods' network namespaces;
//! * [`sysctl`] – `/proc/sys`;
//! * [`underlay`] – which interface carries the tunnel, and the MTU that leaves to pods;
//! * [`nft`] – masquerade to the world, host ports, and foreign chains that drop what is forwarded.
//!
//! Nothing here knows the desired state: callers bring it. Every operation is idempotent or says whether
//! it changed something, and acts on the network namespace of the calling thread.

pub mod bpffs;
pub mod conntrack;
pub mod monitor;
pub mod netdev;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod sysctl;
pub mod underlay;
