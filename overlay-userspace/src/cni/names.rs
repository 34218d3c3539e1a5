//! What Kubernetes calls a pod, as its runtime says it in `CNI_ARGS`: kept for people, by the pod's address (`POD_NAMES`).
//!
//! A pod has its network whether or not its name can be kept; what fails is logged. Invariant: written after the address is
//! leased, removed before it is released, so that an address never carries the name of its holder of before.

use std::net::IpAddr;

use overlay_common::maps::{Addr, PodName};

use crate::datapath::{DatapathError, pins::Pins, tables::PodNames};

/// The name in `CNI_ARGS`; `None` where the runtime says none. What it says is not ours to refuse.
pub(super) fn from_args(text: &str) -> Option<PodName> {
    let value = |key: &str| {
        let mut pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value)
    };
    Some(PodName::new(value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?))
}

/// Keeps the name of the pod that has leased `address`; without one, removes what is there.
pub(super) fn keep(pins: &Pins, address: IpAddr, name: Option<&PodName>) {
    let kept = PodNames::open(pins).and_then(|mut names| match name {
        Some(name) => names.set(address.into(), *name),
        None => names.remove(address.into()),
    });
    grumble(kept);
}

/// Removes the name of an address that is about to be released.
pub(super) fn forget(pins: &Pins, address: Addr) {
    grumble(PodNames::open(pins).and_then(|mut names| names.remove(address)));
}

/// An older schema, while it is in force, has no names.
fn grumble(result: Result<(), DatapathError>) {
    match result {
        Ok(()) | Err(DatapathError::NotPinned { .. }) => {}
        Err(error) => log::warn!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_kubernetes_passes() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=7";
        assert_eq!(from_args(args).unwrap().as_strs(), ("shop", "web-0"));
    }

    #[test]
    fn half_a_name_is_none() {
        for args in
            ["", "K8S_POD_NAME=web-0", "K8S_POD_NAMESPACE=shop", "K8S_POD_NAMESPACE=;K8S_POD_NAME=web-0"]
        {
            assert_eq!(from_args(args), None, "{args}");
        }
    }
}
