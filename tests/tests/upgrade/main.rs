//! From one schema to the next and back: node by node under traffic ([`rolling`]), with a CNI plugin of either build at
//! work ([`plugin`]), and killed at each of its steps ([`killed`]). The next schema is a rehearsal: the same sources with
//! other layouts (the feature `next-schema`); the schema before this one is real where a build of it is at hand ([`older`]).

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod failed;
mod killed;
mod older;
mod plugin;
mod rolling;
