//! Holds docs/cli.md to the command line: every command has a section with an example, every section a command, and every
//! option and parameter is named where it belongs.

use std::collections::BTreeMap;

use clap::{Command, CommandFactory as _};

use super::Cli;

const PAGE: &str = include_str!("../../../docs/cli.md");
const EVERYWHERE: &str = "For every command";

/// The sections of the page by heading.
fn sections() -> BTreeMap<&'static str, &'static str> {
    let parts = PAGE.split("\n## ").skip(1);
    parts
        .filter_map(|part| part.split_once('\n'))
        .map(|(head, text)| (head.trim_matches('`'), text))
        .collect()
}

/// All commands by what a person types.
fn commands(command: &Command, name: &str, found: &mut BTreeMap<String, Command>) {
    for one in command.get_subcommands().filter(|one| one.get_name() != "help" && !one.is_hide_set()) {
        let name = format!("{name} {}", one.get_name());
        commands(one, &name, found);
        found.insert(name, one.clone());
    }
}

#[test]
fn every_command_and_option_is_documented_and_nothing_else() {
    let sections = sections();
    let everywhere = sections[EVERYWHERE];
    let mut all = BTreeMap::new();
    let mut top = Cli::command();
    top.build();
    commands(&top, "overlay", &mut all);
    for (name, command) in &all {
        let section =
            sections.get(name.as_str()).unwrap_or_else(|| panic!("docs/cli.md has no section {name}"));
        assert!(
            section.contains("```sh\n") && section.contains(name),
            "{name} has no example in docs/cli.md"
        );
        for argument in command.get_arguments().filter(|one| !one.is_hide_set()) {
            let word = match argument.get_long() {
                Some(long) => format!("--{long}"),
                None => argument.get_value_names().map_or_else(
                    || argument.get_id().as_str().to_uppercase(),
                    |names| names.iter().map(clap::builder::Str::as_str).collect::<Vec<_>>().join(" "),
                ),
            };
            let named = |text: &str| {
                text.match_indices(&word).any(|(at, _)| {
                    let next = text[at + word.len()..].chars().next();
                    next.is_none_or(|next| !next.is_alphanumeric() && next != '-')
                })
            };
            assert!(named(section) || named(everywhere), "docs/cli.md does not name {word} of {name}");
        }
        for alias in command.get_visible_aliases() {
            assert!(section.contains(&format!("overlay {alias}")), "docs/cli.md does not name {alias}");
        }
    }
    for heading in sections.keys().filter(|heading| **heading != EVERYWHERE) {
        assert!(all.contains_key(*heading), "docs/cli.md describes {heading}, which is no command");
    }
}
