//! Vetoes, and the state of the process itself.

use super::{
    super::{Cause, Change, Evidence, Facts, Remedy},
    drop_in, quoted,
};

fn now(change: Change, effect: &str) -> Remedy {
    Remedy {
        change,
        effect: effect.to_owned(),
        immediate: true,
    }
}

fn later(change: Change, effect: &str) -> Remedy {
    Remedy {
        immediate: false,
        ..now(change, effect)
    }
}

pub(super) fn remedies(cause: Cause, evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let pid = facts.pid;
    match cause {
        Cause::SchedDeadlineFork => vec![now(
            Change::Command(format!("chrt --all-tasks --other --pid 0 {pid}")),
            "a normal policy, which may fork; or give it SCHED_DEADLINE with --reset-on-fork",
        )],
        Cause::NrOpenLowered => open_files(evidence),
        Cause::PidNamespaceDying | Cause::PidNamespaceDyingLate => vec![namespace(facts)],
        Cause::SeccompDenied => vec![filter(facts)],
        Cause::PtraceOrUserDispatch => vec![now(
            Change::Action(format!(
                "grep TracerPid /proc/{pid}/status, and detach that process"
            )),
            "nobody answers the process's system calls but the kernel",
        )],
        Cause::LsmDenied => vec![now(
            Change::Action(
                "ausearch -m avc,user_avc -ts recent, then allow it in the module's policy"
                    .to_owned(),
            ),
            "the audit log names the rule that refused",
        )],
        Cause::SchedExtRejected => vec![now(
            Change::Command("echo S > /proc/sysrq-trigger".to_owned()),
            "ends the BPF scheduler; the kernel's own takes over at once",
        )],
        Cause::PerfInheritFailed => vec![now(
            Change::Action(format!(
                "stop perf on process {pid}, or measure with --no-inherit"
            )),
            "children are not measured, and can be made",
        )],
        _ => Vec::new(),
    }
}

/// The former value is not known; the default, or the table's own size, always suffices
/// (fs/file.c `alloc_fdtable`, 5.10 to 7.2).
fn open_files(evidence: &Evidence) -> Vec<Remedy> {
    const DEFAULT: u64 = 1024 * 1024;
    let Some(files) = evidence.open_files else {
        return Vec::new();
    };
    let target = files.table_size.max(DEFAULT);
    vec![now(
        Change::Command(format!("sysctl fs.nr_open={target}")),
        "the table of open files can be copied again; see who lowered it in /etc/sysctl.d",
    )]
}

/// A namespace without its first process takes no new one ever again.
fn namespace(facts: &Facts) -> Remedy {
    let container = facts
        .cgroups
        .iter()
        .find_map(|fact| fact.container.as_ref());
    let effect = "this pid namespace takes no new process ever again";
    match (container, &facts.unit) {
        (Some(id), _) => later(
            Change::Action(format!("restart container {}", id.get(..12).unwrap_or(id))),
            effect,
        ),
        (None, Some(unit)) => later(
            Change::Command(format!("systemctl restart {}", quoted(unit))),
            effect,
        ),
        (None, None) => later(
            Change::Action(
                "restart the server outside of that pid namespace (with unshare --pid: --fork)"
                    .to_owned(),
            ),
            effect,
        ),
    }
}

/// systemd.exec(5): a further SystemCallFilter= adds to a list of what is allowed, and takes from
/// a list of what is not.
fn filter(facts: &Facts) -> Remedy {
    let container = facts
        .cgroups
        .iter()
        .find_map(|fact| fact.container.as_ref());
    match (container, &facts.unit) {
        (Some(id), _) => later(
            Change::Action(format!(
                "allow clone, clone3, fork and vfork in the seccomp profile of container {}, and recreate it",
                id.get(..12).unwrap_or(id)
            )),
            "a filter that is in place cannot be taken off a running process",
        ),
        (None, Some(unit)) => later(
            Change::Command(format!(
                "{} && systemctl restart {}",
                drop_in(unit, &["SystemCallFilter=@process"]),
                quoted(unit)
            )),
            "new processes are allowed; a filter cannot be taken off a running process",
        ),
        (None, None) => later(
            Change::Action(
                "allow clone, clone3, fork and vfork in the filter that the server is started with"
                    .to_owned(),
            ),
            "a filter that is in place cannot be taken off a running process",
        ),
    }
}
