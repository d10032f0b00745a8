//! `global/pg_control`: settings that a running server has, whatever its files say by now.
//!
//! At the end of every start as a primary a server writes what it started with there, and then that
//! it is in production (src/backend/access/transam/xlog.c `XLogReportParameters` in `StartupXLOG`,
//! PostgreSQL 10 to 18). On a standby the same fields hold what the primary has.

use std::path::Path;

use super::Postmaster;
use crate::host::{Root, small_regular};

/// Size of the file, in bytes (`PG_CONTROL_FILE_SIZE`); less than 300 of them are used.
const LIMIT: u64 = 8192;
/// Times that it is read: one that is being written to may be half old.
const TRIES: usize = 3;
/// `DB_IN_PRODUCTION`, and the states before it as pg_controldata calls them.
const IN_PRODUCTION: u32 = 6;
const STATES: [&str; IN_PRODUCTION as usize] = [
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
];
/// `FLOATFORMAT_VALUE` and `MAXIMUM_ALIGNOF`, which come soon after the settings.
const FLOAT_FORMAT: f64 = 1_234_567.0;
const MAX_ALIGN: u32 = 8;

/// Where `ControlFileData` has what (src/include/catalog/pg_control.h), in bytes from the start, where
/// 64-bit numbers are aligned to 8 bytes. The version is at 8 and the state at 16 in all of them.
struct Layout {
    /// `PG_CONTROL_VERSION`.
    version: u32,
    /// `MaxConnections`; then max_worker_processes, max_wal_senders, max_prepared_xacts.
    max_connections: usize,
    /// `max_wal_senders` is there.
    wal_senders: bool,
    max_align: usize,
    float_format: usize,
    /// CRC-32C of all before it.
    crc: usize,
}

/// Compared with files of PostgreSQL 13, 15, 17 and 18 and what pg_controldata says of them; those of
/// 10, 11, 12, 14 and 16 are from the headers alone.
const LAYOUTS: [Layout; 6] = [
    // 10
    layout(1002, 180, false, [200, 208, 288]),
    // 11: without prevCheckPoint.
    layout(1100, 172, false, [192, 200, 280]),
    // 12: with max_wal_senders.
    layout(1201, 180, true, [204, 208, 288]),
    // 13 to 16
    layout(1300, 180, true, [204, 208, 288]),
    // 17
    layout(1700, 180, true, [204, 208, 288]),
    // 18: with default_char_signedness.
    layout(1800, 180, true, [204, 208, 292]),
];

const fn layout(
    version: u32,
    max_connections: usize,
    wal_senders: bool,
    [max_align, float_format, crc]: [usize; 3],
) -> Layout {
    Layout {
        version,
        max_connections,
        wal_senders,
        max_align,
        float_format,
        crc,
    }
}

/// What a primary was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// `max_connections`.
    pub max_connections: u64,
    /// `max_worker_processes`.
    pub max_worker_processes: u64,
    /// `max_wal_senders`, from PostgreSQL 12 on.
    pub max_wal_senders: Option<u64>,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u64,
}

/// Why it does not tell what the server has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No permission, or no such file.
    #[error("global/pg_control cannot be read: {0}")]
    Unread(String),
    /// A later version, another byte order, or another program's file.
    #[error("the format {0} of global/pg_control is not known")]
    Format(u32),
    /// Torn, damaged, or of a server that was built otherwise.
    #[error("global/pg_control does not have its checksum where it is expected")]
    Checksum,
    /// A standby, or a server that is starting.
    #[error("global/pg_control only tells it of a primary that has started, not of one {0}")]
    State(&'static str),
}

impl ControlFile {
    /// Reads that of a running server, as it sees it.
    ///
    /// # Errors
    /// When it does not tell what this server was started with.
    pub fn read(root: &Root, postmaster: &Postmaster) -> Result<Self, Unusable> {
        // Until then the file may have the state and the settings of an earlier run that crashed.
        if postmaster.lock_file.status.as_deref() == Some("starting") {
            return Err(Unusable::State(STATES[0]));
        }
        let path = root.pid(postmaster.pid).join("cwd/global/pg_control");
        let mut found = Err(Unusable::Checksum);
        for _ in 0..TRIES {
            found = Self::read_once(&path);
            if found != Err(Unusable::Checksum) {
                break;
            }
        }
        found
    }

    fn read_once(path: &Path) -> Result<Self, Unusable> {
        let content =
            small_regular(path, LIMIT).map_err(|error| Unusable::Unread(error.to_string()))?;
        Self::parse(&content)
    }

    /// Parses the content of the file.
    ///
    /// # Errors
    /// When it is not one, or not of a primary in production.
    pub fn parse(content: &[u8]) -> Result<Self, Unusable> {
        let word = |at: usize| {
            let bytes = content.get(at..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        let version = word(8).ok_or(Unusable::Checksum)?;
        let mut layouts = LAYOUTS.iter();
        let layout = layouts
            .find(|layout| layout.version == version)
            .ok_or(Unusable::Format(version))?;
        let before = content.get(..layout.crc).ok_or(Unusable::Checksum)?;
        if word(layout.crc) != Some(crc32c(before)) {
            return Err(Unusable::Checksum);
        }
        // The checksum proves the length; these, that nothing was moved or put in before them.
        let float = content.get(layout.float_format..);
        let float = float.and_then(<[u8]>::first_chunk);
        if word(layout.max_align) != Some(MAX_ALIGN) || float != Some(&FLOAT_FORMAT.to_ne_bytes()) {
            return Err(Unusable::Format(version));
        }
        let state = word(16).ok_or(Unusable::Checksum)?;
        if state != IN_PRODUCTION {
            let name = usize::try_from(state).ok().and_then(|at| STATES.get(at));
            return Err(Unusable::State(name.unwrap_or(&"in an unknown state")));
        }
        let senders = usize::from(layout.wal_senders);
        let setting = |at: usize| {
            let value = word(layout.max_connections + 4 * at);
            value.map(u64::from).ok_or(Unusable::Checksum)
        };
        Ok(Self {
            max_connections: setting(0)?,
            max_worker_processes: setting(1)?,
            max_wal_senders: layout.wal_senders.then(|| setting(2)).transpose()?,
            max_prepared_transactions: setting(2 + senders)?,
        })
    }

    /// The value of a setting, if it is one of those.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<u64> {
        match name {
            "max_connections" => Some(self.max_connections),
            "max_worker_processes" => Some(self.max_worker_processes),
            "max_wal_senders" => self.max_wal_senders,
            "max_prepared_transactions" => Some(self.max_prepared_transactions),
            _ => None,
        }
    }
}

/// CRC-32C, bit by bit (src/include/port/pg_crc32c.h).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Real files, up to the checksum, each with what pg_controldata said of it. The servers ran with
/// max_connections 123, max_worker_processes 11, max_wal_senders 7, max_prepared_transactions 5.
#[cfg(test)]
pub(crate) mod extracts {
    pub(crate) const ALL: [&str; 4] = [
        include_str!("testdata/pg_control-13.txt"),
        PG_15,
        include_str!("testdata/pg_control-17.txt"),
        include_str!("testdata/pg_control-18.txt"),
    ];
    pub(crate) const PG_15: &str = include_str!("testdata/pg_control-15.txt");

    /// The bytes: lines of hexadecimal digits up to an empty one.
    pub(crate) fn bytes(extract: &str) -> Vec<u8> {
        let (hex, _) = extract.split_once("\n\n").unwrap();
        let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = hex.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs
            .map(|pair| u8::from_str_radix(pair, 16).unwrap())
            .collect()
    }
}

// The extracts have the byte order of x86-64.
#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use extracts::{ALL, PG_15, bytes};

    const STARTED_WITH: ControlFile = ControlFile {
        max_connections: 123,
        max_worker_processes: 11,
        max_wal_senders: Some(7),
        max_prepared_transactions: 5,
    };

    /// Writes a number, and the checksum anew.
    fn changed(mut content: Vec<u8>, at: usize, value: u32, crc: usize) -> Vec<u8> {
        content[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        let sum = crc32c(&content[..crc]);
        content[crc..crc + 4].copy_from_slice(&sum.to_ne_bytes());
        content
    }

    #[test]
    fn the_check_value_of_the_polynomial() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn real_files_say_what_pg_controldata_says() {
        for extract in ALL {
            let found = ControlFile::parse(&bytes(extract)).unwrap();
            assert_eq!(found, STARTED_WITH);
            let said = |label: &str| {
                let mut lines = extract.lines().filter_map(|line| line.strip_prefix(label));
                lines.next().unwrap().trim().parse::<u64>().ok()
            };
            for (label, name) in [
                ("max_connections setting:", "max_connections"),
                ("max_worker_processes setting:", "max_worker_processes"),
                ("max_wal_senders setting:", "max_wal_senders"),
                ("max_prepared_xacts setting:", "max_prepared_transactions"),
            ] {
                assert_eq!(found.setting(name), said(label), "{extract}");
            }
            assert_eq!(found.setting("wal_level"), None);
        }
    }

    #[test]
    fn any_flipped_bit_or_missing_byte_is_noticed() {
        for extract in ALL {
            let content = bytes(extract);
            for at in 0..content.len() {
                let mut flipped = content.clone();
                flipped[at] ^= 4;
                assert!(ControlFile::parse(&flipped).is_err(), "{at}");
                assert!(ControlFile::parse(&content[..at]).is_err(), "{at}");
            }
            let mut padded = content;
            padded.resize(8192, 0);
            assert_eq!(ControlFile::parse(&padded), Ok(STARTED_WITH));
        }
    }

    #[test]
    fn other_versions_layouts_and_states() {
        let content = bytes(PG_15);
        for (at, value, error) in [
            (8, 1900, Unusable::Format(1900)),
            (8, 942, Unusable::Format(942)),
            // A layout that is as long, but not the same.
            (8, 1002, Unusable::Format(1002)),
            (204, 4, Unusable::Format(1300)),
            (212, 0, Unusable::Format(1300)),
            (16, 0, Unusable::State("starting up")),
            (16, 5, Unusable::State("in archive recovery")),
            (16, 7, Unusable::State("in an unknown state")),
        ] {
            let changed = changed(content.clone(), at, value, 288);
            assert_eq!(ControlFile::parse(&changed), Err(error));
        }
        assert_eq!(ControlFile::parse(b""), Err(Unusable::Checksum));
    }

    /// From the headers: `MaxConnections` and what follows, maxAlign, floatFormat, crc.
    #[test]
    fn layouts_without_a_real_file() {
        for (version, first, senders, align, float, crc) in [
            (1002, 180, None, 200, 208, 288),
            (1100, 172, None, 192, 200, 280),
            (1201, 180, Some(7), 204, 208, 288),
        ] {
            let mut content = vec![0; 8192];
            let settings = [Some(123), Some(11), senders, Some(5)];
            for (at, value) in settings.into_iter().flatten().enumerate() {
                content = changed(content, first + 4 * at, value, crc);
            }
            content[float..float + 8].copy_from_slice(&FLOAT_FORMAT.to_ne_bytes());
            content = changed(content, 8, version, crc);
            content = changed(content, 16, IN_PRODUCTION, crc);
            content = changed(content, align, MAX_ALIGN, crc);
            let expected = ControlFile {
                max_wal_senders: senders.map(u64::from),
                ..STARTED_WITH
            };
            assert_eq!(ControlFile::parse(&content), Ok(expected), "{version}");
        }
    }
}
