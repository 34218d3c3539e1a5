//! A namespace's protocol counters, as `nstat` shows them: `/proc/net/snmp` and `/proc/net/netstat`.

use std::collections::BTreeMap;
use std::fs;

use crate::lab::Namespace;

/// A snapshot of all counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    values: BTreeMap<String, i64>,
}

impl Counters {
    /// Reads the counters of `namespace`.
    #[track_caller]
    pub fn read(namespace: &Namespace) -> Self {
        // /proc/net is that of the process's first thread; thread-self is the one that entered the namespace.
        let read =
            || ["snmp", "netstat"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
        let mut values = BTreeMap::new();
        for text in namespace.run(read) {
            let text =
                text.unwrap_or_else(|error| panic!("cannot read counters of {}: {error}", namespace.name()));
            parse(&text, &mut values);
        }
        Self { values }
    }

    /// The value of a counter such as `Tcp.InCsumErrors` or `TcpExt.TCPBacklogDrop`.
    #[track_caller]
    pub fn get(&self, name: &str) -> i64 {
        *self.values.get(name).unwrap_or_else(|| panic!("the kernel has no counter {name}"))
    }

    /// Packets whose checksum was wrong: the sum of every protocol's `InCsumErrors`.
    pub fn checksum_errors(&self) -> i64 {
        self.values.iter().filter(|(name, _)| name.ends_with(".InCsumErrors")).map(|(_, value)| value).sum()
    }
}

/// Parses pairs of lines: `Tcp: InSegs InErrs`, then `Tcp: 12 0`.
fn parse(text: &str, values: &mut BTreeMap<String, i64>) {
    let lines: Vec<&str> = text.lines().collect();
    for [names, numbers] in lines.as_chunks().0 {
        let Some((protocol, names)) = names.split_once(": ") else { continue };
        let Some((_, numbers)) = numbers.split_once(": ") else { continue };
        for (name, number) in names.split(' ').zip(numbers.split(' ')) {
            // Tcp.MaxConn is −1.
            if let Ok(number) = number.parse() {
                values.insert(format!("{protocol}.{name}"), number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_lines_become_named_counters() {
        let mut values = BTreeMap::new();
        parse("Tcp: MaxConn InCsumErrors\nTcp: -1 7\nUdp: InCsumErrors\nUdp: 2\n", &mut values);
        let counters = Counters { values };
        assert_eq!((counters.get("Tcp.MaxConn"), counters.checksum_errors()), (-1, 9));
    }
}
