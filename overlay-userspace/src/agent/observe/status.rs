//! `/api/status`: what the page shows, as one JSON object. Fields may be added; those that are there keep name and meaning.

use std::time::{Duration, Instant};

use overlay_common::maps::{Addr, AttachMode, FAMILY_V4};
use serde_json::{Map, Value, json};

use super::{Observed, Pods, Readiness, activity::SAMPLING, pool};
use crate::{
    agent::mesh::Mesh,
    cni::owner_text,
    datapath::{
        DatapathError,
        tables::{self, LocalTable},
    },
    mesh::{
        State,
        table::{Cell, Peer},
    },
};

/// Pods that are listed.
const PODS: usize = 500;

/// The object. What cannot be read is `null`, and `error` says why.
pub(super) fn status(observed: &Observed, readiness: &Readiness) -> Value {
    let mut object = match node(observed) {
        Ok(object) => object,
        Err(error) => Map::from_iter([("error".to_owned(), json!(error.to_string()))]),
    };
    let activity = observed.activity();
    let heard = activity.heard.map(|age| age.as_secs());
    let source = activity.source.as_ref().map(|source| match source {
        Ok(()) => json!({ "up": true, "heard_seconds": heard }),
        Err(outage) => json!({ "up": false, "outage": outage, "heard_seconds": heard }),
    });
    object.extend([
        ("version".to_owned(), json!(env!("CARGO_PKG_VERSION"))),
        ("ready".to_owned(), json!(readiness.waiting.is_none())),
        ("waiting".to_owned(), json!(readiness.waiting)),
        ("uptime_seconds".to_owned(), json!(observed.began.elapsed().as_secs())),
        ("problems".to_owned(), json!(activity.problems)),
        ("api_server".to_owned(), json!(source)),
        ("mesh".to_owned(), observed.mesh.as_ref().map_or(Value::Null, mesh)),
    ]);
    Value::Object(object)
}

fn node(observed: &Observed) -> Result<Map<String, Value>, DatapathError> {
    let pins = &observed.pins;
    let local = LocalTable::open(pins)?.get()?;
    let pods = Pods::read(pins, PODS)?;
    let subnet = &local.subnet[FAMILY_V4];
    let name = local.node_name.split(|byte| *byte == 0).next().unwrap_or_default();
    let attach = match AttachMode::from_index(local.attach_mode) {
        Some(AttachMode::Tcx) => "tcx",
        Some(AttachMode::Clsact) => "clsact",
        Some(AttachMode::Auto) => "auto",
        None => "unknown",
    };
    let listed = pods.first.iter().map(|(addr, endpoint)| {
        let (container, ifname) = owner_text(&endpoint.owner);
        json!({
            "address": addr.to_ip(),
            "container": container,
            "ifname": ifname,
            "ifindex": endpoint.ifindex,
            "ready": endpoint.ifindex != 0,
        })
    });
    let activity = observed.activity();
    let drops = tables::drops(pins)?.into_iter().map(|(reason, counter)| {
        let mut drop =
            json!({ "packets": counter.packets, "bytes": counter.bytes, "why": reason.describe() });
        if counter.packets > 0 {
            drop["history"] = json!(activity.history(reason));
        }
        (reason.name().to_owned(), drop)
    });
    let paths = tables::paths(pins)?.into_iter().map(|(path, counter)| {
        (path.name().to_owned(), json!({ "packets": counter.packets, "bytes": counter.bytes }))
    });
    let object = json!({
        "node": String::from_utf8_lossy(name),
        "vtep": local.vtep.to_ip(),
        "vni": local.vni,
        "port": local.port,
        "mtu": local.mtu,
        "subnet": format!("{}/{}", subnet.addr.to_ip(), subnet.prefix_len),
        "gateway": local.gateway[FAMILY_V4].to_ip(),
        "attach": attach,
        "pins": pins.root(),
        "pods": {
            "connected": pods.ready,
            "addresses_used": pods.leased,
            "addresses": pool(&local),
            "first": listed.collect::<Vec<_>>(),
        },
        "paths": paths.collect::<Map<_, _>>(),
        "drops": drops.collect::<Map<_, _>>(),
        "history_seconds": SAMPLING.as_secs(),
    });
    match object {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
}

fn seconds(time: Option<Duration>) -> Value {
    time.map_or(Value::Null, |time| json!(time.as_secs_f64()))
}

/// The peers: all of them in a small cluster, in a large one those that do not answer.
fn mesh(mesh: &Mesh) -> Value {
    let now = Instant::now();
    let state = mesh.state();
    let table = &state.table;
    let (port, rate) = mesh.settings();
    let round = table.interval(rate) * u32::try_from(table.peers().len()).unwrap_or(u32::MAX);
    let shown = table
        .peers()
        .iter()
        .filter(|peer| table.detailed() || matches!(peer.state(), State::Lost | State::NoAgent));
    let states = [State::Up, State::Lost, State::NoAgent, State::Unknown, State::Foreign].map(|state| {
        let peers = table.peers().iter().filter(|peer| peer.state() == state).count();
        (state.name().to_owned(), json!(peers))
    });
    json!({
        "port": port,
        "rate": rate,
        "round_seconds": round.as_secs_f64(),
        "peers": table.peers().len(),
        "states": Map::from_iter(states),
        "detailed": table.detailed(),
        "shown": shown.take(crate::mesh::table::DETAILED).map(|peer| self::peer(peer, now)).collect::<Vec<_>>(),
    })
}

fn peer(peer: &Peer, now: Instant) -> Value {
    let cell = |(address, cell): (&Addr, &Cell)| {
        let cell = json!({
            "state": cell.state,
            "latency_seconds": seconds(cell.latency),
            "loss": f64::from(cell.loss) / 1000.0,
            "told_seconds": now.saturating_duration_since(cell.told).as_secs(),
        });
        (address.to_ip().to_string(), cell)
    };
    json!({
        "name": peer.name,
        "address": peer.address,
        "gateway": peer.gateway,
        "state": peer.state(),
        "latency_seconds": seconds(peer.latency()),
        "loss": f64::from(peer.loss()) / 1000.0,
        "age_seconds": seconds(peer.age(now)),
        "row": peer.row.iter().map(cell).collect::<Map<_, _>>(),
    })
}
