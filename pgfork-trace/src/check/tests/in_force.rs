//! max_connections of the files and that which the server was started with.

use super::*;
use crate::postgres::control_file::extracts;

/// Row and finding; the server was started with 123, as the extract says.
fn told(fake: &FakeRoot) -> (Option<u64>, String, Vec<String>) {
    let found = look_at(fake);
    let row = row(&found, Limit::MaxConnections);
    let of_settings = |id| id == FindingId::SettingsNewerThanServer;
    let findings = found.findings.iter().filter(|it| of_settings(it.id));
    (
        row.max,
        row.notes.join("; "),
        findings.map(|it| it.text.clone()).collect(),
    )
}

fn fake(max_connections: &str) -> FakeRoot {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    host(&fake);
    fake.write(
        "data/postgresql.conf",
        "max_worker_processes = 11\nmax_wal_senders = 7\nmax_prepared_transactions = 5\n",
    );
    fake.write("data/postgresql.auto.conf", max_connections);
    fake.write("data/global/pg_control", extracts::bytes(extracts::PG_15));
    fake
}

#[test]
fn files_that_were_changed_since_are_not_believed() {
    let fake = fake("# no\nmax_connections = '500'\n");
    let (max, notes, findings) = told(&fake);
    let place = "500 in postgresql.auto.conf:2, 123 in force until the server is restarted";
    assert_eq!(max, Some(120));
    assert_eq!(
        notes,
        format!("max_connections 123 less 3 reserved; {place}")
    );
    assert_eq!(findings, [format!("max_connections: {place}")]);
    let found = look_at(&fake);
    let settings = found
        .settings
        .iter()
        .filter_map(|it| Some((it.name, it.now?)));
    assert_eq!(settings.collect::<Vec<_>>(), [("max_connections", 123)]);
    // More slots are not fewer than those that are on their way.
    let remedies = &row(&found, Limit::MaxConnections).remedy;
    let mut changes = remedies.iter().map(|it| it.change.to_string());
    assert!(changes.any(|it| it.contains("max_connections = 500")));
    let origins = found.origins;
    let now = |key: &str| origins.iter().find(|it| it.key == key).unwrap().now.clone();
    assert_eq!(now("max_connections").as_deref(), Some("123"));
    assert_eq!(now("max_worker_processes"), None);
    // Others too; and what is not set any more.
    fake.write("data/postgresql.auto.conf", "max_wal_senders = 50\n");
    let (max, notes, findings) = told(&fake);
    assert_eq!(max, Some(120));
    assert!(notes.ends_with("; 100 by default, 123 in force until the server is restarted"));
    assert_eq!(findings.len(), 2);
    assert_eq!(
        findings[1],
        "max_wal_senders: 50 in postgresql.auto.conf:1, 7 in force until the server is restarted"
    );
}

#[test]
fn a_newer_file_that_says_the_same_is_no_contradiction() {
    let fake = fake("max_connections = 123\n");
    let same = (
        Some(120),
        "max_connections 123 less 3 reserved".to_owned(),
        vec![],
    );
    assert_eq!(told(&fake), same);
    // Nor is the command line, whatever the files say.
    fake.write("data/postgresql.auto.conf", "max_connections = 500\n");
    fake.write("proc/700/cmdline", "postgres\0-N\x00123\0");
    assert_eq!(told(&fake), same);
}

#[test]
fn without_it_a_newer_file_is_in_doubt() {
    let fake = fake("max_connections = 500\n");
    let doubt = |why: &str| {
        let (max, notes, findings) = told(&fake);
        assert_eq!(max, Some(497));
        let expected = "500 may not be in force: postgresql.auto.conf was changed after the server started; global/pg_control ";
        assert!(notes.contains(expected) && notes.contains(why), "{notes}");
        assert!(findings[0].starts_with("postgresql.auto.conf was changed after"));
    };
    fake.write(
        "data/postmaster.pid",
        "700\n/data\n1763858400\n5432\n/run\nlocalhost\n  1 2\nstarting\n",
    );
    doubt("starting up");
    fake.data_dir("data", "/data", 700, 5432);
    let mut torn = extracts::bytes(extracts::PG_15);
    torn[180] ^= 1;
    fake.write("data/global/pg_control", torn);
    doubt("checksum");
    fake.link("data/global/pg_control", "/dev/zero");
    doubt("cannot be read");
    fake.remove("data/global/pg_control");
    doubt("cannot be read");
    // An older file is in force.
    fake.write("proc/uptime", "70.00 1.00\n");
    let (max, notes, findings) = told(&fake);
    assert_eq!((max, findings.len()), (Some(497), 0), "{notes}");
}
