//! What a server's own log says of forks that were refused, as it is written.
//!
//! A bounded piece of what was appended since the last look; nothing waits and nothing is started.

use std::{
    fs::Metadata,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::{
    log_line::{Format, Refusal, refusal},
    server_log::{current_logfiles, separators},
};
use crate::{
    host::{Pid, Root, open_regular},
    verdict::client::ChildKind,
};

/// Most bytes of one look.
const MOST: u64 = 64 << 10;

/// What the messages call a child (src/backend/postmaster and src/backend/replication, 10 to 18).
const NAMES: [(&str, ChildKind); 22] = [
    ("new process for connection", ChildKind::ClientBackend),
    ("autovacuum worker", ChildKind::AutovacuumWorker),
    ("autovacuum launcher", ChildKind::AutovacuumLauncher),
    ("worker", ChildKind::BackgroundWorker),
    ("background worker", ChildKind::BackgroundWorker),
    ("bgworker", ChildKind::BackgroundWorker),
    ("startup", ChildKind::Startup),
    ("checkpointer", ChildKind::Checkpointer),
    ("background writer", ChildKind::BackgroundWriter),
    ("bgwriter", ChildKind::BackgroundWriter),
    ("WAL writer", ChildKind::WalWriter),
    ("wal_writer", ChildKind::WalWriter),
    ("WAL receiver", ChildKind::WalReceiver),
    ("wal_receiver", ChildKind::WalReceiver),
    ("wal_summarizer", ChildKind::WalSummarizer),
    ("archiver", ChildKind::Archiver),
    ("slot sync worker", ChildKind::SlotSyncWorker),
    ("io_worker", ChildKind::IoWorker),
    ("io worker", ChildKind::IoWorker),
    ("statistics collector", ChildKind::StatisticsCollector),
    ("system logger", ChildKind::Logger),
    ("syslogger", ChildKind::Logger),
];

/// The log of one server, from where it ended when following began.
#[derive(Debug)]
pub struct ForkLog {
    collector: bool,
    /// See [`refusal`].
    separators: usize,
    /// Device and inode number of the file read last.
    file: Option<(u64, u64)>,
    offset: u64,
}

/// One look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Refused forks in the order of the log.
    pub refused: Vec<ChildKind>,
    /// Not all that was appended was read.
    pub gap: bool,
}

impl ForkLog {
    /// Begins at the end of the log. `None` where there is no file that can be read.
    #[must_use]
    pub fn begin(root: &Root, pid: Pid) -> Option<Self> {
        let settings = super::settings(root, pid);
        let mut log = Self {
            collector: settings.switch("logging_collector", false) == Some(true),
            separators: separators(&settings),
            file: None,
            offset: 0,
        };
        let (_, metadata, _) = log.open(root, pid)?;
        log.file = Some(identity(&metadata));
        log.offset = metadata.len();
        Some(log)
    }

    /// Reads what was appended.
    pub fn read(&mut self, root: &Root, pid: Pid) -> Said {
        let Some((mut file, metadata, format)) = self.open(root, pid) else {
            return Said {
                gap: true,
                ..Said::default()
            };
        };
        let mut gap = false;
        // Another file: the rest of the one before is not read.
        if self.file != Some(identity(&metadata)) || metadata.len() < self.offset {
            self.file = Some(identity(&metadata));
            self.offset = 0;
            gap = true;
        }
        let appended = metadata.len() - self.offset;
        let cut = appended > MOST;
        if cut {
            self.offset = metadata.len() - MOST;
            gap = true;
        }
        let mut content = Vec::new();
        let read = file
            .seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.take(MOST).read_to_end(&mut content));
        if read.is_err() {
            return Said {
                gap: true,
                ..Said::default()
            };
        }
        // What is being written is read whole the next time.
        let whole = content.iter().rposition(|&byte| byte == b'\n');
        content.truncate(whole.map_or(0, |at| at + 1));
        self.offset += content.len() as u64;
        Said {
            refused: content
                .split(|&byte| byte == b'\n')
                // The first one may have lost its beginning, which says what it is.
                .skip(usize::from(cut))
                .filter_map(|line| kind(line, format, self.separators))
                .collect(),
            gap,
        }
    }

    /// The file that the server writes to now. Without a collector it is the postmaster's own
    /// standard error. A name in the data directory is followed to a file of the server's user only.
    fn open(&self, root: &Root, pid: Pid) -> Option<(std::fs::File, Metadata, Format)> {
        let process = root.pid(pid);
        if !self.collector {
            let opened = open_regular(&process.join("fd/2"), true).ok().flatten();
            return opened.map(|(file, metadata)| (file, metadata, Format::Stderr));
        }
        let cwd = process.join("cwd");
        let (format, name) = current_logfiles(&cwd).ok()?.into_iter().next()?;
        let path = match name.strip_prefix("/") {
            Ok(below) => process.join("root").join(below),
            Err(_) => cwd.join(&name),
        };
        let owner = std::fs::metadata(Path::new(&process)).ok()?.uid();
        let (file, metadata) = open_regular(&path, false).ok().flatten()?;
        (metadata.uid() == owner).then_some((file, metadata, format))
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The child that one line says could not be forked. Messages in other languages are not known.
fn kind(line: &[u8], format: Format, separators: usize) -> Option<ChildKind> {
    let Refusal::Fork { child, .. } = refusal(line, format, separators)? else {
        return None;
    };
    // Versions 17 and 18 quote some names.
    let name = child.replace('"', "");
    let name = name.strip_suffix(" process").unwrap_or(&name);
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{FakeProcess, FakeRoot};

    #[test]
    fn messages_of_all_versions_and_formats_name_the_child() {
        for (line, expected) in [
            (
                "2026-11-23 UTC [7] LOG:  could not fork autovacuum worker process: Cannot allocate memory",
                ChildKind::AutovacuumWorker,
            ),
            (
                "LOG:  could not fork worker process: Resource temporarily unavailable",
                ChildKind::BackgroundWorker,
            ),
            (
                "LOG:  could not fork background worker process: x",
                ChildKind::BackgroundWorker,
            ),
            (
                "LOG:  could not fork new process for connection: Cannot allocate memory",
                ChildKind::ClientBackend,
            ),
            (
                "LOG:  could not fork startup process: x",
                ChildKind::Startup,
            ),
            (
                "LOG:  could not fork WAL writer process: x",
                ChildKind::WalWriter,
            ),
            ("LOG:  could not fork archiver: x", ChildKind::Archiver),
            (
                "LOG:  could not fork \"io_worker\" process: x",
                ChildKind::IoWorker,
            ),
            (
                "2026-11-23,,,7,,6,,,,,0,LOG,00000,\"could not fork \"\"io_worker\"\" process: x\",,,",
                ChildKind::IoWorker,
            ),
            (
                "2026-11-23,,,7,,6,,,,,0,LOG,00000,\"could not fork worker process: x\",,,",
                ChildKind::BackgroundWorker,
            ),
            (
                "{\"error_severity\":\"LOG\",\"message\":\"could not fork \\\"autovacuum worker\\\" process: x\"}",
                ChildKind::AutovacuumWorker,
            ),
        ] {
            let format = match line.as_bytes() {
                [b'{', ..] => Format::Json,
                _ if line.contains(",LOG,") => Format::Csv,
                _ => Format::Stderr,
            };
            let found = kind(line.as_bytes(), format, 0);
            assert_eq!(found, Some(expected), "{line}");
        }
    }

    #[test]
    fn other_lines_name_none() {
        for line in [
            "STATEMENT:  select 'LOG:  could not fork worker process: x'",
            "\tLOG:  could not fork worker process: x",
            "LOG:  could not fork something new process: x",
            "LOG:  konnte Prozess nicht starten: x",
            "\u{e9}\u{fffd}",
        ] {
            let found = kind(line.as_bytes(), Format::Stderr, 0);
            assert_eq!(found, None, "{line}");
        }
    }

    fn server(arguments: &str) -> FakeRoot {
        let fake = FakeRoot::new();
        fake.process(&FakeProcess::new(700));
        fake.write("proc/700/cmdline", format!("postgres\0{arguments}"));
        fake.write("log", "LOG:  could not fork worker process: old\n");
        fake
    }

    fn append(fake: &FakeRoot, text: &str) {
        let old = std::fs::read_to_string(fake.path("log")).unwrap();
        std::fs::write(fake.path("log"), old + text).unwrap();
    }

    const WORKER: &str = "LOG:  could not fork worker process: x\n";

    #[test]
    fn only_whole_lines_that_were_appended_are_read() {
        let fake = server("");
        fake.link("proc/700/fd/2", fake.path("log"));
        let mut log = ForkLog::begin(fake.root(), 700).unwrap();
        assert_eq!(log.read(fake.root(), 700), Said::default());
        append(&fake, WORKER);
        append(&fake, "LOG:  could not fork startup proc");
        let said = log.read(fake.root(), 700);
        assert_eq!(said.refused, [ChildKind::BackgroundWorker]);
        append(&fake, "ess: x\nLOG:  ready\n");
        let said = log.read(fake.root(), 700);
        assert_eq!((said.refused, said.gap), (vec![ChildKind::Startup], false));
    }

    #[test]
    fn what_is_too_much_or_begins_anew_is_a_gap() {
        let fake = server("");
        fake.link("proc/700/fd/2", fake.path("log"));
        let mut log = ForkLog::begin(fake.root(), 700).unwrap();
        append(&fake, &WORKER.repeat(2000));
        let said = log.read(fake.root(), 700);
        assert!(said.gap && said.refused.len() < 2000 && said.refused.len() > 1000);
        assert!(!log.read(fake.root(), 700).gap);
        std::fs::write(fake.path("log"), WORKER).unwrap();
        let said = log.read(fake.root(), 700);
        assert!(said.gap && said.refused.len() == 1);
    }

    #[test]
    fn the_collectors_file_is_read_and_no_link_from_there() {
        let fake = server("-c\0logging_collector=on\0");
        fake.link("proc/700/cwd", fake.path(""));
        fake.write("current_logfiles", "stderr log\n");
        let mut log = ForkLog::begin(fake.root(), 700).unwrap();
        append(&fake, WORKER);
        assert_eq!(log.read(fake.root(), 700).refused.len(), 1);
        fake.link("other", fake.path("log"));
        fake.write("current_logfiles", "stderr other\n");
        assert!(log.read(fake.root(), 700).gap);
        assert!(ForkLog::begin(fake.root(), 700).is_none());
    }

    #[test]
    fn without_a_file_there_is_no_log() {
        let fake = server("");
        fake.link("proc/700/fd/2", "/dev/null");
        assert!(ForkLog::begin(fake.root(), 700).is_none());
    }
}
