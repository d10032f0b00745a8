//! Process titles: what a server process says about itself in its command line.
//!
//! `postgres: [CLUSTER: ]USER DATABASE HOST(PORT) ACTIVITY` for a client backend, and the name of
//! its job for everything else (src/backend/utils/misc/ps_status.c, PostgreSQL 10 to 18). Names
//! are chosen by whoever may create a role or a database, and a client without either can put any
//! user name there until it fails to authenticate: a title is a hint, never a proof.

/// What a server process does, by its title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Serves a client.
    Client(Client),
    /// Sends the log to a standby or a backup; from version 12 on it takes no connection slot.
    WalSender(Client),
    /// Anything else of the server's own: its name without numbers, `autovacuum worker`.
    Helper(String),
    /// A title that is none of these.
    Other,
}

/// Who is served, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// User; with spaces in it, it cannot be told from the database for certain.
    pub user: String,
    /// Database; empty for a wal sender.
    pub database: String,
    /// Address of the client, `[local]` for a Unix socket.
    pub host: String,
    /// TCP port of the client.
    pub port: Option<u16>,
    /// `idle`, `idle in transaction`, `SELECT`, `authentication`, ...; empty when
    /// `update_process_title` is off.
    pub activity: String,
}

/// A title, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title {
    /// What the process does.
    pub kind: Kind,
}

/// Jobs of the server's own. A longer name first where one starts like another.
const HELPERS: [&str; 21] = [
    "autovacuum launcher",
    "autovacuum worker",
    "background writer",
    "checkpointer",
    "walwriter",
    "wal writer",
    "walreceiver",
    "wal receiver",
    "walsummarizer",
    "archiver",
    "startup",
    "logger",
    "stats collector",
    "logical replication launcher",
    "logical replication worker",
    "logical replication apply worker",
    "logical replication tablesync worker",
    "parallel worker",
    "slotsync worker",
    "io worker",
    "bgworker",
];

impl Title {
    /// Understands the first argument of a server process. `cluster` is `cluster_name`, where it is
    /// known; then a title with another prefix is not taken apart at a colon of its own.
    /// `None` when it is not a title: the process has not set one yet.
    #[must_use]
    pub fn parse(argument: &str, cluster: Option<&str>) -> Option<Self> {
        let rest = argument.strip_prefix("postgres: ")?.trim_end();
        let rest = match cluster.filter(|name| !name.is_empty()) {
            Some(name) => rest
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(": "))
                .unwrap_or(rest),
            None => rest,
        };
        Some(Self { kind: kind(rest) })
    }

    /// `cluster_name`, from the title of a process that every server has.
    #[must_use]
    pub fn cluster_in(argument: &str) -> Option<&str> {
        let rest = argument.strip_prefix("postgres: ")?.trim_end();
        let rest = rest.strip_suffix(" process").unwrap_or(rest).trim_end();
        let name = ["checkpointer", "background writer"]
            .into_iter()
            .find_map(|job| rest.strip_suffix(job))?;
        name.strip_suffix(": ")
    }
}

fn kind(rest: &str) -> Kind {
    // Until version 12: `wal sender process USER HOST(PORT)`.
    for prefix in ["walsender ", "wal sender process "] {
        if let Some(client) = rest
            .strip_prefix(prefix)
            .and_then(|rest| client(rest, true))
        {
            return Kind::WalSender(client);
        }
    }
    // A client named like a job has its host behind the name, a job has not.
    if let Some(client) = client(rest, false) {
        return Kind::Client(client);
    }
    let named = HELPERS.iter().find(|name| {
        rest.strip_prefix(**name)
            .is_some_and(|tail| tail.is_empty() || tail.starts_with([' ', ':']))
    });
    match named {
        Some(name) => Kind::Helper((*name).to_owned()),
        None if rest.is_empty() => Kind::Other,
        // Extensions choose the names of their workers.
        None => Kind::Helper("other worker".to_owned()),
    }
}

/// The last `HOST(PORT)` or `[local]` is the anchor: what follows it is chosen by the server.
fn client(rest: &str, sender: bool) -> Option<Client> {
    let mut end = rest.len();
    while let Some(start) = rest[..end].rfind(' ').map(|space| space + 1).or(Some(0)) {
        let word = &rest[start..end];
        if let Some((host, port)) = host(word)
            && start > 0
        {
            let names = rest[..start].trim_end();
            let (user, database) = match names.split_once(' ') {
                Some((user, database)) if !sender => (user, database),
                _ if sender => (names, ""),
                _ => return None,
            };
            return Some(Client {
                user: user.to_owned(),
                database: database.to_owned(),
                host: host.to_owned(),
                port,
                activity: rest[end..].trim_start().to_owned(),
            });
        }
        if start == 0 {
            return None;
        }
        end = start - 1;
    }
    None
}

fn host(word: &str) -> Option<(&str, Option<u16>)> {
    if word == "[local]" {
        return Some((word, None));
    }
    let (host, port) = word.strip_suffix(')')?.rsplit_once('(')?;
    (!host.is_empty()).then_some((host, Some(port.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_of(title: &str, cluster: Option<&str>) -> Client {
        match Title::parse(title, cluster).unwrap().kind {
            Kind::Client(client) | Kind::WalSender(client) => client,
            other => panic!("{title}: {other:?}"),
        }
    }

    #[test]
    fn a_client() {
        let client = client_of("postgres: app db 10.0.3.17(52114) idle", None);
        assert_eq!(
            (client.user.as_str(), client.database.as_str()),
            ("app", "db")
        );
        assert_eq!(
            (client.host.as_str(), client.port),
            ("10.0.3.17", Some(52114))
        );
        assert_eq!(client.activity, "idle");
        let local = client_of("postgres: app db [local] idle in transaction", None);
        assert_eq!((local.host.as_str(), local.port), ("[local]", None));
        assert_eq!(local.activity, "idle in transaction");
        let v6 = client_of("postgres: a b fe80::1%eth0(7) SELECT waiting", None);
        assert_eq!(
            (v6.host.as_str(), v6.activity.as_str()),
            ("fe80::1%eth0", "SELECT waiting")
        );
    }

    #[test]
    fn titles_that_are_not_updated_have_no_activity() {
        assert_eq!(client_of("postgres: app db [local] ", None).activity, "");
        assert_eq!(client_of("postgres: app db h(1)", None).activity, "");
    }

    #[test]
    fn cluster_names() {
        assert_eq!(
            Title::cluster_in("postgres: 15/main: checkpointer "),
            Some("15/main")
        );
        assert_eq!(
            Title::cluster_in("postgres: x: y: checkpointer process   "),
            Some("x: y")
        );
        assert_eq!(Title::cluster_in("postgres: checkpointer "), None);
        let client = client_of("postgres: x: y: app db [local] idle", Some("x: y"));
        assert_eq!(
            (client.user.as_str(), client.database.as_str()),
            ("app", "db")
        );
        // Unknown cluster name: counted all the same.
        assert_eq!(
            client_of("postgres: 15/main: app db [local] idle", None).activity,
            "idle"
        );
    }

    #[test]
    fn jobs() {
        for (title, job) in [
            (
                "postgres: 15/main: autovacuum launcher ",
                "autovacuum launcher",
            ),
            (
                "postgres: 15/main: autovacuum worker db",
                "autovacuum worker",
            ),
            (
                "postgres: 15/main: parallel worker for PID 7",
                "parallel worker",
            ),
            ("postgres: 15/main: io worker 0", "io worker"),
            (
                "postgres: 15/main: TimescaleDB Background Worker Launcher",
                "other worker",
            ),
        ] {
            let kind = Title::parse(title, Some("15/main")).unwrap().kind;
            assert_eq!(kind, Kind::Helper(job.to_owned()), "{title}");
        }
        assert!(matches!(
            Title::parse("postgres: walsender rep 10.0.0.2(99) streaming 0/3000148", None).unwrap().kind,
            Kind::WalSender(Client { user, .. }) if user == "rep"
        ));
    }

    #[test]
    fn hostile_names_move_nothing_but_themselves() {
        let client = client_of("postgres: a [local] idle b 10.0.0.1(5) [local] idle", None);
        assert_eq!(
            (client.host.as_str(), client.activity.as_str()),
            ("[local]", "idle")
        );
        let client = client_of("postgres: \x1b[2J db\u{202e} h(65535) idle", None);
        assert_eq!(client.port, Some(65535));
        for odd in [
            "postgres: ",
            "postgres: (",
            "postgres: [local]",
            "postgres: a h(99999) idle",
            "postgres: )(",
            "postgres:  ()",
            "postgres: é é é",
        ] {
            let _ = Title::parse(odd, Some("")).unwrap();
        }
        assert_eq!(Title::parse("/usr/bin/postgres", None), None);
    }
}
