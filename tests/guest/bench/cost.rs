//! The run time of our BPF programs, as the kernel counts it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};

use super::{empty::Empty, load::Pgbench, spread, tool::Tool};
use crate::limits::{Restored, set_sysctl};

const BATCHES: usize = 15;
const CONNECTIONS: u32 = 20;

/// What a fork costs. Medians of batches: where a program or a fork was interrupted, both its
/// times are long, and a mean would weigh that.
pub(super) struct Cost {
    /// Successful forks.
    pub(super) forks: u64,
    /// Duration of one: the median that the tool reports.
    pub(super) fork_ns: f64,
    /// Run time of all our programs, for each fork.
    pub(super) programs_ns: f64,
    /// Runs of all our programs, for each fork.
    pub(super) runs: f64,
    /// What counting adds to the run time of each run, by a program that does nothing.
    pub(super) counting_ns: f64,
    /// The same for each, the most expensive first.
    pub(super) by_program: Vec<Program>,
}

/// Run time of one program.
pub(super) struct Program {
    /// Its name, as far as the kernel keeps it.
    pub(super) name: String,
    /// Run time, for each fork.
    pub(super) time_ns: f64,
    /// Runs, for each fork.
    pub(super) runs: f64,
}

type Times = BTreeMap<u32, (u64, u64)>;

/// Lets the watched server fork for connections and nothing else.
pub(super) fn measure(bench: &Pgbench<'_>, start: &dyn Fn(&str) -> Result<Tool>) -> Result<Cost> {
    let _stats = Restored::remember("kernel/bpf_stats_enabled")?;
    set_sysctl("kernel/bpf_stats_enabled", 1)?;
    let empty = Empty::attach()?;
    let tool = start("cost")?;
    let mut readings = vec![run_times(tool.pid())?];
    for _ in 0..BATCHES {
        bench.transactions(CONNECTIONS)?;
        readings.push(run_times(tool.pid())?);
    }
    let names: BTreeMap<u32, Option<String>> =
        readings[0].keys().map(|id| (*id, name(*id))).collect();
    let (lines, _) = tool.stop()?;
    let totals = lines
        .iter()
        .find(|line| line["type"] == "totals")
        .context("no totals")?;
    let forks = totals["forks"].as_u64().unwrap_or(0);
    ensure!(
        forks >= u64::from(CONNECTIONS) * BATCHES as u64 && totals["refused"] == 0,
        "{BATCHES} times {CONNECTIONS} connections, but {totals}"
    );
    // pgbench makes one connection more than asked for, each time.
    let in_batch = forks as f64 / BATCHES as f64;
    let median = |of: &dyn Fn(&Times) -> u64| {
        let mut batches: Vec<f64> = readings
            .windows(2)
            .map(|two| (of(&two[1]) - of(&two[0])) as f64 / in_batch)
            .collect();
        spread(&mut batches).1
    };
    let mut by_program: Vec<Program> = names
        .into_iter()
        .map(|(id, name)| Program {
            name: name.unwrap_or_else(|| format!("program {id}")),
            time_ns: median(&|times| times.get(&id).map_or(0, |sum| sum.0)),
            runs: median(&|times| times.get(&id).map_or(0, |sum| sum.1)),
        })
        .collect();
    by_program.sort_by(|one, other| other.time_ns.total_cmp(&one.time_ns));
    Ok(Cost {
        forks,
        fork_ns: totals["fork_time_ns"]["p50"].as_f64().context("no p50")?,
        programs_ns: median(&|times| times.values().map(|sum| sum.0).sum()),
        runs: median(&|times| times.values().map(|sum| sum.1).sum()),
        counting_ns: empty.nanoseconds()?,
        by_program,
    })
}

/// Run time and runs of the programs that a process holds open, by program id.
fn run_times(pid: u32) -> Result<Times> {
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
