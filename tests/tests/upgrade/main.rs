//! From one schema to the next and back: node by node under traffic ([`rolling`]), with a CNI plugin of either build at
//! work ([`plugin`]), and killed at each of its steps ([`killed`]). The next schema is a rehearsal: the same sources with
//! other layouts (the feature `next-schema`).

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod failed;
mod killed;
mod plugin;
mod rolling;
