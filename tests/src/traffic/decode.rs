//! What tcpdump makes of captured frames: somebody else's idea of the protocols.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::capture::Frame;
use crate::lab::{Namespace, exec};

/// Decodes frames as `tcpdump -v` prints them, one line per frame. Everything over UDP is taken for VXLAN, because
/// to tcpdump the port that Linux and Flannel use, 8472, is OTV's; UDP inside of the tunnel is therefore not told.
///
/// Errors: tcpdump cannot be run, or does not understand the file.
pub fn vxlan(namespace: &Namespace, frames: &[Frame]) -> Result<Vec<String>> {
    let mut command = namespace.command("tcpdump");
    command.env("LC_ALL", "C").args(["-nn", "-t", "-#", "-v", "-T", "vxlan", "-r", "-"]);
    let out = exec::output(&mut command, &pcap(frames), Duration::from_secs(10)).context("run tcpdump")?;
    ensure!(out.status.success(), "tcpdump: {}: {}", out.status, out.stderr.trim_end());
    // A packet begins on a line with its number; what is in it follows on more lines.
    let mut packets: Vec<String> = Vec::new();
    for line in out.stdout.lines().map(str::trim) {
        let next = format!("{}  ", packets.len() + 1);
        if let Some(start) = line.strip_prefix(&next) {
            packets.push(start.to_owned());
        } else {
            let packet = packets.last_mut().with_context(|| format!("tcpdump printed {line}"))?;
            packet.push(' ');
            packet.push_str(line);
        }
    }
    Ok(packets)
}

/// The frames as a capture file (pcap-savefile(5)), without their times.
fn pcap(frames: &[Frame]) -> Vec<u8> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const VERSION: [u16; 2] = [2, 4];
    const SNAPLEN: u32 = 256 * 1024;
    const ETHERNET: u32 = 1;
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let mut file = words(&[MAGIC]);
    file.extend(VERSION.iter().flat_map(|half| half.to_ne_bytes()));
    file.extend(words(&[0, 0, SNAPLEN, ETHERNET]));
    for frame in frames {
        let len = frame.bytes.len() as u32;
        file.extend(words(&[0, 0, len, len]));
        file.extend(&frame.bytes);
    }
    file
}
