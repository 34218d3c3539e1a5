//! The health mesh on three nodes, and what can be seen of an agent: metrics, dashboards, alerts, the page.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod alerts;
mod bed;
mod families;
mod matrix;
mod metrics;
mod page;
mod probe;
mod prometheus;
mod promql;
mod scrape;
