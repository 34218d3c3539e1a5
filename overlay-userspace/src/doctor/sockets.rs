//! Who has a port: the sockets of this network namespace as `/proc` lists them, and the processes that hold them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::Context as _;

/// A socket that is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// Its address, which may be unspecified.
    pub(super) address: IpAddr,
    /// Its port.
    pub(super) port: u16,
    inode: u64,
}

/// `TCP_LISTEN` (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// The UDP sockets that have this port; the kernel's own among them.
pub(super) fn udp(port: u16) -> anyhow::Result<Vec<Bound>> {
    bound("udp", port, |_| true)
}

/// The TCP sockets that listen on this port.
pub(super) fn listening(port: u16) -> anyhow::Result<Vec<Bound>> {
    bound("tcp", port, |state| state == LISTEN)
}

fn bound(protocol: &str, port: u16, state: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Bound>> {
    let mut found = Vec::new();
    for file in [protocol.to_owned(), format!("{protocol}6")] {
        // Not `/proc/net`: that is the main thread's namespace.
        let path = format!("/proc/thread-self/net/{file}");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("read {path}"))?,
        };
        found.extend(text.lines().filter_map(|line| parse(line, &state)).filter(|bound| bound.port == port));
    }
    Ok(found)
}

/// A line of `/proc/net/udp` or `/proc/net/tcp` (proc(5)).
fn parse(line: &str, state: impl Fn(&str) -> bool) -> Option<Bound> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (address, port) = words.get(1)?.split_once(':')?;
    if !state(words.get(3)?) {
        return None;
    }
    // Words of the kernel's memory, as numbers.
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = if address.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let bytes = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
        IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Bound { address, port, inode: words.get(9)?.parse().ok()? })
}

impl Bound {
    /// The process that holds it: its name and number. `None` for a socket of the kernel, and for a process that cannot be
    /// seen from here.
    pub(super) fn holder(&self) -> Option<(String, u32)> {
        let link = format!("socket:[{}]", self.inode);
        let holds = |process: &Path| {
            let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            descriptors
                .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
                .any(|target| target.as_os_str() == link.as_str())
        };
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let (pid, path) = processes
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .find(|(_, path): &(u32, _)| holds(path))?;
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        Some((name.trim_end().to_owned(), pid))
    }
}

/// The processes of this name in this network namespace.
pub(super) fn processes(name: &str) -> Vec<u32> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            comm.trim_end() == name && fs::read_link(entry.path().join("ns/net")).ok() == own
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn sockets_are_found_with_their_process() {
        in_fresh_netns(|| {
            ip("link set dev lo up");
            let one = UdpSocket::bind("127.0.0.1:8472").unwrap();
            let two = TcpListener::bind("[::1]:9879").unwrap();
            let own = std::process::id();
            let found = udp(8472).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].address, IpAddr::from([127, 0, 0, 1]));
            assert_eq!(found[0].holder().map(|(_, pid)| pid), Some(own));
            let found = listening(9879).unwrap();
            assert_eq!(found[0].address, "::1".parse::<IpAddr>().unwrap());
            assert_eq!(found[0].holder().map(|(_, pid)| pid), Some(own));
            assert_eq!((udp(9879).unwrap(), listening(8472).unwrap()), (vec![], vec![]));
            drop((one, two));
            assert_eq!((udp(8472).unwrap(), listening(9879).unwrap()), (vec![], vec![]));
        });
    }

    #[test]
    fn lines_that_are_something_else_are_passed_over() {
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue", |_| true), None);
        assert_eq!(parse("", |_| true), None);
    }
}
