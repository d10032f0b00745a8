//! What to type against a finding. A command that cannot be given whole is not given.

use super::{
    super::{
        OvercommitSettings,
        headroom::{self, Limit, Place, Row},
        remedy::{drop_in, prlimit, quoted},
    },
    FileSetting, FindingFacts,
};

/// Share of RAM that may be promised on a host that the server has for itself, percent.
const RATIO: u64 = 80;
const MIB: u64 = 1 << 20;

/// Setting the ratio also takes vm.overcommit_kbytes back (mm/util.c `overcommit_ratio_handler`, 5.10
/// to 7.2).
pub(super) fn strict(settings: OvercommitSettings) -> Option<String> {
    (settings.ratio < RATIO || settings.kbytes > 0)
        .then(|| format!("sysctl vm.overcommit_ratio={RATIO}"))
}

/// All that the server may run, beside all that runs.
pub(super) fn more_tasks(facts: &FindingFacts, row: &Row) -> Option<String> {
    let tasks = row.used.saturating_add(facts.most_tasks?);
    match (row.limit, &row.place) {
        (
            Limit::PidsCgroupMax,
            Place::Cgroup {
                unit: Some(unit),
                container: None,
                ..
            },
        ) => Some(format!(
            "systemctl set-property {} TasksMax={tasks}",
            quoted(unit)
        )),
        (
            Limit::PidsCgroupMax,
            Place::Cgroup {
                path,
                container: None,
                ..
            },
        ) => {
            let mut groups = facts.headroom.host.cgroups.iter();
            let group = groups.find(|group| group.path == *path)?;
            let file = format!("{}/pids.max", group.directory);
            Some(format!("echo {tasks} > {}", quoted(&file)))
        }
        (Limit::RlimitNproc, _) => {
            let host = &facts.headroom.host;
            Some(prlimit(host.pid, "nproc", tasks, host.hard_limits.nproc))
        }
        (Limit::ThreadsMax, _) => Some(format!("sysctl kernel.threads-max={tasks}")),
        (Limit::PidSpaceExhausted, _) => {
            // Numbers below 300 are given out once only.
            Some(format!(
                "sysctl kernel.pid_max={}",
                tasks.saturating_add(300)
            ))
        }
        _ => None,
    }
}

/// From the next restart on the OOM killer may end the server's children.
pub(super) fn expose_children(unit: Option<&str>) -> Option<String> {
    unit.map(|unit| {
        drop_in(
            unit,
            &["Environment=PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj PG_OOM_ADJUST_VALUE=0"],
        )
    })
}

/// From the next restart on the OOM killer ends a backend before the postmaster.
pub(super) fn protect_postmaster(unit: Option<&str>) -> Option<String> {
    unit.map(|unit| {
        drop_in(
            unit,
            &[
                "OOMScoreAdjust=-900",
                "Environment=PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj PG_OOM_ADJUST_VALUE=0",
            ],
        )
    })
}

pub(super) fn huge_pages(pages: u64) -> String {
    format!("sysctl vm.nr_hugepages={pages}")
}

/// A pool that holds the server's shared memory.
pub(super) fn enough_huge_pages(facts: &FindingFacts) -> Option<String> {
    let (_, _, _, size) = facts.huge.filter(|(_, _, _, size)| *size > 0)?;
    // Beside shared_buffers the segment has tables of locks and the like: a twentieth, about.
    let segment = facts.shared.map(|(segment, _)| segment);
    let needed = segment.or_else(|| {
        let buffers = facts.shared_buffers?;
        Some(buffers.saturating_add(buffers / 20))
    })?;
    Some(huge_pages(needed.div_ceil(size)))
}

/// What makes the kernel have what the file says.
pub(super) fn as_in_file(facts: &FindingFacts, setting: &FileSetting) -> Option<String> {
    if facts.sysctls.contains(setting) {
        let assignment = format!("{}={}", setting.key, setting.value);
        return Some(format!("sysctl {}", quoted(&assignment)));
    }
    let of_unit = facts.units.contains(setting);
    of_unit.then(|| "systemctl daemon-reload".to_owned())
}

/// A quarter of RAM for all connections at one time.
pub(super) fn less_work_mem(facts: &FindingFacts) -> Option<String> {
    let memory = facts.headroom.host.memory?;
    let connections = facts.max_connections.filter(|most| *most > 0)?;
    let each = (memory.mem_total / 4 / connections / MIB).max(1);
    let set = format!("\"ALTER SYSTEM SET work_mem = '{each}MB'\" -c 'select pg_reload_conf()'");
    headroom::sql(&facts.headroom, &set)
}

/// The limit of limits.conf for a service.
pub(super) fn limit_of_unit(unit: Option<&str>, setting: &FileSetting) -> Option<String> {
    let number: u64 = setting.value.parse().ok()?;
    let ours = setting.key.ends_with("nproc");
    let unit = unit.filter(|_| ours)?;
    Some(drop_in(unit, &[&format!("LimitNPROC={number}")]))
}
