//! The page as a browser shows it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use overlay_tests::lab::{Cluster, Node, NodeEntry, Pod, exec, within};
use overlay_tests::traffic::http;

use crate::bed::{LIMIT, http_of, start, status};

/// A browser may take its time to start.
const BROWSER: Duration = Duration::from_secs(60);

/// A node whose name is what a name should not be.
const EVIL: &str = "<b id=evil>b</b><script>document.title='owned'</script>";

/// Runs the browser in the namespace of `node` on a page; gives what it prints.
#[track_caller]
fn browse(cluster: &Cluster, node: &Node, url: &str, arguments: &[&str]) -> String {
    static PROFILES: AtomicUsize = AtomicUsize::new(0);
    let profile = format!("chromium-{}", PROFILES.fetch_add(1, Ordering::Relaxed));
    let profile = cluster.lab().dir().join(profile);
    let mut chromium = node.namespace().command("chromium");
    // Root has no sandbox. Time that nobody waits in goes by at once, with some polls in it.
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]);
    chromium.args(["--no-first-run", "--disable-background-networking", "--virtual-time-budget=9000"]);
    chromium.arg(format!("--user-data-dir={}", profile.display())).args(arguments).arg(url);
    let out = exec::output(&mut chromium, b"", BROWSER).unwrap();
    assert!(out.status.success(), "{}: {}", out.status, out.stderr);
    out.stdout
}

/// The page after it has run for a while.
#[track_caller]
fn dom(cluster: &Cluster, node: &Node, url: &str) -> String {
    browse(cluster, node, url, &["--dump-dom"])
}

fn page_of(node: &Node) -> String {
    format!("http://{}/", http_of(node))
}

#[test]
fn the_page_shows_the_node_its_peers_drops_and_pods_and_trusts_no_name() {
    let cluster = start();
    let [cp, w1] = ["cp", "w1"].map(|name| cluster.node(name));
    let mut entries = cluster.entries();
    entries.push(NodeEntry {
        name: EVIL.to_owned(),
        address: "192.0.2.40".parse().unwrap(),
        subnet: "10.244.40.0/24".parse().unwrap(),
        vtep_mac: None,
    });
    cluster.write_nodes(&entries);
    let pods: Vec<_> = ["web-1", "web-2"].iter().map(|name| cluster.add_pod("cp", name)).collect();
    let socket = pods[0].namespace().run(|| std::net::UdpSocket::bind((pods[0].addr(), 0))).unwrap();
    socket.send_to(b"anybody there", ("10.244.99.9", 9)).unwrap();
    within(LIMIT, "the mesh knows all", || {
        let mesh = status(cp)["mesh"].clone();
        let rows = mesh["shown"].as_array().unwrap().iter();
        mesh["states"]["up"] == 2
            && mesh["states"]["lost"] == 1
            && rows.filter(|peer| peer["row"][w1.address().to_string()]["state"] == "up").count() == 1
    });

    let dom = dom(&cluster, cp, &page_of(cp));
    assert!(dom.contains("data-state=\"live\""), "{dom}");
    for text in [
        "<title>cp · overlay</title>",
        "<span id=\"node\">cp</span>",
        "class=\"pill good\">ready</span>",
        "2 of 3 peers answer",
        "192.0.2.11, UDP 8472, VNI 1",
        "10.244.0.0/24, gateway 10.244.0.1",
        "<th scope=\"row\">w1</th>",
        "<code>no_node</code>",
        "<polyline",
        "in no node's subnet",
        "2 of 2",
        pods[1].namespace().name(),
        "&lt;b id=evil&gt;",
    ] {
        assert!(dom.contains(text), "no {text} in {dom}");
    }
    let body = dom.split_once("<body").unwrap().1;
    assert!(!body.contains("<b id="), "a name became an element: {dom}");
    // The matrix: from w2 to w1, as w2 has told cp.
    assert!(dom.contains("w2 to w1: up,"), "{dom}");
}

/// Serves what `answer` gives for each path, in the namespace of `node`, for as long as the test lasts.
fn serve(node: &Node, at: SocketAddr, mut answer: impl FnMut(&str) -> Option<String> + Send + 'static) {
    let listener = node.namespace().run(|| TcpListener::bind(at)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
            // Nothing: the connection is closed, as by a process that ends.
            if let Some(body) = answer(&path) {
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
            }
        }
    });
}

#[test]
fn the_page_says_so_when_the_agent_goes_away_and_keeps_what_it_knew() {
    let cluster = start();
    let cp = cluster.node("cp");
    let get = |path| http::get(cp.namespace(), http_of(cp), path).unwrap();
    let page = get("/");
    assert!(
        page.headers.to_lowercase().contains("content-security-policy: default-src 'none'"),
        "{}",
        page.headers
    );
    let told = get("/api/status").body;

    // One that never answers, and one that answers once.
    for (port, times, expected) in
        [(9001, 0, "<span id=\"node\">overlay</span>"), (9002, 1, "What is below is of")]
    {
        let at = SocketAddr::new([127, 0, 0, 1].into(), port);
        let (page, told) = (page.body.clone(), told.clone());
        let mut left = times;
        serve(cp, at, move |path| match path {
            "/" => Some(page.clone()),
            "/api/status" if left > 0 => {
                left -= 1;
                Some(told.clone())
            }
            _ => None,
        });
        let dom = dom(&cluster, cp, &format!("http://{at}/"));
        for text in ["data-state=\"away\"", "The agent does not answer", "Pods keep their network", expected]
        {
            assert!(dom.contains(text), "no {text} in {dom}");
        }
    }
}

/// Half a minute of a pod that knocks at addresses that nobody has, now more, now less.
fn drops_for_the_picture(pod: &Pod) {
    let socket = pod.namespace().run(|| std::net::UdpSocket::bind((pod.addr(), 0))).unwrap();
    for step in 0..140_u32 {
        for _ in 0..(step * 7 % 40) {
            socket.send_to(b"anybody there", ("10.244.99.9", 9)).unwrap();
        }
        if step % 9 == 0 {
            socket.send_to(b"anybody there", ("192.0.2.12", 8472)).unwrap();
        }
        thread::sleep(Duration::from_millis(250));
    }
}

/// `OVERLAY_SCREENSHOT=1` writes the picture of the docs; without it the browser has to be able to, which is all that a test can say
/// of beauty.
#[test]
fn the_page_can_be_drawn() {
    let cluster = start();
    let cp = cluster.node("cp");
    let pods: Vec<_> =
        ["web-6d4cf", "api-58b7c", "db-0"].iter().map(|name| cluster.add_pod("cp", name)).collect();
    within(LIMIT, "the mesh knows all", || status(cp)["mesh"]["states"]["up"] == 2);
    let draw = std::env::var_os("OVERLAY_SCREENSHOT").is_some();
    if draw {
        drops_for_the_picture(&pods[0]);
    }
    let path = cluster.lab().dir().join("page.png");
    browse(
        &cluster,
        cp,
        &page_of(cp),
        &["--window-size=1360,1330", &format!("--screenshot={}", path.display())],
    );
    let picture = fs::read(&path).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
    if draw {
        fs::write(crate::bed::repository("docs/page.png"), picture).unwrap();
    }
}
