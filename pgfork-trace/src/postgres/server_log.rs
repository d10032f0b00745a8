//! What the server's own log says about refused forks: counted, not quoted.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{
    Settings,
    log_line::{Format, Refusal, refusal},
};
use crate::host::{Pid, Root, open_regular, read_config};

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

/// Finds the log files of a server and counts. What cannot be read is said in sentences.
#[must_use]
pub fn server_log(root: &Root, pid: Pid, settings: &Settings) -> (Vec<LogCounts>, Vec<String>) {
    let (mut counts, mut unread) = (Vec::new(), Vec::new());
    let separators = separators(settings);
    let mut take =
        |format: Format, name: PathBuf, path: &Path| match count(path, format, separators) {
            Ok(Some(found)) => counts.push(LogCounts {
                file: name,
                ..found
            }),
            Ok(None) => unread.push(no_file(&name)),
            Err(error) => unread.push(format!(
                "the server log {} cannot be read: {error}",
                name.display()
            )),
        };
    let cwd = root.pid(pid).join("cwd");
    let destination = settings.text("log_destination").unwrap_or("stderr");
    if destination == "syslog" {
        unread.push(format!(
            "the server's messages go to syslog (log_destination): {NOT_COUNTED}"
        ));
    } else if settings.switch("logging_collector", false) == Some(true) {
        let why = match current_logfiles(&cwd) {
            Ok(names) => {
                let none = names.is_empty();
                for (format, name) in names {
                    let path = match name.strip_prefix("/") {
                        Ok(below) => root.pid(pid).join("root").join(below),
                        Err(_) => cwd.join(&name),
                    };
                    take(format, name, &path);
                }
                none.then(|| "it names no file".to_owned())
            }
            Err(error) => Some(error.to_string()),
        };
        unread.extend(why.map(|why| {
            format!("where the server's collector writes its log is not known (current_logfiles: {why}): {NOT_COUNTED}")
        }));
    } else {
        let path = root.pid(pid).join("fd/2");
        match path.read_link() {
            Ok(name) => take(Format::Stderr, name, &path),
            Err(error) => unread.push(format!(
                "where the server's messages go is not known (its standard error: {error}): {NOT_COUNTED}"
            )),
        }
    }
    (counts, unread)
}

const NOT_COUNTED: &str = "refusals that it logged are not counted";

/// For a log that is no file: a terminal, a pipe to another program, /dev/null.
fn no_file(name: &Path) -> String {
    let name = name.to_string_lossy();
    let place = match name.split_once(":[") {
        Some(("socket", _)) => "a socket (the journal's, or another program's)",
        Some(("pipe", _)) => "a pipe to another program",
        _ => &*name,
    };
    format!("the server's messages go to {place}, where they cannot be read: {NOT_COUNTED}")
}

/// How often log_line_prefix has what stands between severity and message.
pub(super) fn separators(settings: &Settings) -> usize {
    let prefix = settings.text("log_line_prefix").unwrap_or_default();
    prefix.matches(":  ").count()
}

/// `current_logfiles` of the data directory: a format and a path on each line, since version 10.
///
/// # Errors
/// When it is not there, or cannot be read.
pub(super) fn current_logfiles(cwd: &Path) -> io::Result<Vec<(Format, PathBuf)>> {
    let content = read_config(&cwd.join("current_logfiles"), 16 << 10)?;
    let text = String::from_utf8_lossy(&content).into_owned();
    let known = |line: &str| {
        let (format, path) = line.split_once(' ')?;
        Some((Format::named(format)?, PathBuf::from(path)))
    };
    Ok(text.lines().filter_map(known).collect())
}

/// Counts in the end of a regular file. `Ok(None)` for anything else.
fn count(path: &Path, format: Format, separators: usize) -> io::Result<Option<LogCounts>> {
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
    // The first one may have lost its beginning, which says what it is.
    let lines = content.split(|&byte| byte == b'\n');
    for line in lines.skip(usize::from(found.partial)) {
        found.line(line, format, separators);
    }
    Ok(Some(found))
}

impl LogCounts {
    fn line(&mut self, line: &[u8], format: Format, separators: usize) {
        match refusal(line, format, separators) {
            Some(Refusal::Fork { error, .. }) => {
                let errno = match error.as_str() {
                    "Resource temporarily unavailable" => "EAGAIN",
                    "Cannot allocate memory" => "ENOMEM",
                    _ => "other",
                };
                *self.could_not_fork.entry(errno).or_default() += 1;
                if let Some(time) = time(line) {
                    let first = self.refused.take().map_or_else(|| time.clone(), |it| it.0);
                    self.refused = Some((first, time));
                }
            }
            Some(Refusal::Slots) => self.too_many_clients += 1,
            Some(Refusal::Memory) => self.out_of_memory += 1,
            None => {}
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
        2026-11-23 10:00:02.123 UTC [7] LOG:  could not fork autovacuum worker process: Resource temporarily unavailable\n\
        FATAL:  sorry, too many clients already\nERROR:  out of memory\nLOG:  could not fork process: \u{e9}\n";
    /// What clients can have the server write.
    const CLIENTS: &str = "2026-11-23 11:00:00.123 UTC [9] ERROR:  syntax error at or near \"could\" at character 1\n\
        2026-11-23 11:00:00.123 UTC [9] STATEMENT:  could not fork new process for connection: Cannot allocate memory\n\
        2026-11-23 11:00:00.124 UTC [9] STATEMENT:  select 'too many clients already', 'connection slots are reserved'\n\
        \tLOG:  could not fork new process for connection: Cannot allocate memory\n\
        2026-11-23 11:00:00.125 UTC [9] CONTEXT:  out of memory\n\
        2026-11-23 11:00:00.126 UTC [9] DETAIL:  could not fork new process for connection: Cannot allocate memory\n";

    #[test]
    fn refusals_are_counted() {
        let fake = FakeRoot::new();
        fake.write("var/log/pg.log", LOG);
        fake.link("proc/7/fd/2", fake.path("var/log/pg.log"));
        let (found, unread) = server_log(fake.root(), 7, &Settings::default());
        assert!(unread.is_empty());
        let counts = [("EAGAIN", 1), ("ENOMEM", 1), ("other", 1)];
        assert_eq!(found[0].could_not_fork, BTreeMap::from(counts));
        let times = (
            "2026-11-23 10:00:00".to_owned(),
            "2026-11-23 10:00:02".to_owned(),
        );
        assert_eq!(found[0].refused, Some(times));
        assert_eq!((found[0].too_many_clients, found[0].out_of_memory), (1, 1));
    }

    #[test]
    fn clients_do_not_write_the_history() {
        let fake = FakeRoot::new();
        fake.write("log", CLIENTS);
        fake.link("proc/7/fd/2", fake.path("log"));
        let (found, _) = server_log(fake.root(), 7, &Settings::default());
        let nothing = LogCounts {
            file: found[0].file.clone(),
            modified: found[0].modified,
            ..LogCounts::default()
        };
        assert_eq!(found[0], nothing);
    }

    #[test]
    fn a_line_that_lost_its_beginning_says_nothing() {
        let fake = FakeRoot::new();
        let line = "LOG:  could not fork worker process: x\n";
        let tail = usize::try_from(TAIL).unwrap();
        let filler = "y".repeat(tail - 1 - 2 * line.len());
        fake.write("log", format!("STATEMENT:  {line}{line}{filler}\n"));
        fake.link("proc/7/fd/2", fake.path("log"));
        let (found, _) = server_log(fake.root(), 7, &Settings::default());
        assert!(found[0].partial);
        assert_eq!(found[0].could_not_fork["other"], 1);
    }

    #[test]
    fn the_collectors_files_are_found() {
        let fake = FakeRoot::new();
        fake.write(
            "data/log/a.csv",
            "2026-11-23 16:43:32.176 UTC,,,138,,6564.8a,3,,2026-11-23 16:00:00 UTC,,0,LOG,00000,\"could not fork new process for connection: Cannot allocate memory\",,,,,,,,,\"\",\"postmaster\",,0\n",
        );
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
        assert_eq!(found[0].could_not_fork, BTreeMap::from([("ENOMEM", 1)]));
        let json = &found[1];
        assert_eq!(json.could_not_fork, BTreeMap::from([("EAGAIN", 1)]));
        let time = "2026-11-23 16:43:33".to_owned();
        assert_eq!(json.refused, Some((time.clone(), time)));
        assert_eq!(
            unread,
            ["the server log log/gone.log cannot be read: No such file or directory (os error 2)"]
        );
        fake.remove("data/current_logfiles");
        let (found, unread) = server_log(fake.root(), 7, &settings);
        assert!(found.is_empty());
        assert!(
            unread[0].contains("current_logfiles: No such file"),
            "{unread:?}"
        );
    }

    #[test]
    fn where_there_is_no_log_file_that_is_said() {
        let fake = FakeRoot::new();
        let said = |settings: &Settings| {
            let (found, unread) = server_log(fake.root(), 7, settings);
            assert!(found.is_empty() && unread.len() == 1, "{unread:?}");
            unread.concat()
        };
        let none = Settings::default();
        assert!(said(&none).contains("its standard error: No such file"));
        fake.link("proc/7/fd/2", "/dev/null");
        assert_eq!(
            said(&none),
            "the server's messages go to /dev/null, where they cannot be read: refusals that it logged are not counted"
        );
        fake.write("proc/7/cmdline", "postgres\0-c\0log_destination=syslog\0");
        assert!(said(&super::super::settings(fake.root(), 7)).contains("to syslog"));
        for (link, place) in [("pipe:[1]", "a pipe"), ("socket:[1]", "a socket")] {
            assert!(no_file(Path::new(link)).contains(place));
        }
        let (reader, _writer) = io::pipe().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
        fake.link("proc/7/fd/2", format!("/proc/self/fd/{fd}"));
        assert!(said(&none).contains("where they cannot be read"));
    }
}
