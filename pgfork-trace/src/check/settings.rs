//! The settings of a server that decide how many processes it may have and how large they are:
//! value, and where it comes from. From files; where pg_control tells what the server has, also that.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::in_force::InForce;
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
    /// What is in force until the server is restarted, where that is another number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<u64>,
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
pub(super) fn of_server(
    settings: &Settings,
    in_force: &InForce,
    version: Option<u64>,
) -> Vec<SettingReport> {
    let has = |since: u64| version.is_none_or(|version| version >= since);
    let known = KNOWN.iter().filter(|(_, since, _)| has(*since));
    known
        .filter_map(|(name, since, default)| match settings.set.get(*name) {
            Some(setting) => Some(SettingReport {
                name,
                now: in_force.other(settings, name),
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
                    now: in_force.other(settings, name),
                    value: (*default).to_owned(),
                    source: "default".to_owned(),
                })
            }
            None => None,
        })
        .collect()
}

/// What is said of files that could not be read.
pub(super) fn unread(settings: &Settings) -> Vec<String> {
    let sentence = |(file, why): &(PathBuf, String)| {
        format!(
            "{} of the server's settings cannot be read ({why}): what it sets, and which defaults are in force, is not known",
            text(file.as_os_str())
        )
    };
    settings.unread.iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_not_read_are_named() {
        let settings = Settings {
            unread: vec![("more.conf".into(), "not a regular file".to_owned())],
            ..Settings::default()
        };
        assert_eq!(
            unread(&settings),
            [
                "more.conf of the server's settings cannot be read (not a regular file): what it sets, and which defaults are in force, is not known"
            ]
        );
        assert!(unread(&Settings::default()).is_empty());
    }
}
