//! What every case works with: the plugins under test, called as a runtime calls them, and the containers.
//!
//! The verbs follow §3 of the specification: ADD in the order of the list, each result handed on as `prevResult`; DEL
//! in reverse and CHECK in order, both with the final result; GC goes on after an error.

use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use super::container::{Attached, Container};
use super::host::Host;
use super::network::{Extra, Network};
use super::plugin::{Answer, Call, Plugin};
use super::state::State;
use super::version::Version;

/// `CNI_ARGS` that runtimes of Kubernetes pass.
pub(crate) const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=conformance;\
                               K8S_POD_INFRA_CONTAINER_ID=0;K8S_POD_UID=0";

/// The interface that runtimes ask for.
pub(crate) const IFNAME: &str = "eth0";

/// The key of GC's input by the specification.
pub(crate) const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The key as libcni wrote it at first, and still writes as well.
pub(crate) const VALID_ATTACHMENTS_OLD: &str = "cni.dev/attachments";

/// What the command line says about the plugins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Where to look for binaries, in order.
    pub(crate) plugin_dirs: Vec<PathBuf>,
    /// Capability arguments.
    pub(crate) capabilities: Map<String, Value>,
    /// Versions to speak; those that all plugins claim, if empty.
    pub(crate) versions: Vec<Version>,
    /// Whether GC may remove what is not the suite's.
    pub(crate) collect: bool,
    /// How long one call may take.
    pub(crate) limit: Duration,
}

/// The plugins of one network on one host.
#[derive(Debug)]
pub(crate) struct Suite<'h> {
    /// The host.
    pub(crate) host: &'h Host,
    /// The network.
    pub(crate) network: Network,
    /// The binaries, one per plugin of the network.
    pub(crate) plugins: Vec<Plugin>,
    /// Versions that are spoken, oldest first.
    pub(crate) versions: Vec<Version>,
    /// The host before the first call.
    pub(crate) untouched: State,
    /// Whether GC may remove what is not the suite's.
    pub(crate) collect: bool,
    capabilities: Map<String, Value>,
    path: String,
    limit: Duration,
}

/// Parameters of one attachment (§3 "Attachment Parameters").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// `CNI_CONTAINERID`.
    pub(crate) id: String,
    /// `CNI_NETNS`; left out if `None`.
    pub(crate) netns: Option<String>,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
}

/// A plugin of the chain has refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What it answered.
    pub(crate) answer: Answer,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.answer.fmt(f)
    }
}

impl std::error::Error for Refusal {}

impl<'h> Suite<'h> {
    /// Finds the plugins and asks for their versions.
    ///
    /// Errors: a binary is missing.
    pub(crate) fn new(host: &'h Host, network: Network, settings: &Settings) -> Result<Self> {
        let find = |kind: &str| {
            let mut candidates = settings.plugin_dirs.iter().map(|dir| dir.join(kind));
            let path = candidates.find(|path| path.is_file());
            let path = path.with_context(|| format!("no plugin {kind} in {:?}", settings.plugin_dirs))?;
            Ok(Plugin { kind: kind.to_owned(), path })
        };
        let plugins: Result<Vec<_>> = network.plugins.iter().map(|plugin| find(&plugin.kind)).collect();
        let path = env::join_paths(&settings.plugin_dirs).context("a plugin directory has a colon")?;
        let mut suite = Self {
            host,
            network,
            plugins: plugins?,
            versions: settings.versions.clone(),
            untouched: State::read(host)?,
            collect: settings.collect,
            capabilities: settings.capabilities.clone(),
            path: path.to_str().context("plugin directories are not UTF-8")?.to_owned(),
            limit: settings.limit,
        };
        if suite.versions.is_empty() {
            let claims = (0..suite.plugins.len()).map(|index| suite.claims(index));
            let claims: Vec<BTreeSet<String>> = claims.collect::<Result<_>>()?;
            let all_claim = |version: &Version| claims.iter().all(|claims| claims.contains(version.as_str()));
            suite.versions = Version::ALL.into_iter().filter(all_claim).collect();
        }
        suite.versions.sort_unstable();
        Ok(suite)
    }

    /// What plugin `index` says that it supports.
    fn claims(&self, index: usize) -> Result<BTreeSet<String>> {
        let call = Call::new("VERSION").conf(&json!({"cniVersion": "1.0.0"}));
        let answer = self.call(index, &call)?;
        // A plugin that cannot answer speaks no version; the cases for VERSION say what is wrong.
        let answer = answer.json().unwrap_or_default();
        let versions = answer["supportedVersions"].as_array().into_iter().flatten();
        Ok(versions.filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// The newest version that is spoken.
    pub(crate) fn newest(&self) -> Option<Version> {
        self.versions.last().copied()
    }

    /// Calls plugin `index` with exactly this.
    pub(crate) fn call(&self, index: usize, call: &Call) -> Result<Answer> {
        let plugin = self.plugins.get(index).context("no such plugin")?;
        plugin.call(call, self.limit)
    }

    /// The request configuration of plugin `index`.
    pub(crate) fn conf(&self, index: usize, version: Version, previous: Option<&Value>) -> Result<Value> {
        let plugin = self.network.plugins.get(index).context("no such plugin")?;
        let extra = Extra { previous, capabilities: Some(&self.capabilities) };
        Ok(self.network.request(plugin, version.as_str(), extra))
    }

    /// A call with the whole environment of an attachment, without input.
    pub(crate) fn attachment_call(&self, command: &str, target: &Target) -> Call {
        let call = Call::new(command)
            .set("CNI_CONTAINERID", &target.id)
            .set("CNI_IFNAME", &target.ifname)
            .set("CNI_ARGS", ARGS)
            .set("CNI_PATH", &self.path);
        match &target.netns {
            Some(netns) => call.set("CNI_NETNS", netns),
            None => call,
        }
    }

    /// A call without attachment, without input: GC, STATUS.
    pub(crate) fn network_call(&self, command: &str) -> Call {
        Call::new(command).set("CNI_PATH", &self.path)
    }

    /// ADD by all plugins; gives the final result and the time that they took together.
    ///
    /// Errors: a [`Refusal`], or that a plugin cannot be run or answers in no JSON.
    pub(crate) fn add(&self, version: Version, target: &Target) -> Result<(Value, Duration)> {
        let (mut result, mut elapsed) = (None, Duration::ZERO);
        for index in 0..self.plugins.len() {
            let conf = self.conf(index, version, result.as_ref())?;
            let answer = self.call(index, &self.attachment_call("ADD", target).conf(&conf))?;
            elapsed += answer.elapsed();
            result = Some(done(answer)?.json()?);
        }
        Ok((result.context("a network has at least one plugin")?, elapsed))
    }

    /// ADD that must be refused by a plugin; gives its answer. One that succeeds is undone.
    pub(crate) fn add_refused(&self, version: Version, target: &Target) -> Result<Answer> {
        let added = self.add(version, target);
        if let Ok((result, _)) = &added {
            let _ = self.del(version, target, Some(result));
        }
        refusal(added)
    }

    /// ADD of what has been ADDed, which must be refused; gives the answer. DEL is the business of the first ADD.
    pub(crate) fn add_again_refused(&self, version: Version, target: &Target) -> Result<Answer> {
        refusal(self.add(version, target))
    }

    /// DEL by all plugins; gives the time that they took together.
    pub(crate) fn del(
        &self,
        version: Version,
        target: &Target,
        previous: Option<&Value>,
    ) -> Result<Duration> {
        let mut elapsed = Duration::ZERO;
        for index in (0..self.plugins.len()).rev() {
            let conf = self.conf(index, version, previous)?;
            let answer = self.call(index, &self.attachment_call("DEL", target).conf(&conf))?;
            elapsed += answer.elapsed();
            done(answer)?;
        }
        Ok(elapsed)
    }

    /// CHECK by all plugins; gives their answers, which are all good.
    pub(crate) fn check(&self, version: Version, target: &Target, previous: &Value) -> Result<Vec<Answer>> {
        let check = |index| {
            let conf = self.conf(index, version, Some(previous))?;
            done(self.call(index, &self.attachment_call("CHECK", target).conf(&conf))?)
        };
        (0..self.plugins.len()).map(check).collect()
    }

    /// GC by all plugins, with the list of valid attachments under each of `keys`; gives their answers.
    pub(crate) fn gc(&self, version: Version, keys: &[&str], valid: &[&Target]) -> Result<Vec<Answer>> {
        let list = |target: &&Target| json!({"containerID": target.id, "ifname": target.ifname});
        let list: Value = valid.iter().map(list).collect();
        let mut answers = Vec::new();
        for index in 0..self.plugins.len() {
            let mut conf = self.conf(index, version, None)?;
            if let Value::Object(fields) = &mut conf {
                fields.extend(keys.iter().map(|&key| (key.to_owned(), list.clone())));
            }
            answers.push(self.call(index, &self.network_call("GC").conf(&conf))?);
        }
        Ok(answers)
    }

    /// A new container.
    pub(crate) fn container(&self) -> Result<Container> {
        Container::create(self.host)
    }

    /// ADDs a container; DELs it at the latest when it is dropped.
    pub(crate) fn attach(
        &self,
        version: Version,
        container: &Container,
        ifname: &str,
    ) -> Result<Attached<'_>> {
        Attached::add(self, version, container.target(ifname))
    }

    /// The host as it is now.
    pub(crate) fn state(&self) -> Result<State> {
        State::read(self.host)
    }

    /// One attachment comes and goes, so that what a plugin makes once for all is there. Whether it works is for the
    /// cases to say.
    pub(crate) fn warm_up(&self) -> Result<()> {
        if let Some(version) = self.newest() {
            let container = self.container()?;
            let target = container.target(IFNAME);
            let result = self.add(version, &target).map(|(result, _)| result).ok();
            let _ = self.del(version, &target, result.as_ref());
        }
        Ok(())
    }
}

/// The answer by which an ADD was refused.
fn refusal<T>(added: Result<T>) -> Result<Answer> {
    match added {
        Ok(_) => anyhow::bail!("ADD succeeded, an error was expected"),
        Err(error) => error.downcast::<Refusal>().map(|refusal| refusal.answer),
    }
}

/// A failed call as an error.
fn done(answer: Answer) -> Result<Answer> {
    ensure!(answer.succeeded(), Refusal { answer });
    Ok(answer)
}
