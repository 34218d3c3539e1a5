//! The CNI plugin's parser again, fed with well-formed calls: valid JSON of any shape under the keys that plugins know.
//!
//! Text mutations (target `cni`) mostly end in the JSON decoder; these reach what comes after it.

#![no_main]

#[path = "../verdict.rs"]
mod verdict;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

/// Keys of configurations and results, and those that runtimes add.
const KEYS: &[&str] = &[
    "address",
    "args",
    "attachments",
    "capabilities",
    "cni",
    "cni.dev/attachments",
    "cni.dev/valid-attachments",
    "cniVersion",
    "cniVersions",
    "containerID",
    "containerPort",
    "dns",
    "dst",
    "gateway",
    "gw",
    "hostIP",
    "hostPort",
    "ifname",
    "interface",
    "interfaces",
    "ipam",
    "ips",
    "mac",
    "mtu",
    "name",
    "pins",
    "plugins",
    "portMappings",
    "prevResult",
    "priority",
    "protocol",
    "routes",
    "runtimeConfig",
    "sandbox",
    "socketPath",
    "type",
    "version",
];

/// Values that get further than random ones.
const WORDS: &[&str] = &[
    "",
    "/run/netns/pod",
    "/sys/fs/bpf/overlay/v2",
    "0.0.0.0/0",
    "0.1.0",
    "0.3.1",
    "0.4.0",
    "0a:58:0a:f4:01:02",
    "1.0.0",
    "1.1.0",
    "10.244.1.1",
    "10.244.1.2",
    "10.244.1.2/32",
    "10.244.1.2/33",
    "4",
    "6",
    "9.9.9",
    "::",
    "::/0",
    "::1",
    "::ffff:10.244.1.2",
    "eth0",
    "fd00:244:0:1::1",
    "fd00:244:0:1::2",
    "fd00:244:0:1::2/128",
    "fd00:244:0:1::2/129",
    "fd00::2/64",
    "fe80::1%eth0",
    "ff:ff:ff:ff:ff:ff",
    "overlay",
    "ov0123456789a",
    "relative/path",
];

/// What nearly every configuration has.
const USUAL: [(&str, &[&str]); 3] = [
    ("cniVersion", &["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.1.0"]),
    ("name", &["overlay"]),
    ("pins", &["/sys/fs/bpf/overlay/v2"]),
];

const COMMANDS: &[&str] = &["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION", "UPDATE", ""];

/// Nesting below the top level.
const DEPTH: usize = 5;

#[derive(Debug)]
struct Call {
    command: &'static str,
    container: Option<String>,
    ifname: Option<String>,
    netns: Option<String>,
    args: Option<String>,
    conf: Value,
}

impl<'a> Arbitrary<'a> for Call {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut conf = Map::new();
        for (key, values) in USUAL {
            if u.ratio(15, 16)? {
                conf.insert(key.to_owned(), (*u.choose(values)?).into());
            }
        }
        let fields: usize = u.int_in_range(0..=5)?;
        for _ in 0..fields {
            conf.insert(key(u)?, value(u, DEPTH)?);
        }
        let mut variable = |usual: &str| -> Result<Option<String>> {
            Ok(match u.int_in_range(0..=15_u8)? {
                0 => None,
                1 => Some(u.arbitrary()?),
                _ => Some(usual.to_owned()),
            })
        };
        Ok(Self {
            container: variable("c1")?,
            ifname: variable("eth0")?,
            netns: variable("/run/netns/pod")?,
            args: variable(
                "IgnoreUnknown=1;IP=10.244.1.9,fd00:244:0:1::9;MAC=0a:58:0a:f4:01:09;K8S_POD_NAME=p",
            )?,
            command: u.choose(COMMANDS)?,
            conf: Value::Object(conf),
        })
    }
}

fn key(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(if u.ratio(1, 32)? { u.arbitrary()? } else { (*u.choose(KEYS)?).to_owned() })
}

fn value(u: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    let kinds = if depth == 0 { 6 } else { 9_u8 };
    Ok(match u.int_in_range(0..=kinds)? {
        0 => Value::Null,
        1 => u.arbitrary::<bool>()?.into(),
        2 => u.arbitrary::<i64>()?.into(),
        3 => u.int_in_range(0..=3_u8)?.into(),
        4 => u.arbitrary::<f64>()?.into(),
        5 => u.arbitrary::<String>()?.into(),
        6 => (*u.choose(WORDS)?).into(),
        7 | 8 => {
            let fields: usize = u.int_in_range(0..=4)?;
            (0..fields).map(|_| Ok((key(u)?, value(u, depth - 1)?))).collect::<Result<Map<_, _>>>()?.into()
        }
        _ => {
            let items: usize = u.int_in_range(0..=4)?;
            (0..items).map(|_| value(u, depth - 1)).collect::<Result<Vec<_>>>()?.into()
        }
    })
}

fuzz_target!(|call: Call| {
    let variable = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => return Some(call.command.into()),
            "CNI_CONTAINERID" => &call.container,
            "CNI_IFNAME" => &call.ifname,
            "CNI_NETNS" => &call.netns,
            "CNI_ARGS" => &call.args,
            "CNI_PATH" => return Some("/opt/cni/bin".into()),
            _ => &None,
        };
        value.clone().map(Into::into)
    };
    verdict::check(variable, call.conf.to_string().as_bytes());
});
