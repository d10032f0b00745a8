//! limits.conf: which line is for the server's user, and whether it is in force.

use std::path::Path;

use super::super::server::Server;
use super::Origin;
use crate::{
    host::{
        Root, config,
        process::{Limits, RLimit},
        read_config,
        users::{self, User},
    },
    verdict::findings::FindingFacts,
};

/// How a server is started by hand or by scripts: where pam_limits has to be for limits.conf to act.
const PAM_FILES: [&str; 8] = [
    "su",
    "su-l",
    "runuser",
    "runuser-l",
    "login",
    "sshd",
    "system-auth",
    "common-session",
];

/// Lines that are for the server's user, the winning ones and the others.
pub(super) fn origins(
    root: &Root,
    server: &Server<'_>,
    rlimits: &Limits,
    facts: &mut FindingFacts,
) -> Vec<Origin> {
    let uid = server.postmaster.uid;
    let who = Who::read(root, uid);
    let lines = config::limits_lines(root, &["nproc", "as", "data"]);
    let mut origins: Vec<(u8, Origin)> = lines
        .iter()
        .filter_map(|line| Some((who.rank(&line.target)?, Origin::new(line))))
        .collect();
    let why = not_applied(root, facts);
    for at in 0..origins.len() {
        origins[at].1.overridden = !["soft", "hard"]
            .iter()
            .any(|kind| winner(&origins, &origins[at].1.key, kind) == Some(at));
        origins[at].1.not_applied = why.map(str::to_owned);
    }
    for (key, limit) in [
        ("nproc", rlimits.processes),
        ("as", rlimits.address_space_bytes),
        ("data", rlimits.data_bytes),
    ] {
        let Some(at) = winner(&origins, key, "soft") else {
            continue;
        };
        let (rank, origin) = &mut origins[at];
        let now = limit.and_then(|limit| differs(origin, limit));
        origin.now = now.clone().filter(|_| why.is_none());
        // What is for everybody was hardly meant for this server.
        if *rank < EVERYBODY && now.is_some() {
            facts.user_limits.push(origin.setting(now));
        }
    }
    origins.into_iter().map(|(_, origin)| origin).collect()
}

/// Why none of the lines is applied; `None` when they may be.
fn not_applied(root: &Root, facts: &FindingFacts) -> Option<&'static str> {
    let with_pam = |file: &str| {
        let path = root.join(&Path::new("/etc/pam.d").join(file));
        let content = read_config(&path, 1 << 20).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        text.lines()
            .any(|line| !line.trim_start().starts_with('#') && line.contains("pam_limits"))
    };
    if facts.is_service && !facts.logs_in {
        Some("pam_limits acts at logins, and this server is a service without PAMName=")
    } else if root.join(Path::new("/etc/pam.d")).is_dir()
        && !PAM_FILES.iter().any(|it| with_pam(it))
    {
        Some("no pam_limits in /etc/pam.d for su, runuser, login and sshd")
    } else {
        None
    }
}

/// The line that decides: the most specific one, of equal ones the last (modules/pam_limits
/// `process_limit`).
fn winner(origins: &[(u8, Origin)], key: &str, kind: &str) -> Option<usize> {
    let sets = |origin: &Origin| {
        let given = origin.value.split(' ').next();
        origin.key == key && (given == Some(kind) || given == Some("-"))
    };
    let all = origins.iter().enumerate().rev();
    all.filter(|(_, (_, origin))| sets(origin))
        .min_by_key(|(_, (rank, _))| *rank)
        .map(|(at, _)| at)
}

/// The soft limit in force, where it is another.
fn differs(origin: &Origin, limit: RLimit) -> Option<String> {
    let value = origin.value.split(' ').nth(1)?;
    let wanted = match value {
        "-1" | "unlimited" | "infinity" => None,
        number => {
            // Sizes are in KiB.
            let unit = if origin.key == "nproc" { 1 } else { 1024 };
            Some(number.parse::<u64>().ok()?.saturating_mul(unit))
        }
    };
    let now = limit.soft.value();
    (now != wanted).then(|| now.map_or_else(|| "unlimited".to_owned(), |now| now.to_string()))
}

/// Rank of `*`; above it are the user, its groups, and `%group`.
const EVERYBODY: u8 = 3;

/// The user that lines are for or not.
struct Who {
    uid: u32,
    user: Option<User>,
    groups: Vec<(String, u32)>,
}

impl Who {
    fn read(root: &Root, uid: u32) -> Self {
        let user = users::by_uid(root, uid);
        let groups = user
            .as_ref()
            .map_or_else(Vec::new, |user| users::groups_of(root, user));
        Self { uid, user, groups }
    }

    /// How much a domain is for this user, 0 most; `None`: not at all (limits.conf(5)).
    fn rank(&self, domain: &str) -> Option<u8> {
        let named = self.user.as_ref().is_some_and(|user| user.name == domain);
        if named || in_range(domain, self.uid) {
            return Some(0);
        }
        // Groups and everybody do not include root.
        if self.uid == 0 {
            return None;
        }
        let of_group = |wanted: &str| {
            self.groups
                .iter()
                .any(|(name, gid)| name == wanted || in_range(wanted, *gid))
        };
        match domain.split_at_checked(1)? {
            ("@", group) => of_group(group).then_some(1),
            ("%", group) => of_group(group).then_some(2),
            ("*", "") => Some(EVERYBODY),
            _ => None,
        }
    }
}

/// `min:max`, `min:`, or `:exactly`.
fn in_range(domain: &str, number: u32) -> bool {
    let Some((least, most)) = domain.split_once(':') else {
        return false;
    };
    match (least.parse::<u32>(), most.parse::<u32>()) {
        (Ok(least), Ok(most)) => (least..=most).contains(&number),
        (Ok(least), Err(_)) => most.is_empty() && number >= least,
        (Err(_), Ok(only)) => least.is_empty() && number == only,
        (Err(_), Err(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_meant() {
        let who = Who {
            uid: 26,
            user: Some(User {
                name: "pg".to_owned(),
                gid: 27,
                home: "/".to_owned(),
            }),
            groups: vec![("dba".to_owned(), 30)],
        };
        for (domain, rank) in [
            ("pg", Some(0)),
            ("20:30", Some(0)),
            ("20:", Some(0)),
            (":26", Some(0)),
            (":27", None),
            ("26", None),
            ("@dba", Some(1)),
            ("@30:40", Some(1)),
            ("@other", None),
            ("%dba", Some(2)),
            ("*", Some(3)),
            ("other", None),
            ("", None),
            (":", None),
        ] {
            assert_eq!(who.rank(domain), rank, "{domain}");
        }
        let root = Who { uid: 0, ..who };
        assert_eq!((root.rank("*"), root.rank("@dba")), (None, None));
        assert_eq!(root.rank(":0"), Some(0));
    }
}
