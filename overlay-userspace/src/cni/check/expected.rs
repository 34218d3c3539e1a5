//! What the previous result says of an attachment.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::cni::{
    env::Attachment,
    failure::{Code, Failure},
    owner::{device_name, owner},
    types::Conf,
};

/// The part of a previous result that ADD made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// Addresses of the pod's interface.
    pub(super) addresses: Vec<IpAddr>,
    /// MTU of the node's device in bytes; since 1.1.0.
    pub(super) mtu: Option<u32>,
    /// Destinations, each with the next hop that the result names.
    pub(super) routes: Vec<(IpNet, Option<IpAddr>)>,
}

impl Expected {
    /// Reads the previous result.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidConfig`] without one, or with one that does not have the attachment.
    pub(super) fn read(conf: &Conf, attachment: &Attachment) -> Result<Self, Failure> {
        let invalid = |what: String| {
            Failure::new(Code::InvalidConfig, format!("prevResult {what}: give CHECK the result of ADD"))
        };
        if !conf.has_previous() {
            return Err(invalid("is missing".into()));
        }
        let previous = conf.previous()?;
        let named = |interface: &Value, name: &str, inside: bool| {
            let sandbox = interface["sandbox"].as_str().unwrap_or_default();
            interface["name"] == name && sandbox.is_empty() != inside
        };
        let ifname = &attachment.ifname;
        let Some(index) = previous.interfaces.iter().position(|i| named(i, ifname, true)) else {
            return Err(invalid(format!("has no interface {ifname} in a sandbox")));
        };
        let device = device_name(&owner(attachment));
        let host = previous.interfaces.iter().find(|i| named(i, &device, false));
        let addresses = previous.ips.iter().filter(|ip| ip["interface"] == index);
        let addresses: Vec<_> = addresses.filter_map(|ip| Some(net(&ip["address"])?.addr())).collect();
        if addresses.is_empty() {
            return Err(invalid(format!("has no address of interface {ifname}")));
        }
        let route =
            |route: &Value| Some((net(&route["dst"])?, route["gw"].as_str().and_then(|gw| gw.parse().ok())));
        Ok(Self {
            addresses,
            mtu: host.and_then(|host| host["mtu"].as_u64()).and_then(|mtu| u32::try_from(mtu).ok()),
            routes: previous.routes.iter().filter_map(route).collect(),
        })
    }

    /// The addresses, for a message.
    pub(super) fn addresses_text(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn net(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(previous: &Value) -> Result<Expected, Failure> {
        let conf = json!({"cniVersion": "1.0.0", "name": "n", "prevResult": previous});
        let attachment = Attachment::new("c".into(), "eth0".into()).unwrap();
        Expected::read(&Conf::parse(conf.to_string().as_bytes()).unwrap(), &attachment)
    }

    #[test]
    fn only_what_belongs_to_the_attachment_is_expected() {
        let device = device_name(&owner(&Attachment::new("c".into(), "eth0".into()).unwrap()));
        let expected = read(&json!({
            "interfaces": [
                {"name": "eth0"}, {"name": device, "mtu": 1450}, {"name": "eth0", "sandbox": "/p", "mtu": 1400},
            ],
            "ips": [
                {"address": "192.0.2.1/24", "interface": 0}, {"address": "10.244.1.5/32", "interface": 2},
                {"address": "fd00::5/128", "interface": 2}, {"address": "192.0.2.9/24"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "::/0"}, {"dst": "192.0.2.0/24"}],
        }));
        let routes = vec![
            ("0.0.0.0/0".parse().unwrap(), Some("10.244.1.1".parse().unwrap())),
            ("::/0".parse().unwrap(), None),
            ("192.0.2.0/24".parse().unwrap(), None),
        ];
        let addresses = vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(expected, Ok(Expected { addresses, mtu: Some(1450), routes }));
    }

    #[test]
    fn results_without_the_attachment_are_refused() {
        for (previous, wanted) in [
            (json!(null), "missing"),
            (json!({}), "eth0"),
            (json!({"interfaces": [{"name": "eth0"}]}), "sandbox"),
            (json!({"interfaces": [{"name": "eth0", "sandbox": "/p"}]}), "address"),
            (json!({"interfaces": 5}), "interfaces"),
        ] {
            let failure = read(&previous).unwrap_err();
            assert_eq!(failure.code, Code::InvalidConfig);
            assert!(failure.message.contains(wanted), "{failure}");
        }
    }
}
