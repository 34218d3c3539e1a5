//! Pods: a namespace, and the CNI plugin called on it as a container runtime does.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use overlay_userspace::family::{ByFamily, Family};
use serde_json::{Value, json};

use super::node::Site;
use super::{Lab, Namespace, Node, exec};

/// How long one call of the plugin may take; it needs milliseconds.
const PLUGIN_LIMIT: Duration = Duration::from_secs(10);

/// The interface that runtimes ask for.
const IFNAME: &str = "eth0";

/// One call of the CNI plugin: the environment and the input of the specification.
#[derive(Debug, Clone)]
pub struct CniCall {
    /// `CNI_COMMAND`: `ADD`, `DEL`, …
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; left out of the environment if `None`.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// The network configuration on standard input.
    pub conf: Value,
}

/// Why the plugin refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cni plugin failed with code {code}: {message}")]
pub struct CniError {
    /// The code of the specification's error object; −1 if there was no such object.
    pub code: i64,
    /// Its `msg` and `details`, or whatever the plugin printed.
    pub message: String,
}

/// A pod that the plugin has attached.
#[derive(Debug)]
pub struct Pod {
    name: String,
    addrs: ByFamily<IpAddr>,
    namespace: Namespace,
    result: Value,
    call: CniCall,
    site: Arc<Site>,
}

impl Node {
    /// Makes a pod: namespace `<lab>-<node>-<name>`, then the plugin's ADD, which must succeed.
    #[track_caller]
    pub fn add_pod(&self, lab: &Lab, name: &str) -> Pod {
        match self.try_add_pod(lab, name) {
            Ok(pod) => pod,
            Err(error) => panic!("cannot add pod {name} on {}: {error}", self.name()),
        }
    }

    /// As [`Node::add_pod`]; a refusal of the plugin is the caller's.
    #[track_caller]
    pub fn try_add_pod(&self, lab: &Lab, name: &str) -> Result<Pod, CniError> {
        self.try_add_pod_with(lab, name, &Value::Null)
    }

    /// As [`Node::add_pod`], with host ports: `[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]`.
    #[track_caller]
    pub fn add_pod_with_ports(&self, lab: &Lab, name: &str, mappings: &Value) -> Pod {
        match self.try_add_pod_with(lab, name, &json!({ "portMappings": mappings })) {
            Ok(pod) => pod,
            Err(error) => panic!("cannot add pod {name} on {}: {error}", self.name()),
        }
    }

    /// As [`Node::try_add_pod`], with a `runtimeConfig`; null is none.
    #[track_caller]
    pub fn try_add_pod_with(&self, lab: &Lab, name: &str, runtime_config: &Value) -> Result<Pod, CniError> {
        // The runtime has lo up before the first plugin (CNI's own `loopback`).
        let namespace = lab.namespace(&format!("{}-{name}", self.name()));
        let mut call = self.cni_call("ADD", &namespace, name);
        if !runtime_config.is_null() {
            call.conf["runtimeConfig"] = runtime_config.clone();
        }
        let result = self.cni(&call)?;
        let addrs = addresses(&result).ok_or_else(|| CniError {
            code: -1,
            message: format!("no address of each family in the result of ADD: {result}"),
        })?;
        let site = Arc::clone(self.site());
        Ok(Pod { name: name.to_owned(), addrs, namespace, result, call, site })
    }

    /// The call that a runtime makes for pod `name`; change what a test needs otherwise.
    pub fn cni_call(&self, command: &str, pod: &Namespace, name: &str) -> CniCall {
        let container_id = pod.name().to_owned();
        CniCall {
            command: command.to_owned(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={container_id}"
            ),
            container_id,
            netns: Some(pod.path()),
            ifname: IFNAME.to_owned(),
            conf: json!({
                "cniVersion": "1.0.0",
                "name": "overlay",
                "type": "overlay",
                "pins": self.pins(),
            }),
        }
    }

    /// Runs the plugin on the node; gives the result, `null` where the command has none.
    #[track_caller]
    pub fn cni(&self, call: &CniCall) -> Result<Value, CniError> {
        self.site().cni(call)
    }
}

/// The addresses in a result of ADD: at least one, at most one of each family.
fn addresses(result: &Value) -> Option<ByFamily<IpAddr>> {
    let parse = |ip: &Value| Some(ip["address"].as_str()?.parse::<IpNet>().ok()?.addr());
    let all = result["ips"].as_array()?.iter().map(parse).collect::<Option<Vec<_>>>()?;
    ByFamily::from_values(all).ok().filter(|all| !all.is_empty())
}

impl Site {
    #[track_caller]
    fn cni(&self, call: &CniCall) -> Result<Value, CniError> {
        let binary = self.plugin();
        // Only what the specification gives a plugin: the configuration names the pins.
        let mut command = self.namespace.command(&binary);
        command.arg("cni");
        command.env("CNI_COMMAND", &call.command).env("CNI_CONTAINERID", &call.container_id);
        command.env("CNI_IFNAME", &call.ifname).env("CNI_ARGS", &call.args);
        command.env("CNI_PATH", binary.parent().unwrap_or(&binary));
        if let Some(netns) = &call.netns {
            command.env("CNI_NETNS", netns);
        }
        let out = exec::output(&mut command, call.conf.to_string().as_bytes(), PLUGIN_LIMIT);
        let out = out.unwrap_or_else(|error| panic!("cannot run the cni plugin on {}: {error}", self.name));
        let parsed = serde_json::from_str::<Value>(&out.stdout);
        if out.status.success() {
            return match parsed {
                Ok(result) => Ok(result),
                Err(_) if out.stdout.trim().is_empty() => Ok(Value::Null),
                Err(error) => {
                    Err(CniError { code: -1, message: format!("bad result: {error}: {}", out.stdout) })
                }
            };
        }
        let object = parsed.unwrap_or_default();
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        Err(match object["code"].as_i64() {
            Some(code) => CniError { code, message: [text("msg"), text("details")].join(" ") },
            None => CniError { code: -1, message: format!("{}: {}{}", out.status, out.stdout, out.stderr) },
        })
    }
}

impl Pod {
    /// Its name on its node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.site.name
    }

    /// Its addresses.
    pub fn addrs(&self) -> ByFamily<IpAddr> {
        self.addrs
    }

    /// Its address of this family, which it must have.
    #[track_caller]
    pub fn addr_of(&self, family: Family) -> IpAddr {
        let addr = self.addrs.get(family);
        *addr.unwrap_or_else(|| panic!("pod {} on {} has no {family} address", self.name, self.node()))
    }

    /// Its IPv4 address, which it must have.
    #[track_caller]
    pub fn addr(&self) -> Ipv4Addr {
        let IpAddr::V4(addr) = self.addr_of(Family::Ipv4) else { unreachable!("an IPv4 address") };
        addr
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The whole result of ADD.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// The host side of its veth pair: the interface of the result that is in no sandbox.
    #[track_caller]
    pub fn host_device(&self) -> String {
        let interfaces = self.result["interfaces"].as_array().expect("a result of ADD lists interfaces");
        let host = interfaces.iter().find(|interface| {
            interface["sandbox"].as_str().unwrap_or_default().is_empty() && interface["name"].is_string()
        });
        host.and_then(|host| host["name"].as_str()).expect("a result of ADD names the host device").to_owned()
    }

    /// Calls the plugin's DEL, which must succeed. The namespace stays until the pod is dropped.
    #[track_caller]
    pub fn del(&self) {
        let call = CniCall { command: "DEL".to_owned(), ..self.call.clone() };
        if let Err(error) = self.site.cni(&call) {
            panic!("cannot delete pod {} on {}: {error}", self.name, self.site.name);
        }
    }
}
