//! Settings of a server from its files and its command line, without asking the server.
//!
//! Order of strength (src/backend/utils/misc/guc.c and guc-file.l, PostgreSQL 10 to 18): built-in
//! default, `postgresql.conf` with what it includes, `postgresql.auto.conf`, command line. A file
//! may have been changed after the server read it: [`Setting::modified`] tells.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::host::{Pid, Root, process, read_config};

/// Includes deeper than this are an error to PostgreSQL too (`CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: usize = 10;
/// Longest file that is read, in bytes.
const FILE_LIMIT: u64 = 4 << 20;
/// Most files that are read.
const MOST_FILES: usize = 200;
/// Most files that are named as not read.
const MOST_UNREAD: usize = 20;

/// One setting and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its value, quotes and escapes removed.
    pub value: String,
    /// File as the server sees it. `None`: the command line.
    pub file: Option<PathBuf>,
    /// Line in it, from 1.
    pub line: usize,
    /// When the file was last changed.
    pub modified: Option<SystemTime>,
}

/// Settings of one server. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// What is set, the winning place of each.
    pub set: HashMap<String, Setting>,
    /// Files that could not be read, and why; at most 20.
    pub unread: Vec<(PathBuf, String)>,
    /// All files could be read: what is not set has its default.
    pub complete: bool,
}

impl Settings {
    /// Whether a setting is given on the command line, which comes before all files.
    #[must_use]
    pub fn is_on_command_line(&self, name: &str) -> bool {
        self.set.get(name).is_some_and(|it| it.file.is_none())
    }

    /// The text of a setting.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.set.get(name).map(|setting| setting.value.as_str())
    }

    /// A number without unit, or `default` when it is not set and everything was read.
    #[must_use]
    pub fn number(&self, name: &str, default: u64) -> Option<u64> {
        match self.text(name) {
            Some(text) => parse_number(text, 1),
            None => self.complete.then_some(default),
        }
    }

    /// A size in bytes; `unit` is what a bare number counts, in bytes.
    #[must_use]
    pub fn bytes(&self, name: &str, unit: u64, default: u64) -> Option<u64> {
        match self.text(name) {
            Some(text) => parse_number(text, unit),
            None => self.complete.then_some(default),
        }
    }

    /// A switch. PostgreSQL takes any unambiguous beginning of on, off, true, false, yes, no.
    #[must_use]
    pub fn switch(&self, name: &str, default: bool) -> Option<bool> {
        let Some(text) = self.text(name) else {
            return self.complete.then_some(default);
        };
        match text.to_ascii_lowercase().as_str() {
            "on" | "1" | "t" | "tr" | "tru" | "true" | "y" | "ye" | "yes" => Some(true),
            "of" | "off" | "0" | "f" | "fa" | "fal" | "fals" | "false" | "n" | "no" => Some(false),
            _ => None,
        }
    }
}

/// `128MB`, `16384` (times `unit`), `0x10`, `1.5GB`.
fn parse_number(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok()?.checked_mul(unit);
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let scale = match suffix.trim() {
        "" => unit,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let mut bytes = whole.checked_mul(scale)?;
    if !fraction.is_empty() && fraction.len() <= 6 {
        let parts: u64 = fraction.parse().ok()?;
        let of = 10u64.pow(u32::try_from(fraction.len()).ok()?);
        bytes = bytes.checked_add(scale.checked_mul(parts)? / of)?;
    }
    Some(bytes)
}

/// Reads the settings of the server with this pid; its files as it sees them. What cannot be read
/// is named in the result.
#[must_use]
pub fn settings(root: &Root, pid: Pid) -> Settings {
    let arguments = process::cmdline(root, pid).unwrap_or_default();
    let given = command_line(&arguments);
    let mut reader = Reader {
        root: root.pid(pid).join("root"),
        cwd: root.pid(pid).join("cwd"),
        found: Settings::default(),
        files: 0,
    };
    let main = given
        .get("config_file")
        .map_or_else(|| reader.main(given.get("data_directory")), PathBuf::from);
    let read = reader.file(&main, 0, true);
    // Until ALTER SYSTEM is first used the file is there, but empty of settings.
    reader.file(Path::new("postgresql.auto.conf"), 0, false);
    reader.found.complete = read && reader.found.unread.is_empty();
    for (name, value) in given {
        reader.found.set.insert(
            name,
            Setting {
                value,
                file: None,
                line: 0,
                modified: None,
            },
        );
    }
    reader.found
}

/// Settings given as arguments (src/backend/postmaster/postmaster.c `PostmasterMain`).
fn command_line(arguments: &[OsString]) -> HashMap<String, String> {
    let mut given = HashMap::new();
    let texts: Vec<String> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let mut rest = texts.iter().skip(1);
    while let Some(argument) = rest.next() {
        if let Some(long) = argument.strip_prefix("--") {
            set_pair(&mut given, long);
            continue;
        }
        let Some(letter) = argument.strip_prefix('-').and_then(|it| it.chars().next()) else {
            continue;
        };
        if !"cBNpDkhfrSWdCo".contains(letter) {
            continue;
        }
        let attached = &argument[1 + letter.len_utf8()..];
        let value = match attached {
            "" => rest.next().cloned().unwrap_or_default(),
            attached => attached.to_owned(),
        };
        match letter {
            'c' => set_pair(&mut given, &value),
            'B' => drop(given.insert("shared_buffers".to_owned(), value)),
            'N' => drop(given.insert("max_connections".to_owned(), value)),
            'p' => drop(given.insert("port".to_owned(), value)),
            'S' => drop(given.insert("work_mem".to_owned(), value)),
            'D' => drop(given.insert("data_directory".to_owned(), value)),
            _ => {}
        }
    }
    given
}

fn set_pair(given: &mut HashMap<String, String>, pair: &str) {
    if let Some((name, value)) = pair.split_once('=') {
        let name = name.trim().to_ascii_lowercase().replace('-', "_");
        given.insert(name, value.to_owned());
    }
}

struct Reader {
    root: PathBuf,
    cwd: PathBuf,
    found: Settings,
    files: usize,
}

impl Reader {
    /// Where a path of the server is for us; relative ones start in its data directory.
    fn here(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(below) => self.root.join(below),
            Err(_) => self.cwd.join(path),
        }
    }

    /// The main file without config_file: that in the directory of -D, which may be another than
    /// the data directory, where the server is (guc.c `SelectConfigFiles`, PostgreSQL 10 to 18).
    fn main(&self, given: Option<&String>) -> PathBuf {
        let given = given.map(|directory| Path::new(directory).join("postgresql.conf"));
        // A relative one is so to the directory that the server was started in.
        given
            .filter(|file| file.is_absolute() && self.here(file).is_file())
            .unwrap_or_else(|| PathBuf::from("postgresql.conf"))
    }

    /// Reads one file and what it includes. Whether it was read.
    fn file(&mut self, path: &Path, depth: usize, must: bool) -> bool {
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MOST_FILES {
            self.unread(path, "too many includes".to_owned());
            return false;
        }
        let here = self.here(path);
        let content = match read_config(&here, FILE_LIMIT) {
            Ok(content) => content,
            Err(error) => {
                if must || error.kind() != std::io::ErrorKind::NotFound {
                    self.unread(path, error.to_string());
                }
                return false;
            }
        };
        let modified = fs::metadata(&here).and_then(|found| found.modified()).ok();
        for (at, line) in content.split(|&byte| byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let Some((name, value)) = assignment(&line) else {
                continue;
            };
            match name.as_str() {
                "include" => drop(self.file(&beside(path, &value), depth + 1, true)),
                "include_if_exists" => drop(self.file(&beside(path, &value), depth + 1, false)),
                "include_dir" => self.directory(&beside(path, &value), depth),
                _ => {
                    let setting = Setting {
                        value,
                        file: Some(path.to_owned()),
                        line: at + 1,
                        modified,
                    };
                    self.found.set.insert(name, setting);
                }
            }
        }
        true
    }

    fn unread(&mut self, path: &Path, why: String) {
        if self.found.unread.len() < MOST_UNREAD {
            self.found.unread.push((path.to_owned(), why));
        }
    }

    /// All `*.conf` in a directory, by name.
    fn directory(&mut self, path: &Path, depth: usize) {
        let entries = match fs::read_dir(self.here(path)) {
            Ok(entries) => entries,
            Err(error) => {
                self.unread(path, error.to_string());
                return;
            }
        };
        let mut names: Vec<OsString> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name())
            .filter(|name| {
                let name = name.as_bytes();
                name.ends_with(b".conf") && !name.starts_with(b".")
            })
            .collect();
        names.sort_unstable();
        for name in names {
            self.file(&path.join(name), depth + 1, true);
        }
    }
}

/// Relative includes start beside the file that includes.
fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(name)
}

/// `name = 'value' # comment`, the equal sign being optional.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || "_.$".contains(c) || !c.is_ascii()))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => rest
            .split(|c: char| c == '#' || c.is_whitespace())
            .next()?
            .to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// Until the closing quote; `''` and `\'` are a quote.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => return Some(value),
            '\\' => value.push(chars.next()?),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeRoot;

    fn server(arguments: &str) -> FakeRoot {
        let fake = FakeRoot::new();
        fake.write("proc/7/cmdline", arguments.replace(' ', "\0"));
        fake.write("data/PG_VERSION", "15\n");
        fake.link("proc/7/cwd", fake.path("data"));
        fake.link("proc/7/root", fake.path(""));
        fake
    }

    #[test]
    fn order_of_strength() {
        let fake = server("postgres -D /data -c max_wal_senders=7 -N 300");
        fake.write(
            "data/postgresql.conf",
            "max_connections = 100 # (change requires restart)\nWork_Mem '64MB'\n#port = 1\nmax_wal_senders=1\n\
             include_if_exists = 'absent.conf'\ninclude_dir 'conf.d'\n",
        );
        fake.write("data/conf.d/20.conf", "superuser_reserved_connections=5\n");
        fake.write(
            "data/conf.d/10.conf",
            "superuser_reserved_connections = 4\nhuge_pages=on\n",
        );
        fake.write("data/conf.d/.hidden.conf", "huge_pages=off\n");
        fake.write("data/postgresql.auto.conf", "work_mem = '128MB'\n");
        let found = settings(fake.root(), 7);
        assert!(
            found.complete && found.unread.is_empty(),
            "{:?}",
            found.unread
        );
        assert_eq!(found.number("max_connections", 100), Some(300));
        assert_eq!(found.number("max_wal_senders", 10), Some(7));
        assert_eq!(found.number("superuser_reserved_connections", 3), Some(5));
        assert_eq!(found.number("max_worker_processes", 8), Some(8));
        assert_eq!(found.bytes("work_mem", 1024, 0), Some(128 << 20));
        assert_eq!(
            found.bytes("shared_buffers", 8192, 128 << 20),
            Some(128 << 20)
        );
        assert_eq!(found.text("huge_pages"), Some("on"));
        let place = &found.set["superuser_reserved_connections"];
        assert_eq!(
            place.file.as_deref(),
            Some(Path::new("/data/conf.d/20.conf"))
        );
        assert_eq!(place.line, 1);
    }

    #[test]
    fn a_main_file_elsewhere() {
        let fake = server("postgres -D /data -c config_file=/etc/pg/postgresql.conf");
        fake.write(
            "etc/pg/postgresql.conf",
            "cluster_name = '15/ma''in\\''\ninclude 'more'\n",
        );
        fake.write("etc/pg/more", "max_connections = 5000\ninclude 'more'\n");
        let found = settings(fake.root(), 7);
        assert_eq!(found.text("cluster_name"), Some("15/ma'in'"));
        assert_eq!(found.number("max_connections", 100), Some(5000));
        // A file that includes itself ends.
        assert_eq!(found.unread.len(), 1);
        assert!(!found.complete);
        fake.write("etc/pg/more", "include 'more'\n".repeat(1000));
        assert_eq!(settings(fake.root(), 7).unread.len(), MOST_UNREAD);
    }

    #[test]
    fn a_directory_of_configuration_files_with_data_directory() {
        let fake = server("postgres -D /etc/pg");
        fake.write(
            "etc/pg/postgresql.conf",
            "data_directory = '/data'\nmax_connections = 500\n",
        );
        fake.write("data/postgresql.conf", "max_connections = 7\n");
        fake.write("data/postgresql.auto.conf", "work_mem = '1MB'\n");
        let found = settings(fake.root(), 7);
        assert_eq!(found.number("max_connections", 100), Some(500));
        assert_eq!(found.bytes("work_mem", 1024, 0), Some(1 << 20));
        fake.remove("etc/pg/postgresql.conf");
        assert_eq!(
            settings(fake.root(), 7).number("max_connections", 100),
            Some(7)
        );
    }

    #[test]
    fn unreadable_files_leave_no_defaults() {
        let fake = server("postgres");
        let found = settings(fake.root(), 7);
        assert!(!found.complete);
        assert_eq!(found.unread.len(), 1);
        assert_eq!(found.number("max_connections", 100), None);
    }

    #[test]
    fn an_include_that_cannot_be_read_leaves_no_defaults() {
        let fake = server("postgres");
        fake.write("data/postgresql.conf", "port = 5433\ninclude 'more.conf'\n");
        for (directory, why) in [(false, "No such file"), (true, "not a regular file")] {
            if directory {
                fake.write("data/more.conf/x", "");
            }
            let found = settings(fake.root(), 7);
            assert_eq!(found.number("port", 5432), Some(5433));
            assert_eq!(found.number("max_connections", 100), None);
            assert_eq!(found.unread.len(), 1);
            assert_eq!(found.unread[0].0, Path::new("more.conf"));
            assert!(found.unread[0].1.contains(why), "{:?}", found.unread);
        }
        fake.remove("data/more.conf");
        fake.write("data/more.conf", "work_mem = 1MB\n");
        assert_eq!(
            settings(fake.root(), 7).number("max_connections", 100),
            Some(100)
        );
        fake.write("data/postgresql.conf", "include_dir 'none.d'\n");
        assert_eq!(
            settings(fake.root(), 7).number("max_connections", 100),
            None
        );
    }

    #[test]
    fn numbers_and_switches() {
        for (text, unit, bytes) in [
            ("16384", 8192, Some(128 << 20)),
            ("1.5GB", 1, Some(1536 << 20)),
            ("0x10", 1, Some(16)),
            (" 2 MB ", 1, Some(2 << 20)),
            ("99999999999999999999", 1, None),
            ("18446744073709551615", 8192, None),
            ("-1", 1, None),
            ("many", 1, None),
        ] {
            assert_eq!(parse_number(text, unit), bytes, "{text}");
        }
        let mut found = Settings::default();
        assert_eq!(found.switch("update_process_title", true), None);
        found.complete = true;
        assert_eq!(found.switch("update_process_title", true), Some(true));
        assert_eq!(assignment("x = 'open"), None);
        assert_eq!(assignment("= 3"), None);
        assert_eq!(assignment("a.b=c"), Some(("a.b".into(), "c".into())));
    }
}
