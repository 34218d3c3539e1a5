//! The CNI plugin's parser of environment and standard input, fed with text.
//!
//! An input is `NAME=value` lines, an empty line, and standard input, so that seeds are readable and a mutation hits one
//! variable or one key. Invariant: no panic, and each refusal is an error object of the specification.

#![no_main]

#[path = "../verdict.rs"]
mod verdict;

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let split = input.windows(2).position(|window| window == b"\n\n");
    let (environment, stdin) = split.map_or((input, &[][..]), |at| (&input[..at], &input[at + 2..]));
    let variable = |name: &str| {
        let mut lines = environment.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        Some(OsStr::from_bytes(value).to_owned())
    };
    verdict::check(variable, stdin);
});
