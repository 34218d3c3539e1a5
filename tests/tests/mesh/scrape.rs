//! What a scrape says: Prometheus' text format, as far as agents write it.

use std::collections::{BTreeMap, BTreeSet};

/// A sample: its labels and its value.
pub(crate) type Sample = (BTreeMap<String, String>, f64);

/// All samples by name, and what is said of the families.
#[derive(Debug)]
pub(crate) struct Scrape {
    samples: BTreeMap<String, Vec<Sample>>,
    /// Type and help of each family.
    pub(crate) families: BTreeMap<String, (String, String)>,
}

impl Scrape {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                families.entry(name.to_owned()).or_default().1 = help.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                families.entry(name.to_owned()).or_default().0 = kind.to_owned();
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                samples.entry(name.to_owned()).or_default().push((self::labels(labels), value));
            }
        }
        Self { samples, families }
    }

    /// The names of all samples.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.samples.keys().map(String::as_str).collect()
    }

    pub(crate) fn of(&self, name: &str) -> &[Sample] {
        self.samples.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of the sample that has these labels, among others; 0 where there is none.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |(has, _): &&Sample| {
            labels.iter().all(|(key, value)| has.get(*key).is_some_and(|has| has == value))
        };
        let found: Vec<_> = self.of(name).iter().filter(fits).collect();
        assert!(found.len() <= 1, "{name} {labels:?}: {found:?}");
        found.first().map_or(0.0, |(_, value)| *value)
    }
}

/// `a="b",c="d"}`; no value here has a quote in it.
#[track_caller]
fn labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("no label: {pair}"));
        (key.to_owned(), value.trim_end_matches('"').to_owned())
    };
    pairs.map(pair).collect()
}
