//! Prometheus' text format, version 0.0.4. Families are written whole, one after the other, each with help and type.

use std::fmt::{Display, Write as _};

/// What a scrape gets.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// The type of a family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// A label: name and value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// A histogram's contents: upper bounds in seconds with the cumulative count of each, the count of all, and their sum in seconds.
#[derive(Debug)]
pub(super) struct Buckets {
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    pub(super) sum: f64,
}

impl Text {
    pub(super) fn into_string(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}\n", escaped(help, false));
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.0.push_str(name);
        for (index, (key, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{key}=\"{}\"", if index == 0 { '{' } else { ',' }, escaped(text, true));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family with one sample for each item; nothing where there are no items.
    pub(super) fn family<'a, V: Display>(
        &mut self,
        kind: Kind,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<Label<'a>>, V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        self.head(
            name,
            help,
            match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            },
        );
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    /// A family with one sample and no labels.
    pub(super) fn single(&mut self, kind: Kind, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help, [(Vec::new(), value)]);
    }

    /// A family of histograms; nothing where there are none.
    pub(super) fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (Vec<Label<'a>>, Buckets)>,
    ) {
        let mut histograms = histograms.into_iter().peekable();
        if histograms.peek().is_none() {
            return;
        }
        self.head(name, help, "histogram");
        for (mut labels, Buckets { buckets, count, sum }) in histograms {
            for (bound, below) in buckets {
                let bound = bound.to_string();
                let mut with_bound = labels.clone();
                with_bound.push(("le", &bound));
                self.sample(&format!("{name}_bucket"), &with_bound, below);
            }
            labels.push(("le", "+Inf"));
            self.sample(&format!("{name}_bucket"), &labels, count);
            labels.pop();
            self.sample(&format!("{name}_sum"), &labels, sum);
            self.sample(&format!("{name}_count"), &labels, count);
        }
    }
}

/// Names come from the API server and from whoever calls the CNI plugin.
fn escaped(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_help_and_type_once_and_labels_are_escaped() {
        let mut text = Text::default();
        let samples = [(vec![("a", "x\"y\\z\n"), ("b", "")], 1_u64), (vec![("a", "2"), ("b", "3")], 2)];
        text.family(Kind::Counter, "n_total", "Says \\ \"what\"\nit is", samples);
        text.family::<u64>(Kind::Gauge, "none", "Nothing", []);
        text.single(Kind::Gauge, "one", "One", 0.5);
        assert_eq!(
            text.into_string(),
            "# HELP n_total Says \\\\ \"what\"\\nit is\n# TYPE n_total counter\n\
             n_total{a=\"x\\\"y\\\\z\\n\",b=\"\"} 1\nn_total{a=\"2\",b=\"3\"} 2\n\
             # HELP one One\n# TYPE one gauge\none 0.5\n"
        );
    }

    #[test]
    fn histograms_end_with_infinity_sum_and_count() {
        let mut text = Text::default();
        let buckets = Buckets { buckets: vec![(0.001, 1), (2.5, 3)], count: 4, sum: 7.25 };
        text.histograms("t_seconds", "Time", [(vec![("v", "ADD")], buckets)]);
        assert_eq!(
            text.into_string(),
            "# HELP t_seconds Time\n# TYPE t_seconds histogram\n\
             t_seconds_bucket{v=\"ADD\",le=\"0.001\"} 1\nt_seconds_bucket{v=\"ADD\",le=\"2.5\"} 3\n\
             t_seconds_bucket{v=\"ADD\",le=\"+Inf\"} 4\nt_seconds_sum{v=\"ADD\"} 7.25\nt_seconds_count{v=\"ADD\"} 4\n"
        );
    }
}
