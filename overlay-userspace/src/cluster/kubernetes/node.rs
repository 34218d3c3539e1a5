//! A Node as far as this network is concerned: what is decoded of it, and what is kept.
//!
//! A Node object is some 10 KiB, most of it labels, images and field managers; all but a few fields is skipped while it
//! is parsed, and what is kept is about 200 bytes.

use std::{borrow::Cow, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::{
    ClusterResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use crate::{cluster::NodeSpec, config::parse_mac};

/// An annotation with the tunnel address of a node, in place of its InternalIP.
pub const TUNNEL_ADDRESS: &str = "overlay.network/tunnel-address";

/// An annotation with the MAC of the tunnel device of a node that is not overlay.
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
    /// Its first IPv4 podCIDR; the text where it is none, `None` where there is none yet.
    pub(crate) subnet: Option<Result<Ipv4Net, String>>,
    /// Its tunnel address, by annotation or by the first IPv4 InternalIP.
    pub(crate) address: Option<Result<Ipv4Addr, String>>,
    /// The MAC of its annotation.
    pub(crate) vtep_mac: Option<Result<[u8; 6], String>>,
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
        let subnet = cidrs.into_iter().find_map(|text| match text.parse::<IpNet>() {
            Ok(IpNet::V4(net)) => Some(Ok(net)),
            Ok(IpNet::V6(_)) => None,
            Err(_) => Some(Err(text)),
        });
        let address = match annotation(TUNNEL_ADDRESS) {
            Some(text) => Some(text.parse().map_err(|_| text.to_owned())),
            None => status
                .addresses
                .unwrap_or_default()
                .iter()
                .filter(|address| address.kind == "InternalIP")
                .find_map(|address| address.address.parse().ok())
                .map(Ok),
        };
        let vtep_mac = annotation(VTEP_MAC).map(|text| parse_mac(text).ok_or_else(|| text.to_owned()));
        let conditions = status.conditions.unwrap_or_default();
        let unavailable = conditions.iter().find(|condition| condition.kind == "NetworkUnavailable");
        let node = Self {
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            uid: metadata.uid.unwrap_or_default(),
            subnet,
            address,
            vtep_mac,
            unavailable: unavailable.map(|condition| condition.status != "False"),
        };
        Some((metadata.name?, node))
    }

    /// The node as a part of this network, or why it cannot be one yet.
    pub(super) fn spec(&self, name: &str) -> Result<NodeSpec, Unfit> {
        let bad = |what: &str, text: &str| Unfit::Invalid(format!("node {name}: {what} {text:?}"));
        let subnet = match &self.subnet {
            None => return Err(Unfit::NoSubnet),
            Some(Err(text)) => return Err(bad("cannot make sense of the podCIDR", text)),
            Some(Ok(net)) => IpNet::V4(*net),
        };
        let address = match &self.address {
            None => return Err(Unfit::NoAddress),
            Some(Err(text)) => {
                return Err(bad(&format!("annotation {TUNNEL_ADDRESS} is no IPv4 address:"), text));
            }
            Some(Ok(address)) => (*address).into(),
        };
        let vtep_mac = match &self.vtep_mac {
            None => None,
            Some(Err(text)) => {
                return Err(bad(&format!("annotation {VTEP_MAC} is no unicast MAC address:"), text));
            }
            Some(Ok(mac)) => Some(*mac),
        };
        Ok(NodeSpec { name: name.to_owned(), address, subnet, vtep_mac })
    }
}

/// Why a Node is no part of this network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// No IPv4 podCIDR has been assigned yet.
    NoSubnet,
    /// No IPv4 InternalIP is known yet.
    NoAddress,
    /// Something is there that cannot be used.
    Invalid(String),
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

    #[test]
    fn the_first_ipv4_of_each_list_is_taken() {
        let (name, node) = decode(full());
        assert_eq!((name.as_str(), node.uid.as_str(), node.created), ("w1", "5c3e", 1_767_323_045));
        assert_eq!(node.unavailable, None);
        let spec = node.spec("w1").unwrap();
        assert_eq!(spec.subnet.to_string(), "10.244.3.0/24");
        assert_eq!((spec.address.to_string().as_str(), spec.vtep_mac), ("192.0.2.9", None));
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
        let mut object = full();
        object["metadata"]["annotations"] =
            json!({TUNNEL_ADDRESS: "198.51.100.7", VTEP_MAC: "02:00:00:00:00:09", "x": "y"});
        let spec = decode(object.clone()).1.spec("w1").unwrap();
        assert_eq!(
            (spec.address.to_string().as_str(), spec.vtep_mac),
            ("198.51.100.7", Some([2, 0, 0, 0, 0, 9]))
        );
        object["metadata"]["annotations"] = json!({TUNNEL_ADDRESS: "elsewhere"});
        let unfit = decode(object.clone()).1.spec("w1").unwrap_err();
        assert!(matches!(&unfit, Unfit::Invalid(text) if text.contains("\"elsewhere\"")), "{unfit:?}");
        object["metadata"]["annotations"] = json!({VTEP_MAC: "ff:ff:ff:ff:ff:ff"});
        assert!(matches!(decode(object).1.spec("w1"), Err(Unfit::Invalid(_))));
    }

    #[test]
    fn a_node_that_is_new_is_waited_for() {
        let mut object = full();
        object["spec"] = json!({});
        assert_eq!(decode(object.clone()).1.spec("w1"), Err(Unfit::NoSubnet));
        object["spec"] = json!({"podCIDR": "10.244.3.0/24"});
        object["status"] = json!({"addresses": null, "conditions": null});
        assert_eq!(decode(object.clone()).1.spec("w1"), Err(Unfit::NoAddress));
        object.as_object_mut().unwrap().remove("status");
        assert_eq!(decode(object).1.spec("w1"), Err(Unfit::NoAddress));
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
    fn nonsense_in_one_node_is_no_failure_of_the_list() {
        let mut object = full();
        object["spec"]["podCIDRs"] = json!(["10.244.3.0"]);
        assert!(matches!(decode(object).1.spec("w1"), Err(Unfit::Invalid(_))));
    }
}
