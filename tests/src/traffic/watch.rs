//! Whether something that must not arrive arrives: many devices captured at once, searched for marked payloads.

use super::capture::{Capture, Frame};
use crate::lab::Namespace;

/// Captures under way. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Watch {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    name: String,
    outgoing: bool,
    capture: Capture,
}

impl Watch {
    /// Also looks at what device `dev` of `namespace` receives.
    #[track_caller]
    #[must_use]
    pub fn received(self, namespace: &Namespace, dev: &str) -> Self {
        self.place(namespace, dev, false)
    }

    /// Also looks at what device `dev` of `namespace` sends.
    #[track_caller]
    #[must_use]
    pub fn sent(self, namespace: &Namespace, dev: &str) -> Self {
        self.place(namespace, dev, true)
    }

    #[track_caller]
    fn place(mut self, namespace: &Namespace, dev: &str, outgoing: bool) -> Self {
        let verb = if outgoing { "sent by" } else { "received by" };
        let name = format!("{verb} {dev} of {}", namespace.name());
        self.places.push(Place { name, outgoing, capture: Capture::start(namespace, dev) });
        self
    }

    /// Ends it; gives a line for each frame with `mark` in it: where it was seen, and the text from the mark on.
    #[track_caller]
    pub fn seen(self, mark: &str) -> Vec<String> {
        let mut seen = Vec::new();
        for Place { name, outgoing, capture } in self.places {
            let frames = capture.stop().into_iter().filter(|frame| frame.outgoing == outgoing);
            seen.extend(frames.filter_map(|frame| Some(format!("{name}: {}", text_from(&frame, mark)?))));
        }
        seen
    }
}

fn text_from(Frame { bytes, .. }: &Frame, mark: &str) -> Option<String> {
    let at = bytes.windows(mark.len()).position(|window| window == mark.as_bytes())?;
    Some(String::from_utf8_lossy(&bytes[at..]).into_owned())
}
