//! How much traffic took which path through the programs of a node, as `overlay status` tells it.

use std::collections::BTreeMap;

use crate::lab::Node;

/// What took one path. A GSO super-packet is one packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    /// Packets.
    pub packets: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
}

impl Volume {
    /// Mean length of a packet in bytes; 0 if there was none.
    pub fn mean(self) -> u64 {
        self.bytes.checked_div(self.packets).unwrap_or_default()
    }
}

/// The volumes of all paths, by the names that `overlay status` has for them (`encap_native`, …).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volumes(BTreeMap<String, Volume>);

impl Volumes {
    /// What has passed `node` since its programs' maps were made.
    #[track_caller]
    pub fn read(node: &Node) -> Self {
        let status = node.status().unwrap_or_else(|| panic!("overlay status fails on {}", node.name()));
        let paths = status["paths"].as_object().unwrap_or_else(|| panic!("status has no paths: {status}"));
        let volume = |name: &String| {
            let number =
                |key| paths[name][key].as_u64().unwrap_or_else(|| panic!("path {name} has no {key}"));
            Volume { packets: number("packets"), bytes: number("bytes") }
        };
        Self(paths.keys().map(|name| (name.clone(), volume(name))).collect())
    }

    /// What has passed since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let difference = |(name, now): (&String, &Volume)| {
            let then = before.0.get(name).copied().unwrap_or_default();
            (name.clone(), Volume { packets: now.packets - then.packets, bytes: now.bytes - then.bytes })
        };
        Self(self.0.iter().map(difference).collect())
    }

    /// What took the path of this name.
    #[track_caller]
    pub fn get(&self, path: &str) -> Volume {
        *self.0.get(path).unwrap_or_else(|| panic!("overlay status knows no path {path}"))
    }
}
