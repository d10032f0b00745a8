//! Settings and slots of PostgreSQL 10 to 18.

use super::*;

fn settings_of(found: &ServerReport) -> Vec<(&str, &str, &str)> {
    let all = found.settings.iter();
    all.map(|it| (it.name, it.value.as_str(), it.source.as_str()))
        .collect()
}

#[test]
fn defaults_by_version() {
    for version in 10..=18 {
        let fake = FakeRoot::new();
        server(&fake, "0::/\n");
        fake.write("data/PG_VERSION", format!("{version}\n"));
        fake.write(
            "data/postgresql.conf",
            "max_connections = 30\nshared_buffers = 64MB\n",
        );
        let found = look_at(&fake);
        let mut expected = vec![
            ("max_connections", "30", "postgresql.conf:1"),
            ("superuser_reserved_connections", "3", "default"),
            ("max_worker_processes", "8", "default"),
            ("autovacuum_max_workers", "3", "default"),
            ("max_wal_senders", "10", "default"),
            ("shared_buffers", "64MB", "postgresql.conf:2"),
            ("huge_pages", "try", "default"),
            ("work_mem", "4MB", "default"),
        ];
        if version >= 18 {
            expected.insert(4, ("autovacuum_worker_slots", "16", "default"));
        }
        if version >= 16 {
            expected.insert(2, ("reserved_connections", "0", "default"));
        }
        assert_eq!(settings_of(&found), expected, "{version}");
    }
}

#[test]
fn slots_by_version() {
    for (version, used, reserved) in [
        // A wal sender takes a slot before 12; reserved_connections is of 16 and later.
        (10, 2, 3),
        (11, 2, 3),
        (12, 1, 3),
        (15, 1, 3),
        (16, 1, 3 + 4),
        (17, 1, 3 + 4),
        (18, 1, 3 + 4),
    ] {
        let fake = FakeRoot::new();
        server(&fake, "0::/\n");
        fake.write("data/PG_VERSION", format!("{version}\n"));
        fake.write(
            "data/postgresql.conf",
            "max_connections = 30\nreserved_connections = 4\n",
        );
        backend(&fake, 701, "postgres: app db [local] idle");
        let sender = if version < 12 {
            "postgres: wal sender process rep 10.0.0.2(4000) streaming 0/3"
        } else {
            "postgres: walsender rep 10.0.0.2(4000) streaming 0/3"
        };
        backend(&fake, 702, sender);
        let found = look_at(&fake);
        assert_eq!(found.connections.wal_senders, 1, "{version}");
        let slots = row(&found, Limit::MaxConnections);
        assert_eq!(
            (slots.used, slots.max),
            (used, Some(30 - reserved)),
            "{version}"
        );
    }
}

#[test]
fn the_command_line_wins_and_unread_files_leave_nothing_to_guess() {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    fake.write(
        "proc/700/cmdline",
        "postgres\0-D\0/data\0-c\0work_mem=64MB\0",
    );
    let found = look_at(&fake);
    assert!(settings_of(&found).contains(&("work_mem", "64MB", "command line")));
    fake.remove("data/postgresql.conf");
    let found = look_at(&fake);
    assert_eq!(settings_of(&found), [("work_mem", "64MB", "command line")]);
}
