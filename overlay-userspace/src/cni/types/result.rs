//! Results: what ADD answers, and what the plugins before have answered.
//!
//! A previous result is passed on whole.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Conf, Version};
use crate::host::netlink::MacAddress;

/// A previous result, taken apart only as far as it is added to.
#[derive(Debug, Default)]
pub(in crate::cni) struct Previous {
    pub(in crate::cni) interfaces: Vec<Value>,
    pub(in crate::cni) ips: Vec<Value>,
    pub(in crate::cni) routes: Vec<Value>,
    pub(in crate::cni) others: Map<String, Value>,
}

/// What ADD has made.
#[derive(Clone, Debug)]
pub(in crate::cni) struct Added {
    /// The host side device.
    pub(in crate::cni) device: String,
    /// Its MAC.
    pub(in crate::cni) gateway_mac: MacAddress,
    /// The pod's device.
    pub(in crate::cni) ifname: String,
    /// Its MAC.
    pub(in crate::cni) mac: MacAddress,
    /// MTU of both, bytes.
    pub(in crate::cni) mtu: u32,
    /// The pod's namespace, as the runtime named it.
    pub(in crate::cni) sandbox: PathBuf,
    /// Of each family what there is, the primary one first.
    pub(in crate::cni) ips: Vec<AddedIp>,
}

/// What ADD has made in one family.
#[derive(Clone, Debug)]
pub(in crate::cni) struct AddedIp {
    /// The pod's address.
    pub(in crate::cni) address: IpAddr,
    /// The node's gateway address.
    pub(in crate::cni) gateway: IpAddr,
    /// What the pod reaches by the gateway.
    pub(in crate::cni) routes: Vec<IpNet>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
}

#[derive(Serialize)]
struct Ip {
    /// Before 1.0.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: IpNet,
    gateway: IpAddr,
    /// Index into the interfaces.
    interface: usize,
}

#[derive(Serialize)]
struct Route {
    dst: IpNet,
    gw: IpAddr,
}

/// The answer to ADD, in the version that the configuration asks for, on top of what was there before.
pub(in crate::cni) fn result(added: &Added, conf: &Conf, previous: Previous) -> Value {
    let Added { device, gateway_mac, ifname, mac, mtu, sandbox, ips: own_ips } = added;
    let mtu = (conf.version >= Version::V1_1_0).then_some(*mtu);
    let own = [
        Interface { name: device, mac: mac_text(*gateway_mac), mtu, sandbox: None },
        Interface { name: ifname, mac: mac_text(*mac), mtu, sandbox: Some(sandbox.display().to_string()) },
    ];
    // The pod's is the second of ours.
    let interface = previous.interfaces.len() + 1;
    let Previous { mut interfaces, mut ips, routes: mut all_routes, others: mut fields } = previous;
    interfaces.extend(own.iter().map(|interface| json!(interface)));
    for AddedIp { address, gateway, routes } in own_ips {
        let version = if address.is_ipv4() { "4" } else { "6" };
        let version = (conf.version < Version::V1_0_0).then_some(version);
        ips.push(json!(Ip { version, address: (*address).into(), gateway: *gateway, interface }));
        all_routes.extend(routes.iter().map(|dst| json!(Route { dst: *dst, gw: *gateway })));
    }
    let dns = match (conf.dns(), fields.remove("dns")) {
        (Some(dns), _) => Value::Object(dns.clone()),
        (None, Some(dns @ Value::Object(_))) => dns,
        (None, _) => json!({}),
    };
    fields.extend(
        [
            ("cniVersion", json!(conf.version.as_str())),
            ("interfaces", Value::Array(interfaces)),
            ("ips", Value::Array(ips)),
            ("routes", Value::Array(all_routes)),
            ("dns", dns),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    Value::Object(fields)
}

/// A MAC as results have it.
pub(in crate::cni) fn mac_text(mac: MacAddress) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
