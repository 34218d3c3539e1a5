//! `/metrics`. The names are a promise: docs/observability.md lists them, dashboards and alerts go by them, and tests hold all
//! three together.

use std::time::Instant;

use log::debug;
use overlay_common::{counter::Path, maps::Local};

use super::{
    Observed, Pods, Readiness, pool,
    process::Process,
    text::{
        Buckets,
        Kind::{Counter, Gauge},
        Label, Text,
    },
};
use crate::{
    agent::mesh::{Asked, State as MeshState},
    datapath::{
        DatapathError,
        calls::Calls,
        tables::{self, LocalTable},
        usage,
    },
    family::Family,
    mesh::{State, table::Outcomes},
};

/// What a scrape gets now. What cannot be read is left out.
pub(super) fn metrics(observed: &Observed, readiness: &Readiness) -> String {
    let mut text = Text::default();
    agent(&mut text, observed, readiness);
    if let Err(error) = packets(&mut text, observed).and_then(|()| maps(&mut text, observed)) {
        debug!("read metrics: {error}");
    }
    plugin(&mut text, observed);
    if let Some(mesh) = &observed.mesh {
        self::mesh(&mut text, &mesh.state(), Instant::now());
    }
    process(&mut text);
    text.into_string()
}

fn agent(text: &mut Text, observed: &Observed, readiness: &Readiness) {
    let version = vec![("version", env!("CARGO_PKG_VERSION"))];
    text.family(Gauge, "overlay_build_info", "1; the version is a label", [(version, 1)]);
    let ready = u8::from(readiness.waiting.is_none());
    text.single(Gauge, "overlay_ready", "1 once pods of this node can have a network", ready);
    let activity = observed.activity();
    text.histograms(
        "overlay_reconcile_duration_seconds",
        "How long passes of the agent took, by what they looked at",
        activity.durations().into_iter().map(|(scope, buckets)| (vec![("scope", scope)], buckets)),
    );
    text.single(
        Counter,
        "overlay_reconcile_failures_total",
        "Passes that could not do all that they should",
        activity.failed,
    );
    text.single(
        Gauge,
        "overlay_reconcile_problems",
        "What the last pass could not do; the log says what it is",
        activity.problems.len(),
    );
    let age = activity.succeeded.map(|at| at.elapsed().as_secs_f64());
    text.family(
        Gauge,
        "overlay_reconcile_success_age_seconds",
        "Time since a pass did all that it should",
        age.map(|age| (Vec::new(), age)),
    );
    let source = activity.source.as_ref().map(|source| (Vec::new(), u8::from(source.is_ok())));
    text.family(
        Gauge,
        "overlay_api_server_up",
        "1 while the API server answers; absent where the nodes are in a file",
        source,
    );
}

fn packets(text: &mut Text, observed: &Observed) -> Result<(), DatapathError> {
    let paths = tables::paths(&observed.pins)?;
    // What is counted under a path of its own as well.
    let extra = [Path::ReturnsToStack, Path::FlowRecorded, Path::FlowNotRecorded];
    let forwarded = || paths.iter().filter(|(path, _)| !extra.contains(path));
    let of = |wanted: Path| paths.iter().find(|(path, _)| *path == wanted).map_or(0, |(_, c)| c.packets);
    text.family(
        Counter,
        "overlay_forwarded_packets_total",
        "Packets that went on, by the path that they took; a GSO super-packet is one",
        forwarded().map(|(path, counter)| (vec![("path", path.name())], counter.packets)),
    );
    text.family(
        Counter,
        "overlay_forwarded_bytes_total",
        "Bytes that went on, Ethernet headers included, by the path that they took",
        forwarded().map(|(path, counter)| (vec![("path", path.name())], counter.bytes)),
    );
    text.single(
        Counter,
        "overlay_stack_return_packets_total",
        "Packets left to the node's stack because their flow left through it; counted under their path too",
        of(Path::ReturnsToStack),
    );
    text.family(
        Counter,
        "overlay_stack_flows_total",
        "Flows that began to leave through the node's stack, and whether the table of such flows took them",
        [("recorded", Path::FlowRecorded), ("not_recorded", Path::FlowNotRecorded)]
            .map(|(result, path)| (vec![("result", result)], of(path))),
    );
    let drops = tables::drops(&observed.pins)?;
    text.family(
        Counter,
        "overlay_dropped_packets_total",
        "Packets that were dropped on purpose, by reason",
        drops.iter().map(|(reason, counter)| (vec![("reason", reason.name())], counter.packets)),
    );
    text.family(
        Counter,
        "overlay_dropped_bytes_total",
        "Bytes that were dropped on purpose, by reason",
        drops.iter().map(|(reason, counter)| (vec![("reason", reason.name())], counter.bytes)),
    );
    let runs = usage::run_times(&observed.pins);
    text.family(
        Counter,
        "overlay_program_run_seconds_total",
        "Run time of each program since it was loaded; absent unless kernel.bpf_stats_enabled is 1",
        runs.iter().map(|run| (vec![("program", run.name)], run.time.as_secs_f64())),
    );
    text.family(
        Counter,
        "overlay_program_runs_total",
        "Runs of each program since it was loaded; absent unless kernel.bpf_stats_enabled is 1",
        runs.iter().map(|run| (vec![("program", run.name)], run.count)),
    );
    Ok(())
}

fn maps(text: &mut Text, observed: &Observed) -> Result<(), DatapathError> {
    let pins = &observed.pins;
    let local: Local = LocalTable::open(pins)?.get()?;
    let pods = Pods::read(pins, 0)?;
    let mut nodes = 0;
    let entries = usage::scan(pins, "NODES", |_, value| {
        if let Ok(node) = bytemuck::try_pod_read_unaligned::<overlay_common::maps::Node>(value) {
            nodes += usize::from(node.flags & overlay_common::maps::NODE_HOST != 0);
        }
    })?;
    text.single(Gauge, "overlay_nodes", "Nodes of the cluster that this node knows, itself included", nodes);
    text.single(Gauge, "overlay_endpoints", "Pods of this node that are connected", pods.ready);
    let mut addresses = Vec::new();
    for (family, label) in [(Family::Ipv4, "ipv4"), (Family::Ipv6, "ipv6")] {
        let Some(pool) = pool(&local, family) else { continue };
        let used = pods.leased[family.index()] as u64;
        for (state, count) in [("used", used), ("free", pool.saturating_sub(used))] {
            addresses.push((vec![("family", label), ("state", state)], count));
        }
    }
    text.family(
        Gauge,
        "overlay_ipam_addresses",
        "Addresses of the node's subnets that pods can have",
        addresses,
    );
    let used = [
        ("NODES", entries),
        ("ENDPOINTS", pods.leased.iter().sum()),
        ("HOST_PORTS", usage::scan(pins, "HOST_PORTS", |_, _| ())?),
    ];
    text.family(
        Gauge,
        "overlay_bpf_map_entries",
        "Entries of a map; of STACK_FLOWS, which forgets of itself, none are counted",
        used.map(|(map, count)| (vec![("map", map)], count)),
    );
    let names = ["NODES", "ENDPOINTS", "HOST_PORTS", "STACK_FLOWS"];
    let capacities = names.map(|map| usage::capacity(pins, map).map(|count| (vec![("map", map)], count)));
    text.family(
        Gauge,
        "overlay_bpf_map_max_entries",
        "Entries that a map has room for",
        capacities.into_iter().collect::<Result<Vec<_>, _>>()?,
    );
    Ok(())
}

/// Nothing where the plugin of this node counts nothing yet.
fn plugin(text: &mut Text, observed: &Observed) {
    let Ok(calls) = Calls::open(&observed.pins) else { return };
    let verbs = calls.read();
    let results = verbs.iter().flat_map(|verb| {
        let result = |(code, count): &'_ (String, u64)| (verb.name, code.clone(), *count);
        verb.results.iter().map(result).collect::<Vec<_>>()
    });
    let results: Vec<(&str, String, u64)> = results.collect();
    text.family(
        Counter,
        "overlay_cni_requests_total",
        "Calls of the CNI plugin, by verb and by the code of the error; 0 is success",
        results.iter().map(|(verb, code, count)| (vec![("verb", *verb), ("code", code)], *count)),
    );
    let histogram = |verb: &crate::datapath::calls::Verb| {
        let buckets = verb.durations.iter().map(|(bound, count)| (bound.as_secs_f64(), *count));
        let buckets = Buckets { bounds: buckets.collect(), count: verb.count, sum: verb.sum.as_secs_f64() };
        (vec![("verb", verb.name)], buckets)
    };
    text.histograms(
        "overlay_cni_request_duration_seconds",
        "How long calls of the CNI plugin took",
        verbs.iter().filter(|verb| verb.count > 0).map(histogram),
    );
}

fn mesh(text: &mut Text, state: &MeshState, now: Instant) {
    let table = &state.table;
    let Outcomes { answered, lost, refused, unsent } = table.outcomes;
    text.family(
        Counter,
        "overlay_mesh_probes_total",
        "Probes that this node has sent to others, by what became of them",
        [("answered", answered), ("lost", lost), ("refused", refused), ("unsent", unsent)]
            .map(|(result, count)| (vec![("result", result)], count)),
    );
    let Asked { answered, strangers, limited, malformed, dropped } = state.asked;
    text.family(
        Counter,
        "overlay_mesh_requests_total",
        "Datagrams that came to the port of the mesh, by what became of them",
        [
            ("answered", answered),
            ("stranger", strangers),
            ("limited", limited),
            ("malformed", malformed),
            ("dropped", dropped),
        ]
        .map(|(result, count)| (vec![("result", result)], count)),
    );
    let states = [State::Up, State::Lost, State::NoAgent, State::Unknown, State::Foreign];
    text.family(
        Gauge,
        "overlay_mesh_peers",
        "Other nodes, by what the mesh knows of the way to them",
        states.map(|state| {
            let peers = table.peers().iter().filter(|peer| peer.state() == state).count();
            (vec![("state", state.name())], peers)
        }),
    );
    let (buckets, count, sum) = table.latencies.cumulative();
    let latencies = Buckets { bounds: buckets, count, sum: sum.as_secs_f64() };
    text.histograms(
        "overlay_mesh_latency_seconds",
        "Round trips through the tunnel to other nodes and back",
        [(Vec::new(), latencies)],
    );
    if !table.detailed() {
        return;
    }
    let peers = || table.peers().iter().filter(|peer| peer.state() != State::Foreign);
    let label = |name| -> Vec<Label<'_>> { vec![("peer", name)] };
    text.family(
        Gauge,
        "overlay_mesh_peer_up",
        "1 while the agent of a peer answers; up to 64 nodes",
        peers().map(|peer| (label(&peer.name), u8::from(peer.state() == State::Up))),
    );
    text.family(
        Gauge,
        "overlay_mesh_peer_loss_ratio",
        "Share of the last probes to a peer that were lost; up to 64 nodes",
        peers()
            .filter(|peer| peer.outcomes() > 0)
            .map(|peer| (label(&peer.name), f64::from(peer.loss()) / 1000.0)),
    );
    text.family(
        Gauge,
        "overlay_mesh_peer_latency_seconds",
        "Smoothed round trip to a peer; up to 64 nodes",
        peers().filter_map(|peer| Some((label(&peer.name), peer.latency()?.as_secs_f64()))),
    );
    text.family(
        Gauge,
        "overlay_mesh_peer_answer_age_seconds",
        "Time since a peer answered; up to 64 nodes",
        peers().filter_map(|peer| Some((label(&peer.name), peer.age(now)?.as_secs_f64()))),
    );
}

fn process(text: &mut Text) {
    let Some(Process { cpu, memory, started, descriptors }) = Process::read() else { return };
    text.single(
        Counter,
        "process_cpu_seconds_total",
        "CPU time of the agent and the programs that it has run",
        cpu.as_secs_f64(),
    );
    text.single(Gauge, "process_resident_memory_bytes", "Resident memory of the agent", memory);
    text.single(
        Gauge,
        "process_start_time_seconds",
        "When the agent was started, since 1970",
        started.as_secs_f64(),
    );
    text.single(Gauge, "process_open_fds", "Open file descriptors of the agent", descriptors);
}
