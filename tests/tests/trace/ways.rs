//! Every way that a pod's packet can go between pods, nodes and the world.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_tests::lab::{Namespace, Node};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::drops::Monitor;
use overlay_tests::traffic::vxlan::Tunnel;

use crate::ask::{Answer, ask, go_on};
use crate::bed::{Bed, Counters, Live, PORT};

/// A question, and what has to come of it.
struct Way<'a> {
    name: &'static str,
    to: Ipv4Addr,
    options: Vec<String>,
    outcome: &'static str,
    reason: Option<&'static str>,
    /// The node at which it goes on, and what becomes of it there.
    peer: Option<(&'a Node, &'static str)>,
    /// Who gets it, and from whom.
    arrives: Option<(&'a Namespace, Ipv4Addr)>,
}

fn ways(bed: &Bed) -> Vec<Way<'_>> {
    let (cp, w1, w2, world) = (bed.cp(), bed.w1(), bed.w2(), bed.cluster.world());
    let pod = bed.pod.addr();
    let way = |name, to, outcome| Way {
        name,
        to,
        options: vec![],
        outcome,
        reason: None,
        peer: None,
        arrives: None,
    };
    let ends = |way: Way<'static>, at: &'static str| Way { reason: Some(at), ..way };
    let with = |way: Way<'static>, options: &[&str]| Way {
        options: options.iter().map(ToString::to_string).collect(),
        ..way
    };
    let hosts = |number| move |node: &Node| node.subnet().hosts().nth(number).unwrap();
    let (gateway, nobody) = (hosts(0), hosts(98));
    vec![
        Way {
            arrives: Some((bed.neighbour.namespace(), pod)),
            ..way("pod here", bed.neighbour.addr(), "delivered")
        },
        Way {
            peer: Some((w1, "delivered")),
            arrives: Some((bed.near.namespace(), pod)),
            ..way("pod on the same LAN", bed.near.addr(), "sent")
        },
        Way {
            peer: Some((w2, "delivered")),
            arrives: Some((bed.far.namespace(), pod)),
            ..way("pod behind the router", bed.far.addr(), "sent")
        },
        Way {
            peer: Some((w1, "stack")),
            arrives: Some((w1.namespace(), pod)),
            ..way("node", w1.address(), "sent")
        },
        Way {
            peer: Some((w2, "stack")),
            arrives: Some((w2.namespace(), pod)),
            ..way("node behind the router", w2.address(), "sent")
        },
        Way {
            peer: Some((w1, "stack")),
            arrives: Some((w1.namespace(), pod)),
            ..way("gateway of a node", gateway(w1), "sent")
        },
        Way { arrives: Some((cp.namespace(), pod)), ..way("own node", cp.address(), "stack") },
        Way { arrives: Some((cp.namespace(), pod)), ..way("own gateway", gateway(cp), "stack") },
        Way { arrives: Some((world.namespace(), cp.address())), ..way("world", world.address(), "stack") },
        ends(way("subnet of no node", Ipv4Addr::new(10, 244, 99, 2), "dropped"), "no_node"),
        ends(
            with(
                way("address of another pod", bed.near.addr(), "dropped"),
                &["--from-address", &bed.neighbour.addr().to_string()],
            ),
            "pod_source_address",
        ),
        ends(
            with(way("address of nobody", bed.near.addr(), "dropped"), &["--from-address", "203.0.113.7"]),
            "pod_source_address",
        ),
        ends(with(way("tunnel port", world.address(), "dropped"), &["--port", "8472"]), "pod_tunnel_port"),
        way("nobody in the own subnet", nobody(cp), "refused"),
        Way { peer: Some((w1, "refused")), ..way("nobody in a peer's subnet", nobody(w1), "sent") },
        with(way("TTL that ends here", bed.near.addr(), "refused"), &["--ttl", "1"]),
        Way {
            peer: Some((w1, "refused")),
            ..with(way("TTL that ends there", bed.near.addr(), "sent"), &["--ttl", "2"])
        },
    ]
}

/// Asks both halves.
#[track_caller]
fn answers(bed: &Bed, way: &Way<'_>) -> (Answer, Option<Answer>) {
    let (pod, to, port) = (bed.pod.addr().to_string(), way.to.to_string(), PORT.to_string());
    let mut arguments = vec![pod.as_str(), &to, "--protocol", "udp"];
    arguments.extend(way.options.iter().map(String::as_str));
    if !way.options.iter().any(|option| option == "--port") {
        arguments.extend(["--port", &port]);
    }
    let first = ask(bed.cp(), &arguments);
    first.is(way.name, way.outcome);
    assert_eq!(first.report["verdict"]["reason"].as_str(), way.reason, "{}", way.name);
    let second = way.peer.map(|(node, outcome)| {
        let second = go_on(node, &first);
        second.is(way.name, outcome);
        second
    });
    (first, second)
}

/// Sends the packet that was asked about; what is counted has to be what the answer says. A packet that is refused is
/// answered, and the answer is counted as well.
#[track_caller]
fn really(bed: &Bed, way: &Way<'_>, answers: &(Answer, Option<Answer>)) {
    let (first, second) = answers;
    let own = Counters::read(bed.cp());
    let peer = way.peer.map(|(node, _)| (node, Counters::read(node)));
    bed.send(first.frame());
    let refused = first.outcome() == "refused" || second.as_ref().is_some_and(|s| s.outcome() == "refused");
    let compare = |node: &Node, before: &Counters, said: BTreeMap<String, u64>| {
        let counted = before.since(node, &said);
        if refused {
            let all = said.iter().all(|(name, count)| counted.get(name).is_some_and(|got| got >= count));
            assert!(all, "{} on {}: {counted:?}, not {said:?}", way.name, node.name());
        } else {
            assert_eq!(counted, said, "{} on {}", way.name, node.name());
        }
    };
    compare(bed.cp(), &own, first.counted());
    if let (Some((node, before)), Some(second)) = (peer, second) {
        compare(node, &before, second.counted());
    }
}

#[test]
fn what_is_explained_is_what_happens_and_asking_changes_nothing() {
    let bed = Bed::new();
    let monitor = Monitor::start(bed.cp());
    let sockets = bed.sockets();
    let ways = ways(&bed);
    // Next hops resolved, so that what is on the wire is whole, and no packet waits for ARP.
    for node in [bed.w1(), bed.w2()] {
        overlay_tests::traffic::udp::exchange(
            bed.cp().namespace(),
            node.namespace(),
            (node.address(), 0).into(),
        )
        .unwrap();
    }

    let live = || bed.cluster.nodes().iter().map(Live::read).collect::<Vec<_>>();
    let before = live();
    let wire = Capture::start(bed.cp().namespace(), Node::DEVICE);
    let said: Vec<_> = ways.iter().map(|way| answers(&bed, way)).collect();
    assert_eq!(live(), before, "asking leaves counters, flows and nodes alone");
    let frames = wire.stop();
    let tunnels: Vec<_> = frames.iter().filter_map(|frame| Tunnel::decode(&frame.bytes)).collect();
    assert!(
        tunnels.iter().all(|tunnel| tunnel.destination.port() != 8472),
        "asking sends nothing: {tunnels:?}"
    );
    sockets.got_nothing("asking");

    let wire = Capture::start(bed.cp().namespace(), Node::DEVICE);
    for (way, answers) in ways.iter().zip(&said) {
        really(&bed, way, answers);
        if let Some((place, from)) = way.arrives {
            sockets.received(way.name, place, from);
        }
        sockets.got_nothing(way.name);
    }
    let frames = wire.stop();
    for (way, (first, _)) in ways.iter().zip(&said).filter(|(way, _)| way.outcome == "sent") {
        let foretold = first.wire();
        let seen = frames.iter().any(|frame| frame.outgoing && frame.bytes == foretold);
        assert!(seen, "{}: nothing on the wire is {}", way.name, first.report["wire"]["hex"]);
    }
    // A record for each that was really dropped, and none for those that were asked about.
    let dropped = ways.iter().filter(|way| way.outcome == "dropped").count();
    assert_eq!(monitor.take(dropped).len(), dropped);
}

#[test]
fn a_pod_is_found_by_the_beginning_of_its_container_and_all_formats_say_the_same() {
    let bed = Bed::new();
    let to = bed.near.addr().to_string();
    let by_address = ask(bed.cp(), &[&bed.pod.addr().to_string(), &to]);
    let container = by_address.step("sender")["facts"]["endpoint"]["container"].as_str().unwrap().to_owned();
    let by_container = ask(bed.cp(), &[&container, &to]);
    assert_eq!(by_container.report["verdict"], by_address.report["verdict"]);
    assert_eq!(by_container.step("sender"), by_address.step("sender"));

    let print = |format| {
        let mut command = bed.cp().overlay(&["trace", &container, &to, "-o", format]);
        overlay_tests::lab::exec::must(&mut command, "")
    };
    let yaml: serde_json::Value = serde_saphyr::from_str(&print("yaml")).unwrap();
    assert_eq!(yaml["verdict"], by_address.report["verdict"]);
    assert_eq!(yaml["steps"], by_address.report["steps"]);
    let text = print("table");
    for step in by_address.report["steps"].as_array().unwrap() {
        assert!(text.contains(step["text"].as_str().unwrap()), "{step} in {text}");
    }
    assert!(text.contains(by_address.report["verdict"]["text"].as_str().unwrap()), "{text}");
    assert!(print("wide").contains("\"gateway\""), "facts are shown");
}

#[test]
fn a_pod_is_found_by_its_name() {
    let bed = Bed::new();
    let to = bed.far.addr().to_string();
    let by_address = ask(bed.cp(), &[&bed.pod.addr().to_string(), &to, "--port", "80"]);
    for name in ["a", "default/a"] {
        let by_name = ask(bed.cp(), &[name, &to, "--port", "80"]);
        assert_eq!((by_name.code, &by_name.report), (Some(0), &by_address.report), "{name}");
    }
}
