//! One refused request for memory, whole.

use super::{
    super::{
        escape::{name, sentence},
        line::{MemoryRefusal, Role},
        units::{bytes, count, counted},
    },
    actor::actor,
    block::{self, Block},
    numbers,
    style::Style,
    who,
};
use crate::verdict::{
    Cause, Certainty,
    memory::{Asked, HugePages, MemoryEvidence, MemoryVerdict, TmpfsRoom, Way},
};

/// The block of a refused request; `clock` is its time.
pub(super) fn refusal(clock: &str, refusal: &MemoryRefusal, style: Style) -> String {
    let verdict = &refusal.verdict;
    let watched = who(&refusal.postmaster);
    let subject = if refusal.process.pid == refusal.postmaster.pid {
        style.strong(&watched)
    } else {
        format!("{} of {watched}", style.strong(&actor(&refusal.process)))
    };
    let mut block = Block {
        out: format!("{clock}  {}  {subject}\n", style.alarm("MEMORY")),
        style,
    };
    block.row("errno", errno(refusal));
    block.row("asked", asked(&verdict.asked));
    block.row(
        "cause",
        block::cause(
            verdict.cause,
            verdict.certainty,
            verdict.scope.as_ref(),
            style,
        ),
    );
    block.rows(
        "check",
        block::check(verdict.check.as_ref(), &verdict.trail),
    );
    block.row("because", sentence(&verdict.because).into_owned());
    block.rows("numbers", numbers_of(verdict));
    if verdict.certainty == Certainty::Unknown {
        block.rows("ruled out", block::considered(&verdict.ruled_out));
    }
    block.rows("possible", block::considered(&verdict.also_possible));
    if verdict.certainty == Certainty::Unknown {
        block.rows("not seen", block::not_seen(&verdict.not_seen));
    }
    let cause = verdict.behind.unwrap_or(verdict.cause);
    block.rows("remedy", block::remedies(cause, &verdict.remedy, style));
    block.out
}

/// PostgreSQL's own words, where a server process asked by malloc
/// (src/backend/utils/mmgr/aset.c and mcxt.c, PostgreSQL 10 to 18).
fn errno(refusal: &MemoryRefusal) -> String {
    let verdict = &refusal.verdict;
    let grew = verdict.asked.iter().any(|it| it.way == Way::StackGrowth);
    let server = matches!(
        refusal.process.role,
        Some(Role::ClientBackend | Role::WalSender | Role::Helper | Role::Child)
    );
    if grew {
        let after = if server {
            ", and the postmaster then ends all other sessions and recovers"
        } else {
            ""
        };
        return format!("none: the process gets SIGSEGV{after}");
    }
    let Some(errno) = &refusal.errno else {
        return "not seen".to_owned();
    };
    let text = format!("{}: {}", errno.name, block::strerror(errno));
    // src/backend/storage/ipc/dsm_impl.c `dsm_impl_posix_resize`, PostgreSQL 10 to 18.
    if server && verdict.asked.iter().any(|it| it.way == Way::Fallocate) {
        return format!("{text}; the server log has \"could not resize shared memory segment\"");
    }
    let malloc = verdict
        .asked
        .iter()
        .all(|it| matches!(it.way, Way::Mmap | Way::Brk));
    if malloc && server && errno.number == libc::ENOMEM {
        return format!(
            "{text}; where palloc asked, the server log has \"out of memory\", \"Failed on request of size ...\""
        );
    }
    text
}

/// `64 MiB by mmap, 64.1 MiB by brk, 65 MiB by mmap`.
fn asked(asked: &[Asked]) -> String {
    let parts: Vec<String> = asked
        .iter()
        .map(|it| match it.bytes {
            Some(number) => format!("{} by {}", bytes(number), it.way.name()),
            None => format!("memory by {}", it.way.name()),
        })
        .collect();
    parts.join(", then ")
}

fn numbers_of(verdict: &MemoryVerdict) -> Vec<String> {
    let evidence = &verdict.evidence;
    let cause = verdict.behind.unwrap_or(verdict.cause);
    match cause {
        Cause::RlimitAs => space(evidence).into_iter().collect(),
        Cause::RlimitData => data(evidence).into_iter().collect(),
        Cause::RlimitMemlock => locked(evidence).into_iter().collect(),
        Cause::MaxMapCount => mappings(evidence).into_iter().collect(),
        Cause::StackGrowthRefused => stack(evidence).into_iter().collect(),
        Cause::HugetlbExhausted => evidence.huge_pages.as_ref().map(pool).into_iter().collect(),
        Cause::ShmTmpfsFull => evidence.tmpfs.as_ref().map(room).into_iter().collect(),
        Cause::AddressSpaceExhausted => space(evidence).into_iter().collect(),
        _ => {
            let mut rows = evidence
                .overcommit
                .as_ref()
                .map(|it| numbers::commit_limit(it, cause != Cause::Unknown))
                .unwrap_or_default();
            if cause == Cause::Unknown {
                rows.extend(space(evidence));
                rows.extend(data(evidence));
                rows.extend(mappings(evidence));
                rows.extend(evidence.huge_pages.as_ref().map(pool));
            }
            rows
        }
    }
}

fn of_limit(what: &str, used: Option<u64>, name: &str, limit: Option<u64>) -> Option<String> {
    let limit = limit.map_or_else(
        || format!("{name} is not set"),
        |limit| format!("{name} {}", bytes(limit)),
    );
    Some(format!("{what} {}, {limit}", bytes(used?)))
}

fn space(evidence: &MemoryEvidence) -> Option<String> {
    of_limit(
        "address space",
        evidence.total_vm_bytes,
        "RLIMIT_AS",
        evidence.rlimit_as_bytes,
    )
}

fn data(evidence: &MemoryEvidence) -> Option<String> {
    of_limit(
        "private writable memory",
        evidence.data_vm_bytes,
        "RLIMIT_DATA",
        evidence.rlimit_data_bytes,
    )
}

fn locked(evidence: &MemoryEvidence) -> Option<String> {
    of_limit(
        "locked memory",
        evidence.locked_vm_bytes,
        "RLIMIT_MEMLOCK",
        evidence.rlimit_memlock_bytes,
    )
}

fn stack(evidence: &MemoryEvidence) -> Option<String> {
    of_limit(
        "stack",
        evidence.stack_vm_bytes,
        "RLIMIT_STACK",
        evidence.rlimit_stack_bytes,
    )
}

fn mappings(evidence: &MemoryEvidence) -> Option<String> {
    let mappings = counted(evidence.mappings?, "mapping", "mappings");
    Some(match evidence.max_map_count {
        Some(max) => format!("{mappings} of vm.max_map_count {}", count(max)),
        None => mappings,
    })
}

fn room(tmpfs: &TmpfsRoom) -> String {
    let path = name(&tmpfs.mounted_on);
    match tmpfs.size_bytes.zip(tmpfs.free_bytes) {
        Some((size, free)) => format!(
            "tmpfs {path}: {} used of {}, {} left right after",
            bytes(size.saturating_sub(free)),
            bytes(size),
            bytes(free)
        ),
        None => format!("tmpfs {path}: its size could not be read"),
    }
}

fn pool(pool: &HugePages) -> String {
    format!(
        "huge pages of {}: {} in all, {} free, {} of them promised",
        bytes(pool.page_bytes),
        count(pool.total_pages),
        count(pool.free_pages),
        count(pool.reserved_pages)
    )
}
