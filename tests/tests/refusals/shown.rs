//! The commands that show what is pinned, on a node where nothing is.

use std::fs;

use crate::bed::Bed;

const COMMANDS: [&str; 5] = ["status", "nodes", "endpoints", "links", "monitor"];

#[test]
fn nothing_pinned_is_one_clear_line() {
    let bed = Bed::new();
    let pins = bed.node.pins().display().to_string();
    for command in COMMANDS {
        for arguments in [&[command][..], &[command, "-o", "json"]] {
            bed.refuses(
                bed.node.overlay(arguments),
                &[&pins, "does not exist", "has the overlay agent been started on this node?"],
            );
        }
    }
}

#[test]
fn empty_directories_are_no_agent_either() {
    let bed = Bed::new();
    for directory in ["maps", "programs", "links"] {
        fs::create_dir_all(bed.node.pins().join(directory)).unwrap();
    }
    for command in COMMANDS {
        bed.refuses(bed.node.overlay(&[command]), &["has the overlay agent been started on this node?"]);
    }
}
