//! The limit that refuses next, once the remedy for a refusal is in place.

use schemars::JsonSchema;
use serde::Serialize;

use super::super::{Cause, Scope, remedy::raised};
use super::{Effect, Limit, Place, Row, Unit, first};
use crate::output::units::{bytes, count, counted};

/// The limit that refuses next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NextLimit {
    /// Which.
    pub limit: Limit,
    /// Whose.
    pub scope: Place,
    /// What happens there.
    pub effect: Effect,
    /// What is counted.
    pub unit: Unit,
    /// The limit as its check compares it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Room left under it, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<u64>,
    /// Backends like those that run that still fit.
    pub backends: u64,
    /// The same in words.
    pub text: String,
}

/// What of `rows` refuses next after the remedy for `cause` at `scope`. `None` for causes that
/// are no limit, and when nothing that can be seen comes next.
#[must_use]
pub fn next(rows: &[Row], cause: Cause, scope: Option<&Scope>) -> Option<NextLimit> {
    let limits = limits_of(cause);
    if limits.is_empty() {
        return None;
    }
    let of_cause = |row: &&Row| limits.contains(&row.limit);
    // Which one it was is not known: that with the least room.
    let least = rows
        .iter()
        .filter(of_cause)
        .min_by_key(|row| row.room.unwrap_or(u64::MAX));
    let refused = |row: &&Row| match scope {
        Some(scope) => of_cause(row) && is_at(&row.place, scope),
        None => least.is_some_and(|least| std::ptr::eq(least, *row)),
    };
    // The remedy for a cgroup raises every other one on the path that would refuse within the
    // room that it makes.
    let made = rows
        .iter()
        .find(refused)
        .filter(|row| row.limit == Limit::PidsCgroupMax)
        .and_then(|row| Some(raised(row.max?.max(row.used)) - row.used));
    let raised_too = |row: &Row| {
        row.limit == Limit::PidsCgroupMax
            && made.zip(row.room).is_some_and(|(made, room)| room < made)
    };
    let rest: Vec<Row> = rows
        .iter()
        .filter(|row| !refused(row) && !raised_too(row))
        .cloned()
        .collect();
    let row = first(&rest)?;
    Some(NextLimit {
        limit: row.limit,
        scope: row.place.clone(),
        effect: row.effect,
        unit: row.unit,
        max: row.max,
        room: row.room,
        backends: row.backends?,
        text: text(row),
    })
}

/// The limits that a cause stands for: one file may have three ways to end.
const fn limits_of(cause: Cause) -> &'static [Limit] {
    match cause {
        Cause::RlimitNproc => &[Limit::RlimitNproc],
        Cause::ThreadsMax => &[Limit::ThreadsMax],
        Cause::PidsCgroupMax => &[Limit::PidsCgroupMax],
        Cause::PidSpaceExhausted => &[Limit::PidSpaceExhausted],
        Cause::CommitLimit => &[Limit::CommitLimit],
        Cause::OvercommitHeuristic => &[Limit::OvercommitHeuristic],
        Cause::PidNamespaceDying | Cause::PidNamespaceDyingLate => &[Limit::PidNamespaceDying],
        Cause::MemcgKmemLimitV1 => &[Limit::MemcgKmemLimitV1],
        Cause::MemcgNoVictim
        | Cause::MemcgOomKillDisabled
        | Cause::MemcgOomKilledForker
        | Cause::MemcgDyingTask => &[
            Limit::MemcgNoVictim,
            Limit::MemcgOomKillDisabled,
            Limit::MemcgOomKill,
        ],
        _ => &[],
    }
}

/// Whether a row is about the scope of the verdict.
fn is_at(place: &Place, scope: &Scope) -> bool {
    match (place, scope) {
        (
            Place::Cgroup { path, ancestor, .. },
            Scope::Cgroup {
                path: refused,
                ancestor: level,
                ..
            },
        ) => refused
            .as_ref()
            .map_or(ancestor == level, |refused| refused == path),
        // The row is of the process's own user namespace.
        (Place::User { .. }, Scope::User { ancestor, .. }) => *ancestor == 0,
        _ => true,
    }
}

fn text(row: &Row) -> String {
    let when = if row.backends == Some(0) {
        "at once"
    } else {
        "first"
    };
    let what = match row.effect {
        Effect::RefusesEagain | Effect::RefusesEnomem => format!("refuses {when}"),
        Effect::Kills => format!("ends a process {when}"),
        Effect::Slows => format!("slows the server down {when}"),
        Effect::TurnsAway => format!("turns clients away {when}"),
    };
    let whose = match &row.place {
        Place::Cgroup {
            container: Some(id),
            ..
        } => format!("container {}, ", id.get(..12).unwrap_or(id)),
        Place::Cgroup { path, .. } if path == "/" => "the root cgroup, ".to_owned(),
        Place::Cgroup { path, .. } => format!("{}, ", path.trim_start_matches('/')),
        Place::User { uid } => format!("uid {uid}, "),
        Place::Host | Place::Server => String::new(),
    };
    let left = match (row.room, row.max, row.unit) {
        (Some(room), Some(max), Unit::Bytes) => {
            format!("{} left of {}", bytes(room), bytes(max))
        }
        (Some(room), Some(max), _) => format!("{} left of {}", count(room), count(max)),
        _ => "nothing left".to_owned(),
    };
    let backends = match (row.backends, row.unit) {
        (Some(more), Unit::Bytes) if more > 0 => {
            format!(", about {}", counted(more, "backend", "backends"))
        }
        _ => String::new(),
    };
    format!(
        "after that, {} {what}: {whose}{left}{backends}",
        row.limit.id()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(limit: Limit, place: Place, unit: Unit, used: u64, max: u64) -> Row {
        let mut row = Row::new(limit, place, Effect::RefusesEagain, unit);
        row.used = used;
        row.max = Some(max);
        row.room = Some(max - used);
        row.backends = row.room;
        row
    }

    fn cgroup(path: &str, ancestor: usize) -> Place {
        Place::Cgroup {
            path: path.to_owned(),
            ancestor,
            unit: None,
            property: "pids.max".to_owned(),
            container: None,
        }
    }

    fn scope(path: Option<&str>, ancestor: usize) -> Scope {
        Scope::Cgroup {
            path: path.map(str::to_owned),
            cgroup_id: 1,
            ancestor,
            unit: None,
            property: "pids.max".to_owned(),
            container: None,
        }
    }

    /// Leaf full, parent nearly, grandparent with room, and the user's limit behind.
    fn rows() -> Vec<Row> {
        let pids = |path, ancestor, used, max| {
            let place = cgroup(path, ancestor);
            row(Limit::PidsCgroupMax, place, Unit::Tasks, used, max)
        };
        let nproc = Place::User { uid: 26 };
        let mut rows = vec![
            pids("/a/b", 0, 100, 100),
            pids("/a", 1, 110, 120),
            row(Limit::RlimitNproc, nproc, Unit::Tasks, 100, 400),
            pids("/", 2, 200, 1_000),
        ];
        rows.sort_by_key(|row| row.backends);
        rows
    }

    #[test]
    fn what_refused_and_what_its_remedy_raises_is_not_next() {
        // The remedy makes room for 50: the parent, with 10 left, is part of it.
        let next = next(&rows(), Cause::PidsCgroupMax, Some(&scope(Some("/a/b"), 0))).unwrap();
        assert_eq!((next.limit, next.backends), (Limit::RlimitNproc, 300));
        assert_eq!(
            next.text,
            "after that, rlimit_nproc refuses first: uid 26, 300 left of 400"
        );
    }

    #[test]
    fn another_limit_of_the_same_kind_may_be_next() {
        let mut rows = rows();
        rows.retain(|row| row.limit == Limit::PidsCgroupMax && row.room != Some(10));
        for scope in [scope(Some("/a/b"), 0), scope(None, 0)] {
            let next = next(&rows, Cause::PidsCgroupMax, Some(&scope)).unwrap();
            assert_eq!(
                next.text,
                "after that, pids_cgroup_max refuses first: the root cgroup, 800 left of 1 000"
            );
        }
    }

    #[test]
    fn where_it_is_not_known_which_one_refused_the_others_stay() {
        let next = next(&rows(), Cause::PidsCgroupMax, None).unwrap();
        // The parent, with 10 left, is raised with it, as everywhere.
        assert_eq!((next.limit, next.backends), (Limit::RlimitNproc, 300));
        let pids = rows()
            .into_iter()
            .filter(|row| row.limit == Limit::PidsCgroupMax);
        let pids: Vec<Row> = pids.collect();
        let next = self::next(&pids, Cause::PidsCgroupMax, None).unwrap();
        assert_eq!((next.limit, next.room), (Limit::PidsCgroupMax, Some(800)));
    }

    #[test]
    fn after_another_cause_a_full_limit_refuses_at_once() {
        let next = next(&rows(), Cause::CommitLimit, Some(&Scope::Host)).unwrap();
        assert_eq!(
            next.text,
            "after that, pids_cgroup_max refuses at once: a/b, 0 left of 100"
        );
        assert_eq!((next.room, next.backends), (Some(0), 0));
    }

    #[test]
    fn memory_and_slots_have_their_own_words() {
        const GIB: u64 = 1 << 30;
        let mut memory = row(
            Limit::MemcgOomKill,
            cgroup("/a", 0),
            Unit::Bytes,
            3 * GIB,
            4 * GIB,
        );
        memory.effect = Effect::Kills;
        memory.backends = Some(80);
        let words = |row: &Row| {
            next(std::slice::from_ref(row), Cause::ThreadsMax, None)
                .unwrap()
                .text
        };
        assert_eq!(
            words(&memory),
            "after that, memcg_oom_kill ends a process first: a, 1 GiB left of 4 GiB, about 80 backends"
        );
        let mut slots = row(
            Limit::MaxConnections,
            Place::Server,
            Unit::Connections,
            60,
            97,
        );
        slots.effect = Effect::TurnsAway;
        assert_eq!(
            words(&slots),
            "after that, max_connections turns clients away first: 37 left of 97"
        );
        // The same file refuses, or kills: it is what was just raised.
        let rows = [memory];
        assert_eq!(
            next(&rows, Cause::MemcgNoVictim, Some(&scope(Some("/a"), 0))),
            None
        );
        assert!(next(&rows, Cause::MemcgNoVictim, Some(&scope(Some("/"), 1))).is_some());
    }

    #[test]
    fn nothing_is_next_where_nothing_was_a_limit_or_nothing_is_in_reach() {
        assert_eq!(next(&rows(), Cause::SeccompDenied, None), None);
        assert_eq!(next(&rows(), Cause::Unknown, None), None);
        let mut slowdown = rows().remove(1);
        slowdown.effect = Effect::Slows;
        let mut endless = rows().remove(1);
        endless.backends = None;
        assert_eq!(next(&[slowdown, endless], Cause::ThreadsMax, None), None);
    }

    #[test]
    fn an_upper_user_namespace_leaves_the_own_limit_in_place() {
        let upper = Scope::User {
            uid: None,
            userns_inum: 5,
            ancestor: 1,
        };
        let rows: Vec<Row> = rows()
            .into_iter()
            .filter(|row| row.limit == Limit::RlimitNproc)
            .collect();
        assert!(next(&rows, Cause::RlimitNproc, Some(&upper)).is_some());
        let own = Scope::User {
            uid: Some(26),
            userns_inum: 5,
            ancestor: 0,
        };
        assert_eq!(next(&rows, Cause::RlimitNproc, Some(&own)), None);
    }
}
