//! `cargo xtask e2e`: the end-to-end tests, on a real cluster.
//!
//! It takes a kubeconfig and ways to run commands on nodes, load images, stop the API server and add nodes, so that it works
//! alike on clusters made of machines, containers or namespaces. What it cannot do without one of these is reported as not
//! run, which is a failure, unless other cases are named. Each case prints what it has measured.
//!
//! What it makes is in the namespace `overlay-e2e` and is removed in the end, also after failures, as is overlay, unless it was
//! there before or `--keep` is given.

mod cluster;
mod crowd;
mod desk;
mod fresh;
mod members;
mod operate;
mod page;
mod plugin;
mod pods;
mod rights;
mod scale;
mod survival;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use self::cluster::Cluster;
use crate::{
    ebpf, image,
    report::Report,
    setup::{self, Part},
    workspace::Workspace,
};

/// Where overlay is.
const SYSTEM: &str = "kube-overlay";
/// Where everything of the tests is.
const NAMESPACE: &str = "overlay-e2e";
/// What runs in the tests' pods.
const PROBE: &str = concat!("localhost/overlay-probe:", env!("CARGO_PKG_VERSION"));
/// The range in deploy/overlay.yaml.
const POD_CIDR: &str = "10.244.0.0/16";

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    access: Access,
    /// The image of overlay [default: built]
    #[arg(long, value_name = "TAR")]
    image: Option<PathBuf>,
    /// The range of the cluster's pods
    #[arg(long, value_name = "CIDR", default_value = POD_CIDR)]
    pod_cidr: String,
    /// The manifest to apply
    #[arg(long, value_name = "FILE", default_value = "deploy/overlay.yaml")]
    manifest: PathBuf,
    /// Stops the API server
    #[arg(long, value_name = "CMD", requires = "api_start")]
    api_stop: Option<String>,
    /// Starts it again
    #[arg(long, value_name = "CMD", requires = "api_stop")]
    api_start: Option<String>,
    /// Adds the node that --new-node names to the cluster
    #[arg(long, value_name = "CMD", requires = "new_node")]
    node_add: Option<String>,
    /// Takes it away again, and deletes its Node object
    #[arg(long, value_name = "CMD", requires = "node_add")]
    node_remove: Option<String>,
    /// Its name
    #[arg(long, value_name = "NAME")]
    new_node: Option<String>,
    /// How many pods to scale to
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// How many Node objects to add to the API server, in the case `crowd`
    #[arg(long, default_value_t = 5000)]
    crowd: usize,
    /// Run only these
    #[arg(long, value_name = "NAME")]
    only: Vec<Case>,
    /// Leave overlay in the cluster
    #[arg(long)]
    keep: bool,
}

/// How to reach the cluster.
#[derive(Args)]
pub(crate) struct Access {
    /// How kubectl reaches the cluster, as somebody who may do everything
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// kubectl, with a prefix if need be
    #[arg(long, value_name = "CMD", default_value = "kubectl")]
    kubectl: String,
    /// Runs a command, which is appended, as root on the node {node}: `ssh root@{node}`, `docker exec {node}`
    #[arg(long, value_name = "CMD")]
    node_exec: Option<String>,
    /// Makes the image archive {tar} known to every node: `kind load image-archive {tar}`
    #[arg(long, value_name = "CMD")]
    load: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// All nodes become ready, and all pods and nodes reach each other untranslated
    Fresh,
    /// Hundreds of pods come and go
    Scale,
    /// Rolling restart under traffic
    Restart,
    /// Upgrade to another image under traffic
    Upgrade,
    /// Upgrade to an image of the next schema under traffic
    Schema,
    /// SIGKILL of every agent under traffic
    Kill,
    /// The API server is away for a minute, under traffic
    Api,
    /// A node is added, and removed
    Members,
    /// The agent may do what the manifest says, and nothing else
    Rights,
    /// `kubectl overlay` on all nodes
    Plugin,
    /// What people look at a cluster with: monitor, capture, trace, doctor, lists, dumps
    Operate,
    /// The page, and Prometheus
    Page,
    /// Thousands of Node objects
    Crowd,
}

impl Case {
    const fn title(self) -> &'static str {
        match self {
            Self::Fresh => "fresh: nodes ready, everybody reaches everybody untranslated",
            Self::Scale => "scale: pods come and go, no address is lost",
            Self::Restart => "restart: rolling restart under traffic",
            Self::Upgrade => "upgrade: another image under traffic",
            Self::Schema => "schema: the next schema and back under traffic",
            Self::Kill => "kill: SIGKILL of the agents under traffic",
            Self::Api => "api: no API server for a minute, under traffic",
            Self::Members => "members: a node comes and goes",
            Self::Rights => "rights: refusals of the API server",
            Self::Plugin => "plugin: kubectl overlay says what each node says",
            Self::Operate => "operate: monitor, capture, trace, doctor and lists say what is",
            Self::Page => "page: page and metrics of all nodes, by a real Prometheus",
            Self::Crowd => "crowd: thousands of nodes",
        }
    }

    fn run(self, suite: &Suite<'_>) -> Result<()> {
        match self {
            Self::Fresh => fresh::run(suite),
            Self::Scale => scale::run(suite),
            Self::Restart => survival::restart(suite),
            Self::Upgrade => survival::upgrade(suite),
            Self::Schema => survival::schema(suite),
            Self::Kill => survival::kill(suite),
            Self::Api => survival::api(suite),
            Self::Members => members::run(suite),
            Self::Rights => rights::run(suite),
            Self::Plugin => plugin::run(suite),
            Self::Operate => operate::run(suite),
            Self::Page => page::run(suite),
            Self::Crowd => crowd::run(suite),
        }
    }

    /// The option that the case is impossible without.
    fn lacks(self, options: &Options) -> Option<&'static str> {
        let missing = |option: Option<&String>, name| option.is_none().then_some(name);
        match self {
            Self::Fresh
            | Self::Scale
            | Self::Restart
            | Self::Upgrade
            | Self::Schema
            | Self::Plugin
            | Self::Operate => None,
            Self::Page => page::lacks(),
            Self::Kill | Self::Rights | Self::Crowd => {
                missing(options.access.node_exec.as_ref(), "needs --node-exec")
            }
            Self::Api => missing(options.api_stop.as_ref(), "needs --api-stop and --api-start"),
            Self::Members => missing(options.node_remove.as_ref(), "needs --node-add and --node-remove"),
        }
    }
}

/// What the cases have in common.
struct Suite<'a> {
    options: &'a Options,
    cluster: Cluster<'a>,
    images: Images,
    /// The program of the images.
    binary: PathBuf,
    manifest: String,
}

/// Archives to load.
struct Images {
    overlay: PathBuf,
    probe: PathBuf,
    /// Another build of overlay, and its reference.
    upgrade: (PathBuf, String),
    /// A build of the next schema, and its reference; where a case wants it.
    next: Option<(PathBuf, String)>,
    /// Prometheus of this machine; where a case wants it.
    prometheus: Option<PathBuf>,
}

impl Options {
    fn wants(&self, case: Case) -> bool {
        (self.only.is_empty() || self.only.contains(&case)) && case.lacks(self).is_none()
    }
}

/// Runs the cases.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let path = workspace.root().join(&options.manifest);
    let manifest = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        options.pod_cidr == POD_CIDR || manifest.contains(POD_CIDR),
        "{} does not name {POD_CIDR}, so --pod-cidr cannot be put in its place",
        path.display()
    );
    let manifest = manifest.replace(POD_CIDR, &options.pod_cidr);
    setup::ensure(&[Part::Host, Part::Bpf, Part::Image])?;

    let mut report = Report::default();
    let Some((images, binary)) = report.step("images", || build_images(workspace, options)) else {
        return report.finish();
    };
    let suite = Suite { options, cluster: Cluster::new(&options.access), images, binary, manifest };
    let before = suite.cluster.attempt(&["get", "namespace", SYSTEM])?.0;
    if report.step("images loaded, overlay applied", || fresh::install(&suite)).is_some() {
        for case in Case::value_variants().iter().copied() {
            if !options.only.is_empty() && !options.only.contains(&case) {
                continue;
            }
            match case.lacks(options) {
                Some(why) => report.skip(case.title(), why),
                None => {
                    report.step(case.title(), || case.run(&suite));
                }
            }
        }
    }
    report.step("everything removed", || fresh::remove(&suite, options.keep || before));
    report.finish()
}

fn build_images(workspace: &Workspace, options: &Options) -> Result<(Images, PathBuf)> {
    let dir = workspace.target().join("images");
    // Before the delivered one, whose place in the target directory it takes.
    let next = if options.wants(Case::Schema) {
        let object = ebpf::build_schema(workspace, ebpf::Schema::Next)?;
        let binary = workspace.build_next_static(&object)?;
        let next = (dir.join("overlay-next.tar"), format!("{}-next", image::REFERENCE));
        image::overlay(&binary, &next.1, false, &next.0)?;
        Some(next)
    } else {
        None
    };
    let prometheus = if options.wants(Case::Page) {
        let prometheus = dir.join("prometheus.tar");
        page::build(&prometheus)?;
        Some(prometheus)
    } else {
        None
    };
    let object = ebpf::build(workspace)?;
    let [binary, probe] = workspace.build_static(["overlay", "probe"], &object)?;
    let images = Images {
        // The command that loads it may work in another directory.
        overlay: match &options.image {
            Some(image) => std::path::absolute(image).with_context(|| format!("find {}", image.display()))?,
            None => dir.join("overlay.tar"),
        },
        probe: dir.join("probe.tar"),
        upgrade: (dir.join("overlay-upgrade.tar"), format!("{}-upgrade", image::REFERENCE)),
        next,
        prometheus,
    };
    if options.image.is_none() {
        image::overlay(&binary, image::REFERENCE, false, &images.overlay)?;
    }
    image::single(&probe, PROBE, &images.probe)?;
    // The same program in another file, so that the plugin on the nodes has to be replaced too: an ELF loader reads what the
    // headers name, and nothing behind it.
    let other = dir.join("overlay-upgrade");
    let mut content = fs::read(&binary).with_context(|| format!("read {}", binary.display()))?;
    content.extend_from_slice(b"upgrade");
    fs::write(&other, content).with_context(|| format!("write {}", other.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&other, mode).with_context(|| format!("make {} executable", other.display()))?;
    image::overlay(&other, &images.upgrade.1, false, &images.upgrade.0)?;
    Ok((images, binary))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let always = ["e2e", "--kubeconfig", "/k"];
        Line::try_parse_from(always.iter().chain(arguments)).map(|line| line.options)
    }

    #[test]
    fn a_case_without_the_means_for_it_says_which_option_is_missing() {
        let options = parse(&[]).unwrap();
        let lacking = Case::value_variants().iter().filter(|case| case.lacks(&options).is_some());
        // The page needs no option, but a program.
        assert_eq!(lacking.filter(|case| **case != Case::Page).count(), 5);
        let options = parse(&["--node-exec", "ssh {node}", "--api-stop", "a", "--api-start", "b"]).unwrap();
        assert_eq!(Case::Api.lacks(&options), None);
        assert_eq!(Case::Members.lacks(&options), Some("needs --node-add and --node-remove"));
    }

    #[test]
    fn commands_that_undo_each_other_are_given_together() {
        assert!(parse(&["--api-stop", "a"]).is_err());
        assert!(parse(&["--node-remove", "a"]).is_err());
        assert!(parse(&["--only", "kill", "--only", "api"]).is_ok());
        assert!(parse(&["--only", "nothing"]).is_err());
    }
}
