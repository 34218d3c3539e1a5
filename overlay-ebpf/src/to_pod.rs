//! `to_pod`: tc egress of a pod's host side device. What the node's stack sends to a pod: answers of the host and of
//! the world, Services, and packets that the fast path left alone. Pod-to-pod packets of the fast path do not pass
//! here: `bpf_redirect_peer` goes straight into the pod's namespace.

use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::counter::Path;

use crate::{maps, packet::PASS};

#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    maps::count(Path::StackToPod, ctx.len());
    PASS
}
