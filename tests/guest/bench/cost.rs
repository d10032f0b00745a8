//! The run time of our BPF programs, as the kernel counts it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};

use super::{load::Pgbench, tool::Tool};
use crate::limits::{Restored, set_sysctl};

const CONNECTIONS: u32 = 200;

/// What forks cost.
pub(super) struct Cost {
    /// Successful forks.
    pub(super) forks: u64,
    /// Duration of one: the median that the tool reports.
    pub(super) fork_ns: u64,
    /// Run time of all our programs.
    pub(super) programs_ns: u64,
    /// Runs of all our programs.
    pub(super) runs: u64,
    /// The same for each, the most expensive first.
    pub(super) by_program: Vec<Program>,
}

/// Run time of one program.
pub(super) struct Program {
    /// Its name, as far as the kernel keeps it.
    pub(super) name: String,
    /// Sum of its runs.
    pub(super) time_ns: u64,
    /// Their number.
    pub(super) count: u64,
}

/// Lets the watched server fork for connections and nothing else.
pub(super) fn measure(bench: &Pgbench<'_>, start: &dyn Fn(&str) -> Result<Tool>) -> Result<Cost> {
    let _stats = Restored::remember("kernel/bpf_stats_enabled")?;
    set_sysctl("kernel/bpf_stats_enabled", 1)?;
    let tool = start("cost")?;
    let before = run_times(tool.pid())?;
    bench.transactions(CONNECTIONS)?;
    let after = run_times(tool.pid())?;
    let mut by_program: Vec<Program> = after
        .iter()
        .map(|(id, (time, count))| {
            let (time_before, count_before) = before.get(id).copied().unwrap_or((0, 0));
            Program {
                name: name(*id).unwrap_or_else(|| format!("program {id}")),
                time_ns: time - time_before,
                count: count - count_before,
            }
        })
        .collect();
    by_program.sort_by_key(|program| std::cmp::Reverse(program.time_ns));
    let (lines, _) = tool.stop()?;
    let totals = lines
        .iter()
        .find(|line| line["type"] == "totals")
        .context("no totals")?;
    let forks = totals["forks"].as_u64().unwrap_or(0);
    ensure!(
        forks >= u64::from(CONNECTIONS) && totals["refused"] == 0,
        "{CONNECTIONS} connections, but {totals}"
    );
    Ok(Cost {
        forks,
        fork_ns: totals["fork_time_ns"]["p50"].as_u64().context("no p50")?,
        programs_ns: by_program.iter().map(|program| program.time_ns).sum(),
        runs: by_program.iter().map(|program| program.count).sum(),
        by_program,
    })
}

/// Run time and runs of the programs that a process holds open, by program id.
fn run_times(pid: u32) -> Result<BTreeMap<u32, (u64, u64)>> {
    let mut times = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path())?;
        let field = |key: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        };
        // Links name their program too, but have no run time.
        if let (Some(id), Some(time), Some(count)) =
            (field("prog_id:"), field("run_time_ns:"), field("run_cnt:"))
        {
            times.insert(u32::try_from(id)?, (time, count));
        }
    }
    ensure!(!times.is_empty(), "process {pid} holds no BPF program");
    Ok(times)
}

/// The name of a program (include/uapi/linux/bpf.h `struct bpf_prog_info`, the same since 4.15).
fn name(id: u32) -> Option<String> {
    const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    const NAME: std::ops::Range<usize> = 64..80;
    // `next_id` and `open_flags` follow the id, all of 4 bytes.
    let by_id = [id, 0, 0];
    // SAFETY: the kernel reads as much as it is told.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_FD_BY_ID,
            by_id.as_ptr(),
            size_of_val(&by_id),
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    let mut info = [0_u8; NAME.end];
    // fd and length of 4 bytes each, then the address.
    let length = NAME.end as u64;
    let query = [
        u64::from(fd.cast_unsigned()) | length << 32,
        info.as_mut_ptr() as u64,
    ];
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let got = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            query.as_ptr(),
            size_of_val(&query),
        )
    };
    // SAFETY: it was opened above and is used no more.
    unsafe { libc::close(fd) };
    let name = info[NAME].split(|byte| *byte == 0).next()?;
    (got == 0 && !name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}
