//! The settings of a server that decide how many processes it may have and how large they are:
//! value, and where it comes from. From files; not what the server would answer.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{gather::text, postgres::Settings};

/// A setting as the files and the command line give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SettingReport {
    /// Its name.
    pub name: &'static str,
    /// As written; the built-in default where nothing sets it.
    pub value: String,
    /// `default`, `command line`, or `FILE:LINE`.
    pub source: String,
}

/// Name, version that brought it, version after the last one that has this default, default
/// (src/backend/utils/misc/guc.c, from 16 on guc_tables.c; PostgreSQL 10 to 18).
const KNOWN: [(&str, u64, &str); 10] = [
    ("max_connections", 10, "100"),
    ("superuser_reserved_connections", 10, "3"),
    ("reserved_connections", 16, "0"),
    ("max_worker_processes", 10, "8"),
    ("autovacuum_max_workers", 10, "3"),
    ("autovacuum_worker_slots", 18, "16"),
    ("max_wal_senders", 10, "10"),
    // initdb always writes it; what it chose is not known where somebody took it out again.
    ("shared_buffers", 10, ""),
    ("huge_pages", 10, "try"),
    ("work_mem", 10, "4MB"),
];

/// What is known of a server of this major version; what it does not have is left out.
pub(super) fn of_server(settings: &Settings, version: Option<u64>) -> Vec<SettingReport> {
    let has = |since: u64| version.is_none_or(|version| version >= since);
    let known = KNOWN.iter().filter(|(_, since, _)| has(*since));
    known
        .filter_map(|(name, since, default)| match settings.set.get(*name) {
            Some(setting) => Some(SettingReport {
                name,
                value: setting.value.clone(),
                source: match &setting.file {
                    None => "command line".to_owned(),
                    Some(file) => format!("{}:{}", text(file.as_os_str()), setting.line),
                },
            }),
            // Without the version nobody knows whether it has the setting at all.
            None if settings.complete
                && !default.is_empty()
                && (version.is_some() || *since == 10) =>
            {
                Some(SettingReport {
                    name,
                    value: (*default).to_owned(),
                    source: "default".to_owned(),
                })
            }
            None => None,
        })
        .collect()
}
