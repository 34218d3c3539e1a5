//! A Node as far as this network is concerned: what is decoded of it, and what is kept.
//!
//! A Node object is some 10 KiB, most of it labels, images and field managers; all but a few fields is skipped while it
//! is parsed, and what is kept is about 200 bytes.

use std::{borrow::Cow, fmt, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    ClusterResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use crate::{
    config::parse_mac,
    family::{ByFamily, Family, OfFamily as _},
};

/// An annotation with the tunnel address of a node, in place of its InternalIP of that family; or one of each family,
/// separated by a comma.
pub const TUNNEL_ADDRESS: &str = "overlay.network/tunnel-address";

/// An annotation with the MAC of the tunnel device of a node that is not overlay. Where it has a device for each family,
/// as Flannel does, two, separated by a comma: that of IPv4 first.
pub const VTEP_MAC: &str = "overlay.network/vtep-mac";

/// What is decoded of a Node.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Object {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<NodeAddress>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// The fields of the metadata that matter; of the annotations, ours.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "overlay.network/tunnel-address")]
    tunnel_address: Option<String>,
    #[serde(rename = "overlay.network/vtep-mac")]
    vtep_mac: Option<String>,
}

fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let Metadata { name, uid, resource_version, creation_timestamp, annotations } =
        Metadata::deserialize(deserializer)?;
    let Annotations { tunnel_address, vtep_mac } = annotations.unwrap_or_default();
    let ours = [(TUNNEL_ADDRESS, tunnel_address), (VTEP_MAC, vtep_mac)];
    Ok(ObjectMeta {
        name,
        uid,
        resource_version,
        creation_timestamp,
        annotations: Some(
            ours.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect(),
        ),
        ..ObjectMeta::default()
    })
}

/// As Kubernetes' own Node.
impl Resource for Object {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What is kept of a Node, under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubeNode {
    /// Unique in time: a Node that is deleted and made again has another one.
    pub(crate) uid: String,
    /// When it was made, in seconds since 1970.
    pub(crate) created: i64,
    /// The first podCIDR of each family, and what cannot be made sense of.
    pub(crate) subnets: ByFamily<Result<IpNet, Nonsense>>,
    /// The tunnel addresses: of each family that of the annotation, or else the first InternalIP.
    pub(crate) addresses: ByFamily<Result<IpAddr, Nonsense>>,
    /// The MACs of the annotation, by the family of the device.
    pub(crate) vtep_macs: Result<ByFamily<[u8; 6]>, Nonsense>,
    /// Its condition `NetworkUnavailable`; `None` where it has none.
    pub(crate) unavailable: Option<bool>,
}

impl KubeNode {
    /// The node's name and what is kept of it.
    pub(super) fn from(object: Object) -> Option<(String, Self)> {
        let Object { metadata, spec, status } = object;
        let annotations = metadata.annotations.unwrap_or_default();
        let annotation = |key| annotations.get(key).map(String::as_str);
        // The older, single field is what the first of the list is a copy of.
        let cidrs = spec.pod_cidrs.unwrap_or_default().into_iter().chain(spec.pod_cidr);
        let mut subnets = ByFamily::default();
        for text in cidrs {
            let parsed = text.parse::<IpNet>();
            let family = parsed.as_ref().map_or_else(|_| meant(&text), IpNet::family);
            if subnets.get(family).is_none() {
                subnets
                    .set(family, parsed.map_err(|_| Nonsense::new("cannot make sense of the podCIDR", text)));
            }
        }
        let mut addresses = ByFamily::default();
        for text in parts(annotation(TUNNEL_ADDRESS)) {
            let parsed = text.parse::<IpAddr>();
            let family = parsed.as_ref().map_or_else(|_| meant(text), IpAddr::family);
            let nonsense = || Nonsense::new(format!("annotation {TUNNEL_ADDRESS} is no IP address:"), text);
            addresses.set(family, parsed.map_err(|_| nonsense()));
        }
        let internal = status.addresses.unwrap_or_default();
        let internal = internal.iter().filter(|address| address.kind == "InternalIP");
        for address in internal.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
            if addresses.get(address.family()).is_none() {
                addresses.set(address.family(), Ok(address));
            }
        }
        let vtep_macs = macs(annotation(VTEP_MAC));
        let conditions = status.conditions.unwrap_or_default();
        let unavailable = conditions.iter().find(|condition| condition.kind == "NetworkUnavailable");
        let node = Self {
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            uid: metadata.uid.unwrap_or_default(),
            subnets,
            addresses,
            vtep_macs,
            unavailable: unavailable.map(|condition| condition.status != "False"),
        };
        Some((metadata.name?, node))
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense {
    what: String,
    text: String,
}

impl Nonsense {
    fn new(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { what: what.into(), text: text.into() }
    }
}

/// Which value, and what it says.
impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.what, self.text)
    }
}

/// The parts of a value that may be a list.
fn parts(value: Option<&str>) -> impl Iterator<Item = &str> {
    value.into_iter().flat_map(|text| text.split(',')).map(str::trim)
}

/// The family that what cannot be parsed was to be of, as far as one can tell.
fn meant(text: &str) -> Family {
    if text.contains(':') { Family::Ipv6 } else { Family::Ipv4 }
}

/// One MAC for both families, or one for each.
fn macs(value: Option<&str>) -> Result<ByFamily<[u8; 6]>, Nonsense> {
    let Some(text) = value else { return Ok(ByFamily::default()) };
    let nonsense = || Nonsense::new(format!("annotation {VTEP_MAC} is no unicast MAC address:"), text);
    let macs: Option<Vec<_>> = parts(value).map(parse_mac).collect();
    match macs.as_deref() {
        Some(&[both]) => Ok(ByFamily { v4: Some(both), v6: Some(both) }),
        Some(&[v4, v6]) => Ok(ByFamily { v4: Some(v4), v6: Some(v6) }),
        _ => Err(nonsense()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn decode(object: Value) -> (String, KubeNode) {
        KubeNode::from(serde_json::from_value(object).unwrap()).unwrap()
    }

    fn full() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "w1",
                "uid": "5c3e",
                "resourceVersion": "77",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"kubernetes.io/os": "linux"},
                "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {"podCIDR": "fd00::/64", "podCIDRs": ["fd00::/64", "10.244.3.0/24"], "taints": []},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "w1"},
                    {"type": "ExternalIP", "address": "203.0.113.9"},
                    {"type": "InternalIP", "address": "fd00::9"},
                    {"type": "InternalIP", "address": "192.0.2.9"},
                    {"type": "InternalIP", "address": "192.0.2.10"},
                ],
                "conditions": [{"type": "Ready", "status": "True"}],
                "images": [{"names": ["x"], "sizeBytes": 7}],
            },
        })
    }

    fn good<T: Copy, E: fmt::Debug>(values: &ByFamily<Result<T, E>>) -> ByFamily<T> {
        values.map(|_, value| *value.as_ref().unwrap())
    }

    #[test]
    fn the_first_of_each_family_is_taken_in_any_order() {
        for reversed in [false, true] {
            let mut object = full();
            if reversed {
                object["spec"]["podCIDRs"].as_array_mut().unwrap().reverse();
                object["spec"]["podCIDR"] = json!("10.244.3.0/24");
                object["status"]["addresses"].as_array_mut().unwrap().swap(2, 3);
            }
            let (name, node) = decode(object);
            assert_eq!((name.as_str(), node.uid.as_str(), node.created), ("w1", "5c3e", 1_767_323_045));
            assert_eq!(node.unavailable, None);
            assert_eq!(good(&node.subnets).to_string(), "10.244.3.0/24, fd00::/64");
            assert_eq!(good(&node.addresses).to_string(), "192.0.2.9, fd00::9");
            assert_eq!(node.vtep_macs, Ok(ByFamily::default()));
        }
    }

    #[test]
    fn what_does_not_matter_is_not_kept() {
        let object: Object = serde_json::from_value(full()).unwrap();
        let meta = object.meta();
        assert_eq!(meta.resource_version.as_deref(), Some("77"));
        assert!(meta.labels.is_none() && meta.managed_fields.is_none());
        assert_eq!(meta.annotations.as_ref().map(BTreeMap::len), Some(0));
    }

    #[test]
    fn annotations_override_the_address_and_the_mac() {
        let with = |annotations: Value| {
            let mut object = full();
            object["metadata"]["annotations"] = annotations;
            decode(object).1
        };
        let node = with(json!({TUNNEL_ADDRESS: "198.51.100.7", VTEP_MAC: "02:00:00:00:00:09", "x": "y"}));
        // That of the other family stays.
        assert_eq!(good(&node.addresses).to_string(), "198.51.100.7, fd00::9");
        let mac = Some([2, 0, 0, 0, 0, 9]);
        assert_eq!(node.vtep_macs, Ok(ByFamily { v4: mac, v6: mac }));
        let node = with(
            json!({TUNNEL_ADDRESS: "2001:db8::7, 198.51.100.7", VTEP_MAC: "02:00:00:00:00:04,02:00:00:00:00:06"}),
        );
        assert_eq!(good(&node.addresses).to_string(), "198.51.100.7, 2001:db8::7");
        let macs = ByFamily { v4: Some([2, 0, 0, 0, 0, 4]), v6: Some([2, 0, 0, 0, 0, 6]) };
        assert_eq!(node.vtep_macs, Ok(macs));

        let node = with(json!({TUNNEL_ADDRESS: "elsewhere"}));
        let nonsense = node.addresses.v4.unwrap().unwrap_err();
        assert_eq!(
            nonsense.to_string(),
            format!("annotation {TUNNEL_ADDRESS} is no IP address: \"elsewhere\"")
        );
        assert!(node.addresses.v6.unwrap().is_ok());
        for bad in ["ff:ff:ff:ff:ff:ff", "", "02:00:00:00:00:09,", "x,02:00:00:00:00:09"] {
            assert!(with(json!({VTEP_MAC: bad})).vtep_macs.is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_that_is_new_lacks_what_it_lacks() {
        let mut object = full();
        object["spec"] = json!({});
        assert!(decode(object.clone()).1.subnets.is_empty());
        object["spec"] = json!({"podCIDR": "10.244.3.0/24"});
        object["status"] = json!({"addresses": null, "conditions": null});
        let node = decode(object.clone()).1;
        assert!(node.addresses.is_empty());
        assert_eq!(good(&node.subnets).to_string(), "10.244.3.0/24");
        object.as_object_mut().unwrap().remove("status");
        assert!(decode(object).1.addresses.is_empty());
    }

    #[test]
    fn the_condition_of_clouds_is_seen() {
        let mut object = full();
        for (status, expected) in [("True", Some(true)), ("Unknown", Some(true)), ("False", Some(false))] {
            object["status"]["conditions"] = json!([{"type": "NetworkUnavailable", "status": status}]);
            assert_eq!(decode(object.clone()).1.unavailable, expected);
        }
    }

    #[test]
    fn nonsense_in_one_family_leaves_the_other_alone() {
        let mut object = full();
        object["spec"] = json!({"podCIDRs": ["10.244.3.0", "fd00::/64"]});
        let node = decode(object.clone()).1;
        assert!(node.subnets.v6.is_some_and(|subnet| subnet.is_ok()));
        let text = node.subnets.v4.unwrap().unwrap_err().to_string();
        assert_eq!(text, "cannot make sense of the podCIDR \"10.244.3.0\"");
        object["spec"] = json!({"podCIDRs": ["10.244.3.0/24", "fd00::/640"]});
        let node = decode(object).1;
        assert!(node.subnets.v4.unwrap().is_ok() && node.subnets.v6.unwrap().is_err());
    }
}
