//! The real kube-proxy on every node of a lab: etcd and kube-apiserver in a namespace of the lab, kube-proxy in each node's
//! network namespace, Services and Endpoints as objects.
//!
//! Nothing here creates Endpoints by itself (there is no controller manager), so a Service has exactly the backends that a
//! test gives it. Everything is authorised by one token, and every file is below the lab's directory. All processes die with the test.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ipnet::IpNet;
use overlay_userspace::family::Family;
use serde_json::{Value, json};

use super::{External, NAMESPACE, ProxyNode, Service, service_range, stale};
use crate::lab::runtime::{Daemon, append, record};
use crate::lab::{Lab, Namespace, exec, sweep, within};

/// Directories with the binaries, as `PATH` has them.
const PLACES: &str = "OVERLAY_KUBE_BIN";

/// The binaries needed.
const NAMES: [&str; 4] = ["etcd", "kube-apiserver", "kube-proxy", "kubectl"];

/// How long a part may take to answer after its start, on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(2);

/// How long every kube-proxy may take to follow a change.
const SYNC_LIMIT: Duration = Duration::from_secs(45);

/// Who everybody is.
const TOKEN: &str = "lab";

/// Port of the API server.
const PORT: u16 = 6443;

/// The binaries of Kubernetes on this machine.
#[derive(Debug, Clone)]
pub struct KubeBinaries([PathBuf; 4]);

impl KubeBinaries {
    /// Looks in the directories of `$OVERLAY_KUBE_BIN`; `None` if that is not set.
    ///
    /// Panics if it is set and a binary is in none of them.
    #[track_caller]
    pub fn find() -> Option<Self> {
        let places = env::var_os(PLACES).filter(|places| !places.is_empty())?;
        let find = |name: &str| {
            let found = env::split_paths(&places).map(|dir| dir.join(name)).find(|path| path.is_file());
            found.unwrap_or_else(|| panic!("no {name} in {PLACES}={}", places.display()))
        };
        Some(Self(NAMES.map(find)))
    }

    fn get(&self, name: &str) -> &Path {
        let index = NAMES.iter().position(|other| *other == name).expect("one of the names");
        &self.0[index]
    }
}

/// A running control plane, and a kube-proxy on each node. Dropping it ends all of them.
#[derive(Debug)]
pub struct ControlPlane {
    binaries: KubeBinaries,
    namespace: Namespace,
    kubeconfig: PathBuf,
    dir: PathBuf,
    processes: PathBuf,
    /// Proxies first, the store last.
    daemons: Vec<Daemon>,
}

impl ControlPlane {
    /// Starts all of it; returns when the API server is ready.
    #[track_caller]
    pub(super) fn start(
        lab: &Lab,
        binaries: &KubeBinaries,
        (namespace, address): (&Namespace, IpAddr),
        nodes: &[ProxyNode],
        cluster: IpNet,
    ) -> Self {
        let dir = lab.dir().join("kube");
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        let kubeconfig = dir.join("kubeconfig");
        write(&kubeconfig, &kubeconfig_for(address).to_string());
        write(&dir.join("tokens"), &format!("{TOKEN},lab,lab,system:masters\n"));
        let mut plane = Self {
            binaries: binaries.clone(),
            namespace: namespace.clone(),
            kubeconfig,
            dir,
            processes: sweep::processes_dir(lab.dir()),
            daemons: Vec::new(),
        };
        plane.start_store();
        plane.start_api(address);
        within(START_LIMIT, "the API server is ready", || {
            let ready = plane.kubectl(&["get", "--raw", "/readyz"], "");
            assert!(plane.is_running(), "the API server ended: {}", plane.log_tail("kube-apiserver"));
            ready.is_ok()
        });
        for node in nodes {
            plane.start_proxy(node, cluster);
        }
        plane
    }

    #[track_caller]
    fn start_store(&mut self) {
        let mut etcd = self.namespace.command(self.binaries.get("etcd"));
        let data = self.dir.join("etcd");
        etcd.arg("--data-dir").arg(data).arg("--unsafe-no-fsync");
        for (option, port) in [
            ("--listen-client-urls", 2379),
            ("--advertise-client-urls", 2379),
            ("--listen-peer-urls", 2380),
            ("--initial-advertise-peer-urls", 2380),
        ] {
            etcd.arg(format!("{option}=http://127.0.0.1:{port}"));
        }
        etcd.arg("--initial-cluster=default=http://127.0.0.1:2380");
        self.spawn(etcd, "etcd");
    }

    #[track_caller]
    fn start_api(&mut self, address: IpAddr) {
        // Nobody in the lab uses tokens of service accounts, but the API server does not start without a key for them.
        let key = self.dir.join("service-accounts.key");
        exec::must(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"), "");
        let mut api = self.namespace.command(self.binaries.get("kube-apiserver"));
        api.arg("--cert-dir").arg(self.dir.join("certificates"));
        api.arg("--token-auth-file").arg(self.dir.join("tokens"));
        api.arg("--service-account-key-file").arg(&key);
        api.arg("--service-account-signing-key-file").arg(&key);
        api.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--etcd-servers=http://127.0.0.1:2379",
            "--authorization-mode=AlwaysAllow",
        ]);
        api.arg(format!("--secure-port={PORT}")).arg(format!("--advertise-address={address}"));
        api.arg(format!("--service-cluster-ip-range={}", service_range(Family::Ipv4)));
        self.spawn(api, "kube-apiserver");
    }

    #[track_caller]
    fn start_proxy(&mut self, node: &ProxyNode, cluster: IpNet) {
        let mut proxy = node.namespace.command(self.binaries.get("kube-proxy"));
        proxy.arg("--kubeconfig").arg(&self.kubeconfig);
        proxy.arg(format!("--hostname-override={}", node.name)).arg(format!("--cluster-cidr={cluster}"));
        // The node's address: it would look for it in a Node object otherwise, for half a minute.
        proxy.arg(format!("--bind-address={}", node.address));
        proxy.args([
            "--proxy-mode=iptables",
            // Endpoints are what tests write; slices of them would be made by the controller manager.
            "--feature-gates=EndpointSliceProxying=false",
            "--iptables-min-sync-period=0s",
            // These are the machine's, not the namespace's.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
        ]);
        self.spawn(proxy, &format!("kube-proxy-{}", node.name));
    }

    /// Makes `now` the Services in place of `before`; returns when every proxy has followed.
    #[track_caller]
    pub(super) fn apply(&self, nodes: &[ProxyNode], before: &[Service], now: &[Service]) {
        let old = |name: &str| before.iter().find(|service| service.name == name);
        let (mut created, mut changed) = (Vec::new(), Vec::new());
        for service in now {
            match old(&service.name) {
                None => created.extend([service_object(service), endpoints_object(service)]),
                Some(old) if old.backends != service.backends => changed.push(endpoints_object(service)),
                Some(_) => {}
            }
        }
        let list = |items: Vec<Value>| json!({ "apiVersion": "v1", "kind": "List", "items": items });
        for (verb, items) in [("create", created), ("replace", changed)] {
            if !items.is_empty() {
                let done = self.kubectl(&[verb, "--validate=false", "-f", "-"], &list(items).to_string());
                done.unwrap_or_else(|error| panic!("kubectl {verb}: {error}"));
            }
        }
        for service in before.iter().filter(|old| now.iter().all(|new| new.name != old.name)) {
            let name = format!("service/{}", service.name);
            let done = self.kubectl(&["delete", &name], "");
            done.unwrap_or_else(|error| panic!("kubectl delete {name}: {error}"));
        }
        let wanted = translations(now);
        for node in nodes {
            within(SYNC_LIMIT, &format!("kube-proxy of {} follows: {wanted:?}", node.name), || {
                // It deletes conntrack entries after it has written the rules.
                written_translations(&node.namespace) == wanted && stale::is_forgotten(node, before, now)
            });
        }
    }

    #[track_caller]
    fn spawn(&mut self, mut command: Command, name: &str) {
        let log = append(&self.log_path(name));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate log descriptor")).stderr(log);
        let child = exec::spawn_tied(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let record = record(&self.processes, &format!("kube-{name}"), &child);
        // Those that need the others end before them.
        self.daemons.insert(0, Daemon { child, record });
    }

    /// Whether everything that was started still runs.
    fn is_running(&mut self) -> bool {
        self.daemons.iter_mut().all(|daemon| !daemon.ends_within(Duration::ZERO))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn log_tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log_path(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Runs kubectl beside the API server; gives its output, or what it says when it fails.
    fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.namespace.command(self.binaries.get("kubectl"));
        // What it caches stays in the lab.
        command.env("HOME", &self.dir).arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        let out = exec::output(&mut command, input.as_bytes(), SYNC_LIMIT);
        match out {
            Ok(out) if out.status.success() => Ok(out.stdout),
            Ok(out) => Err(out.stderr),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn kubeconfig_for(address: IpAddr) -> Value {
    let server = format!("https://{address}:{PORT}");
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "lab", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        "current-context": "lab",
    })
}

fn service_object(service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let protocol = port.protocol.to_string();
            let mut object = json!({
                "name": protocol,
                "protocol": protocol.to_uppercase(),
                "port": port.port,
                "targetPort": port.target,
            });
            if let Some(node_port) = port.node_port {
                object["nodePort"] = node_port.into();
            }
            object
        })
        .collect();
    let mut spec = json!({ "clusterIP": service.cluster_ip, "ports": ports });
    if service.ports.iter().any(|port| port.node_port.is_some()) {
        spec["type"] = "NodePort".into();
        spec["externalTrafficPolicy"] = match service.external {
            External::Cluster => "Cluster".into(),
            External::Local => "Local".into(),
        };
    }
    if let Some(time) = service.affinity {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": time.as_secs() } });
    }
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata(service), "spec": spec })
}

fn endpoints_object(service: &Service) -> Value {
    let address = |backend: &super::Backend| json!({ "ip": backend.addr, "nodeName": backend.node });
    let addresses: Vec<Value> = service.backends.iter().map(address).collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let protocol = port.protocol.to_string();
            json!({ "name": protocol, "protocol": protocol.to_uppercase(), "port": port.target })
        })
        .collect();
    let subsets =
        if addresses.is_empty() { json!([]) } else { json!([{ "addresses": addresses, "ports": ports }]) };
    json!({ "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata(service), "subsets": subsets })
}

fn metadata(service: &Service) -> Value {
    json!({ "name": service.name, "namespace": NAMESPACE })
}

/// Where each port of each Service leads to, as `(default/name:port, address:port)`.
fn translations(services: &[Service]) -> BTreeSet<(String, String)> {
    let ports = Service::ports_of(services);
    ports
        .flat_map(|(service, port)| {
            let name = service.port_name(port);
            let to =
                move |backend: &super::Backend| (name.clone(), format!("{}:{}", backend.addr, port.target));
            service.backends.iter().map(to).collect::<Vec<_>>()
        })
        .collect()
}

/// The same, as the rules of a node have it; without the API server's own Service.
#[track_caller]
fn written_translations(namespace: &Namespace) -> BTreeSet<(String, String)> {
    let text = exec::must(namespace.command("iptables-nft-save").args(["-t", "nat"]), "");
    let rules = text.lines().filter(|line| line.starts_with("-A KUBE-SEP-") && line.contains("-j DNAT"));
    rules
        .filter_map(|rule| {
            let after = |mark: &str| rule.split_once(mark)?.1.split_whitespace().next();
            let name = after("--comment ")?.trim_matches('"').to_owned();
            Some((name, after("--to-destination ")?.to_owned()))
        })
        .filter(|(name, _)| name != "default/kubernetes:https")
        .collect()
}

#[track_caller]
fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
