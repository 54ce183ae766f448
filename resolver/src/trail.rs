//! The audit trail in the resolver's own journal: every event that PAM and the sweep report, numbered.
//!
//! journald limits lines by the control group that they come from, so that a user who floods it from his own session has
//! sudo's lines in that session dropped. The resolver's unit is another group, without such a limit. A line that is lost
//! all the same leaves a gap in the numbers.

use std::cell::{Cell, OnceCell};
use std::io::Write;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

/// How many lines wait for the journal. A journal that takes none keeps no login waiting.
const LINES_MAX: usize = 8192;

/// sd-daemon(3)'s prefix for what is worth knowing.
const INFO: &str = "<6>";

/// The trail.
#[derive(Debug, Default)]
pub struct Trail {
    last: Cell<u64>,
    writer: OnceCell<Option<SyncSender<String>>>,
}

impl Trail {
    /// Records an event under the next number. A line feed in it becomes a space: a line stays a line.
    pub fn record(&self, event: &str) {
        let number = self.last.get() + 1;
        self.last.set(number);
        let line = event.replace(|c: char| c.is_control(), " ");
        let writer = self.writer.get_or_init(|| start(std::io::stderr()));
        if let Some(writer) = writer {
            // What does not fit is a gap in the numbers.
            let _: Result<(), TrySendError<String>> = writer.try_send(format!("{INFO}seq={number} {line}\n"));
        }
    }
}

/// A thread that writes lines one by one. Writing blocks where journald is slow, and the resolver has one thread for all else.
fn start(mut output: impl Write + Send + 'static) -> Option<SyncSender<String>> {
    let (sender, receiver) = sync_channel::<String>(LINES_MAX);
    let writing = move || {
        for line in receiver {
            let _ = output.write_all(line.as_bytes());
        }
    };
    std::thread::Builder::new().name("trail".to_owned()).spawn(writing).ok()?;
    Some(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn events_are_numbered_and_stay_lines() {
        let (reader, writer) = std::io::pipe().unwrap();
        let trail = Trail::default();
        trail.writer.set(start(writer)).unwrap();
        trail.record("event=login user=alice");
        trail.record("event=login user=\"x\ny\"\0");
        drop(trail);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["<6>seq=1 event=login user=alice", "<6>seq=2 event=login user=\"x y\" "]);
    }

    #[test]
    fn a_journal_that_takes_nothing_keeps_nobody_waiting_and_leaves_a_gap() {
        // Nobody reads: the pipe fills, and then the queue.
        let (reader, writer) = std::io::pipe().unwrap();
        let trail = Trail::default();
        trail.writer.set(start(writer)).unwrap();
        let long = "x".repeat(4000);
        let count = u64::try_from(LINES_MAX).unwrap() + 100;
        (0..count).for_each(|_| trail.record(&long));
        assert_eq!(trail.last.get(), count, "those that do not fit are counted");
        drop(reader);
    }
}
