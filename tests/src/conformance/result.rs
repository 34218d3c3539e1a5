//! The result of ADD, read as far as cases judge it (specification, §5 "ADD Success").

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::kernel::parse_net;

/// One element of `interfaces`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// `name`.
    pub(crate) name: String,
    /// `mac`, if given.
    pub(crate) mac: Option<String>,
    /// `mtu`, if given.
    pub(crate) mtu: Option<u64>,
    /// `sandbox`; empty on the host.
    pub(crate) sandbox: String,
}

/// One element of `ips`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ip {
    /// `address`.
    pub(crate) address: IpNet,
    /// `gateway`, if given.
    pub(crate) gateway: Option<IpAddr>,
    /// `interface`, if given: an index.
    pub(crate) interface: Option<usize>,
    /// `version`, before 1.0.0.
    pub(crate) version: Option<String>,
}

/// One element of `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// `dst`.
    pub(crate) destination: IpNet,
    /// `gw`, if given.
    pub(crate) gateway: Option<IpAddr>,
}

fn items<'a>(result: &'a Value, key: &str) -> Result<&'a [Value]> {
    match &result[key] {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        other => anyhow::bail!("`{key}` of the result is no list: {other}"),
    }
}

/// An optional text; an empty one counts as none, as Go's libraries write it.
fn text<'a>(item: &'a Value, key: &str) -> Result<Option<&'a str>> {
    match &item[key] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        other => anyhow::bail!("`{key}` is no string: {other}"),
    }
}

fn address(item: &Value, key: &str) -> Result<Option<IpAddr>> {
    let parsed = text(item, key)?
        .map(|text| text.parse().with_context(|| format!("`{key}` of the result is no address: {text:?}")));
    parsed.transpose()
}

fn network(item: &Value, key: &str) -> Result<IpNet> {
    let text = text(item, key)?.with_context(|| format!("{item} of the result has no `{key}`"))?;
    ensure!(text.contains('/'), "`{key}` is not in CIDR notation: {text:?}");
    parse_net(text).with_context(|| format!("`{key}` is not in CIDR notation: {text:?}"))
}

/// `interfaces`; none if the key is missing.
pub(crate) fn interfaces(result: &Value) -> Result<Vec<Interface>> {
    let parse = |item: &Value| {
        let name = text(item, "name")?.with_context(|| format!("interface without `name`: {item}"))?;
        let mtu = match &item["mtu"] {
            Value::Null => None,
            mtu => Some(mtu.as_u64().with_context(|| format!("`mtu` of {name} is no number: {mtu}"))?),
        };
        Ok(Interface {
            name: name.to_owned(),
            mac: text(item, "mac")?.map(str::to_owned),
            mtu: mtu.filter(|&mtu| mtu != 0),
            sandbox: text(item, "sandbox")?.unwrap_or_default().to_owned(),
        })
    };
    items(result, "interfaces")?.iter().map(parse).collect()
}

/// `ips`; none if the key is missing.
pub(crate) fn ips(result: &Value) -> Result<Vec<Ip>> {
    let parse = |item: &Value| {
        let interface = match &item["interface"] {
            Value::Null => None,
            index => {
                let number = index.as_u64().and_then(|index| usize::try_from(index).ok());
                Some(number.with_context(|| format!("`interface` is no index: {index}"))?)
            }
        };
        Ok(Ip {
            address: network(item, "address")?,
            gateway: address(item, "gateway")?,
            interface,
            version: text(item, "version")?.map(str::to_owned),
        })
    };
    items(result, "ips")?.iter().map(parse).collect()
}

/// `routes`; none if the key is missing.
pub(crate) fn routes(result: &Value) -> Result<Vec<Route>> {
    let parse =
        |item: &Value| Ok(Route { destination: network(item, "dst")?, gateway: address(item, "gw")? });
    items(result, "routes")?.iter().map(parse).collect()
}

/// The addresses that belong to interface `ifname` of the container at `sandbox`.
pub(crate) fn addresses_of(result: &Value, ifname: &str, sandbox: &str) -> Result<Vec<IpNet>> {
    let interfaces = interfaces(result)?;
    let is_it =
        |index: usize| interfaces.get(index).is_some_and(|one| one.name == ifname && one.sandbox == sandbox);
    let ips = ips(result)?.into_iter().filter(|ip| ip.interface.is_none_or(is_it));
    Ok(ips.map(|ip| ip.address).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_whole_result_is_read() {
        let result = json!({
            "interfaces": [
                {"name": "veth1", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "", "mtu": 1450, "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
                {"address": "10.9.0.1/32", "interface": 0},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00::/8", "gw": "fd00::1"}],
        });
        let all = interfaces(&result).unwrap();
        assert_eq!((all[1].mac.as_deref(), all[1].mtu), (None, Some(1450)));
        assert_eq!(ips(&result).unwrap()[0].version.as_deref(), Some("4"));
        assert_eq!(routes(&result).unwrap()[1].gateway, Some("fd00::1".parse().unwrap()));
        let own = addresses_of(&result, "eth0", "/run/netns/a").unwrap();
        assert_eq!(own, ["10.1.0.5/16".parse().unwrap()]);
    }

    #[test]
    fn missing_lists_are_empty_and_wrong_ones_errors() {
        assert!(interfaces(&json!({})).unwrap().is_empty());
        for bad in [
            json!({"ips": {}}),
            json!({"ips": [{"address": "10.1.0.5"}]}),
            json!({"ips": [{"address": "10.1.0.5/33"}]}),
            json!({"ips": [{"address": "10.1.0.5/24", "interface": -1}]}),
            json!({"ips": [{"address": "10.1.0.5/24", "gateway": "none"}]}),
            json!({"ips": [{}]}),
        ] {
            assert!(ips(&bad).is_err(), "{bad}");
        }
        assert!(interfaces(&json!({"interfaces": [{"mac": "x"}]})).is_err());
        assert!(routes(&json!({"routes": [{"dst": "default"}]})).is_err());
    }
}
