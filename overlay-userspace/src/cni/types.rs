//! The network configuration and the result, in every version of the specification from 0.3.1 to 1.1.0.
//!
//! Pure, and total: whatever the bytes on standard input are, the answer is a value or a [`Failure`]. Keys that are not
//! ours are tolerated, as the specification asks, and a previous plugin's result is passed on whole.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    env::is_identifier,
    failure::{Code, Failure},
};
use crate::{datapath::pins::Pins, host::netlink::MacAddress};

/// A version of the CNI specification that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// 0.3.1: several interfaces and addresses.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: addresses no longer say their family.
    V1_0_0,
    /// 1.1.0: GC and STATUS; MTU in results.
    V1_1_0,
}

impl Version {
    /// Oldest first.
    pub(super) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What is spoken to those who do not say what they speak.
    pub(super) const NEWEST: Self = Self::V1_1_0;

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The version that standard input asks for, if that can be told at all: for answers that must not fail.
    pub(super) fn asked_for(stdin: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(stdin).ok()?;
        Self::parse(value.get("cniVersion")?.as_str()?)
    }
}

/// The answer to VERSION.
pub(super) fn versions(asked_for: Option<Version>) -> Value {
    json!({
        "cniVersion": asked_for.unwrap_or(Version::NEWEST).as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

/// The keys that this plugin reads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    cni_version: Option<String>,
    name: Option<String>,
    pins: Option<PathBuf>,
    #[serde(default)]
    dns: Option<Map<String, Value>>,
    prev_result: Option<Value>,
}

/// A valid network configuration.
#[derive(Clone, Debug)]
pub(super) struct Conf {
    /// The version that the result is to have.
    pub(super) version: Version,
    /// Where the datapath is pinned.
    pub(super) pins: Pins,
    dns: Option<Map<String, Value>>,
    previous: Option<Value>,
}

impl Conf {
    /// Reads the configuration of one plugin, as runtimes make it from a list.
    pub(super) fn parse(stdin: &[u8]) -> Result<Self, Failure> {
        let invalid = |message: String| Failure::new(Code::InvalidConfig, message);
        let value: Value = serde_json::from_slice(stdin)
            .map_err(|e| Failure::new(Code::Decode, format!("decode the network configuration: {e}")))?;
        if !value.is_object() {
            return Err(Failure::new(
                Code::Decode,
                "decode the network configuration: it is not a JSON object",
            ));
        }
        let Keys { cni_version, name, pins, dns, prev_result } = serde_json::from_value(value)
            .map_err(|e| invalid(format!("read the network configuration: {e}")))?;
        let version = cni_version.as_deref().and_then(Version::parse).ok_or_else(|| {
            let spoken = Version::ALL.map(Version::as_str).join(", ");
            // Without the key it is 0.1.0, by the specification of that time.
            let asked = cni_version.as_deref().unwrap_or("0.1.0 (no cniVersion given)");
            Failure::new(
                Code::IncompatibleVersion,
                format!("CNI version {asked} is not supported: set cniVersion to one of {spoken}"),
            )
        })?;
        match name {
            Some(name) if is_identifier(&name) => {}
            Some(name) => {
                return Err(invalid(format!(
                    "network name {name:?} is invalid: it must begin with a letter or a digit, and go on with these, `_`, `.` and `-`"
                )));
            }
            None => return Err(invalid("the network configuration has no name: add the key `name`".into())),
        }
        let pins = match pins {
            None => Pins::default(),
            Some(root) if root.is_absolute() => Pins::new(root),
            Some(root) => {
                return Err(invalid(format!(
                    "pins {:?} is not an absolute path: give the agent's pin root, or leave the key out for {}",
                    root.display(),
                    Pins::default().root().display()
                )));
            }
        };
        Ok(Self { version, pins, dns, previous: prev_result })
    }

    /// The result of the plugin before this one, to be added to; empty for the first.
    pub(super) fn previous(&self) -> Result<Previous, Failure> {
        let invalid = |what: &str| Failure::new(Code::InvalidConfig, format!("prevResult {what}"));
        let mut fields = match &self.previous {
            None => Map::new(),
            Some(Value::Object(fields)) => fields.clone(),
            Some(_) => return Err(invalid("is not an object")),
        };
        let mut take = |key: &str| match fields.remove(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(invalid(&format!("has {key} which are no array"))),
        };
        let (interfaces, ips, routes) = (take("interfaces")?, take("ips")?, take("routes")?);
        Ok(Previous { interfaces, ips, routes, others: fields })
    }
}

/// A previous result, taken apart only as far as it is added to.
#[derive(Debug, Default)]
pub(super) struct Previous {
    interfaces: Vec<Value>,
    ips: Vec<Value>,
    routes: Vec<Value>,
    others: Map<String, Value>,
}

/// What ADD has made.
#[derive(Clone, Debug)]
pub(super) struct Added {
    /// The host side device.
    pub(super) device: String,
    /// Its MAC.
    pub(super) gateway_mac: MacAddress,
    /// The pod's device.
    pub(super) ifname: String,
    /// Its MAC.
    pub(super) mac: MacAddress,
    /// MTU of both, bytes.
    pub(super) mtu: u32,
    /// The pod's namespace, as the runtime named it.
    pub(super) sandbox: PathBuf,
    /// The pod's address.
    pub(super) address: Ipv4Addr,
    /// The node's gateway address.
    pub(super) gateway: Ipv4Addr,
    /// What the pod reaches by the gateway.
    pub(super) routes: Vec<Ipv4Net>,
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
    address: Ipv4Net,
    gateway: Ipv4Addr,
    /// Index into the interfaces.
    interface: usize,
}

#[derive(Serialize)]
struct Route {
    dst: Ipv4Net,
    gw: Ipv4Addr,
}

/// The answer to ADD, in the version that the configuration asks for, on top of what was there before.
pub(super) fn result(added: &Added, conf: &Conf, previous: Previous) -> Value {
    let Added { device, gateway_mac, ifname, mac, mtu, sandbox, address, gateway, routes } = added;
    let mtu = (conf.version >= Version::V1_1_0).then_some(*mtu);
    let own = [
        Interface { name: device, mac: mac_text(*gateway_mac), mtu, sandbox: None },
        Interface { name: ifname, mac: mac_text(*mac), mtu, sandbox: Some(sandbox.display().to_string()) },
    ];
    let ip = Ip {
        version: (conf.version < Version::V1_0_0).then_some("4"),
        address: (*address).into(),
        gateway: *gateway,
        // The pod's is the second of ours.
        interface: previous.interfaces.len() + 1,
    };
    let Previous { mut interfaces, mut ips, routes: mut all_routes, others: mut fields } = previous;
    interfaces.extend(own.iter().map(|interface| json!(interface)));
    ips.push(json!(ip));
    all_routes.extend(routes.iter().map(|dst| json!(Route { dst: *dst, gw: *gateway })));
    let dns = match (&conf.dns, fields.remove("dns")) {
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

fn mac_text(mac: MacAddress) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests;
