//! What packets do, for people: the parts of `overlay monitor` and `overlay capture`.
//!
//! - [`names`]: what addresses and devices are called
//! - [`filter`]: which packets are meant
//! - [`decode`]: a packet's bytes in words
//! - [`record`]: one record as a line and as JSON
//! - [`pcapng`]: packets as a file that Wireshark reads
//! - [`sink`]: where records go, in which form
//! - [`until`]: until when
//! - [`sandbox`]: a pod's namespace, found from outside
//! - [`wiretap`]: every packet of a device
//!
//! Reads what is pinned; needs no agent. The programs' records come from [`crate::datapath::events`].

pub mod decode;
pub mod filter;
pub mod names;
pub mod pcapng;
pub mod record;
pub mod sandbox;
pub mod sink;
pub mod until;
pub mod wiretap;
