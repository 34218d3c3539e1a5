//! What differs between schemas: which maps, and how their keys and values are converted.
//!
//! **A new schema** is made here: its maps that differ from the schema before go into [`CHANGES`]. Where keys and values of
//! [`Record`] differ, the layouts of before are frozen in `overlay_common::maps` as `v<number>`, and it gets a type and two
//! functions for them; where only others do (counters, records), `v1::LAST` moves on. Every fact that a running node depends on has to survive a conversion there and back; what an older schema cannot hold is left
//! out on the way to it.

use aya::Pod;
use overlay_common::maps::{
    Addr, Endpoint, Flow, FlowKey, HostPort, HostPortTarget, Local, Node, NodeName, PodName, v1,
};

/// For each schema the maps whose layout or meaning is another than in the one before, or that are new or gone. A map that
/// is not listed is the same kernel object in both while a node changes from one to the other.
const CHANGES: &[(u32, &[&str])] = &[
    (2, &["EVENTS", "TRACE_SWITCH", "NODE_NAMES", "POD_NAMES", "CNI_CALLS"]),
    #[cfg(feature = "next-schema")]
    (overlay_common::maps::SCHEMA, &["NODES", "ENDPOINTS", "HOST_PORTS", "STACK_FLOWS"]),
];

/// Whether a map is another one in these two schemas.
pub(in crate::datapath) fn changed(map: &str, one: u32, other: u32) -> bool {
    let (older, newer) = (one.min(other), one.max(other));
    CHANGES
        .iter()
        .filter(|(schema, _)| (older + 1..=newer).contains(schema))
        .any(|(_, maps)| maps.contains(&map))
}

/// A key or a value, in all the layouts that it has had.
pub(in crate::datapath) trait Record: Pod {
    /// In schema 1.
    type V1: Pod;
    /// From there.
    fn from_v1(old: Self::V1) -> Self;
    /// To there.
    fn to_v1(&self) -> Self::V1;
}

/// The same in all schemas.
macro_rules! unchanged {
    ($($record:ty),*) => {$(
        impl Record for $record {
            type V1 = Self;
            fn from_v1(old: Self) -> Self {
                old
            }
            fn to_v1(&self) -> Self {
                *self
            }
        }
    )*};
}

unchanged!(Addr, HostPort, Local, NodeName, PodName);

impl Record for Node {
    type V1 = v1::Node;

    fn from_v1(old: v1::Node) -> Self {
        let v1::Node { vtep, vtep_mac, prefix_len, flags, neigh_epoch } = old;
        Self { vtep, vtep_mac, prefix_len, flags, neigh_epoch }
    }

    fn to_v1(&self) -> v1::Node {
        let Self { vtep, vtep_mac, prefix_len, flags, neigh_epoch } = *self;
        v1::Node { vtep, vtep_mac, prefix_len, flags, neigh_epoch }
    }
}

impl Record for Endpoint {
    type V1 = v1::Endpoint;

    fn from_v1(old: v1::Endpoint) -> Self {
        let v1::Endpoint { ifindex, network, mac, gateway_mac, owner } = old;
        Self { ifindex, ..Self::lease(network, mac, gateway_mac, owner) }
    }

    fn to_v1(&self) -> v1::Endpoint {
        let Self { ifindex, network, mac, gateway_mac, owner, .. } = *self;
        v1::Endpoint { ifindex, network, mac, gateway_mac, owner }
    }
}

impl Record for HostPortTarget {
    type V1 = v1::HostPortTarget;

    fn from_v1(old: v1::HostPortTarget) -> Self {
        let v1::HostPortTarget { pod, port, reserved, owner } = old;
        Self { pod, port, reserved, owner }
    }

    fn to_v1(&self) -> v1::HostPortTarget {
        let Self { pod, port, reserved, owner } = *self;
        v1::HostPortTarget { pod, port, reserved, owner }
    }
}

impl Record for FlowKey {
    type V1 = v1::FlowKey;

    fn from_v1(old: v1::FlowKey) -> Self {
        let v1::FlowKey { src, dst, src_port, dst_port, protocol, kind, reserved } = old;
        Self { src, dst, src_port, dst_port, protocol, kind, reserved }
    }

    fn to_v1(&self) -> v1::FlowKey {
        let Self { src, dst, src_port, dst_port, protocol, kind, reserved } = *self;
        v1::FlowKey { src, dst, src_port, dst_port, protocol, kind, reserved }
    }
}

impl Record for Flow {
    type V1 = v1::Flow;

    fn from_v1(old: v1::Flow) -> Self {
        Self::at(old.recorded_ns)
    }

    fn to_v1(&self) -> v1::Flow {
        v1::Flow { recorded_ns: self.recorded_ns }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any bytes, as schema 1 may hold them.
    fn any<T: bytemuck::Pod + std::fmt::Debug>() -> impl Strategy<Value = T> {
        proptest::collection::vec(any_byte(), size_of::<T>())
            .prop_map(|bytes| bytemuck::pod_read_unaligned(&bytes))
    }

    fn any_byte() -> impl Strategy<Value = u8> {
        0..=u8::MAX
    }

    proptest! {
        #[test]
        fn nothing_is_lost_on_the_way_from_schema_1_and_back(
            node in any::<v1::Node>(),
            endpoint in any::<v1::Endpoint>(),
            target in any::<v1::HostPortTarget>(),
            key in any::<v1::FlowKey>(),
            flow in any::<v1::Flow>(),
        ) {
            prop_assert_eq!(Node::from_v1(node).to_v1(), node);
            prop_assert_eq!(Endpoint::from_v1(endpoint).to_v1(), endpoint);
            prop_assert_eq!(HostPortTarget::from_v1(target).to_v1(), target);
            prop_assert_eq!(FlowKey::from_v1(key).to_v1(), key);
            prop_assert_eq!(Flow::from_v1(flow).to_v1(), flow);
        }
    }

    #[test]
    fn a_map_that_is_not_listed_is_the_same_in_all_schemas() {
        assert!(!changed("COUNTERS", 1, u32::MAX));
        for (schema, maps) in CHANGES {
            for map in *maps {
                assert!(changed(map, schema - 1, *schema) && changed(map, *schema, 1), "{map}");
                assert!(!changed(map, *schema, *schema), "{map}");
            }
        }
    }

    /// A map whose layout is another one and that is not listed would be taken for the same.
    #[test]
    fn layouts_that_are_not_listed_are_those_of_schema_1() {
        let sizes = [
            ("NODES", size_of::<Node>(), size_of::<v1::Node>()),
            ("ENDPOINTS", size_of::<Endpoint>(), size_of::<v1::Endpoint>()),
            ("HOST_PORTS", size_of::<HostPortTarget>(), size_of::<v1::HostPortTarget>()),
            ("STACK_FLOWS", size_of::<(FlowKey, Flow)>(), size_of::<(v1::FlowKey, v1::Flow)>()),
        ];
        for (map, now, before) in sizes {
            assert!(now == before || changed(map, v1::LAST, overlay_common::maps::SCHEMA), "{map}");
        }
    }
}
