//! What the server's own log says about refused forks: counted, not quoted.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::Settings;
use crate::host::{Pid, Root, read_config};

/// How much of the end of a log is read, in bytes.
const TAIL: u64 = 2 << 20;

/// Counts from one log file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// The file, as the server sees it.
    pub file: PathBuf,
    /// When it was last written to.
    pub modified: Option<SystemTime>,
    /// Only the last [`TAIL`] bytes of it were read.
    pub partial: bool,
    /// Refused forks by what the log says: `EAGAIN`, `ENOMEM`, or `other` (another language or
    /// error).
    pub could_not_fork: BTreeMap<&'static str, u64>,
    /// Times of the first and the last of them, as the log has them.
    pub refused: Option<(String, String)>,
    /// Clients turned away because all slots were taken.
    pub too_many_clients: u64,
    /// `out of memory` in a backend.
    pub out_of_memory: u64,
}

/// Finds the log files of a server and counts. Files that cannot be read are named with the reason.
#[must_use]
pub fn server_log(
    root: &Root,
    pid: Pid,
    settings: &Settings,
) -> (Vec<LogCounts>, Vec<(PathBuf, String)>) {
    let (mut counts, mut unread) = (Vec::new(), Vec::new());
    let mut take = |name: PathBuf, path: PathBuf| match count(&path) {
        Ok(Some(found)) => counts.push(LogCounts {
            file: name,
            ..found
        }),
        // Standard error is a terminal, a pipe to the journal, or /dev/null.
        Ok(None) => {}
        Err(error) => unread.push((name, error.to_string())),
    };
    let cwd = root.pid(pid).join("cwd");
    if settings.switch("logging_collector", false) == Some(true) {
        for name in current_logfiles(&cwd) {
            let path = match name.strip_prefix("/") {
                Ok(below) => root.pid(pid).join("root").join(below),
                Err(_) => cwd.join(&name),
            };
            take(name, path);
        }
    } else {
        let path = root.pid(pid).join("fd/2");
        if let Ok(name) = path.read_link() {
            take(name, path);
        }
    }
    (counts, unread)
}

/// `current_logfiles` of the data directory: a format and a path on each line, since version 10.
pub(super) fn current_logfiles(cwd: &std::path::Path) -> Vec<PathBuf> {
    let content = read_config(&cwd.join("current_logfiles"), 16 << 10).unwrap_or_default();
    let text = String::from_utf8_lossy(&content).into_owned();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, path)| PathBuf::from(path))
        .collect()
}

/// Opens a regular file without waiting; `Ok(None)` for anything else. Without `follow` its last
/// name is no link.
pub(super) fn open_regular(
    path: &std::path::Path,
    follow: bool,
) -> io::Result<Option<(File, Metadata)>> {
    let link = if follow { 0 } else { libc::O_NOFOLLOW };
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC | link)
        .open(path)
        .or_else(|error| match error.raw_os_error() {
            // A socket cannot be opened at all.
            Some(libc::ENXIO) => File::open("/dev/null"),
            _ => Err(error),
        })?;
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Counts in the end of a regular file. `Ok(None)` for anything else.
fn count(path: &std::path::Path) -> io::Result<Option<LogCounts>> {
    let Some((mut file, metadata)) = open_regular(path, true)? else {
        return Ok(None);
    };
    let skipped = metadata.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(skipped))?;
    let mut found = LogCounts {
        modified: metadata.modified().ok(),
        partial: skipped > 0,
        ..LogCounts::default()
    };
    let mut content = Vec::new();
    file.take(TAIL).read_to_end(&mut content)?;
    for line in content.split(|&byte| byte == b'\n') {
        found.line(line);
    }
    Ok(Some(found))
}

impl LogCounts {
    /// One line in any of the three formats (stderr, csvlog, jsonlog): messages are the same.
    fn line(&mut self, line: &[u8]) {
        let has = |text: &str| {
            let wanted = text.as_bytes();
            line.windows(wanted.len()).any(|window| window == wanted)
        };
        if line.len() < 15 {
            return;
        }
        // src/backend/postmaster: "could not fork new process for connection", "could not fork %s process"
        if has("could not fork ") {
            let errno = if has("Resource temporarily unavailable") {
                "EAGAIN"
            } else if has("Cannot allocate memory") {
                "ENOMEM"
            } else {
                "other"
            };
            *self.could_not_fork.entry(errno).or_default() += 1;
            if let Some(time) = time(line) {
                let first = self.refused.take().map_or_else(|| time.clone(), |it| it.0);
                self.refused = Some((first, time));
            }
        } else if has("too many clients already") || has("connection slots are reserved") {
            self.too_many_clients += 1;
        } else if has("out of memory") {
            self.out_of_memory += 1;
        }
    }
}

/// The first time in a line, without its time zone: wherever log_line_prefix has it, at the start of
/// csvlog, the first field of jsonlog.
fn time(line: &[u8]) -> Option<String> {
    const SHAPE: &[u8] = b"0000-00-00 00:00:00";
    let fits = |window: &&[u8]| {
        let mut pairs = window.iter().zip(SHAPE);
        pairs.all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            shape => byte == shape,
        })
    };
    let found = line.windows(SHAPE.len()).take(200).find(fits)?;
    Some(String::from_utf8_lossy(found).into_owned())
}

/// The language of the server's messages, where these are not English and so not understood here.
#[must_use]
pub fn foreign_messages(settings: &Settings) -> Option<&str> {
    let language = settings.text("lc_messages")?;
    let english = matches!(language, "" | "C" | "POSIX")
        || ["C.", "en_", "en-", "English"]
            .iter()
            .any(|start| language.starts_with(start));
    (!english).then_some(language)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeRoot;

    const LOG: &str = "2026-11-23 10:00:00.123 UTC [7] LOG:  could not fork new process for connection: Cannot allocate memory\n\
        2026-11-23 10:00:01.123 UTC,,,,\"could not fork new process for connection: Resource temporarily unavailable\"\n\
        {\"timestamp\":\"2026-11-23 10:00:02.123 UTC\",\"message\":\"could not fork autovacuum worker process: Cannot allocate memory\"}\n\
        FATAL:  sorry, too many clients already\nERROR:  out of memory\nLOG: could not fork process: \u{e9}\n";

    #[test]
    fn all_formats_are_counted() {
        let fake = FakeRoot::new();
        fake.write("var/log/pg.log", LOG);
        fake.link("proc/7/fd/2", fake.path("var/log/pg.log"));
        let (found, unread) = server_log(fake.root(), 7, &Settings::default());
        assert!(unread.is_empty());
        assert_eq!(found[0].could_not_fork["ENOMEM"], 2);
        assert_eq!(found[0].could_not_fork["EAGAIN"], 1);
        assert_eq!(found[0].could_not_fork["other"], 1);
        let times = (
            "2026-11-23 10:00:00".to_owned(),
            "2026-11-23 10:00:02".to_owned(),
        );
        assert_eq!(found[0].refused, Some(times));
        assert_eq!((found[0].too_many_clients, found[0].out_of_memory), (1, 1));
    }

    #[test]
    fn the_collectors_files_are_found() {
        let fake = FakeRoot::new();
        fake.write("data/log/a.csv", LOG);
        fake.write(
            "data/log/a.json",
            "{\"timestamp\":\"2026-11-23 16:43:33.176 UTC\",\"pid\":138,\"error_severity\":\"LOG\",\"message\":\"could not fork new process for connection: Resource temporarily unavailable\",\"backend_type\":\"postmaster\"}\n",
        );
        fake.write(
            "data/current_logfiles",
            "csvlog log/a.csv\njsonlog log/a.json\nstderr log/gone.log\n",
        );
        fake.link("proc/7/cwd", fake.path("data"));
        fake.write("proc/7/cmdline", "postgres\0-c\0logging_collector=on\0");
        let settings = super::super::settings(fake.root(), 7);
        let (found, unread) = server_log(fake.root(), 7, &settings);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].file, PathBuf::from("log/a.csv"));
        let json = &found[1];
        assert_eq!(json.could_not_fork, BTreeMap::from([("EAGAIN", 1)]));
        let time = "2026-11-23 16:43:33".to_owned();
        assert_eq!(json.refused, Some((time.clone(), time)));
        assert_eq!(unread.len(), 1);
    }

    #[test]
    fn a_pipe_or_a_device_is_no_log() {
        let fake = FakeRoot::new();
        fake.link("proc/7/fd/2", "/dev/null");
        assert_eq!(
            server_log(fake.root(), 7, &Settings::default()),
            (vec![], vec![])
        );
        assert_eq!(
            server_log(fake.root(), 8, &Settings::default()),
            (vec![], vec![])
        );
    }
}
