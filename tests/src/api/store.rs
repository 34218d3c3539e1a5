//! The Nodes and what has happened to them, under one resource version that grows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

/// One event of a watch.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) version: u64,
    /// The line as it is sent, without its end.
    pub(super) line: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    nodes: BTreeMap<String, Arc<Value>>,
    history: Vec<Event>,
    /// Watches from before this version are told 410 Gone.
    oldest: u64,
    /// Lists that are under way, by version.
    lists: HashMap<u64, Vec<Arc<Value>>>,
}

impl Default for Store {
    fn default() -> Self {
        Self { version: 100, nodes: BTreeMap::new(), history: Vec::new(), oldest: 0, lists: HashMap::new() }
    }
}

/// The token or the version is older than what is known.
pub(super) struct Gone;

impl Store {
    pub(super) fn put(&mut self, mut node: Value) {
        self.version += 1;
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = node["metadata"]["name"].as_str().expect("a Node has a name").to_owned();
        let kind = if self.nodes.contains_key(&name) { "MODIFIED" } else { "ADDED" };
        self.record(kind, &node);
        self.nodes.insert(name, Arc::new(node));
    }

    #[track_caller]
    pub(super) fn delete(&mut self, name: &str) {
        let node = self.nodes.remove(name).unwrap_or_else(|| panic!("there is no Node {name}"));
        self.version += 1;
        let mut node = (*node).clone();
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.record("DELETED", &node);
    }

    pub(super) fn bookmark(&mut self) {
        self.version += 1;
        let meta = json!({"resourceVersion": self.version.to_string(), "creationTimestamp": null});
        self.record("BOOKMARK", &json!({"kind": "Node", "apiVersion": "v1", "metadata": meta}));
    }

    fn record(&mut self, kind: &str, object: &Value) {
        let line = json!({"type": kind, "object": object}).to_string();
        self.history.push(Event { version: self.version, line: line.into() });
    }

    pub(super) fn nodes(&self) -> Vec<Value> {
        self.nodes.values().map(|node| (**node).clone()).collect()
    }

    /// Also makes a change of its own, so that nobody is up to date.
    pub(super) fn forget(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
        self.lists.clear();
    }

    /// A page of a list, as it is sent.
    pub(super) fn page(&mut self, limit: Option<usize>, token: Option<&str>) -> Result<String, Gone> {
        let (version, begin) = match token {
            None => {
                self.lists.insert(self.version, self.nodes.values().cloned().collect());
                (self.version, 0)
            }
            Some(token) => {
                let (version, begin) = token.split_once('-').ok_or(Gone)?;
                (version.parse().map_err(|_| Gone)?, begin.parse::<usize>().map_err(|_| Gone)?)
            }
        };
        let list = self.lists.get(&version).ok_or(Gone)?;
        let end = limit.map_or(list.len(), |limit| list.len().min(begin + limit));
        let mut meta = json!({"resourceVersion": version.to_string()});
        if end < list.len() {
            meta["continue"] = json!(format!("{version}-{end}"));
            meta["remainingItemCount"] = json!(list.len() - end);
        }
        let items: Vec<&Value> = list[begin..end].iter().map(AsRef::as_ref).collect();
        Ok(json!({"kind": "NodeList", "apiVersion": "v1", "metadata": meta, "items": items}).to_string())
    }

    /// What has happened after `version`.
    pub(super) fn since(&self, version: u64) -> Result<Vec<Event>, Gone> {
        if version < self.oldest {
            return Err(Gone);
        }
        let from = self.history.partition_point(|event| event.version <= version);
        Ok(self.history[from..].to_vec())
    }
}
