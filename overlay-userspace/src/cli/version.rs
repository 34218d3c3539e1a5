//! `overlay version`: what this binary is, and what it needs.

use overlay_common::maps::SCHEMA;
use serde::Serialize;

use super::output::{OutputArgs, print_object};
use crate::datapath::kernel::{self, Feature};

/// The build, and the kernel that it runs on.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are what machines read")]
pub(super) struct Version {
    version: &'static str,
    /// The layout of the maps: the pins of another one are in another directory.
    schema: u32,
    /// The oldest kernel that can run the programs.
    kernel_minimum: String,
    /// The running one.
    kernel: String,
    architecture: &'static str,
    /// The programs run on this kernel.
    supported: bool,
    /// What distinguishes kernels.
    features: Vec<Feature>,
}

impl Version {
    pub(super) fn own() -> Self {
        let (major, minor) = kernel::MINIMUM;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            schema: SCHEMA,
            kernel_minimum: format!("{major}.{minor}"),
            kernel: kernel::release(),
            architecture: std::env::consts::ARCH,
            supported: kernel::check_version().is_ok(),
            features: kernel::features(),
        }
    }
}

/// Prints it.
pub(super) fn run(args: OutputArgs) -> anyhow::Result<()> {
    let version = Version::own();
    print_object(args, &version, |text| {
        let Version { version, schema, kernel_minimum, kernel, architecture, features, .. } = &version;
        text.line(format_args!("overlay {version}, schema {schema}"))?;
        let needed =
            format_args!("it needs Linux {kernel_minimum} or newer, here is {kernel} on {architecture}");
        text.line(needed)?;
        for Feature { name, present, since, without } in features {
            let here = if *present { "here".to_owned() } else { format!("not here: {without}") };
            let since = since.as_ref().map_or_else(String::new, |since| format!(" (Linux {since})"));
            text.line(format_args!("  {name}{since}: {here}"))?;
        }
        Ok(())
    })
}
