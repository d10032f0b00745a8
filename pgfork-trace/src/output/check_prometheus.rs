//! `check` for the textfile collector of Prometheus' node exporter.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use jiff::Timestamp;

use super::escape::limited;
use crate::{
    check::{Report, ServerReport},
    verdict::headroom::{Place, Row},
};

type Value = fn(&Row) -> Option<u64>;

const LIMITS: [(&str, &str, Value); 3] = [
    (
        "pgfork_limit_used",
        "In use under a limit that can refuse a fork, in its own unit.",
        |row| Some(row.used),
    ),
    (
        "pgfork_limit_max",
        "The limit, in the same unit; absent without a limit.",
        |row| row.max,
    ),
    (
        "pgfork_limit_backends",
        "More backends like those that run until the first is refused.",
        |row| row.backends,
    ),
];

/// The file's content.
#[must_use]
pub fn check_metrics(report: &Report) -> String {
    let mut out = look(true, report.time.parse().ok());
    for (metric, help, value) in LIMITS {
        head(&mut out, metric, help);
        for server in &report.servers {
            for limit in &server.limits {
                if let Some(value) = value(&limit.row) {
                    let labels = labels(server, &limit.row);
                    line(&mut out, metric, &labels, value);
                }
            }
        }
    }
    head(
        &mut out,
        "pgfork_connections",
        "Connections by state, from process titles.",
    );
    for server in &report.servers {
        let found = &server.connections;
        let told = found.idle + found.idle_in_transaction + found.waiting + found.starting;
        for (state, number) in [
            ("idle", found.idle),
            ("idle in transaction", found.idle_in_transaction),
            ("waiting", found.waiting),
            ("starting", found.starting),
            ("other", found.clients.saturating_sub(told)),
        ] {
            let labels = format!("{},state=\"{state}\"", whose(server));
            line(&mut out, "pgfork_connections", &labels, number);
        }
    }
    head(
        &mut out,
        "pgfork_limits_near",
        "Limits that are close or reached.",
    );
    line(&mut out, "pgfork_limits_near", "", report.near);
    head(
        &mut out,
        "pgfork_limits_unread",
        "Limits that every server has and that could not be read.",
    );
    line(&mut out, "pgfork_limits_unread", "", report.unread);
    out
}

/// The same of a look that failed: nothing is known of servers and limits.
fn failed_metrics(time: Timestamp) -> String {
    look(false, Some(time))
}

/// Whether the last look worked, and when it was.
fn look(up: bool, time: Option<Timestamp>) -> String {
    let mut out = String::new();
    head(
        &mut out,
        "pgfork_up",
        "1: the last look worked; 0: it did not (exit status 2).",
    );
    line(&mut out, "pgfork_up", "", u64::from(up));
    if let Some(seconds) = time.and_then(|time| u64::try_from(time.as_second()).ok()) {
        head(
            &mut out,
            "pgfork_look_timestamp_seconds",
            "When the last look was, in seconds since 1970-01-01 UTC.",
        );
        line(&mut out, "pgfork_look_timestamp_seconds", "", seconds);
    }
    out
}

/// Writes the file in one step: a reader sees the former one or this one, whole.
///
/// # Errors
/// When the directory cannot be written to.
pub fn write_metrics(report: &Report, path: &Path) -> io::Result<()> {
    replace(path, &check_metrics(report))
}

/// The same for a look that failed: what the former one found is not said any more.
///
/// # Errors
/// As [`write_metrics`].
pub fn write_failed_metrics(path: &Path) -> io::Result<()> {
    replace(path, &failed_metrics(Timestamp::now()))
}

fn replace(path: &Path, content: &str) -> io::Result<()> {
    // node-exporter takes *.prom only: the name for the moment must not end so.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(temporary)?;
        file.write_all(content.as_bytes())?;
        // node-exporter is another user; the umask may keep it out.
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(temporary, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(temporary);
    })
}

fn head(out: &mut String, metric: &str, help: &str) {
    // A String takes everything.
    let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} gauge");
}

fn line(out: &mut String, metric: &str, labels: &str, value: u64) {
    let _ = match labels {
        "" => writeln!(out, "{metric} {value}"),
        labels => writeln!(out, "{metric}{{{labels}}} {value}"),
    };
}

fn whose(server: &ServerReport) -> String {
    format!(
        "pid=\"{}\",port=\"{}\",data_dir=\"{}\"",
        server.pid,
        server
            .port
            .map_or_else(String::new, |port| port.to_string()),
        quoted(&server.data_dir)
    )
}

fn labels(server: &ServerReport, row: &Row) -> String {
    let place = match &row.place {
        Place::Host => "host".to_owned(),
        Place::Server => "server".to_owned(),
        Place::User { uid } => format!("uid {uid}"),
        Place::Cgroup { path, property, .. } => quoted(&format!("{path} {property}")),
    };
    format!(
        "{},limit=\"{}\",place=\"{place}\"",
        whose(server),
        row.limit.id()
    )
}

/// Without control characters; backslash and quote escaped as the format asks. Not cut: two series
/// with the same labels make the whole file invalid.
fn quoted(text: &str) -> String {
    limited(text, usize::MAX)
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
}
