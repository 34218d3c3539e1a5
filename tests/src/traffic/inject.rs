//! Putting frames on a device as they are: forged senders, broken headers.

use nix::errno::Errno;
use nix::unistd::write;

use super::capture;
use crate::lab::Namespace;

/// Sends each of `frames` (whole Ethernet frames) out of device `dev` of `namespace`.
#[track_caller]
pub fn inject(namespace: &Namespace, dev: &str, frames: &[Vec<u8>]) {
    let socket = namespace.run(|| capture::open(dev));
    let socket = socket.unwrap_or_else(|error| panic!("cannot open {dev} in {}: {error}", namespace.name()));
    for frame in frames {
        let sent = write(&socket, frame);
        assert_eq!(sent, Ok(frame.len()), "send a frame of {} bytes out of {dev}", frame.len());
    }
}

/// As [`inject`], of one frame that a program has to drop on its way out: the kernel tells the sender so.
#[track_caller]
pub fn inject_refused(namespace: &Namespace, dev: &str, frame: &[u8]) {
    let socket = namespace.run(|| capture::open(dev));
    let socket = socket.unwrap_or_else(|error| panic!("cannot open {dev} in {}: {error}", namespace.name()));
    assert_eq!(write(&socket, frame), Err(Errno::ENOBUFS), "send a frame out of {dev}");
}

/// The MAC of a device, as bytes.
#[track_caller]
pub fn mac_of(namespace: &Namespace, dev: &str) -> [u8; 6] {
    let link = namespace.ip_json(&format!("link show dev {dev}"));
    parse_mac(link[0]["address"].as_str().expect("an Ethernet device has a MAC"))
}

/// Parses `02:00:5e:00:00:01`.
#[track_caller]
pub fn parse_mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().unwrap_or_default();
        *byte = u8::from_str_radix(part, 16).unwrap_or_else(|_| panic!("not a MAC: {text}"));
    }
    assert!(parts.next().is_none(), "not a MAC: {text}");
    mac
}
