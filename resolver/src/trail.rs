//! The audit trail: every event that PAM and the sweep report, numbered, in the resolver's own journal and in a file.
//!
//! journald limits lines by control group, so a user who floods it from a session makes it drop sudo's lines of that
//! session. The resolver's unit has no such limit, and a line that is lost nevertheless leaves a gap in the numbers. A
//! user who fills journald's disk space makes it delete the oldest lines of all services. The file is not affected: it
//! belongs to the resolver, and has no other lines.

use std::cell::{Cell, OnceCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most lines that wait for the journal. Further lines are lost, so that no login waits for the journal.
const LINES_MAX: usize = 8192;

/// The prefix of sd-daemon(3) for the level "info".
const INFO: &str = "<6>";

/// The variable in which systemd names the folder of `LogsDirectory=` (systemd.exec(5)).
const FOLDER: &str = "LOGS_DIRECTORY";

/// The name of the file in the folder of `LOGS_DIRECTORY`.
const NAME: &str = "trail.log";

/// The size in bytes at which the file is renamed to `trail.log.1`, and each older one to the next number.
const FILE_MAX: u64 = 8 * 1024 * 1024;

/// The number of older files that are kept: about 64 MiB in all, some 300,000 events.
const OLDER: u32 = 7;

/// The number of the last event, and the thread that writes events.
#[derive(Debug, Default)]
pub struct Trail {
    last: Cell<u64>,
    writer: OnceCell<Option<SyncSender<Entry>>>,
}

/// What the thread gets.
enum Entry {
    /// An event, as a line.
    Event(String),
    /// The last entry. The thread answers once all events before it are written.
    Last(Sender<()>),
}

impl Trail {
    /// Records an event under the next number. Control characters become spaces, so that an event is always one line.
    pub fn record(&self, event: &str) {
        let number = self.last.get() + 1;
        self.last.set(number);
        let line = event.replace(|c: char| c.is_control(), " ");
        let folder = || std::env::var_os(FOLDER).map(PathBuf::from);
        let writer = self.writer.get_or_init(|| start(io::stderr(), folder()));
        if let Some(writer) = writer {
            // An event that does not fit into the queue leaves a gap in the numbers.
            let _ = writer.try_send(Entry::Event(format!("seq={number} {line}\n")));
        }
    }

    /// Waits until all events are written, at most `limit`: those who reported them were told that they are recorded.
    pub fn finish(&self, limit: Duration) {
        let Some(Some(writer)) = self.writer.get() else { return };
        let (done, is_done) = channel();
        if writer.try_send(Entry::Last(done)).is_ok() {
            let _ = is_done.recv_timeout(limit);
        }
    }
}

/// Starts a thread that writes each line that is sent to it. A write blocks while journald is slow, and the resolver has
/// only one thread for everything else. None if the thread cannot be started.
fn start(mut journal: impl Write + Send + 'static, folder: Option<PathBuf>) -> Option<SyncSender<Entry>> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    let writing = move || {
        let mut kept = folder.map(|folder| Kept { path: folder.join(NAME), file: None });
        let mut was_told = false;
        for entry in receiver {
            let line = match entry {
                Entry::Event(line) => line,
                Entry::Last(done) => {
                    let _ = done.send(());
                    return;
                }
            };
            if let Some(kept) = &mut kept
                && let Err(error) = kept.append(&line)
                && !was_told
            {
                was_told = true;
                let _ =
                    writeln!(journal, "<3>{}: {error}: events are in the journal alone", kept.path.display());
            }
            let _ = journal.write_all(format!("{INFO}{line}").as_bytes());
        }
    };
    std::thread::Builder::new().name("trail".to_owned()).spawn(writing).ok()?;
    Some(sender)
}

/// The file, which is replaced by a new one when it reaches [`FILE_MAX`].
struct Kept {
    path: PathBuf,
    file: Option<File>,
}

impl Kept {
    fn append(&mut self, line: &str) -> io::Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|found| found.len() >= FILE_MAX) {
            self.file = None;
            rotate(&self.path)?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?),
        };
        let written = file.write_all(format!("{} {line}", utc(SystemTime::now())).as_bytes());
        if written.is_err() {
            // The next line opens the file again, for example after a full disk has room.
            self.file = None;
        }
        written
    }
}

/// Renames each file to the next number, which replaces the oldest.
fn rotate(path: &Path) -> io::Result<()> {
    let numbered = |number: u32| match number {
        0 => path.to_owned(),
        _ => path.with_extension(format!("log.{number}")),
    };
    for number in (0..OLDER).rev() {
        match std::fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the time in UTC, in the form of RFC 3339.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of the year 0, in eras of 400 years (Howard Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms", civil_from_days).
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn events_are_numbered_and_stay_lines() {
        let (reader, writer) = io::pipe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let trail = Trail::default();
        trail.writer.set(start(writer, Some(folder.path().to_owned()))).unwrap();
        trail.record("event=login user=alice");
        trail.record("event=login user=\"x\ny\"\0");
        drop(trail);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["<6>seq=1 event=login user=alice", "<6>seq=2 event=login user=\"x y\" "]);
        let kept = std::fs::read_to_string(folder.path().join(NAME)).unwrap();
        let kept: Vec<&str> =
            kept.lines().filter_map(|line| line.split_once("Z seq=")).map(|(_, rest)| rest).collect();
        assert_eq!(kept, ["1 event=login user=alice", "2 event=login user=\"x y\" "]);
    }

    #[test]
    fn all_events_are_written_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let trail = Trail::default();
        trail.writer.set(start(io::sink(), Some(folder.path().to_owned()))).unwrap();
        for number in 0..1000 {
            trail.record(&format!("event={number}"));
        }
        trail.finish(Duration::from_secs(20));
        assert_eq!(std::fs::read_to_string(folder.path().join(NAME)).unwrap().lines().count(), 1000);
    }

    #[test]
    fn a_file_that_is_long_is_put_by_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut kept = Kept { path: path.clone(), file: None };
        for round in 0..u64::from(OLDER) + 3 {
            kept.append(&format!("round={round}\n")).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(FILE_MAX).unwrap();
        }
        kept.append("last=1\n").unwrap();
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let wanted: Vec<String> = std::iter::once(NAME.to_owned())
            .chain((1..=OLDER).map(|number| format!("{NAME}.{number}")))
            .collect();
        assert_eq!(names, wanted);
        let text =
            String::from_utf8_lossy(&std::fs::read(folder.path().join("trail.log.1")).unwrap()).into_owned();
        assert!(text.contains(&format!("round={}", OLDER + 2)));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_logged_once_and_the_journal_has_all_events() {
        let (reader, writer) = io::pipe().unwrap();
        let trail = Trail::default();
        trail.writer.set(start(writer, Some("/nonexistent".into()))).unwrap();
        trail.record("a=1");
        trail.record("b=2");
        drop(trail);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("<3>/nonexistent/trail.log: "), "{lines:?}");
    }

    #[test]
    fn the_time_is_that_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn a_full_journal_blocks_no_request_and_leaves_a_gap_in_the_numbers() {
        // Nothing reads the pipe, so first the pipe becomes full, and then the queue.
        let (reader, writer) = io::pipe().unwrap();
        let trail = Trail::default();
        trail.writer.set(start(writer, None)).unwrap();
        let long = "x".repeat(4000);
        let count = u64::try_from(LINES_MAX).unwrap() + 100;
        (0..count).for_each(|_| trail.record(&long));
        assert_eq!(trail.last.get(), count, "those that do not fit are counted");
        drop(reader);
    }
}
