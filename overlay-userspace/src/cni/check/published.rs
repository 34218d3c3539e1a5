//! Host ports: in the map as they were asked for, in the packet filter as they are in the map.

use super::{Findings, Subject};
use crate::{
    cni::{
        failure::{Code, Failure},
        ports::{self, Wanted},
    },
    datapath::pins::Pins,
    family::{ByFamily, Family},
    host::sysctl,
    ports::{HostPorts, PortsError, held_by},
};

pub(super) fn check(
    subject: &Subject<'_>,
    wanted: &Wanted,
    pins: &Pins,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Subject { node, device, leases, .. } = subject;
    let Some(owner) = subject.endpoint().map(|endpoint| endpoint.owner) else { return Ok(()) };
    let held = held_by(pins, &owner)?;
    let addresses = ByFamily::from_values(leases.iter().map(|lease| lease.address)).unwrap_or_default();
    let expected = ports::entries(wanted, &addresses, owner, node)?;
    if held.is_empty() && expected.is_empty() {
        return Ok(());
    }
    let failed = |error: PortsError| Failure::new(Code::Io, error.to_string());
    let ports = HostPorts::lock(pins).map_err(failed)?;
    for difference in ports
        .differences(&expected)
        .and_then(|differences| {
            let missing = ports.missing(&held)?;
            Ok(differences.into_iter().chain(missing))
        })
        .map_err(failed)?
    {
        findings.add(difference);
    }
    if held.iter().all(|(_, target)| target.pod.to_ip().is_ipv6()) {
        return Ok(());
    }
    let setting = sysctl::interface(Family::Ipv4, &device.name, "route_localnet");
    let on = sysctl::get(&setting).is_ok_and(|value| value == "1");
    findings.unless(on, || format!("{setting} is not 1: host ports are not reached by 127.0.0.1"));
    Ok(())
}
