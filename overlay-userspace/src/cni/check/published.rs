//! Host ports: in the map as they were asked for, in the packet filter as they are in the map.

use super::{Findings, Subject};
use crate::{
    cni::{
        failure::{Code, Failure},
        ports::{self, Wanted},
    },
    datapath::pins::Pins,
    host::sysctl::{self, Family},
    ports::{HostPorts, PortsError, held_by},
};

pub(super) fn check(
    subject: &Subject<'_>,
    wanted: &Wanted,
    pins: &Pins,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Subject { node, device, address, endpoint, .. } = subject;
    let held = held_by(pins, &endpoint.owner)?;
    let expected = ports::entries(wanted, *address, endpoint.owner, node)?;
    if held.is_empty() && expected.is_empty() {
        return Ok(());
    }
    let failed = |error: PortsError| Failure::new(Code::Io, error.to_string());
    let ports = HostPorts::lock(pins).map_err(failed)?;
    for (port, target) in &expected {
        let found = ports.get(*port).map_err(failed)?;
        findings.unless(found == Some(*target), || match found {
            None => format!("host port {port} is missing in HOST_PORTS"),
            Some(found) => format!("host port {port} leads to port {} of {}", found.port, found.pod.to_ip()),
        });
    }
    for missing in ports.missing(&held).map_err(failed)? {
        findings.add(missing);
    }
    let setting = sysctl::interface(Family::Ipv4, &device.name, "route_localnet");
    let on = sysctl::get(&setting).is_ok_and(|value| value == "1");
    findings.unless(on, || format!("{setting} is not 1: host ports are not reached by 127.0.0.1"));
    Ok(())
}
