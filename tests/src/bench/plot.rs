//! The results as a figure: for each wire mode a panel, in it for each workload the ratios to the raw wire, one dot for each contender
//! with its interval. SVG, written by hand: rectangles, lines, dots and text.

use std::fmt::Write as _;

use crate::contenders::Contender;
use crate::results::{Results, Row};

/// Sizes in units of the figure, which are pixels where it is not scaled.
const LEFT: f64 = 150.0;
const PLOT: f64 = 560.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 64.0;
const ROW: f64 = 46.0;
const PANEL_HEAD: f64 = 34.0;
const PANEL_FOOT: f64 = 40.0;

/// Between the dots of one workload.
const STEP: f64 = 8.0;

/// The largest ratio that the axis has.
const AXIS_END: f64 = 1.2;

/// Colours that are told apart also by those who do not see all: Okabe and Ito.
const fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Wire => "#999999",
        Contender::Routed => "#0072b2",
        Contender::RoutedNarrow => "#56b4e9",
        Contender::Flannel => "#d55e00",
        Contender::FlannelBare => "#e69f00",
        Contender::Overlay => "#009e73",
    }
}

/// The rates of the placement that the run had first (one CPU, if it had that).
pub(crate) fn svg(results: &Results) -> String {
    let cpus = results.rows.iter().map(|row| row.cpus).min();
    let rows: Vec<&Row> =
        results.rows.iter().filter(|row| row.quantile.is_none() && Some(row.cpus) == cpus).collect();
    let mut panels: Vec<(&str, Vec<&Row>)> = Vec::new();
    for row in rows {
        match panels.iter_mut().find(|(wire, _)| *wire == row.wire) {
            Some((_, rows)) => rows.push(row),
            None => panels.push((row.wire, vec![row])),
        }
    }
    let heights = panels.iter().map(|(_, rows)| PANEL_HEAD + ROW * rows.len() as f64 + PANEL_FOOT);
    let (width, height) = (LEFT + PLOT + RIGHT, TOP + heights.sum::<f64>());
    let mut svg = Svg::default();
    svg.add(format_args!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="13" fill="#222222">"##
    ));
    svg.add(format_args!(r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##));
    let place = cpus.map_or("", crate::placement::Placement::name);
    svg.text(LEFT, 24.0, "start", "16", &format!("Ratio to the raw wire (CPUs: {place})"));
    let others = &Contender::ALL[1..];
    for (index, contender) in others.iter().enumerate() {
        let x = LEFT + 112.0 * index as f64;
        svg.dot(x + 5.0, 44.0, colour(*contender));
        svg.text(x + 14.0, 48.0, "start", "13", contender.name());
    }
    let mut top = TOP;
    for (wire, rows) in &panels {
        panel(&mut svg, top, wire, rows);
        top += PANEL_HEAD + ROW * rows.len() as f64 + PANEL_FOOT;
    }
    svg.add(format_args!("</svg>"));
    svg.0
}

fn panel(svg: &mut Svg, top: f64, wire: &str, rows: &[&Row]) {
    let what = match wire {
        "w1" => "W1: veth, super-packets cross the wire whole",
        _ => "W2: like a NIC, segmentation at the sender, GRO at the receiver",
    };
    svg.text(LEFT, top + 20.0, "start", "14", what);
    let (start, end) = (top + PANEL_HEAD, top + PANEL_HEAD + ROW * rows.len() as f64);
    for tenth in (0..=12).step_by(2) {
        let ratio = f64::from(tenth) / 10.0;
        let (x, stroke) = (x(ratio), if tenth == 10 { "#222222" } else { "#dddddd" });
        svg.line((x, start), (x, end), stroke);
        svg.text(x, end + 18.0, "middle", "12", &format!("{ratio:.1}"));
    }
    for (index, row) in rows.iter().enumerate() {
        let middle = start + ROW * (index as f64 + 0.5);
        svg.text(LEFT - 10.0, middle + 4.0, "end", "13", &row.name());
        let others = row.contenders.iter().filter(|entry| entry.contender != Contender::Wire);
        for (position, entry) in others.enumerate() {
            let y = middle + STEP * (position as f64 - 2.0);
            let colour = colour(entry.contender);
            svg.line((x(entry.ratio.low), y), (x(entry.ratio.high), y), colour);
            svg.dot(x(entry.ratio.median), y, colour);
        }
    }
}

/// Where a ratio is; what is off the axis is at its end.
fn x(ratio: f64) -> f64 {
    LEFT + PLOT * ratio.clamp(0.0, AXIS_END) / AXIS_END
}

#[derive(Default)]
struct Svg(String);

impl Svg {
    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // A string takes everything.
        let _ = writeln!(self.0, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, size: &str, text: &str) {
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}">{text}</text>"#
        ));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str) {
        self.add(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}" stroke-width="1.5"/>"#
        ));
    }

    fn dot(&mut self, x: f64, y: f64, fill: &str) {
        self.add(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{fill}"/>"#));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample_results;

    #[test]
    fn dots_are_where_the_axis_says() {
        let svg = svg(&sample_results());
        // overlay at 0.85, and the line at 1.
        let dot = format!(r#"<circle cx="{:.1}""#, LEFT + PLOT * 0.85 / AXIS_END);
        assert!(
            svg.lines().any(|line| line.starts_with(&dot) && line.contains(colour(Contender::Overlay))),
            "{svg}"
        );
        assert!(svg.contains(&format!(r#"<line x1="{:.1}""#, LEFT + PLOT / AXIS_END)));
        assert!((x(7.0) - x(AXIS_END)).abs() < 1e-9);
    }

    #[test]
    fn the_figure_names_workloads_and_contenders_but_not_the_quantiles() {
        let svg = svg(&sample_results());
        for name in ["udp_rr", "overlay", "flannel", "W2: like a NIC"] {
            assert!(svg.contains(&format!(">{name}")), "{name}");
        }
        assert!(!svg.contains("p99"));
    }

    #[test]
    fn every_element_is_closed() {
        let svg = svg(&sample_results());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!((svg.matches("<svg").count(), svg.matches("</svg>").count()), (1, 1));
        let empty = ["<rect", "<line", "<circle"].map(|element| svg.matches(element).count());
        assert_eq!(empty.iter().sum::<usize>(), svg.matches("/>").count());
    }

    #[test]
    fn nothing_measured_is_an_empty_figure() {
        let mut results = sample_results();
        results.rows.clear();
        assert!(svg(&results).ends_with("</svg>\n"));
    }
}
