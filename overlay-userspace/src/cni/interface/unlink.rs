//! Deleting a device without waiting for the kernel to free it.
//!
//! `RTM_DELLINK` takes a device (and a veth's peer) out of sight within a millisecond or two, and then keeps the caller
//! for one or two RCU grace periods, 10 ms to 40 ms, until its memory is free (`rcu_barrier` in `netdev_run_todo`,
//! net/core/dev.c). Nothing depends on that, so a child process waits, and the caller goes on as soon as the device is
//! gone. The child holds no descriptor but its own connection, and is nobody's child any more when the caller goes on:
//! init collects it. Where no child can be made, the caller waits.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, ppoll},
    sys::{time::TimeSpec, wait::waitpid},
    unistd::{ForkResult, fork, pipe2},
};

use crate::host::netlink::{Link, Netlink, NetlinkError};

/// Between two looks at whether the device is gone.
const PAUSE: Duration = Duration::from_micros(500);
/// A child that is not done by then never began: the machine is out of something.
const PATIENCE: Duration = Duration::from_secs(2);

/// Deletes `link`; returns when it is gone from its namespace. One that is gone already is fine.
///
/// # Errors
///
/// The kernel's reason to refuse.
pub(super) fn unlink(netlink: &mut Netlink, link: &Link) -> Result<(), NetlinkError> {
    if let Ok(end) = begin(link) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if netlink.link_by_index(link.index)?.is_none() {
                return Ok(());
            }
            if is_over(&end) {
                break;
            }
        }
    }
    // No child, or one that was refused: then for a reason that is heard here.
    netlink.delete_link(&link.name).map(drop)
}

/// Starts the child. What is returned is hung up when it ends.
fn begin(link: &Link) -> io::Result<OwnedFd> {
    // All that allocates or locks is done here: the child of a process with threads must do neither.
    let mut netlink = Netlink::open().map_err(io::Error::other)?;
    let request = netlink.encode_delete(link.index);
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child makes system calls only, on what was made before.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: as above.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => ask(netlink.as_fd().as_raw_fd(), &request, theirs.as_raw_fd()),
                _ => exit(),
            }
        }
        ForkResult::Parent { child } => {
            // It ends at once. Where SIGCHLD is ignored it has been collected already.
            let _ = waitpid(child, None);
        }
    }
    Ok(ours)
}

/// The child: asks, and ends when the kernel has answered. Async-signal-safe.
fn ask(socket: RawFd, request: &[u8], end: RawFd) -> ! {
    const SOCKET: RawFd = 0;
    const END: RawFd = 1;
    // SAFETY: system calls on numbers, and on a buffer that outlives them. Standard output and error are given up:
    // whoever waits for the caller to close them must not wait for this process.
    unsafe {
        libc::setsid();
        // Above the two first, so that neither takes the other's place.
        let (socket, end) = (libc::fcntl(socket, libc::F_DUPFD, 3), libc::fcntl(end, libc::F_DUPFD, 3));
        libc::dup2(socket, SOCKET);
        libc::dup2(end, END);
        libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0);
        libc::send(SOCKET, request.as_ptr().cast(), request.len(), 0);
    }
    exit()
}

fn exit() -> ! {
    // SAFETY: ends this process without running anything that its parent has registered.
    unsafe { libc::_exit(0) }
}

/// Waits a moment; true once the child has ended.
fn is_over(end: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    ppoll(&mut fds, Some(TimeSpec::from(PAUSE)), None).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{fresh_netns, in_fresh_netns, ip};

    #[test]
    fn both_ends_are_gone_when_it_returns() {
        in_fresh_netns(|| {
            let pod = fresh_netns();
            let mut netlink = Netlink::open().unwrap();
            for round in 0..5 {
                ip(&format!("link add ov{round} up type veth peer name ov{round}p"));
                let link = netlink.link(&format!("ov{round}")).unwrap().unwrap();
                unlink(&mut netlink, &link).unwrap();
                assert!(netlink.links().unwrap().iter().all(|link| link.loopback));
                // The name can be had again at once.
                ip(&format!("link add ov{round} type veth peer name ov{round}p"));
                ip(&format!("link delete ov{round}"));
            }
            drop(pod);
        });
    }

    #[test]
    fn a_device_that_is_gone_is_fine_and_one_that_the_kernel_keeps_is_reported() {
        in_fresh_netns(|| {
            let mut netlink = Netlink::open().unwrap();
            let loopback = netlink.link("lo").unwrap().unwrap();
            assert!(unlink(&mut netlink, &loopback).unwrap_err().to_string().contains("delete link lo"));
            ip("link add d0 type veth peer name d0p");
            let link = netlink.link("d0").unwrap().unwrap();
            ip("link delete d0");
            unlink(&mut netlink, &link).unwrap();
        });
    }
}
