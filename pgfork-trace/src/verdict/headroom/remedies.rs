//! What to type for limits that no verdict has a remedy for.

use super::super::{
    Change, Facts, Remedy,
    remedy::{
        memory::{Raised, enable_oom_killer, let_backends_be_killed},
        quoted, raised,
    },
};
use super::{HeadroomFacts, Limit, MemoryLevel, Slots};

/// Most that kernel.pid_max can be (`PID_MAX_LIMIT`, include/linux/threads.h, 64 bit).
const PID_MAX_LIMIT: u64 = 4 << 20;
/// Most that kernel.threads-max can be (`MAX_THREADS`, include/linux/threads.h, is FUTEX_TID_MASK).
const THREADS_LIMIT: u64 = 0x3fff_ffff;
/// First number that is given out again and again.
const RESERVED_PIDS: u64 = 300;
const MIB: u64 = 1 << 20;
/// Backends that more swap is for.
const WANTED_BACKENDS: u64 = 50;

fn sysctl(name: &str, value: u64, more: u64) -> Remedy {
    Remedy {
        change: Change::Command(format!("sysctl {name}={value}")),
        effect: format!("room for {more} more tasks on the host, until the next boot"),
        immediate: true,
    }
}

pub(super) fn threads(tasks: u64, limit: u64) -> Vec<Remedy> {
    let target = raised(limit.max(tasks)).min(THREADS_LIMIT);
    match target.checked_sub(tasks) {
        Some(more) if target > limit => vec![sysctl("kernel.threads-max", target, more)],
        _ => Vec::new(),
    }
}

pub(super) fn numbers(usable: u64, taken: u64) -> Vec<Remedy> {
    // A pid_max of more than fits is a limit that nobody reaches.
    let all = |numbers: u64| numbers.saturating_add(RESERVED_PIDS);
    let target = raised(all(usable.max(taken))).min(PID_MAX_LIMIT);
    match target.checked_sub(all(taken)) {
        Some(more) if target > all(usable) => {
            vec![sysctl("kernel.pid_max", target, more)]
        }
        _ => Vec::new(),
    }
}

pub(super) fn namespace(facts: &Facts) -> Vec<Remedy> {
    let change = match &facts.unit {
        Some(unit) => Change::Command(format!("systemctl restart {}", quoted(unit))),
        None => Change::Action(
            "restart the container, or the server outside of that pid namespace (unshare --fork)"
                .to_owned(),
        ),
    };
    vec![Remedy {
        change,
        effect: "a pid namespace without its first process takes no new process ever again"
            .to_owned(),
        immediate: false,
    }]
}

/// Keeps every `sysctl NAME=VALUE` for the next boot. systemd-sysctl takes the last file by name, and
/// Debian's last one is 99-sysctl.conf.
pub(super) fn lasting(remedies: &mut Vec<Remedy>) {
    let given = std::mem::take(remedies);
    for remedy in given {
        let setting = remedy.change.strip_prefix("sysctl ");
        let kept = setting
            .and_then(|it| it.split_once('='))
            .map(|(name, value)| Remedy {
                change: Change::Command(format!(
                    "echo '{name} = {value}' > /etc/sysctl.d/zz-{name}.conf"
                )),
                effect: "the same, from the next boot on".to_owned(),
                immediate: false,
            });
        remedies.push(remedy);
        remedies.extend(kept);
    }
}

/// Most slots that there can be (`MAX_BACKENDS`, src/include/postmaster/postmaster.h, PostgreSQL 10
/// to 18).
const MAX_BACKENDS: u64 = 0x3_ffff;

/// Ends what is idle; a superuser has slots of his own to do it from.
fn end_idle(facts: &HeadroomFacts) -> Remedy {
    const IDLE: &str = "select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle' and state_change < now() - interval '10 min'";
    Remedy {
        change: match sql(facts, &format!("\"{IDLE}\"")) {
            Some(command) => Change::Command(command),
            None => Change::Action(format!("as a superuser of this server: {IDLE}")),
        },
        effect: "ends connections that were idle for 10 min; a pooler in front keeps them away"
            .to_owned(),
        immediate: true,
    }
}

/// A command that hands quoted SQL to this server and no other, as its own user: whom its
/// pg_hba.conf lets in through its socket.
pub(in super::super) fn sql(facts: &HeadroomFacts, quoted_sql: &str) -> Option<String> {
    let access = &facts.access;
    let (socket_dir, port) = (access.socket_dir.as_ref()?, access.port?);
    Some(format!(
        "{} -h {} -p {port} -d postgres -c {quoted_sql}",
        as_owner(facts, "psql")?,
        quoted(socket_dir)
    ))
}

/// A program of the server's, run as the server's user and among its files.
fn as_owner(facts: &HeadroomFacts, program: &str) -> Option<String> {
    let access = &facts.access;
    let path = |directory: &String| quoted(&format!("{directory}/{program}"));
    if access.elsewhere {
        let program = access.programs.as_ref().map(path)?;
        return Some(format!(
            "nsenter -t {} -m -p -S {} -- {program}",
            facts.host.pid, access.uid
        ));
    }
    let program = match program {
        "psql" => program.to_owned(),
        _ => access.programs.as_ref().map(path)?,
    };
    Some(format!(
        "runuser -u {} -- {program}",
        quoted(access.user.as_ref()?)
    ))
}

/// A command that restarts the server, where one is known.
pub(in super::super) fn restart(facts: &HeadroomFacts) -> Option<String> {
    if let Some(unit) = &facts.host.unit {
        return Some(format!("systemctl restart {}", quoted(unit)));
    }
    // In a container the server is what the container ends with.
    let here = !facts.access.elsewhere;
    let pg_ctl = here.then(|| as_owner(facts, "pg_ctl")).flatten()?;
    // Else it goes on writing to the terminal that this was typed on.
    let log = facts.access.log.as_ref();
    let log = log.map_or_else(String::new, |log| format!("-l {} ", quoted(log)));
    Some(format!(
        "{pg_ctl} -D {} {log}restart",
        quoted(&facts.access.data_dir)
    ))
}

pub(super) fn slots(facts: &HeadroomFacts, slots: &Slots) -> Vec<Remedy> {
    // Not less than what the files say already.
    let wanted = raised(slots.max).max(facts.max_connections.pending().unwrap_or(0));
    let setting = format!("max_connections = {}", wanted.min(MAX_BACKENDS));
    let alter = match slots.on_command_line {
        true => None,
        false => sql(facts, &format!("'ALTER SYSTEM SET {setting}'")),
    };
    let (change, when) = match (alter, restart(facts)) {
        (Some(alter), Some(restart)) => (Change::Command(format!("{alter} && {restart}")), ""),
        (Some(alter), None) => (
            Change::Command(alter),
            " once the server (or its container) is restarted",
        ),
        (None, _) if slots.on_command_line => (
            Change::Action(format!(
                "give {setting} where the server is started, and restart it: it is on its command line, which comes before all files"
            )),
            "",
        ),
        (None, _) => (
            Change::Action(format!(
                "as a superuser of this server: ALTER SYSTEM SET {setting}; then restart it"
            )),
            "",
        ),
    };
    let more = Remedy {
        change,
        effect: format!("more slots{when}; see that the other limits allow as many processes"),
        immediate: false,
    };
    let mut remedies = vec![end_idle(facts)];
    remedies.extend((slots.max < MAX_BACKENDS).then_some(more));
    remedies
}

/// More memory before the cgroup is slowed down.
pub(super) fn high(level: &MemoryLevel, high: u64) -> Vec<Remedy> {
    let target = half_more(high);
    let command = match &level.fact.group.unit {
        Some(unit) if level.fact.group.container.is_none() => format!(
            "systemctl set-property {} MemoryHigh={target}M",
            quoted(&unit.name)
        ),
        _ => format!(
            "echo {target}M > {}",
            quoted(&format!("{}/memory.high", level.fact.group.directory))
        ),
    };
    vec![Remedy {
        change: Change::Command(command),
        effect: "half as much memory again before it is slowed down".to_owned(),
        immediate: true,
    }]
}

/// Half as much again, in whole MiB.
fn half_more(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 2).div_ceil(MIB)
}

pub(super) fn memory(facts: &HeadroomFacts, level: &MemoryLevel, limit: Limit) -> Vec<Remedy> {
    let levels = facts.memory.iter().map(|level| &level.fact);
    let mut remedies = Raised::half(&level.fact).map_or_else(Vec::new, |raised| {
        raised.remedies(levels, facts.host.memory)
    });
    match limit {
        Limit::MemcgNoVictim => remedies.push(let_backends_be_killed()),
        Limit::MemcgOomKillDisabled => remedies.push(enable_oom_killer(&level.fact.group)),
        _ => {}
    }
    remedies
}

/// Memory in use is what ends here, not a limit that can be raised.
pub(super) fn host_memory(facts: &HeadroomFacts, backend: Option<u64>) -> Vec<Remedy> {
    let each = backend.unwrap_or(10 * MIB);
    let gib = (each.saturating_mul(WANTED_BACKENDS))
        .div_ceil(1024 * MIB)
        .max(1);
    vec![
        end_idle(facts),
        Remedy {
            change: Change::Command(format!(
                "fallocate -l {gib}G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile"
            )),
            effect: format!(
                "{gib} GiB of swap, until the next boot; a lower work_mem and more RAM help as well"
            ),
            immediate: true,
        },
    ]
}
