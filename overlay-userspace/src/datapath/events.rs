//! The drop records of the pinned ring buffer. One reader at a time: a record is handed out once.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map, MapData, RingBuf};
use overlay_common::maps::DropEvent;

use super::{Cause, DatapathError, pins::Pins};

/// A reader of `EVENTS`; becomes readable (poll(2)) when records arrive.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the pinned ring. Records that nobody has read yet come first.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let path = pins.map("EVENTS");
        let data = MapData::from_pin(&path).map_err(|e| match Cause::from(e) {
            Cause::Io(e) if e.kind() == std::io::ErrorKind::NotFound => {
                DatapathError::NotPinned { path: path.clone() }
            }
            cause => DatapathError::new(format!("open {}", path.display()), cause),
        })?;
        let ring = RingBuf::try_from(Map::RingBuf(data))
            .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))?;
        Ok(Self(ring))
    }

    /// The next record, `None` when there is none at the moment.
    pub fn next_event(&mut self) -> Option<DropEvent> {
        loop {
            let item = self.0.next()?;
            // Another length can only come from another schema, which lives in another directory.
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&item) {
                return Some(event);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
