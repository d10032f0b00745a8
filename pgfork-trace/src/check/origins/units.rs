//! What units of systemd set, and whether it is in force.

use super::super::{host::Host, server::Server};
use super::{Origin, mark};
use crate::{
    host::{
        Ceiling, Root,
        cgroup::{self, Chain, Manager, UnitKind},
        config,
        process::{Limits, RLimit},
    },
    verdict::findings::FindingFacts,
};

/// Properties of units that are told.
const PROPERTIES: [&str; 14] = [
    "TasksMax",
    "LimitNPROC",
    "LimitAS",
    "LimitDATA",
    "LimitMEMLOCK",
    "MemoryMax",
    "MemoryHigh",
    "MemoryLimit",
    "MemorySwapMax",
    "OOMScoreAdjust",
    "OOMPolicy",
    "PAMName",
    "Slice",
    "Environment",
];
/// Defaults of the service manager.
const DEFAULTS: [&str; 3] = ["DefaultTasksMax", "DefaultLimitNPROC", "DefaultLimitAS"];
/// What tells the postmaster how its children are to be exempted from less.
const OOM_ADJUST: &str = "PG_OOM_ADJUST_";

/// The unit of the server, the slices above it, and the defaults.
pub(super) fn origins(
    root: &Root,
    host: &Host,
    server: &Server<'_>,
    rlimits: &Limits,
    facts: &mut FindingFacts,
) -> Vec<Origin> {
    let units = names(server);
    let mut origins: Vec<Origin> = config::manager_lines(root, &DEFAULTS)
        .iter()
        .map(Origin::new)
        .collect();
    for (name, manager) in &units {
        let lines = config::unit_lines(root, name, *manager, &PROPERTIES);
        origins.extend(lines.iter().map(Origin::new));
        origins.extend(environment_files(root, name, *manager));
    }
    // Assignments of variables add up; only PostgreSQL's own are told.
    // Other variables, with passwords perhaps, are nobody's business.
    for origin in origins.iter_mut().filter(|it| it.key == "Environment") {
        let words = origin.value.split_ascii_whitespace();
        let told: Vec<&str> = words.filter(|word| word.contains(OOM_ADJUST)).collect();
        origin.value = told.join(" ");
    }
    origins.retain(|it| it.key != "Environment" || !it.value.is_empty());
    mark(&mut origins);
    for origin in &mut origins {
        origin.overridden &= !origin.key.starts_with("Environment");
    }
    facts.unit_sets_oom_adjust = origins.iter().any(|it| it.value.contains(OOM_ADJUST));
    let built_in = default_tasks_max(server, &mut origins);
    origins.splice(0..0, built_in);
    for origin in origins.iter_mut().filter(|origin| origin.applies()) {
        let Some((wanted, now)) = compare(host, server, rlimits, origin) else {
            continue;
        };
        origin.now = (!wanted.is(now)).then(|| shown(now));
        if wanted.exact {
            facts.units.push(origin.setting(origin.now.clone()));
        }
    }
    let unit = server.postmaster.unit.as_ref();
    facts.is_service = unit.is_some_and(|unit| {
        unit.kind == UnitKind::Service
            && unit.manager == Manager::System
            && !unit.unit.starts_with("user@")
    });
    facts.logs_in = unit.is_some_and(|unit| logs_in(root, &unit.unit, unit.manager));
    origins
}

/// The units of all levels, and that of the server.
fn names(server: &Server<'_>) -> Vec<(String, Manager)> {
    let levels = server.pids.iter().flat_map(|chain| &chain.levels);
    let mut names: Vec<(String, Manager)> = levels
        .filter_map(|level| cgroup::unit_of(&level.path).filter(|it| it.cgroup == level.path))
        .chain(server.postmaster.unit.clone())
        .map(|unit| (unit.unit, unit.manager))
        .collect();
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    names.dedup();
    names
}

/// Variables of PostgreSQL's in the files that a unit names.
fn environment_files(root: &Root, unit: &str, manager: Manager) -> Vec<Origin> {
    let files = config::unit_lines(root, unit, manager, &["EnvironmentFile"]);
    let variables = files.iter().flat_map(|line| {
        let file = line.value.trim_start_matches('-');
        config::assignments(root, file.as_ref(), OOM_ADJUST)
    });
    let origins = variables.map(|line| Origin {
        key: "EnvironmentFile".to_owned(),
        value: format!("{}={}", line.key, line.value),
        target: unit.to_owned(),
        ..Origin::new(&line)
    });
    origins.collect()
}

/// The unit's own TasksMax takes the default's place; without either systemd has one built in.
fn default_tasks_max(server: &Server<'_>, origins: &mut [Origin]) -> Option<Origin> {
    let unit = server.postmaster.unit.as_ref()?;
    let own = origins
        .iter()
        .any(|it| it.key == "TasksMax" && it.target == unit.unit);
    let mut any = false;
    for origin in origins.iter_mut().filter(|it| it.key == "DefaultTasksMax") {
        origin.overridden |= own;
        any = true;
    }
    // src/core/main.c and src/core/cgroup.c, since version 231: for all but slices. A container's
    // runtime sets its own.
    if server.postmaster.container.is_some() {
        return None;
    }
    let limited = current(server.pids.as_ref(), &unit.unit, |level| level.pids.max)?.is_some();
    (!own && !any && limited && unit.kind != UnitKind::Slice).then(|| Origin {
        key: "DefaultTasksMax".to_owned(),
        value: "15%".to_owned(),
        target: String::new(),
        file: String::new(),
        source: "built into systemd, not set in any file".to_owned(),
        line: 0,
        modified: None,
        overridden: false,
        not_applied: None,
        now: None,
    })
}

/// Whether pam_limits may have a part in how the service is started.
fn logs_in(root: &Root, unit: &str, manager: Manager) -> bool {
    let lines = config::unit_lines(root, unit, manager, &["PAMName", "ExecStart"]);
    lines.iter().any(|line| match line.key.as_str() {
        "PAMName" => !line.value.is_empty(),
        _ => line.value.split_ascii_whitespace().any(|word| {
            let program = word.rsplit('/').next().unwrap_or(word);
            matches!(program, "su" | "runuser" | "sudo" | "login")
        }),
    })
}

/// A limit as a file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// Absent: none.
    limit: Option<u64>,
    /// It need not be met to the unit: the kernel rounds, and a share is of what there was.
    tolerance: u64,
    /// Another value in the kernel is a contradiction: it is not a share of something that moves.
    exact: bool,
}

impl Wanted {
    fn is(self, now: Option<u64>) -> bool {
        match (self.limit, now) {
            (Some(wanted), Some(now)) => wanted.abs_diff(now) <= self.tolerance,
            (wanted, now) => wanted == now,
        }
    }
}

/// What a line asks for, and what is in force, where both are known.
fn compare(
    host: &Host,
    server: &Server<'_>,
    rlimits: &Limits,
    origin: &Origin,
) -> Option<(Wanted, Option<u64>)> {
    let unit = server
        .postmaster
        .unit
        .as_ref()
        .map(|unit| unit.unit.as_str());
    let soft = |limit: Option<RLimit>| {
        // Only the server's own unit has processes that were asked.
        let limit = limit.filter(|_| unit == Some(origin.target.as_str()))?;
        Some(limit.soft.value())
    };
    let memory = |ceiling: fn(&cgroup::MemoryFacts) -> Option<Ceiling>| {
        current(server.memory.as_ref(), &origin.target, |level| {
            ceiling(&level.memory)
        })
    };
    let tasks = |unit: &str| current(server.pids.as_ref(), unit, |level| level.pids.max);
    let now = match origin.key.as_str() {
        "TasksMax" => tasks(&origin.target)?,
        "DefaultTasksMax" => tasks(unit?)?,
        "MemoryMax" | "MemoryLimit" => memory(|it| it.max_bytes)?,
        "MemoryHigh" => memory(|it| it.high_bytes)?,
        "MemorySwapMax" => memory(|it| it.swap_max_bytes)?,
        "LimitNPROC" => soft(rlimits.processes)?,
        "LimitAS" => soft(rlimits.address_space_bytes)?,
        "LimitDATA" => soft(rlimits.data_bytes)?,
        "LimitMEMLOCK" => soft(rlimits.locked_memory_bytes)?,
        _ => return None,
    };
    Some((wanted(host, origin)?, now))
}

/// The limit of a unit's cgroup, if it is on the path and could be read.
fn current(
    chain: Option<&Chain>,
    unit: &str,
    limit: impl Fn(&cgroup::Level) -> Option<Ceiling>,
) -> Option<Option<u64>> {
    let named = |level: &&cgroup::Level| {
        cgroup::unit_of(&level.path).is_some_and(|it| it.cgroup == level.path && it.unit == unit)
    };
    Some(limit(chain?.levels.iter().find(named)?)?.value())
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "infinity".to_owned(), |limit| limit.to_string())
}

/// Understands a value as systemd does (`config_parse_tasks_max`, `config_parse_memory_limit`,
/// `rlimit_parse`). `None` for what this program does not.
fn wanted(host: &Host, origin: &Origin) -> Option<Wanted> {
    let key = origin.key.as_str();
    let value = match key.strip_prefix("Limit") {
        // soft:hard
        Some(_) => origin.value.split(':').next()?,
        None => origin.value.as_str(),
    };
    let exactly = |limit, tolerance| Wanted {
        limit,
        tolerance,
        exact: true,
    };
    if value == "infinity" {
        return Some(exactly(None, 0));
    }
    if matches!(key, "TasksMax" | "DefaultTasksMax") {
        if value.ends_with('%') {
            // Of kernel.pid_max and kernel.threads-max as they were when systemd started.
            return Some(Wanted {
                limit: Some(0),
                tolerance: 0,
                exact: false,
            });
        }
        return Some(exactly(Some(value.parse().ok()?), 0));
    }
    if key == "LimitNPROC" {
        return Some(exactly(Some(value.parse().ok()?), 0));
    }
    if let Some(percent) = value.strip_suffix('%') {
        let percent: u64 = percent.trim().parse().ok()?;
        let bytes = u128::from(host.memory?.mem_total) * u128::from(percent) / 100;
        let bytes = u64::try_from(bytes).ok()?;
        return Some(exactly(Some(bytes), bytes / 100));
    }
    Some(exactly(Some(size(value)?), host.page_size))
}

/// `1.5G`, in bytes.
fn size(value: &str) -> Option<u64> {
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = value.split_at(end.unwrap_or(value.len()));
    let scale: u64 = match suffix.trim() {
        "" | "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let parts: u64 = fraction.get(..fraction.len().min(6))?.parse().ok()?;
    let of = 10_u64.pow(u32::try_from(fraction.len().min(6)).ok()?);
    let fraction = u128::from(scale) * u128::from(parts) / u128::from(of);
    let whole: u64 = whole.parse().ok()?;
    whole
        .checked_mul(scale)?
        .checked_add(u64::try_from(fraction).ok()?)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("1.5G", Some(3 << 29)),
            ("12 M", Some(12 << 20)),
            ("1X", None),
            ("", None),
            (".", None),
            ("99999999999999999999T", None),
            ("18446744073709551615K", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
