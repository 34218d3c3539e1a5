use super::*;
use crate::cluster::NodeSpec;

fn nodes(count: u8, own: u8) -> Snapshot {
    let nodes = (1..=count).map(|number| {
        let (address, subnet) = (format!("192.0.2.{number}"), format!("10.244.{number}.0/24"));
        NodeSpec::of(&format!("n{number}"), &[&address], &[&subnet])
    });
    snapshot(nodes.collect(), &format!("n{own}"))
}

fn snapshot(nodes: Vec<NodeSpec>, own: &str) -> Snapshot {
    let cidr: ipnet::IpNet = "10.244.0.0/16".parse().unwrap();
    Snapshot::new(nodes, own, &cidr.into()).unwrap()
}

fn gateway_of(number: u8) -> IpAddr {
    [10, 244, number, 1].into()
}

const ORDER: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A table, its clock, and what it asks.
struct Bench {
    table: Table,
    now: Instant,
    nonce: u64,
    rate: u32,
}

impl Bench {
    fn new(count: u8, own: u8, rate: u32) -> Self {
        let now = Instant::now();
        let mut table = Table::new(now);
        table.set(&nodes(count, own), ORDER, Family::Ipv4, now);
        Self { table, now, nonce: 0, rate }
    }

    /// As the agent does at its interval; whom it asked.
    fn step(&mut self, answers: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.now += self.table.interval(self.rate);
        self.table.expire(self.now);
        self.nonce += 1;
        let (gateway, _) = self.table.ask(self.nonce, self.now)?;
        if answers(gateway) {
            let latency = Duration::from_micros(200);
            assert!(self.table.answered(gateway, self.nonce, latency, (0, 0, &[]), self.now));
        }
        Some(gateway)
    }

    fn run(&mut self, time: Duration, answers: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let end = self.now + time;
        let mut asked = Vec::new();
        while self.now < end {
            asked.extend(self.step(&answers));
        }
        asked
    }

    fn peer(&self, number: u8) -> &Peer {
        self.table.peers().iter().find(|peer| peer.gateway == gateway_of(number)).unwrap()
    }
}

#[test]
fn a_node_sends_at_most_its_rate_whatever_the_number_of_peers() {
    for (count, expected) in [(2_u8, 1_usize), (4, 3), (11, 10), (12, 10), (250, 10)] {
        let mut bench = Bench::new(count, 1, 10);
        let asked = bench.run(Duration::from_mins(1), |_| true).len();
        assert!(asked <= expected * 60 + 1 && asked >= expected * 60 * 9 / 10, "{count} nodes: {asked}");
    }
}

#[test]
fn the_rate_holds_when_nobody_answers_and_no_peer_is_asked_twice_in_a_second() {
    for count in [3, 30] {
        let mut bench = Bench::new(count, 1, 10);
        let mut last: HashMap<IpAddr, Instant> = HashMap::new();
        let mut asked = 0;
        let end = bench.now + Duration::from_mins(1);
        while bench.now < end {
            if let Some(gateway) = bench.step(|_| false) {
                asked += 1;
                if let Some(before) = last.insert(gateway, bench.now) {
                    assert!(bench.now - before >= PAUSE, "{gateway} after {:?}", bench.now - before);
                }
            }
        }
        assert!(asked <= 601, "{asked}");
        assert_eq!(last.len(), usize::from(count) - 1);
    }
}

#[test]
fn a_round_begins_after_the_own_address_and_takes_everybody() {
    let mut bench = Bench::new(40, 20, 10);
    let asked = bench.run(Duration::from_secs(4), |_| true);
    let expected: Vec<IpAddr> = (21..=40).chain(1..20).map(gateway_of).collect();
    assert_eq!(asked[..39], expected);
    assert_eq!(asked[39..], expected[..asked.len() - 39]);
}

#[test]
fn a_peer_that_stays_silent_is_lost_after_three_probes_soon_after_the_first() {
    let mut bench = Bench::new(200, 1, 10);
    let dead = gateway_of(9);
    // A round takes 20 s.
    bench.run(Duration::from_mins(1), |_| true);
    assert_eq!(bench.peer(9).state(), State::Up);
    let start = bench.now;
    let mut first = None;
    while bench.peer(9).state() != State::Lost {
        if bench.step(|gateway| gateway != dead) == Some(dead) {
            first.get_or_insert(bench.now);
        }
        assert!(bench.now - start < Duration::from_mins(1), "{:?}", bench.peer(9));
    }
    let took = bench.now - first.unwrap();
    assert!(took < TIMEOUT * 3 + PAUSE, "{took:?}");
    assert_eq!(bench.table.outcomes.lost, 3);
    // 3 of the last 6 or so, and it answers again: up at once, while the loss fades.
    assert!(bench.peer(9).loss() >= 400, "{}", bench.peer(9).loss());
    bench.run(Duration::from_secs(40), |_| true);
    assert_eq!(bench.peer(9).state(), State::Up);
    assert!(bench.peer(9).loss() > 0);
    bench.run(Duration::from_secs(20 * 32), |_| true);
    assert_eq!(bench.peer(9).loss(), 0);
}

#[test]
fn a_kernel_that_refuses_is_a_node_without_an_agent_and_not_lost() {
    let mut bench = Bench::new(3, 1, 10);
    let start = bench.now;
    while bench.peer(2).state() != State::NoAgent {
        if bench.step(|gateway| gateway != gateway_of(2)) == Some(gateway_of(2)) {
            bench.table.refused(gateway_of(2));
        }
        assert!(bench.now - start < Duration::from_mins(1));
    }
    assert_eq!((bench.peer(2).loss(), bench.peer(2).age(bench.now)), (0, None));
    assert_eq!((bench.table.outcomes.refused, bench.table.outcomes.lost), (1, 0));
    // Nobody was asked: a refusal out of the blue says nothing.
    bench.table.refused(gateway_of(2));
    assert_eq!(bench.table.outcomes.refused, 1);
}

#[test]
fn an_answer_counts_once_and_from_whom_it_was_asked() {
    let mut bench = Bench::new(3, 1, 10);
    let gateway = bench.step(|_| false).unwrap();
    let other = if gateway == gateway_of(2) { gateway_of(3) } else { gateway_of(2) };
    let (nonce, now) = (bench.nonce, bench.now);
    let mut answered = |from, nonce| bench.table.answered(from, nonce, Duration::ZERO, (0, 0, &[]), now);
    assert!(!answered(other, nonce));
    assert!(!answered(gateway, nonce + 1));
    assert!(answered(gateway, nonce));
    assert!(!answered(gateway, nonce));
    assert_eq!(bench.table.outcomes.answered, 1);
}

#[test]
fn latency_is_smoothed() {
    let mut bench = Bench::new(2, 1, 10);
    let mut answer = |micros: u64| {
        bench.now += PAUSE;
        bench.nonce += 1;
        let (gateway, _) = bench.table.ask(bench.nonce, bench.now).unwrap();
        bench.table.answered(gateway, bench.nonce, Duration::from_micros(micros), (0, 0, &[]), bench.now);
        bench.peer(2).latency().unwrap().as_micros()
    };
    assert_eq!(answer(800), 800);
    assert_eq!(answer(1600), 900);
}

#[test]
fn only_gateways_are_answered_and_each_at_a_limited_rate() {
    let mut bench = Bench::new(3, 1, 10);
    let now = bench.now;
    assert_eq!(bench.table.may_ask([10, 244, 2, 7].into(), now), None);
    assert_eq!(bench.table.may_ask(gateway_of(4), now), None);
    for from in [gateway_of(1), gateway_of(2)] {
        let answered = (0..1000).filter(|_| bench.table.may_ask(from, now) == Some(true)).count();
        assert_eq!(answered, 20, "{from}");
    }
    assert_eq!(bench.table.may_ask(gateway_of(3), now), Some(true));
    assert_eq!(bench.table.may_ask(gateway_of(2), now + PAUSE), Some(true));
}

#[test]
fn what_is_known_of_a_peer_survives_a_change_of_the_list() {
    let mut bench = Bench::new(3, 1, 10);
    bench.run(Duration::from_secs(5), |_| true);
    bench.table.set(&nodes(5, 1), ORDER, Family::Ipv4, bench.now);
    assert_eq!(bench.peer(2).state(), State::Up);
    assert_eq!(bench.peer(5).state(), State::Unknown);
    bench.table.set(&nodes(2, 1), ORDER, Family::Ipv4, bench.now);
    assert_eq!(bench.table.peers().len(), 1);
    let asked = bench.run(Duration::from_secs(5), |_| true);
    assert!(asked.iter().all(|gateway| *gateway == gateway_of(2)), "{asked:?}");
}

#[test]
fn a_node_that_is_not_overlay_is_not_asked() {
    let list = nodes(3, 1);
    let mut specs = list.nodes().to_vec();
    specs[2].vtep_macs.v4 = Some([2, 0, 0, 0, 0, 3]);
    let mut bench = Bench::new(3, 1, 10);
    bench.table.set(&snapshot(specs, "n1"), ORDER, Family::Ipv4, bench.now);
    let asked = bench.run(Duration::from_secs(5), |_| true);
    assert!(asked.len() >= 4 && asked.iter().all(|gateway| *gateway == gateway_of(2)), "{asked:?}");
    assert_eq!(bench.peer(3).state(), State::Foreign);
}

#[test]
fn rows_of_peers_are_collected_in_parts_and_only_of_nodes_that_are_known() {
    let mut bench = Bench::new(3, 1, 10);
    let entry = |number: u8| Entry {
        node: Addr::v4([192, 0, 2, number]),
        state: State::Up,
        latency: Some(Duration::from_millis(1)),
        loss: 10,
        age: None,
    };
    let mut tell = |row: (u32, u32, &[Entry])| {
        loop {
            bench.now += PAUSE;
            bench.nonce += 1;
            if let Some((gateway, offset)) = bench.table.ask(bench.nonce, bench.now)
                && gateway == gateway_of(2)
            {
                assert!(bench.table.answered(gateway, bench.nonce, Duration::ZERO, row, bench.now));
                return offset;
            }
        }
    };
    assert_eq!(tell((0, 3, &[entry(1), entry(3)])), 0);
    assert_eq!(tell((2, 3, &[entry(9)])), 2);
    assert_eq!(tell((0, 0, &[])), 0);
    let known: std::collections::BTreeSet<_> = bench.peer(2).row.keys().map(|node| node.to_ip()).collect();
    assert_eq!(known, ["192.0.2.1", "192.0.2.3"].map(|ip| ip.parse().unwrap()).into());
    // Too many to keep each one's row.
    bench.table.set(&nodes(100, 1), ORDER, Family::Ipv4, bench.now);
    assert!(!bench.table.detailed() && bench.peer(2).row.is_empty());
}

#[test]
fn each_peer_is_asked_in_the_first_family_that_both_have() {
    let dual = |number: u8| {
        NodeSpec::of(
            &format!("n{number}"),
            &[&format!("192.0.2.{number}"), &format!("2001:db8::{number}")],
            &[&format!("10.244.{number}.0/24"), &format!("fd00:10:244:{number}::/64")],
        )
    };
    let one = |number: u8, subnet: &str| {
        NodeSpec::of(&format!("n{number}"), &[&format!("192.0.2.{number}")], &[subnet])
    };
    let nodes = vec![dual(1), dual(2), one(3, "10.244.3.0/24"), one(4, "fd00:10:244:4::/64")];
    let cidrs =
        crate::cluster::Cidrs::new(["10.244.0.0/16", "fd00:10:244::/48"].map(|net| net.parse().unwrap()))
            .unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (order, preferred, expected, tunnel) in [
        (ORDER, Family::Ipv4, ["10.244.2.1", "10.244.3.1", "fd00:10:244:4::1"], "192.0.2.2"),
        (
            [Family::Ipv6, Family::Ipv4],
            Family::Ipv6,
            ["10.244.3.1", "fd00:10:244:2::1", "fd00:10:244:4::1"],
            "2001:db8::2",
        ),
    ] {
        let now = Instant::now();
        let mut table = Table::new(now);
        table.set(&Snapshot::new(nodes.clone(), "n1", &cidrs).unwrap(), order, preferred, now);
        let asked: Vec<_> = table.peers().iter().map(|peer| peer.gateway).collect();
        assert_eq!(asked, expected.map(ip));
        assert!(table.peers().iter().any(|peer| peer.name == "n2" && peer.address == ip(tunnel)));
        // Whoever asks from the other of its gateways is known as well.
        for (from, known) in [
            ("10.244.2.1", true),
            ("fd00:10:244:2::1", true),
            ("fd00:10:244:1::1", true),
            ("fd00:10:244:3::1", false),
        ] {
            assert_eq!(table.may_ask(ip(from), now).is_some(), known, "{from}");
        }
    }
    // From a node of one family, those of the other are out of reach.
    let mut table = Table::new(Instant::now());
    table.set(&Snapshot::new(nodes, "n3", &cidrs).unwrap(), ORDER, Family::Ipv4, Instant::now());
    assert_eq!(table.peers().iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["n1", "n2"]);
}

#[test]
fn a_node_is_one_whatever_address_others_call_it_by() {
    let dual = |number: u8| {
        NodeSpec::of(
            &format!("n{number}"),
            &[&format!("192.0.2.{number}"), &format!("2001:db8::{number}")],
            &[&format!("10.244.{number}.0/24")],
        )
    };
    let now = Instant::now();
    let mut table = Table::new(now);
    table.set(&snapshot(vec![dual(1), dual(2), dual(3)], "n1"), ORDER, Family::Ipv4, now);
    let entry = |address: &str| Entry {
        node: address.parse::<IpAddr>().unwrap().into(),
        state: State::Up,
        latency: None,
        loss: 0,
        age: None,
    };
    let (gateway, _) = table.ask(1, now).unwrap();
    assert_eq!(gateway, gateway_of(2));
    let row = [entry("2001:db8::1"), entry("192.0.2.3"), entry("2001:db8::9")];
    assert!(table.answered(gateway, 1, Duration::ZERO, (0, 3, &row), now));
    let mut told: Vec<_> = table.peers()[0].row.keys().map(|addr| addr.to_ip().to_string()).collect();
    told.sort();
    assert_eq!(told, ["192.0.2.1", "192.0.2.3"]);
}
