//! What the kernel has in one network namespace, as `ip -json` shows it.
//!
//! iproute2 on purpose: the judge of a plugin must not share code with it.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::host;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its name.
    pub(crate) name: String,
    /// `veth`, `bridge`, …; empty for a device without a kind, `lo` say.
    pub(crate) kind: String,
    /// Its MAC, as the kernel writes it.
    pub(crate) mac: String,
    /// MTU, bytes.
    pub(crate) mtu: u64,
    /// Whether it is up (administratively).
    pub(crate) up: bool,
    /// The device that it belongs to, a bridge say.
    pub(crate) master: String,
    /// Its addresses, with prefix length; those that the kernel makes by itself (IPv6 link-local) are left out.
    pub(crate) addresses: Vec<IpNet>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// Where to.
    pub(crate) destination: IpNet,
    /// Next hop.
    pub(crate) gateway: Option<IpAddr>,
    /// Device; empty for a route without one (`unreachable`, or with several next hops).
    pub(crate) device: String,
    /// Everything that tells it from other routes, in one line.
    pub(crate) line: String,
}

/// A network namespace to look at: the host's, or a named one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum View<'a> {
    /// The namespace that this process is in.
    Host,
    /// A container's, by name.
    Container(&'a str),
}

impl View<'_> {
    /// Runs `ip <words>` in the namespace.
    pub(crate) fn ip(self, words: &str) -> Result<String> {
        match self {
            Self::Host => host::tool("ip", words),
            Self::Container(name) => host::tool("ip", &format!("-netns {name} {words}")),
        }
    }

    /// `ip -json <words>`, parsed; a list.
    pub(crate) fn ip_json(self, words: &str) -> Result<Vec<Value>> {
        let text = self.ip(&format!("-json {words}"))?;
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).with_context(|| format!("parse ip -json {words}"))
    }

    /// All devices with their addresses.
    pub(crate) fn links(self) -> Result<Vec<Link>> {
        Ok(self.ip_json("-details address show")?.iter().map(link).collect())
    }

    /// The device of this name, if there is one.
    pub(crate) fn link(self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// The routes of all tables, except those that come and go with IPv6 link-local addresses.
    pub(crate) fn routes(self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            for json in self.ip_json(&format!("{family} route show table all"))? {
                routes.extend(route(&json, family == "-6"));
            }
        }
        Ok(routes)
    }
}

fn text(json: &Value, key: &str) -> String {
    json[key].as_str().unwrap_or_default().to_owned()
}

fn link(json: &Value) -> Link {
    let addresses = json["addr_info"].as_array().into_iter().flatten().filter_map(|info| {
        if info["scope"] == "link" && info["family"] == "inet6" {
            return None;
        }
        let address: IpAddr = info["local"].as_str()?.parse().ok()?;
        IpNet::new(address, u8::try_from(info["prefixlen"].as_u64()?).ok()?).ok()
    });
    let flags = json["flags"].as_array();
    Link {
        name: text(json, "ifname"),
        kind: text(&json["linkinfo"], "info_kind"),
        mac: text(json, "address"),
        mtu: json["mtu"].as_u64().unwrap_or_default(),
        up: flags.is_some_and(|flags| flags.iter().any(|flag| flag == "UP")),
        master: text(json, "master"),
        addresses: addresses.collect(),
    }
}

fn route(json: &Value, v6: bool) -> Option<Route> {
    let destination = match (text(json, "dst").as_str(), v6) {
        ("default", false) => "0.0.0.0/0".parse().ok()?,
        ("default", true) => "::/0".parse().ok()?,
        (destination, _) => parse_net(destination)?,
    };
    if let IpNet::V6(net) = destination {
        let [first, ..] = net.addr().segments();
        if first == 0xff00 || first & 0xffc0 == 0xfe80 {
            return None;
        }
    }
    let via = json["via"]["host"].as_str();
    let gateway = json["gateway"].as_str().or(via).and_then(|gateway| gateway.parse().ok());
    let mut line = destination.to_string();
    for key in ["type", "gateway", "dev", "table", "protocol", "scope", "prefsrc", "metric", "mtu"] {
        match &json[key] {
            Value::Null => {}
            Value::String(value) => line.extend([" ", key, " ", value]),
            value => line.extend([" ", key, " ", &value.to_string()]),
        }
    }
    for key in ["via", "nexthops"] {
        if !json[key].is_null() {
            line.extend([" ", &json[key].to_string()]);
        }
    }
    Some(Route { destination, gateway, device: text(json, "dev"), line })
}

/// An address or a network; a bare address is one with the whole prefix.
pub(crate) fn parse_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|address: IpAddr| address.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_is_read_without_its_link_local_address() {
        let json = json!({
            "ifname": "eth0", "flags": ["BROADCAST", "UP"], "mtu": 1450, "address": "02:00:00:00:00:01",
            "linkinfo": {"info_kind": "veth"},
            "addr_info": [
                {"family": "inet", "local": "10.1.0.5", "prefixlen": 16, "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
                {"family": "inet6", "local": "fd00::5", "prefixlen": 64, "scope": "global"},
            ],
        });
        let link = link(&json);
        assert_eq!((link.name.as_str(), link.kind.as_str(), link.mtu, link.up), ("eth0", "veth", 1450, true));
        let addresses: Vec<String> = link.addresses.iter().map(IpNet::to_string).collect();
        assert_eq!(addresses, ["10.1.0.5/16", "fd00::5/64"]);
    }

    #[test]
    fn routes_of_every_shape_are_read() {
        let default = route(&json!({"dst": "default", "gateway": "10.1.0.1", "dev": "eth0"}), false).unwrap();
        assert_eq!(default.destination.to_string(), "0.0.0.0/0");
        assert_eq!(default.gateway, Some("10.1.0.1".parse().unwrap()));
        let via = json!({"dst": "10.2.0.1", "via": {"family": "inet6", "host": "fe80::1"}, "dev": "eth0"});
        let via = route(&via, false).unwrap();
        assert_eq!((via.destination.prefix_len(), via.gateway), (32, Some("fe80::1".parse().unwrap())));
        assert!(route(&json!({"dst": "fe80::/64", "dev": "eth0"}), true).is_none());
        assert!(route(&json!({"dst": "ff00::/8", "dev": "eth0", "type": "multicast"}), true).is_none());
        let metric = route(&json!({"dst": "10.3.0.0/24", "dev": "a", "metric": 5}), false).unwrap();
        assert!(metric.line.ends_with("dev a metric 5"), "{}", metric.line);
    }
}
