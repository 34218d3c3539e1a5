//! A Kubernetes API server as far as Nodes and Events go, over real HTTP: lists in pages that stay consistent, watches
//! with bookmarks, a history that can be forgotten (410 Gone), and everything that goes wrong with a real one.
//!
//! One [`Api`] listens in as many network namespaces as asked for: a socket belongs to the namespace that it was made in.

mod http;
mod store;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::lab::Namespace;
pub use http::Fault;
use store::Store;

/// How often a thread that waits looks whether the server is there still.
const POLL: Duration = Duration::from_millis(20);

/// A server; it ends when it is dropped.
#[derive(Debug)]
pub struct Api {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something has changed: nodes, faults, whether the server is there.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    /// What befalls the next requests, in this order.
    faults: VecDeque<Fault>,
    /// What befalls all of them.
    lasting: Option<Fault>,
    /// Method and target of every request.
    requests: Vec<String>,
    /// What was written, other than by the test: method, path, body.
    written: Vec<(String, String, Value)>,
    listening: Vec<(Namespace, SocketAddr)>,
    connections: Vec<TcpStream>,
    /// The server is there. Counted, so that threads of an earlier life end.
    life: Option<u64>,
    lives: u64,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

impl Api {
    /// A server without Nodes that listens nowhere yet.
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let mut state = shared.state();
        state.life = Some(0);
        drop(state);
        Self { shared }
    }

    /// Listens at this address of a namespace.
    #[track_caller]
    pub fn listen(&self, namespace: &Namespace, address: SocketAddr) {
        let life = {
            let mut state = self.shared.state();
            state.listening.push((namespace.clone(), address));
            state.life
        };
        if let Some(life) = life {
            self.open(namespace, address, life);
        }
    }

    #[track_caller]
    fn open(&self, namespace: &Namespace, address: SocketAddr, life: u64) {
        let listener = namespace.run(|| TcpListener::bind(address));
        let listener = listener.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
        listener.set_nonblocking(true).expect("make a listener nonblocking");
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || accept(&listener, &shared, life));
    }

    /// Refuses connections and cuts those that are there, as a server that has died.
    pub fn stop(&self) {
        let mut state = self.shared.state();
        state.life = None;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        // The listeners are gone when their threads have seen it.
        while Arc::strong_count(&self.shared) > 1 {
            thread::sleep(POLL / 4);
        }
    }

    /// Is there again, with all that it knew.
    #[track_caller]
    pub fn start(&self) {
        let (life, listening) = {
            let mut state = self.shared.state();
            state.lives += 1;
            state.life = Some(state.lives);
            (state.lives, state.listening.clone())
        };
        for (namespace, address) in listening {
            self.open(&namespace, address, life);
        }
    }

    /// Adds a Node, or replaces it.
    #[track_caller]
    pub fn put(&self, node: Value) {
        self.shared.state().store.put(node);
        self.shared.changed.notify_all();
    }

    /// Deletes a Node.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        self.shared.state().store.delete(name);
        self.shared.changed.notify_all();
    }

    /// The Nodes that there are.
    pub fn nodes(&self) -> Vec<Value> {
        self.shared.state().store.nodes()
    }

    /// Forgets what has changed so far: a watch that is not up to date ends with 410 Gone, and so does a list between two
    /// pages.
    pub fn forget(&self) {
        self.shared.state().store.forget();
        self.shared.changed.notify_all();
    }

    /// Sends every watch a bookmark of this moment.
    pub fn bookmark(&self) {
        self.shared.state().store.bookmark();
        self.shared.changed.notify_all();
    }

    /// What befalls the next requests, each one, in this order.
    pub fn faults(&self, faults: &[Fault]) {
        self.shared.state().faults.extend(faults);
        self.shared.changed.notify_all();
    }

    /// What befalls every request from now on; `None` is the end of it.
    pub fn lasting_fault(&self, fault: Option<Fault>) {
        self.shared.state().lasting = fault;
        self.shared.changed.notify_all();
    }

    /// Ends all connections as they are; the server stays.
    pub fn cut(&self) {
        for connection in self.shared.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Method and target of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// What agents have written: method, path, body.
    pub fn written(&self) -> Vec<(String, String, Value)> {
        self.shared.state().written.clone()
    }

    /// The Events that agents have written.
    pub fn events(&self) -> Vec<Value> {
        let written = self.written();
        written.into_iter().filter(|(_, path, _)| path.contains("/events")).map(|(_, _, body)| body).collect()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panics while it holds this still has to clean up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self, life: u64) -> bool {
        self.state().life == Some(life)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, life: u64) {
    while shared.lives(life) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("make a connection blocking");
                let mut state = shared.state();
                state.connections.extend(stream.try_clone().ok());
                drop(state);
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    // A client that goes away is no fault.
                    let _ = converse(&stream, &shared, life);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(POLL / 2),
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Answers the requests of one connection, one after the other.
fn converse(stream: &TcpStream, shared: &Shared, life: u64) -> io::Result<()> {
    let mut reader = io::BufReader::new(stream.try_clone()?);
    while let Some(request) = http::read(&mut reader)? {
        let fault = {
            let mut state = shared.state();
            state.requests.push(format!("{} {}", request.method, request.target));
            state.faults.pop_front().or(state.lasting)
        };
        if !http::answer(stream, shared, life, &request, fault)? {
            break;
        }
    }
    Ok(())
}

/// A Node as the API has it, with what a real one carries along. Of addresses and subnets as many as the texts have, separated
/// by spaces.
pub fn node(name: &str, address: &str, subnet: &str) -> Value {
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": format!("uid-of-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {"f:images": {}}}}],
        },
        "spec": {},
        "status": {
            "addresses": [{"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "images": (0..20)
                .map(|n| json!({"names": [format!("registry.example/image-{n}@sha256:{n:064}")], "sizeBytes": n}))
                .collect::<Vec<_>>(),
        },
    });
    let subnets: Vec<_> = subnet.split_whitespace().collect();
    if let Some(first) = subnets.first() {
        node["spec"] = json!({"podCIDR": first, "podCIDRs": subnets});
    }
    let addresses = node["status"]["addresses"].as_array_mut().expect("a list");
    addresses.extend(address.split_whitespace().map(|ip| json!({"type": "InternalIP", "address": ip})));
    node
}

/// The same Node, made so many seconds later than the others.
#[must_use]
pub fn younger(mut node: Value, seconds: u8) -> Value {
    assert!(seconds < 60, "within a minute");
    node["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{seconds:02}Z"));
    node
}

/// A kubeconfig that leads to the server at this address.
pub fn kubeconfig(address: SocketAddr) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "lab", "user": {"token": "none"}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    })
    .to_string()
}

/// Subnets and addresses of a Node, as [`node`] was given them; `None` where it lacks one or the other.
pub fn facts(node: &Value) -> Option<(Vec<IpNet>, Vec<IpAddr>)> {
    let subnets = node["spec"]["podCIDRs"].as_array()?.iter().map(|text| text.as_str()?.parse().ok());
    let internal =
        node["status"]["addresses"].as_array()?.iter().filter(|address| address["type"] == "InternalIP");
    let addresses: Vec<_> =
        internal.map(|address| address["address"].as_str()?.parse().ok()).collect::<Option<_>>()?;
    (!addresses.is_empty()).then_some((subnets.collect::<Option<_>>()?, addresses))
}
