//! What can be seen of a running agent over HTTP, beside the probes: `/metrics`, `/api/status` and the page at `/`.
//!
//! Everything is read when it is asked for: counters and entries from the maps, the rest from what the run loop and the mesh have
//! told. An answer is given again for half a second, so that nobody can keep the agent busy by asking.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::debug;
use overlay_common::{
    maps::{Addr, Endpoint, FAMILY_V4, FAMILY_V6, Local},
    reason::Reason,
};

use super::mesh::Mesh;
use crate::{
    datapath::{pins::Pins, tables, usage},
    family::Family,
};

mod activity;
mod metrics;
mod process;
mod status;
mod text;

use activity::{Activity, Drops};

/// How long an answer is given again.
const FRESH: Duration = Duration::from_millis(500);

/// What people see at `/`. Data comes from `/api/status`; `@NONCE@` stands for a number that each answer has anew.
pub(super) const PAGE: &str = include_str!("observe/page.html");

/// All that is there to see. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pins: Pins,
    pub(super) mesh: Option<Mesh>,
    began: Instant,
    activity: Arc<Mutex<Activity>>,
    answers: Arc<Mutex<[Option<Given>; 2]>>,
}

/// An answer, and when it was made.
type Given = (Instant, String);

/// How the probes see it.
#[derive(Clone, Debug)]
pub(super) struct Readiness {
    /// What it waits for; `None` once it is ready.
    pub(super) waiting: Option<String>,
}

impl Observed {
    pub(super) fn new(pins: Pins, mesh: Option<Mesh>) -> Self {
        Self {
            pins,
            mesh,
            began: Instant::now(),
            activity: Arc::new(Mutex::new(Activity::new())),
            answers: Arc::default(),
        }
    }

    /// What the run loop tells.
    pub(super) fn activity(&self) -> MutexGuard<'_, Activity> {
        // No holder leaves it half-written.
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the drops of now for the page, if it is time. Costs nothing else.
    pub(super) fn sample(&self) {
        let now = Instant::now();
        if !self.activity().wants_sample(now) {
            return;
        }
        match self.drops() {
            Ok(drops) => self.activity().sample(drops, now),
            Err(error) => debug!("sample the drops: {error}"),
        }
    }

    fn drops(&self) -> Result<Drops, crate::datapath::DatapathError> {
        let mut packets = [0; Reason::COUNT];
        for (reason, counter) in tables::drops(&self.pins)? {
            if let Some(slot) = packets.get_mut(reason as usize) {
                *slot = counter.packets;
            }
        }
        Ok(packets)
    }

    /// The text of `/metrics`.
    pub(super) fn metrics(&self, readiness: &Readiness) -> String {
        self.fresh(0, || metrics::metrics(self, readiness))
    }

    /// The text of `/api/status`.
    pub(super) fn status(&self, readiness: &Readiness) -> String {
        self.fresh(1, || status::status(self, readiness).to_string())
    }

    fn fresh(&self, which: usize, make: impl FnOnce() -> String) -> String {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some(slot) = answers.get_mut(which) else { return make() };
        match slot {
            Some((at, text)) if now.saturating_duration_since(*at) < FRESH => text.clone(),
            _ => {
                let text = make();
                *slot = Some((now, text.clone()));
                text
            }
        }
    }
}

/// The pods of this node.
#[derive(Debug, Default)]
struct Pods {
    /// Addresses that are taken, by family.
    leased: [usize; 2],
    /// Pods whose devices are complete.
    ready: usize,
    /// The first by address, as many as asked for.
    first: Vec<(Addr, Endpoint)>,
}

impl Pods {
    /// Reads `ENDPOINTS`; keeps `most` entries.
    fn read(pins: &Pins, most: usize) -> Result<Self, crate::datapath::DatapathError> {
        let mut pods = Self::default();
        // A pod has an address of each family, and one device.
        let mut devices = HashSet::new();
        usage::scan(pins, "ENDPOINTS", |key, value| {
            let (Ok(key), Ok(endpoint)) = (
                bytemuck::try_pod_read_unaligned::<Addr>(key),
                bytemuck::try_pod_read_unaligned::<Endpoint>(value),
            ) else {
                return;
            };
            pods.leased[if key.is_v4() { FAMILY_V4 } else { FAMILY_V6 }] += 1;
            if endpoint.ifindex != 0 {
                devices.insert(endpoint.ifindex);
            }
            if most > 0 {
                pods.first.push((key, endpoint));
            }
        })?;
        pods.ready = devices.len();
        pods.first.sort_unstable_by_key(|(addr, _)| *addr);
        pods.first.truncate(most);
        Ok(pods)
    }
}

/// Addresses that pods of this node can have: all of the subnet but the network's, the gateway's and, in IPv4, the
/// broadcast's; no more than counts up to. `None` where there is no subnet of the family.
fn pool(local: &Local, family: Family) -> Option<u64> {
    let subnet = local.subnet[family.index()];
    if subnet.prefix_len == 0 {
        return None;
    }
    let (bits, taken) = match family {
        Family::Ipv4 => (32, 3),
        Family::Ipv6 => (128, 2),
    };
    Some(1_u64.checked_shl(bits - subnet.prefix_len.min(bits)).unwrap_or(u64::MAX).saturating_sub(taken))
}
