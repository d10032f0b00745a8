//! `postmaster.pid`, the lock file of a data directory.
//!
//! Lines (`LOCK_FILE_LINE_*` in src/include/miscadmin.h or src/include/utils/pidfile.h, PostgreSQL
//! 10 to 18): pid, data directory, start time, port, socket directory, listen address, shared
//! memory key, status. Those from 6 on are added during startup.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Longest lock file that is read, in bytes. Five lines of which two are paths of at most 1 KiB.
pub(crate) const LIMIT: u64 = 4096;

/// What a lock file says. Text may hold any bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockFile {
    /// Pid in the namespace of whoever wrote it; negative for a single-user backend.
    pub pid: i64,
    /// Data directory, as the postmaster sees it.
    pub data_dir: PathBuf,
    /// When the postmaster started, in seconds since the epoch by its clock.
    pub start_epoch: Option<i64>,
    /// TCP port, also part of the name of the Unix socket.
    pub port: Option<u16>,
    /// Directory of its first Unix socket.
    pub socket_dir: Option<PathBuf>,
    /// First address that it listens on: `localhost`, `*`, ...
    pub listen_address: Option<OsString>,
    /// System V shared memory: key and id.
    pub shmem: Option<(u64, u64)>,
    /// `starting`, `ready`, `standby`, `stopping`.
    pub status: Option<String>,
}

impl LockFile {
    /// Parses the content of a lock file. `None` when line 1 is not a pid: not one, or one that is
    /// being written.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let mut lines = content.split(|&byte| byte == b'\n');
        let pid = number(lines.next()?)?;
        let mut text = || lines.next().filter(|line| !line.is_empty());
        let os = |line: &[u8]| OsString::from_vec(line.to_vec());
        Some(Self {
            pid,
            data_dir: PathBuf::from(text().map(OsStr::from_bytes).unwrap_or_default()),
            start_epoch: text().and_then(number),
            port: text().and_then(number).filter(|&port| port != 0),
            socket_dir: text().map(|line| os(line).into()),
            listen_address: text().map(os),
            shmem: text().and_then(|line| {
                let mut words = line
                    .split(|&byte| byte == b' ')
                    .filter(|word| !word.is_empty());
                Some((number(words.next()?)?, number(words.next()?)?))
            }),
            status: text()
                .map(<[u8]>::trim_ascii)
                .filter(|word| !word.is_empty() && word.len() <= 16)
                .filter(|word| word.iter().all(u8::is_ascii_lowercase))
                .map(|word| String::from_utf8_lossy(word).into_owned()),
        })
    }
}

fn number<T: std::str::FromStr>(line: &[u8]) -> Option<T> {
    std::str::from_utf8(line.trim_ascii()).ok()?.parse().ok()
}

/// The version in a `PG_VERSION` file: `15`, or `9.6` before 10. `None` when it is something else.
pub(crate) fn version(content: &[u8]) -> Option<String> {
    let line = content.split(|&byte| byte == b'\n').next()?.trim_ascii();
    let plain = line
        .iter()
        .all(|byte| byte.is_ascii_digit() || *byte == b'.');
    (plain && (1..=8).contains(&line.len())).then(|| String::from_utf8_lossy(line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "24170\n/var/lib/postgresql/15/main\n1763858400\n5432\n/var/run/postgresql\nlocalhost\n  5432001    196608\nready   \n";

    #[test]
    fn all_lines_of_a_running_server() {
        let lock = LockFile::parse(READY.as_bytes()).unwrap();
        assert_eq!(lock.pid, 24170);
        assert_eq!(lock.data_dir, PathBuf::from("/var/lib/postgresql/15/main"));
        assert_eq!(lock.start_epoch, Some(1_763_858_400));
        assert_eq!(lock.port, Some(5432));
        assert_eq!(lock.socket_dir, Some("/var/run/postgresql".into()));
        assert_eq!(lock.listen_address, Some("localhost".into()));
        assert_eq!(lock.shmem, Some((5_432_001, 196_608)));
        assert_eq!(lock.status.as_deref(), Some("ready"));
    }

    #[test]
    fn any_prefix_of_it_parses_or_is_none() {
        for end in 0..READY.len() {
            let _ = LockFile::parse(&READY.as_bytes()[..end]);
        }
        let starting = LockFile::parse(b"7\n/pg\n1\n5433\n\n").unwrap();
        assert_eq!((starting.pid, starting.port), (7, Some(5433)));
        assert_eq!((starting.socket_dir, starting.status), (None, None));
    }

    #[test]
    fn a_single_user_backend_is_negative() {
        assert_eq!(LockFile::parse(b"-812\n/pg\n").unwrap().pid, -812);
    }

    #[test]
    fn odd_content_is_none_or_absent() {
        for odd in ["", "\n", "pid\n", "99999999999999999999\n", "\0\0\0\0"] {
            assert_eq!(LockFile::parse(odd.as_bytes()), None, "{odd:?}");
        }
        let lock = LockFile::parse(b"1\n/\xff\x1b[2J\n1\n70000\n/s\n*\nx y\n\x1b[31m\n").unwrap();
        assert_eq!(lock.data_dir.as_os_str().as_bytes(), b"/\xff\x1b[2J");
        assert_eq!((lock.port, lock.shmem, lock.status), (None, None, None));
    }

    #[test]
    fn versions() {
        assert_eq!(version(b"15\n").as_deref(), Some("15"));
        assert_eq!(version(b"9.6\n").as_deref(), Some("9.6"));
        for odd in ["", "\n", "15devel\n", "\x1b[2J", "1111111111\n"] {
            assert_eq!(version(odd.as_bytes()), None, "{odd:?}");
        }
    }
}
