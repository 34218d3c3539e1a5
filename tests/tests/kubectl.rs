//! The kubectl plugin, with a `kubectl` that plays the API of the lab: it knows the lab's nodes as nodes with agents' pods, and
//! runs what is to be run in a pod on the node.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use overlay_tests::lab::{Cluster, Node, exec, overlay_binary};
use serde_json::{Value, json};

/// Each command is run on three nodes.
const LIMIT: Duration = Duration::from_mins(1);

/// A desk with a kubectl for a cluster.
struct Desk {
    dir: PathBuf,
    path: String,
}

impl Desk {
    /// `w2`'s pod is said to be pending; `down` is a node without anything.
    #[track_caller]
    fn new(cluster: &Cluster) -> Self {
        let dir = cluster.lab().dir().join("desk");
        fs::create_dir(&dir).unwrap();
        let pod = |node: &Node| {
            json!({
                "metadata": { "name": format!("overlay-{}", node.name()) },
                "spec": { "nodeName": node.name() },
                "status": { "phase": if node.name() == "w2" { "Pending" } else { "Running" } },
            })
        };
        let pods: Vec<_> = cluster.nodes().iter().map(pod).collect();
        fs::write(dir.join("pods"), json!({ "items": pods }).to_string()).unwrap();
        let names = cluster.nodes().iter().map(Node::name).chain(["down"]);
        let nodes: Vec<_> = names.map(|name| json!({ "metadata": { "name": name } })).collect();
        fs::write(dir.join("nodes"), json!({ "items": nodes }).to_string()).unwrap();
        let mut script = format!(
            "#!/bin/sh\necho \"$@\" >> {0}/calls\ncase \"$1\" in --context=*) shift;; esac\n\
             case \"$*\" in\n\
             \"get \"*\" pods --namespace kube-overlay --selector app.kubernetes.io/name=overlay\") cat {0}/pods; exit;;\n\
             \"get \"*\" pods --namespace \"*) echo '{{\"items\": []}}'; exit;;\n\
             \"get \"*\" nodes\") cat {0}/nodes; exit;;\n\
             \"get \"*\" pod --namespace shop web\") cat {0}/web; exit;;\n\
             \"get nodes \"*|\"get pods \"*|\"get events \"*) echo a table; exit;;\n\
             \"logs \"*--previous) echo 'previous terminated container not found' >&2; exit 1;;\n\
             \"logs \"*) echo \"a line of the log; token=planted-in-the-log\"; exit;;\n\
             esac\n\
             pod=; while [ $# -gt 0 ]; do word=$1; shift; case $word in overlay-*) pod=$word;; /overlay) break;; esac; done\n\
             case $pod in\n",
            dir.display()
        );
        for node in cluster.nodes() {
            let command = node.overlay(&[]);
            let words: Vec<_> = std::iter::once(command.get_program())
                .chain(command.get_args())
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            let pins = node.pins().display();
            let namespace = node.namespace().name();
            let _ = writeln!(
                script,
                "overlay-{}) export OVERLAY_PINS={pins} NODE_NAME={}; nsenter --net=/run/netns/{namespace} {} \"$@\"; code=$?;;",
                node.name(),
                node.name(),
                words.last().expect("a program")
            );
        }
        script.push_str(
            "*) echo \"Error from server (NotFound): $*\" >&2; exit 1;;\nesac\n\
             [ $code = 0 ] || echo \"command terminated with exit code $code\" >&2\nexit $code\n",
        );
        let kubectl = dir.join("kubectl");
        fs::write(&kubectl, script).unwrap();
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
        symlink(overlay_binary(), dir.join("kubectl-overlay")).unwrap();
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        Self { dir, path }
    }

    /// As kubectl calls a plugin.
    #[track_caller]
    fn plugin(&self, arguments: &[&str]) -> exec::Output {
        let mut command = Command::new(self.dir.join("kubectl-overlay"));
        command.args(arguments).env("PATH", &self.path).current_dir(&self.dir).env_remove("KUBECONFIG");
        exec::output(&mut command, b"", LIMIT).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str], code: i32) -> Value {
        let out = self.plugin(arguments);
        assert_eq!(out.status.code(), Some(code), "{}{}", out.stdout, out.stderr);
        serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", out.stdout))
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.dir.join("calls")).unwrap_or_default()
    }
}

#[test]
fn status_has_a_row_for_each_node_and_says_which_do_not_answer() {
    let cluster = Cluster::builder().start();
    let _pod = cluster.add_pod("cp", "a");
    let desk = Desk::new(&cluster);
    let rows = desk.json(&["--context", "lab", "status", "-o", "json"], 3);
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["cp", "down", "w1", "w2"]);
    assert_eq!(
        (&rows[0]["ready"], &rows[0]["endpoints"], &rows[0]["peers"]),
        (&json!(true), &json!(1), &json!(2))
    );
    assert_eq!(rows[0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&rows[0]["error"], &rows[2]["endpoints"]), (&Value::Null, &json!(0)));
    for row in [&rows[1], &rows[3]] {
        assert!(row["error"].as_str().unwrap().starts_with("no agent runs on node "), "{row}");
    }
    assert!(desk.calls().lines().all(|call| call.starts_with("--context=lab ")), "{}", desk.calls());

    let out = desk.plugin(&["status"]);
    let text: Vec<_> = out.stdout.lines().collect();
    assert!(text[0].starts_with("NODE  READY  VERSION") && text.len() == 5, "{}", out.stdout);
    assert!(text[1].starts_with("cp    yes    "), "{}", out.stdout);

    // What is wrong on a node is told here, though the command there ends with 3.
    cluster.node("w1").namespace().ip("link set dev overlay.1 down");
    cluster.node("w1").stop_agent();
    cluster.node("w1").namespace().ip("link set dev overlay.1 down");
    let rows = desk.json(&["status", "-o", "json"], 3);
    assert_eq!(rows[2]["ready"], false);
    assert!(rows[2]["problems"][0].as_str().unwrap().contains("overlay.1 is down"), "{rows}");
    assert_eq!(rows[2]["error"], Value::Null);
}

#[test]
fn a_command_is_run_on_one_node_or_on_all() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let pod = cluster.add_pod("cp", "a");
    let desk = Desk::new(&cluster);
    let listed = desk.json(&["-N", "cp", "endpoints", "-o", "json"], 0);
    assert_eq!(listed, cp.show("endpoints"));
    assert_eq!(listed[0]["address"], pod.addr().to_string());
    assert!(desk.calls().ends_with(
        "exec --namespace kube-overlay overlay-cp --container agent -- /overlay endpoints -o json\n"
    ));
    // Nodes without an agent are a failure: they were asked for as well.
    let out = desk.plugin(&["nodes", "--no-headers"]);
    assert_eq!(out.status.code(), Some(1), "{}", out.stderr);
    assert_eq!(out.stdout.lines().filter(|line| line.starts_with("== ")).count(), 4, "{}", out.stdout);
    assert_eq!(out.stdout.lines().filter(|line| line.contains("10.244.1.0/24")).count(), 2, "{}", out.stdout);
    assert!(out.stderr.ends_with("overlay: failed on down, w2\n"), "{}", out.stderr);

    // Exit statuses come through.
    cp.stop_agent();
    cp.namespace().ip("link set dev overlay.1 down");
    assert_eq!(desk.plugin(&["-N", "cp", "status"]).status.code(), Some(3));
    assert_eq!(desk.plugin(&["-N", "cp", "no-such-command"]).status.code(), Some(1));
    assert_eq!(desk.plugin(&[]).status.code(), Some(2));
    for (arguments, said) in [
        (&["-N", "elsewhere", "status"][..], "there is no node elsewhere: there are cp, down, w1, w2"),
        (&["-N", "down", "status"], "no agent runs on node down"),
        (
            &["--namespace", "other", "status"],
            "no agent runs in the namespace other: name another one with --namespace",
        ),
        (
            &["--kubectl", "/nonexistent/kubectl", "status"],
            "run /nonexistent/kubectl: install kubectl, or name it with --kubectl",
        ),
        (&["trace"], "write the pod first"),
    ] {
        let out = desk.plugin(arguments);
        assert_eq!((out.status.code(), out.stdout.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(
            out.stderr.contains(said) && out.stderr.lines().count() == 1,
            "{arguments:?}: {}",
            out.stderr
        );
    }
}

#[test]
fn a_pod_is_found_by_its_name() {
    let cluster = Cluster::builder().start();
    let pod = cluster.add_pod("w1", "web");
    let desk = Desk::new(&cluster);
    let object = json!({ "spec": { "nodeName": "w1" }, "status": { "podIP": pod.addr() } });
    fs::write(desk.dir.join("web"), object.to_string()).unwrap();
    // Whether this build can trace or not: the call is what counts.
    let _ = desk.plugin(&["trace", "shop/web", "shop/web", "--port", "80"]);
    let call = format!("overlay-w1 --container agent -- /overlay trace {0} {0} --port 80\n", pod.addr());
    assert!(desk.calls().ends_with(&call), "{}", desk.calls());
}

#[test]
fn one_archive_has_the_dumps_of_all_nodes() {
    let cluster = Cluster::builder().start();
    let desk = Desk::new(&cluster);
    let out = desk.plugin(&["sysdump", "-f", "all.tar.gz"]);
    assert!(out.status.success() && out.stdout.starts_with("all.tar.gz: "), "{}{}", out.stdout, out.stderr);
    exec::must(
        Command::new("tar").args(["-xzf", "all.tar.gz", "--strip-components=1"]).current_dir(&desk.dir),
        "",
    );
    let read = |name: &str| {
        fs::read_to_string(desk.dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for node in ["cp", "w1"] {
        let status: Value = serde_json::from_str(&read(&format!("{node}/status.json"))).unwrap();
        assert_eq!((&status["node"], &status["ready"]), (&json!(node), &json!(true)));
        assert!(read(&format!("{node}/network/netlink.txt")).contains("overlay.1"));
        assert_eq!(read(&format!("{node}/kubectl-logs.txt")), "a line of the log; token=[removed]\n");
        assert!(
            read(&format!("{node}/kubectl-logs-previous.txt.error"))
                .contains("previous terminated container")
        );
    }
    for node in ["down", "w2"] {
        assert!(read(&format!("{node}/sysdump.error")).contains("no agent runs on node"), "{node}");
    }
    assert_eq!(read("cluster/pods.txt"), "a table\n");
    assert!(Path::new(&desk.dir.join("cluster/version.json.error")).exists());
}
