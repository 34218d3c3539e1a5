//! Locks between the CNI plugin and a change of the schema, or of the families of the node's pods.
//!
//! A call of the plugin works on the schema in force from its beginning to its end: it holds a shared lock on that schema's
//! directory of programs. Who changes the schema holds it alone, so that no lease is taken or given back meanwhile. The
//! directory above is the door: the plugin passes it with a shared lock, and a change holds it alone while it waits for
//! the calls that are inside; a crowd of calls cannot keep it waiting. The kernel releases both with the process.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{DatapathError, Pins, in_force};

/// What a call waits at most: a change takes less than a second, but for its waiting for calls.
const DOOR_PATIENCE: Duration = Duration::from_mins(1);
/// What a change waits at most for the calls that are at work.
const ROOM_PATIENCE: Duration = Duration::from_secs(45);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// The schema stays in force while this is held.
#[derive(Debug)]
pub struct Inside {
    _room: Option<Flock<File>>,
}

/// No call of the plugin is at work, and none begins, while this is held.
#[derive(Debug)]
pub struct Closed {
    _door: Flock<File>,
    _room: Option<Flock<File>>,
}

/// Holds the schema in force, and says which it is; these pins where nothing is pinned yet.
///
/// # Errors
///
/// [`DatapathError::Busy`] where somebody changes the schema and does not come to an end.
pub fn enter(pins: &Pins) -> Result<(Inside, Pins), DatapathError> {
    let nothing = || (Inside { _room: None }, pins.clone());
    let Some(base) = pins.base() else { return Ok(nothing()) };
    let Some(_door) = lock(base, FlockArg::LockSharedNonblock, DOOR_PATIENCE)? else { return Ok(nothing()) };
    let Some(found) = in_force(pins)? else { return Ok(nothing()) };
    let room = lock(&room(&found), FlockArg::LockSharedNonblock, DOOR_PATIENCE)?;
    Ok((Inside { _room: room }, found))
}

/// Waits until no call is at work on these pins, and lets none begin.
pub fn close(pins: &Pins) -> Result<Option<Closed>, DatapathError> {
    close_within(pins, DOOR_PATIENCE, ROOM_PATIENCE)
}

fn close_within(
    pins: &Pins,
    door_patience: Duration,
    room_patience: Duration,
) -> Result<Option<Closed>, DatapathError> {
    let Some(base) = pins.base() else { return Ok(None) };
    let Some(door) = lock(base, FlockArg::LockExclusiveNonblock, door_patience)? else { return Ok(None) };
    let room = lock(&room(pins), FlockArg::LockExclusiveNonblock, room_patience)?;
    Ok(Some(Closed { _door: door, _room: room }))
}

/// Waits until the calls have ended that are at work on these pins; what comes meanwhile waits as well.
///
/// # Errors
///
/// [`DatapathError::Busy`] where that takes longer than `patience`.
pub fn wait_for_calls(pins: &Pins, patience: Duration) -> Result<(), DatapathError> {
    close_within(pins, patience, patience).map(drop)
}

fn room(pins: &Pins) -> PathBuf {
    pins.root().join("programs")
}

/// Locks a directory; `None` where it does not exist.
fn lock(path: &Path, how: FlockArg, patience: Duration) -> Result<Option<Flock<File>>, DatapathError> {
    let failed = |e| DatapathError::new(format!("lock {}", path.display()), e);
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let deadline = Instant::now() + patience;
    loop {
        file = match Flock::lock(file, how) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, nix::Error::EWOULDBLOCK)) if Instant::now() < deadline => file,
            Err((_, nix::Error::EWOULDBLOCK)) => return Err(DatapathError::Busy { path: path.to_owned() }),
            Err((_, e)) => return Err(failed(e.into())),
        };
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;

    #[test]
    fn a_change_waits_for_calls_at_work_and_calls_wait_for_the_change() {
        let base = std::env::temp_dir().join(format!("overlay-schema-lock-{}", std::process::id()));
        let pins = Pins::new(base.join("v1"));
        fs::create_dir_all(room(&pins)).unwrap();
        let (inside, found) = enter(&pins).unwrap();
        assert_eq!(found, pins);
        let (second, _) = enter(&pins).unwrap();

        let (say, hear) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let closed = close(&pins).unwrap();
                say.send("closed").unwrap();
                thread::sleep(Duration::from_millis(50));
                say.send("opened").unwrap();
                drop(closed);
            });
            // The door is shut although the change is still waiting: this one does not get in before it.
            let door = File::open(&base).unwrap();
            let mut door = Some(door);
            while let Ok(free) = Flock::lock(door.take().unwrap(), FlockArg::LockSharedNonblock) {
                door = Some(free.unlock().unwrap());
                thread::sleep(PAUSE);
            }
            hear.try_recv().unwrap_err();
            drop((inside, second));
            let (_inside, _) = enter(&pins).unwrap();
            let said: Vec<_> = hear.try_iter().collect();
            assert_eq!(said, ["closed", "opened"]);
        });
        // Who only waits for calls lets them in again.
        wait_for_calls(&pins, DOOR_PATIENCE).unwrap();
        let (inside, _) = enter(&pins).unwrap();
        let hanging = wait_for_calls(&pins, PAUSE).unwrap_err();
        assert!(matches!(hanging, DatapathError::Busy { .. }), "{hanging}");
        drop((inside, enter(&pins).unwrap()));
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn pins_that_are_not_there_need_no_lock() {
        let pins = Pins::new("/nonexistent/overlay/v1");
        assert_eq!(enter(&pins).unwrap().1, pins);
        assert!(close(&pins).unwrap().is_none());
    }
}
