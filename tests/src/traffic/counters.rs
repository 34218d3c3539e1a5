//! A namespace's protocol counters, as `nstat` shows them: `/proc/net/snmp`, `/proc/net/netstat` and `/proc/net/snmp6`.

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
        let read = || {
            ["snmp", "netstat", "snmp6"]
                .map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")))
        };
        let texts = namespace.run(read).map(|text| {
            text.unwrap_or_else(|error| panic!("cannot read counters of {}: {error}", namespace.name()))
        });
        let mut values = BTreeMap::new();
        let [v4, more, v6] = texts;
        parse(&v4, &mut values);
        parse(&more, &mut values);
        parse_v6(&v6, &mut values);
        Self { values }
    }

    /// The value of a counter such as `Tcp.InCsumErrors`, `TcpExt.TCPBacklogDrop` or `Udp6InErrors`.
    #[track_caller]
    pub fn get(&self, name: &str) -> i64 {
        *self.values.get(name).unwrap_or_else(|| panic!("the kernel has no counter {name}"))
    }

    /// Packets whose checksum was wrong: the sum of every protocol's `InCsumErrors`.
    pub fn checksum_errors(&self) -> i64 {
        self.values.iter().filter(|(name, _)| name.ends_with("InCsumErrors")).map(|(_, value)| value).sum()
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

/// Parses lines with one counter each: `Ip6InReceives    12`.
fn parse_v6(text: &str, values: &mut BTreeMap<String, i64>) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(Ok(number))) = (words.next(), words.next().map(str::parse)) {
            values.insert(name.to_owned(), number);
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
        parse_v6("Ip6InReceives   \t3\nUdp6InCsumErrors   4\n", &mut values);
        let counters = Counters { values };
        assert_eq!((counters.get("Tcp.MaxConn"), counters.get("Ip6InReceives")), (-1, 3));
        assert_eq!(counters.checksum_errors(), 13);
    }
}
