//! The network configuration, in every version of the specification from 0.3.1 to 1.1.0; the result is in `result`.
//!
//! Pure, and total: whatever the bytes on standard input are, the answer is a value or a [`Failure`]. Keys that are not
//! ours are tolerated, as the specification asks. What only one verb needs is looked at when that verb asks for it, so
//! that a key that ADD refuses is no reason not to DEL.

use std::path::PathBuf;

use overlay_common::maps::AttachMode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    env::{Attachment, is_identifier},
    failure::{Code, Failure},
    owner::network_tag,
    ports,
    wanted::Wanted,
};
use crate::datapath::pins::Pins;

pub(super) mod result;

use result::Previous;

/// The key of GC's list.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

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
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    cni_version: Option<String>,
    name: Option<String>,
    pins: Option<PathBuf>,
    dns: Option<Map<String, Value>>,
    prev_result: Option<Value>,
    attach: Option<Value>,
    ipam: Option<Value>,
    runtime_config: Option<Value>,
    args: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Value>,
    /// As libcni also calls them.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Value>,
}

/// A valid network configuration.
#[derive(Clone, Debug)]
pub(super) struct Conf {
    /// The version that the result is to have.
    pub(super) version: Version,
    /// Where the datapath is pinned.
    pub(super) pins: Pins,
    /// What leases of this network carry.
    pub(super) network: u32,
    keys: Box<Keys>,
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
        // An empty list is null in some languages, a missing one is another matter.
        let named = |key: &str| value.get(key).cloned();
        let (valid, misnamed) = (named(VALID_ATTACHMENTS), named("cni.dev/attachments"));
        let mut keys: Box<Keys> = serde_json::from_value(value)
            .map_err(|e| invalid(format!("read the network configuration: {e}")))?;
        (keys.valid_attachments, keys.attachments) = (valid, misnamed);
        let Keys { cni_version, name, pins, .. } = &*keys;
        let version = cni_version.as_deref().and_then(Version::parse).ok_or_else(|| {
            let spoken = Version::ALL.map(Version::as_str).join(", ");
            // Without the key it is 0.1.0, by the specification of that time.
            let asked = cni_version.as_deref().unwrap_or("0.1.0 (no cniVersion given)");
            Failure::new(
                Code::IncompatibleVersion,
                format!("CNI version {asked} is not supported: set cniVersion to one of {spoken}"),
            )
        })?;
        let network = match name {
            Some(name) if is_identifier(name) => network_tag(name),
            Some(name) => {
                return Err(invalid(format!(
                    "network name {name:?} is invalid: it must begin with a letter or a digit, and go on with these, `_`, `.` and `-`"
                )));
            }
            None => return Err(invalid("the network configuration has no name: add the key `name`".into())),
        };
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
        Ok(Self { version, pins, network, keys })
    }

    /// Refuses a verb that the version asked for does not have.
    pub(super) fn since(&self, version: Version, verb: &str) -> Result<(), Failure> {
        if self.version >= version {
            return Ok(());
        }
        Err(Failure::new(
            Code::IncompatibleVersion,
            format!(
                "CNI version {} has no {verb}: it came with {}, set cniVersion to that or newer",
                self.version.as_str(),
                version.as_str()
            ),
        ))
    }

    /// Refuses what would have an effect that this plugin cannot give.
    ///
    /// # Errors
    ///
    /// [`Code::Unsupported`], with key and value.
    pub(super) fn supported(&self) -> Result<(), Failure> {
        self.attach()?;
        let ipam = self.keys.ipam.as_ref().and_then(|ipam| ipam.get("type"));
        match ipam {
            None | Some(Value::Null) => Ok(()),
            Some(kind) => Err(Failure::new(
                Code::Unsupported,
                format!(
                    "ipam.type {kind} is not supported: overlay gives addresses of the node's subnet itself, remove `ipam`"
                ),
            )),
        }
    }

    /// How to attach the programs of a pod; `None` leaves it to the plugin.
    pub(super) fn attach(&self) -> Result<Option<AttachMode>, Failure> {
        match &self.keys.attach {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text == "auto" => Ok(None),
            Some(Value::String(text)) if text == "tcx" => Ok(Some(AttachMode::Tcx)),
            Some(Value::String(text)) if text == "clsact" => Ok(Some(AttachMode::Clsact)),
            Some(other) => Err(Failure::new(
                Code::Unsupported,
                format!("attach {other} is not supported: use \"auto\", \"tcx\" or \"clsact\""),
            )),
        }
    }

    /// Whether a later plugin of the list is to limit the pod's bandwidth, as far as a runtime tells us.
    pub(super) fn limits_bandwidth(&self) -> bool {
        let bandwidth = self.keys.runtime_config.as_ref().and_then(|config| config.get("bandwidth"));
        bandwidth.is_some_and(|bandwidth| !bandwidth.is_null())
    }

    /// Address and MAC that the configuration asks for.
    pub(super) fn wanted(&self) -> Result<Wanted, Failure> {
        let args = self.keys.args.as_ref().and_then(|args| args.get("cni"));
        let capability = Wanted::from_object(self.keys.runtime_config.as_ref(), "runtimeConfig")?;
        Ok(capability.or(Wanted::from_object(args, "args.cni")?))
    }

    /// The host ports that the runtime asks for.
    pub(super) fn ports(&self) -> Result<ports::Wanted, Failure> {
        ports::read(self.keys.runtime_config.as_ref())
    }

    /// The attachments that GC has to keep.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidConfig`] without a list, or with one that cannot be understood whole: guessing would take pods off
    /// the network.
    pub(super) fn valid_attachments(&self) -> Result<Vec<Attachment>, Failure> {
        let invalid = |what: String| Failure::new(Code::InvalidConfig, format!("{VALID_ATTACHMENTS} {what}"));
        let list = self.keys.valid_attachments.as_ref().or(self.keys.attachments.as_ref());
        let items = match list {
            None => return Err(invalid("is missing: GC removes what is not in that list".into())),
            Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(invalid("is not an array".into())),
        };
        let attachment = |item: &Value| {
            let text = |key: &str| item.get(key)?.as_str().map(str::to_owned);
            let (Some(container), Some(ifname)) = (text("containerID"), text("ifname")) else {
                return Err(invalid(format!("has {item} instead of containerID and ifname")));
            };
            Attachment::new(container, ifname).map_err(|failure| invalid(format!("has {item}: {failure}")))
        };
        items.iter().map(attachment).collect()
    }

    /// The DNS settings of the configuration.
    fn dns(&self) -> Option<&Map<String, Value>> {
        self.keys.dns.as_ref()
    }

    /// Whether there is a previous result.
    pub(super) fn has_previous(&self) -> bool {
        self.keys.prev_result.is_some()
    }

    /// The result of the plugin before this one, to be added to; empty for the first.
    pub(super) fn previous(&self) -> Result<Previous, Failure> {
        let invalid = |what: &str| Failure::new(Code::InvalidConfig, format!("prevResult {what}"));
        let mut fields = match &self.keys.prev_result {
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

#[cfg(test)]
mod tests;
