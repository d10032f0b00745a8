//! What a process is to its postmaster, by its title and those of the processes above it.
//!
//! Pure. Titles are chosen by others (see [`super::titles`]): what comes of them is a hint.

use schemars::JsonSchema;
use serde::Serialize;

use super::titles::{Kind, Title};

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The postmaster itself.
    Postmaster,
    /// Serves a client.
    ClientBackend,
    /// Sends the log to a standby or a backup.
    WalSender,
    /// Another process of the server's own: `job` names it.
    Helper,
    /// A program that a server process started: `job` says for what.
    Program,
    /// A child of the postmaster whose title says nothing: it just started, or is gone.
    Child,
}

/// A process, as far as it is known what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// What it is.
    pub role: Role,
    /// Which helper, or what a program is for.
    pub job: Option<String>,
}

/// What a process is. `titles` are the first arguments of the process and of those above it, the
/// child of the postmaster last; without any, it is the postmaster.
#[must_use]
pub fn describe(titles: &[Option<String>], cluster: Option<&str>) -> Described {
    let Some((child, below)) = titles.split_last() else {
        return Described {
            role: Role::Postmaster,
            job: None,
        };
    };
    let kind = child
        .as_deref()
        .and_then(|title| Title::parse(title, cluster))
        .map(|title| title.kind);
    if below.is_empty() {
        return server_process(kind);
    }
    Described {
        role: Role::Program,
        job: Some(program_of(kind.as_ref())),
    }
}

fn server_process(kind: Option<Kind>) -> Described {
    let (role, job) = match kind {
        Some(Kind::Client(_)) => (Role::ClientBackend, None),
        Some(Kind::WalSender(_)) => (Role::WalSender, None),
        Some(Kind::Helper(name)) => (Role::Helper, Some(name)),
        Some(Kind::Other) | None => (Role::Child, None),
    };
    Described { role, job }
}

/// What a server process starts programs for (src/backend: postmaster/pgarch.c and
/// archive/shell_archive.c, access/transam/xlogarchive.c, commands/copyto.c, PostgreSQL 10 to 18).
fn program_of(parent: Option<&Kind>) -> String {
    match parent {
        Some(Kind::Helper(name)) => match name.as_str() {
            "archiver" => "archive_command".to_owned(),
            "startup" => {
                "restore_command, archive_cleanup_command or recovery_end_command".to_owned()
            }
            "checkpointer" => "archive_cleanup_command".to_owned(),
            name => format!("started by the {name}"),
        },
        Some(Kind::Client(_)) => {
            "started by a client backend: COPY ... PROGRAM, or a function of an extension"
                .to_owned()
        }
        _ => "started by a server process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(titles: &[&str]) -> (Role, Option<String>) {
        let titles: Vec<Option<String>> = titles
            .iter()
            .map(|it| Some((*it).to_owned()).filter(|it| !it.is_empty()))
            .collect();
        let described = describe(&titles, None);
        (described.role, described.job)
    }

    #[test]
    fn by_titles() {
        let client = "postgres: app db 10.0.3.17(52114) COPY";
        let archiver = "postgres: 15/main: archiver archiving 000000010000000000000001";
        assert_eq!(of(&[]), (Role::Postmaster, None));
        assert_eq!(of(&[client]), (Role::ClientBackend, None));
        assert_eq!(
            of(&["postgres: checkpointer "]),
            (Role::Helper, Some("checkpointer".to_owned()))
        );
        assert_eq!(
            of(&["postgres: walsender rep 10.0.0.2(99) streaming 0/3000148"]),
            (Role::WalSender, None)
        );
        // Not titled yet, and gone.
        assert_eq!(
            of(&["/usr/lib/postgresql/15/bin/postgres"]),
            (Role::Child, None)
        );
        assert_eq!(of(&[""]), (Role::Child, None));
        let (role, job) = of(&["sh", "postgres: archiver archiving 01"]);
        assert_eq!(
            (role, job.as_deref()),
            (Role::Program, Some("archive_command"))
        );
        let (role, job) = of(&["gzip", "sh", client]);
        assert_eq!(role, Role::Program);
        assert!(job.unwrap().contains("COPY"));
        assert_eq!(of(&["x", ""]).0, Role::Program);
        // A program may call itself anything; what it is comes from the process above.
        assert_eq!(of(&[client, "postgres: archiver"]).0, Role::Program);
        let named = describe(&[Some(archiver.to_owned())], Some("15/main"));
        assert_eq!(named.job.as_deref(), Some("archiver"));
    }
}
