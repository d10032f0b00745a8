//! From a record of the OOM killer, and what the kernel log says about it, to a verdict. Pure.

use pgfork_trace_common::{OomKill, oom_valid};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Cause, Certainty, CgroupFact, Change, Remedy, Scope,
    remedy::{drop_in, quoted},
};
use crate::{
    host::oom_log::{Chosen, Killed, Usage},
    output::units,
};

const MIB: u64 = 1024 * 1024;

/// What the kernel log said about one victim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OomReport {
    /// Usage of the memory cgroup.
    pub usage: Option<Usage>,
    /// Who was chosen, and why.
    pub chosen: Option<Chosen>,
    /// Who was killed, and its sizes.
    pub killed: Option<Killed>,
}

/// What the host says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OomFacts {
    /// Page size in bytes.
    pub page_size: u64,
    /// The memory cgroup that was short, and how many levels above the victim's own it is.
    pub cgroup: Option<(usize, CgroupFact)>,
    /// Its hierarchy is one of cgroup v1.
    pub cgroup_v1: bool,
    /// The victim was watched, or descends from what is watched.
    pub watched: bool,
    /// What is watched is a PostgreSQL server.
    pub server: bool,
    /// The unit of the watched process.
    pub unit: Option<String>,
    /// The victim was a watched postmaster.
    pub postmaster: bool,
    /// vm.overcommit_memory.
    pub overcommit_memory: Option<i32>,
}

/// Numbers of a kill; what could not be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OomEvidence {
    /// Path of the memory cgroup that was short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_cgroup: Option<String>,
    /// Path of the victim's own memory cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim_cgroup: Option<String>,
    /// Usage of the cgroup that was short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// Its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Address space of the victim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_vm_bytes: Option<u64>,
    /// Its private memory in RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon_rss_bytes: Option<u64>,
    /// Its files in RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_rss_bytes: Option<u64>,
    /// Its shared memory in RAM: shared_buffers that it had touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_rss_bytes: Option<u64>,
    /// Its page tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_tables_bytes: Option<u64>,
    /// Its `oom_score_adj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// Whose memory was short, how sure that is, and what to change.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct OomVerdict {
    /// Id in the catalogue of causes.
    pub cause: Cause,
    /// How sure.
    pub certainty: Certainty,
    /// Why it is that sure: one sentence.
    pub because: String,
    /// Whose memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Numbers.
    pub evidence: OomEvidence,
    /// What to change.
    pub remedy: Vec<Remedy>,
}

/// Both records that the kernel side may send for one victim (the tracepoint `oom:mark_victim` and
/// `oom_kill_process`) as one.
#[must_use]
pub fn merged(one: &OomKill, other: &OomKill) -> OomKill {
    let task = if one.valid & oom_valid::TASK != 0 {
        one
    } else {
        other
    };
    let scope = if one.valid & oom_valid::SCOPE != 0 {
        one
    } else {
        other
    };
    OomKill {
        watched: one.watched.max(other.watched),
        time_ns: one.time_ns.min(other.time_ns),
        memcg_id: scope.memcg_id,
        memcg_usage: scope.memcg_usage,
        memcg_max: scope.memcg_max,
        valid: one.valid | other.valid,
        ..*task
    }
}

/// The verdict on one kill.
#[must_use]
pub fn judge(kill: &OomKill, report: &OomReport, facts: &OomFacts) -> OomVerdict {
    let (cause, certainty, because) = decide(kill, report);
    let evidence = evidence(kill, report, facts, cause);
    let scope = scope(kill, cause, &evidence, facts);
    let remedy = remedies(cause, &evidence, facts);
    OomVerdict {
        cause,
        certainty,
        because,
        scope,
        evidence,
        remedy,
    }
}

fn decide(kill: &OomKill, report: &OomReport) -> (Cause, Certainty, String) {
    // An id that could not be read leaves the counters.
    let of_cgroup = kill.memcg_id != 0 || kill.memcg_max != 0;
    let logged = report
        .chosen
        .as_ref()
        .map(|chosen| !chosen.global)
        .or_else(|| report.killed.as_ref().map(|killed| killed.memcg));
    let (of_cgroup, seen) = match (kill.valid & oom_valid::SCOPE != 0, logged) {
        (true, _) => (of_cgroup, "oom_kill_process was seen choosing the victim"),
        (false, Some(logged)) => (logged, "the kernel log names the victim, chosen"),
        (false, None) => {
            return (
                Cause::Unknown,
                Certainty::Unknown,
                "the OOM killer marked this victim; whether a cgroup or the host was short of memory was not seen"
                    .to_owned(),
            );
        }
    };
    if of_cgroup {
        (
            Cause::MemcgOomKill,
            Certainty::Observed,
            format!("{seen} because a memory cgroup was at its limit"),
        )
    } else {
        (
            Cause::GlobalOomKill,
            Certainty::Observed,
            format!("{seen} because the host had no memory left"),
        )
    }
}

fn evidence(kill: &OomKill, report: &OomReport, facts: &OomFacts, cause: Cause) -> OomEvidence {
    let page = facts.page_size;
    let pages = |pages: i64| {
        u64::try_from(pages)
            .ok()
            .map(|pages| pages.saturating_mul(page))
    };
    // `i64::MAX / 4096` and above mean "max".
    let limit = |max: i64| (max > 0 && max < i64::MAX / 4096).then_some(max);
    let cgroup = cause == Cause::MemcgOomKill;
    let scoped = cgroup && kill.valid & oom_valid::SCOPE != 0;
    let task = kill.valid & oom_valid::TASK != 0;
    let sizes = report
        .killed
        .as_ref()
        .map(|killed| killed.sizes)
        .unwrap_or_default();
    let chosen = report.chosen.as_ref();
    let logged_usage = report.usage.filter(|_| cgroup);
    OomEvidence {
        oom_cgroup: facts
            .cgroup
            .as_ref()
            .map(|(_, fact)| fact.path.clone())
            .filter(|_| cgroup)
            .or_else(|| chosen.and_then(|chosen| chosen.oom_memcg.clone())),
        victim_cgroup: chosen.and_then(|chosen| chosen.task_memcg.clone()),
        usage_bytes: scoped
            .then(|| pages(kill.memcg_usage))
            .flatten()
            .filter(|bytes| *bytes > 0)
            .or_else(|| logged_usage.map(|usage| usage.usage_bytes)),
        limit_bytes: scoped
            .then(|| limit(kill.memcg_max).and_then(pages))
            .flatten()
            .or_else(|| logged_usage.map(|usage| usage.limit_bytes)),
        total_vm_bytes: sizes.total_vm_bytes.or_else(|| {
            (task && kill.total_vm_pages > 0).then(|| kill.total_vm_pages.saturating_mul(page))
        }),
        anon_rss_bytes: sizes.anon_rss_bytes,
        file_rss_bytes: sizes.file_rss_bytes,
        shmem_rss_bytes: sizes.shmem_rss_bytes,
        page_tables_bytes: sizes.page_tables_bytes,
        oom_score_adj: sizes
            .oom_score_adj
            .or_else(|| task.then_some(kill.oom_score_adj)),
        uid: sizes.uid,
    }
}

fn scope(kill: &OomKill, cause: Cause, evidence: &OomEvidence, facts: &OomFacts) -> Option<Scope> {
    match (cause, &facts.cgroup) {
        (Cause::GlobalOomKill, _) => Some(Scope::Host),
        (Cause::MemcgOomKill, Some((ancestor, fact))) => Some(Scope::Cgroup {
            path: Some(fact.path.clone()),
            cgroup_id: fact.id,
            ancestor: *ancestor,
            unit: fact.unit.as_ref().map(|unit| unit.name.clone()),
            property: fact.unit.as_ref().map_or_else(
                || limit_name(facts).to_owned(),
                |unit| unit.property.clone(),
            ),
            container: fact.container.clone(),
        }),
        (Cause::MemcgOomKill, None) if kill.memcg_id != 0 => Some(Scope::Cgroup {
            path: evidence.oom_cgroup.clone(),
            cgroup_id: kill.memcg_id,
            ancestor: 0,
            unit: None,
            property: "memory.max".to_owned(),
            container: None,
        }),
        _ => None,
    }
}

fn remedies(cause: Cause, evidence: &OomEvidence, facts: &OomFacts) -> Vec<Remedy> {
    let mut remedies = match cause {
        // The limit of somebody else's cgroup is somebody else's business.
        Cause::MemcgOomKill if facts.watched => raise(evidence, facts),
        Cause::GlobalOomKill => global(facts),
        _ => return Vec::new(),
    };
    if !facts.server {
        return remedies;
    }
    remedies.push(Remedy {
        change: Change::Action(
            "lower work_mem, shared_buffers or the number of connections".to_owned(),
        ),
        effect: "less memory is asked for; a pooler in front limits the number of backends"
            .to_owned(),
        immediate: false,
    });
    if facts.postmaster {
        remedies.push(protect(facts));
    }
    remedies
}

/// A quarter more than the limit.
fn raise(evidence: &OomEvidence, facts: &OomFacts) -> Vec<Remedy> {
    let (Some(limit), Some((_, cgroup))) = (evidence.limit_bytes, &facts.cgroup) else {
        return Vec::new();
    };
    let Some(target) = limit
        .saturating_add(limit / 4)
        .checked_next_multiple_of(MIB)
    else {
        return Vec::new();
    };
    let more = units::bytes(target - limit);
    let remedy = match (&cgroup.unit, &cgroup.container) {
        (Some(unit), None) => Remedy {
            change: Change::Command(format!(
                "systemctl set-property {} {}={target}",
                quoted(&unit.name),
                unit.property
            )),
            effect: format!("{more} more; lasts across restarts (--runtime: until the next boot)"),
            immediate: true,
        },
        (_, Some(container)) => Remedy {
            change: Change::Command(format!(
                "echo {target} > {}",
                limit_file(&cgroup.directory, facts)
            )),
            effect: format!(
                "{more} more, until container {} is recreated: raise its memory limit there too",
                container.get(..12).unwrap_or(container)
            ),
            immediate: true,
        },
        (None, None) => Remedy {
            change: Change::Command(format!(
                "echo {target} > {}",
                limit_file(&cgroup.directory, facts)
            )),
            effect: format!("{more} more, until the cgroup is made anew"),
            immediate: true,
        },
    };
    vec![remedy]
}

const fn limit_name(facts: &OomFacts) -> &'static str {
    if facts.cgroup_v1 {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    }
}

fn limit_file(directory: &str, facts: &OomFacts) -> String {
    quoted(&format!("{directory}/{}", limit_name(facts)))
}

/// What the manual says for hosts of PostgreSQL ("Linux Memory Overcommit").
fn global(facts: &OomFacts) -> Vec<Remedy> {
    if facts.overcommit_memory == Some(2) {
        return Vec::new();
    }
    vec![Remedy {
        change: Change::Action("sysctl vm.overcommit_memory=2, with vm.overcommit_ratio set so that CommitLimit fits the host".to_owned()),
        effect: "requests beyond RAM and swap then fail with \"out of memory\" instead of a process being killed; try it first: other programs may promise themselves more than they use".to_owned(),
        immediate: true,
    }]
}

fn protect(facts: &OomFacts) -> Remedy {
    let effect =
        "the OOM killer then takes a backend before the postmaster, whose end is the end of all sessions"
            .to_owned();
    let change = match &facts.unit {
        Some(unit) => Change::Command(drop_in(
            unit,
            &[
                "OOMScoreAdjust=-900",
                "Environment=PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj",
            ],
        )),
        None => Change::Action(
            "start the postmaster with oom_score_adj -900 and PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj"
                .to_owned(),
        ),
    };
    Remedy {
        change,
        effect,
        immediate: false,
    }
}

#[cfg(test)]
#[path = "oom_tests.rs"]
mod tests;
