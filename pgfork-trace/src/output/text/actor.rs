//! Which process it was, other than the postmaster.

use super::super::{
    escape::name,
    line::{Process, Role},
};

/// `backend 2210 (app db 10.0.3.17(52114) SELECT)`, `archiver 812`, `process 7 (sh), for archive_command`.
pub(super) fn actor(process: &Process) -> String {
    let pid = process.pid;
    // The first word of every title of PostgreSQL.
    let title = process
        .title
        .as_deref()
        .map(|title| title.strip_prefix("postgres: ").unwrap_or(title));
    let said = title.or(process.comm.as_deref());
    let said = said
        .map(|it| format!(" ({})", name(it)))
        .unwrap_or_default();
    match (process.role, &process.job) {
        (Some(Role::Postmaster), _) => format!("postmaster {pid}"),
        (Some(Role::ClientBackend), _) => format!("backend {pid}{said}"),
        (Some(Role::WalSender), _) => format!("walsender {pid}{said}"),
        // Its title is what `job` was taken from.
        (Some(Role::Helper), Some(job)) => format!("{} {pid}{said}", name(job)),
        (Some(Role::Program), Some(job)) => format!("process {pid}{said}, {}", name(job)),
        _ => format!("process {pid}{said}"),
    }
}
