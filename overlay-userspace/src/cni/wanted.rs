//! Addresses and MAC that a call asks for: `runtimeConfig` (capabilities `ips` and `mac`), `args.cni` and `CNI_ARGS`.
//!
//! Pure, and total. Whether an address can be had is for `lease` to say.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::failure::{Code, Failure};
use crate::{
    family::{ByFamily, OfFamily as _},
    host::netlink::MacAddress,
};

/// What is asked for; nothing is the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The pod's addresses; in a family without one it gets any.
    pub(super) addresses: ByFamily<IpAddr>,
    /// The MAC of the pod's device.
    pub(super) mac: Option<MacAddress>,
}

impl Wanted {
    /// Takes from `other` what is not asked for here.
    pub(super) fn or(self, other: Self) -> Self {
        let (own, others) = (self.addresses, other.addresses);
        Self {
            addresses: ByFamily { v4: own.v4.or(others.v4), v6: own.v6.or(others.v6) },
            mac: self.mac.or(other.mac),
        }
    }

    /// Reads `CNI_ARGS`: pairs `KEY=VALUE` with semicolons between.
    ///
    /// Errors: [`Code::Environment`] for a value that makes no sense, and for a key other than `IP` and `MAC` unless
    /// `IgnoreUnknown` is set, as all plugins have it.
    pub(super) fn from_args(text: &str) -> Result<Self, Failure> {
        let invalid = |what: String| Failure::new(Code::Environment, format!("CNI_ARGS {what}"));
        let mut wanted = Self::default();
        let (mut unknown, mut ignore) = (Vec::new(), false);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(format!("{pair:?} is not KEY=VALUE")));
            };
            let refused = |what: String| invalid(format!("{key}={value}: {what}"));
            match key {
                "IgnoreUnknown" => match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => ignore = true,
                    "0" | "false" => ignore = false,
                    _ => return Err(refused("is neither true nor false".to_owned())),
                },
                "IP" => wanted.addresses = one_of_each(value.split(',')).map_err(refused)?,
                "MAC" => wanted.mac = Some(mac(value).map_err(refused)?),
                _ => unknown.push(key),
            }
        }
        if unknown.is_empty() || ignore {
            return Ok(wanted);
        }
        Err(invalid(format!(
            "has unknown keys: {}; overlay knows IP and MAC, IgnoreUnknown=1 lets others pass",
            unknown.join(", ")
        )))
    }

    /// Reads `ips` and `mac` of `runtimeConfig` or of `args.cni`; `place` names it in errors.
    ///
    /// Errors: [`Code::InvalidConfig`] for a value that makes no sense. Other keys are tolerated.
    pub(super) fn from_object(object: Option<&Value>, place: &str) -> Result<Self, Failure> {
        let invalid =
            |key: &str, what: String| Failure::new(Code::InvalidConfig, format!("{place}.{key}: {what}"));
        let field = |key: &str| object.and_then(|object| object.get(key)).filter(|value| !value.is_null());
        let addresses = match field("ips") {
            None => ByFamily::default(),
            Some(Value::Array(ips)) => one_of_each(ips.iter().map(|ip| ip.as_str().unwrap_or_default()))
                .map_err(|what| invalid("ips", what))?,
            Some(_) => return Err(invalid("ips", "is not an array of addresses".to_owned())),
        };
        let mac = match field("mac") {
            None => None,
            Some(value) => {
                Some(mac(value.as_str().unwrap_or_default()).map_err(|what| invalid("mac", what))?)
            }
        };
        Ok(Self { addresses, mac })
    }
}

/// The addresses that are asked for, each with or without a prefix length: one of each family at most.
fn one_of_each<'a>(texts: impl Iterator<Item = &'a str>) -> Result<ByFamily<IpAddr>, String> {
    let mut found = ByFamily::default();
    for text in texts.map(str::trim) {
        let address = text
            .parse::<IpAddr>()
            .or_else(|_| text.parse::<IpNet>().map(|net| net.addr()))
            .map_err(|_| {
                format!("{text:?} is not an IP address: ask for one such as 10.244.1.5, or for none")
            })?
            .to_canonical();
        let family = address.family();
        if let Some(first) = found.set(family, address)
            && first != address
        {
            return Err(format!(
                "{first} and {address} cannot both be given: a pod has one {family} address"
            ));
        }
    }
    Ok(found)
}

fn mac(text: &str) -> Result<MacAddress, String> {
    let invalid = || format!("{text:?} is not the MAC of a device: ask for one such as 02:00:0a:f4:01:05");
    let mut parts = text.split([':', '-']);
    let mut mac = [0; 6];
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(invalid)?;
    }
    // The kernel refuses group addresses and zero.
    if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] { Err(invalid()) } else { Ok(mac) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MAC: MacAddress = [0x02, 0, 0x0a, 0xf4, 1, 5];

    fn ips(list: &[&str]) -> ByFamily<IpAddr> {
        ByFamily::from_values(list.iter().map(|text| text.parse::<IpAddr>().unwrap())).unwrap()
    }

    #[test]
    fn runtimes_own_arguments_ask_for_nothing() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=a=b";
        assert_eq!(Wanted::from_args(args), Ok(Wanted::default()));
        assert_eq!(Wanted::from_args(""), Ok(Wanted::default()));
        assert_eq!(Wanted::from_args(";"), Ok(Wanted::default()));
    }

    #[test]
    fn address_and_mac_can_be_asked_for_by_each_way() {
        let both = Wanted { addresses: ips(&["10.244.1.5"]), mac: Some(MAC) };
        assert_eq!(Wanted::from_args("IP=10.244.1.5;MAC=02:00:0a:f4:01:05"), Ok(both));
        assert_eq!(Wanted::from_args("IP=10.244.1.5/24,10.244.1.5;MAC=02-00-0A-F4-01-05"), Ok(both));
        let object = json!({"ips": ["10.244.1.5/32"], "mac": "02:00:0a:f4:01:05", "other": 1});
        assert_eq!(Wanted::from_object(Some(&object), "runtimeConfig"), Ok(both));
        for nothing in [json!({}), json!({"ips": null, "mac": null}), json!({"ips": []}), json!("x")] {
            assert_eq!(Wanted::from_object(Some(&nothing), "args.cni"), Ok(Wanted::default()));
        }
        assert_eq!(Wanted::from_object(None, "args.cni"), Ok(Wanted::default()));
    }

    #[test]
    fn an_address_of_each_family_can_be_asked_for() {
        let both = Wanted { addresses: ips(&["10.244.1.5", "fd00::5"]), mac: None };
        for text in [
            "IP=10.244.1.5,fd00::5",
            "IP=fd00::5/64, ::ffff:10.244.1.5",
            "IP=fd00:0::5,10.244.1.5,fd00::5/128",
        ] {
            assert_eq!(Wanted::from_args(text), Ok(both), "{text}");
        }
        let object = json!({"ips": ["fd00::5/64", "10.244.1.5"]});
        assert_eq!(Wanted::from_object(Some(&object), "runtimeConfig"), Ok(both));
        let alone = Wanted { addresses: ips(&["fd00::5"]), mac: None };
        assert_eq!(Wanted::from_args("IP=fd00::5"), Ok(alone));
    }

    #[test]
    fn unknown_arguments_are_refused_unless_they_are_to_be_ignored() {
        for args in ["X=1", "IgnoreUnknown=0;X=1", "IgnoreUnknown=false;IP=10.244.1.5;X=1"] {
            let failure = Wanted::from_args(args).unwrap_err();
            assert_eq!(failure.code, Code::Environment);
            assert!(failure.message.contains("CNI_ARGS") && failure.message.contains('X'), "{failure}");
        }
        for args in ["X=1;IgnoreUnknown=True", "IgnoreUnknown=1;X"] {
            assert_eq!(Wanted::from_args(args).is_ok(), args.contains("X=1"), "{args}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        let object = |value: Value| Wanted::from_object(Some(&value), "runtimeConfig").unwrap_err();
        for (failure, code, wanted) in [
            (Wanted::from_args("IP=many").unwrap_err(), Code::Environment, "many"),
            (Wanted::from_args("IP=fd00::5,fd00::6").unwrap_err(), Code::Environment, "one IPv6 address"),
            (Wanted::from_args("IP=fe80::5%eth0").unwrap_err(), Code::Environment, "fe80::5%eth0"),
            (Wanted::from_args("IgnoreUnknown=maybe").unwrap_err(), Code::Environment, "maybe"),
            (object(json!({"ips": ["10.244.1.5", "10.244.1.6"]})), Code::InvalidConfig, "10.244.1.6"),
            (object(json!({"ips": "10.244.1.5"})), Code::InvalidConfig, "array"),
            (object(json!({"ips": [5]})), Code::InvalidConfig, "runtimeConfig.ips"),
            (object(json!({"mac": 5})), Code::InvalidConfig, "runtimeConfig.mac"),
        ] {
            assert_eq!(failure.code, code);
            assert!(failure.message.contains(wanted), "{failure}");
        }
        for bad in [
            "",
            "02:00",
            "02:00:0a:f4:01:05:06",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+2:00:0a:f4:01:05",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_that_asks_wins() {
        let one = Wanted { addresses: ips(&["10.244.1.5"]), mac: None };
        let two = Wanted { addresses: ips(&["10.244.1.6", "fd00::6"]), mac: Some(MAC) };
        assert_eq!(one.or(two), Wanted { addresses: ips(&["10.244.1.5", "fd00::6"]), mac: two.mac });
    }
}
