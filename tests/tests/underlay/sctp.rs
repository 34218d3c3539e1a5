//! SCTP between pods: a transport protocol that the programs do not know, with a checksum of its own kind.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, listen,
};
use overlay_tests::lab::exec::patient;
use overlay_tests::lab::{Lab, Lan, Link, Namespace, Node, WireMode};
use overlay_userspace::family::Family;

use crate::bed::{Bed, NIC, Way};

const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of the transfers: of one packet, of several, of super-packets.
const LENGTHS: [usize; 3] = [1000, 10_000, 256 * 1024];

/// Bytes of a message at most.
const MESSAGE: usize = 16 * 1024;

fn plain(_lab: &Lab, _lan: &Lan, node: &Namespace) {
    node.ip(&format!("link set dev {NIC} down"));
    node.ip(&format!("link set dev {NIC} name {}", Node::DEVICE));
    node.ip(&format!("link set dev {} up", Node::DEVICE));
}

/// A socket of the one-to-one kind, which is used like one of TCP (RFC 6458, 4).
#[track_caller]
fn socket(place: &Namespace, family: Family) -> OwnedFd {
    let domain = match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    };
    let (kind, protocol) = (SockType::Stream as i32, libc::IPPROTO_SCTP);
    let flags = SockFlag::SOCK_CLOEXEC.bits();
    place.run(|| {
        // SAFETY: three numbers; the result is checked.
        let fd = unsafe { libc::socket(domain as i32, kind | flags, protocol) };
        assert!(fd >= 0, "a socket of SCTP: {}", std::io::Error::last_os_error());
        // SAFETY: it is open, and nobody else's.
        unsafe { OwnedFd::from_raw_fd(fd) }
    })
}

#[test]
#[ignore = "needs a kernel with sctp: cargo xtask test --vm"]
fn an_association_of_sctp_carries_data_in_either_family() {
    for (outer, mode) in [(Family::Ipv4, WireMode::Veth), (Family::Ipv6, WireMode::Nic)] {
        // With checksums on the wire: that of SCTP is none that a NIC could fill in behind an outer header by accident.
        let bed = Bed::start(Link { checksums: true, ..Link::new(mode) }, outer, plain);
        for family in Family::ALL {
            let server = socket(bed.pods[1].namespace(), family);
            let address = SocketAddr::new(bed.pods[1].addr_of(family), 0);
            bind(server.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
            listen(&server, Backlog::new(1).unwrap()).unwrap();
            let at: SockaddrStorage = getsockname(server.as_raw_fd()).unwrap();
            let listener = TcpListener::from(server);
            let client = socket(bed.pods[0].namespace(), family);
            connect(client.as_raw_fd(), &at).unwrap_or_else(|error| panic!("{family} over {outer}: {error}"));
            let (mut far, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), bed.pods[0].addr_of(family));
            let mut near = TcpStream::from(client);
            near.set_write_timeout(Some(patient(LIMIT))).unwrap();
            far.set_read_timeout(Some(patient(LIMIT))).unwrap();
            for bytes in LENGTHS {
                let sent: Vec<u8> = (0..bytes).map(|number| (number % 251) as u8).collect();
                let mut received = vec![0; bytes];
                thread::scope(|scope| {
                    // A message has to fit the socket's buffer as a whole.
                    let writer =
                        scope.spawn(|| sent.chunks(MESSAGE).try_for_each(|part| near.write_all(part)));
                    if let Err(error) = far.read_exact(&mut received) {
                        panic!("{bytes} bytes, {family} over {outer}: {error}; {}", bed.state());
                    }
                    writer.join().unwrap().unwrap();
                });
                assert!(sent == received, "{bytes} bytes, {family} over {outer}: data arrived changed");
            }
        }
        bed.expect_traffic([Way::Native; 2]);
    }
}
