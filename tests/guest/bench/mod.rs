//! `pgfork-trace-guest bench`: what watching costs. Prints figures beside their goals and judges
//! none of them; a failure means only that something could not be measured.
//!
//! In a guest it measures by the server of the guest; with `--native DIR --bindir DIR` by a
//! server of its own in that directory, and leaves the settings of the host alone.

mod cost;
mod empty;
mod load;
mod private;
mod tool;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::server::Server;
use load::Paired;
use tool::Tool;

const STARTS: usize = 5;
const MIB: f64 = (1 << 20) as f64;

/// What to measure, and by which programs.
struct Plan {
    methods: Vec<String>,
    pairs: usize,
    tool: PathBuf,
    /// Where the tool writes; natively the server's home too.
    directory: PathBuf,
    /// Natively: the server's programs.
    bindir: Option<PathBuf>,
}

/// A server to connect to.
struct Target {
    pid: u32,
    port: u16,
    socket_dir: PathBuf,
    pgbench: PathBuf,
}

/// One line of the table.
struct Row {
    figure: &'static str,
    value: String,
    goal: &'static str,
    reached: Option<bool>,
    detail: String,
}

/// Measures everything; returns how many figures could not be had.
pub(crate) fn run(arguments: &[String]) -> Result<usize> {
    let plan = Plan::parse(arguments)?;
    let mut private = None;
    let target = if let Some(bindir) = &plan.bindir {
        let server = private.insert(private::Server::start(bindir, &plan.directory)?);
        Target {
            pid: server.pid(),
            port: server.port,
            socket_dir: server.socket_dir.clone(),
            pgbench: bindir.join("pgbench"),
        }
    } else {
        let server = Server::start().context("cannot start PostgreSQL")?;
        Target {
            pid: server.pid,
            port: 5432,
            socket_dir: PathBuf::from("/var/run/postgresql"),
            pgbench: PathBuf::from("pgbench"),
        }
    };
    header(&plan);
    let bench = load::Pgbench::new(&target, &plan.directory)?;
    // Caches, and the server's own first steps.
    bench.rate()?;
    let mut missing = 0;
    for method in &plan.methods {
        missing += one_method(&plan, &target, &bench, method);
    }
    Ok(missing)
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut plan = Self {
            methods: vec!["auto".to_owned()],
            pairs: 6,
            tool: PathBuf::from("/usr/local/bin/pgfork-trace"),
            directory: PathBuf::from("/out"),
            bindir: None,
        };
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let value = rest.next().with_context(|| format!("{flag}: no value"))?;
            match flag.as_str() {
                "--methods" => plan.methods = value.split(',').map(str::to_owned).collect(),
                "--pairs" => plan.pairs = value.parse().context("--pairs")?,
                "--tool" => plan.tool = value.into(),
                "--native" => plan.directory = value.into(),
                "--overcommit" => overcommit(value.parse().context("--overcommit")?)?,
                "--bindir" => plan.bindir = Some(value.into()),
                _ => bail!("unknown option {flag}"),
            }
        }
        Ok(plan)
    }
}

/// Promises memory in this mode, in a guest; strictly, twice the RAM: nothing is refused.
fn overcommit(mode: u64) -> Result<()> {
    crate::limits::set_sysctl("vm/overcommit_ratio", 200)?;
    crate::limits::set_sysctl("vm/overcommit_memory", mode)?;
    println!("vm.overcommit_memory = {mode}");
    Ok(())
}

fn header(plan: &Plan) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let place = if plan.bindir.is_some() {
        "natively"
    } else {
        "in a guest, by software emulation: ratios are indicative, times are not those of hardware"
    };
    println!("kernel {}, {place}", release.trim());
    print_row("figure", "method", "value", "goal", "", "");
}

fn print_row(figure: &str, method: &str, value: &str, goal: &str, word: &str, detail: &str) {
    let line = format!("{figure:<34} {method:<10} {value:>10}  {goal:<10} {word:<7} {detail}");
    println!("{}", line.trim_end());
}

/// All figures by one method; returns how many could not be had.
fn one_method(plan: &Plan, target: &Target, bench: &load::Pgbench<'_>, method: &str) -> usize {
    let start = |purpose: &str| Tool::start(&plan.tool, &plan.directory, purpose, method, target);
    let figures: [(&str, Result<Vec<Row>>); 4] = [
        ("start and memory", starts(&start)),
        ("cost per fork", fork_cost(plan, bench, &start)),
        (
            "pgbench -C",
            load::paired(plan.pairs, || bench.rate(), || start("pgbench")).map(|paired| {
                vec![ratio(
                    "pgbench -C, with / without",
                    ">= 0.99",
                    0.99,
                    &paired,
                    "tps",
                )]
            }),
        ),
        (
            "map and unmap",
            load::paired(plan.pairs, load::map_and_unmap, || start("map")).map(|paired| {
                vec![ratio(
                    "mmap + munmap, with / without",
                    ">= 0.98",
                    0.98,
                    &paired,
                    "/s",
                )]
            }),
        ),
    ];
    let mut missing = 0;
    for (what, rows) in figures {
        match rows {
            Ok(rows) => {
                for row in rows {
                    let word = match row.reached {
                        Some(true) => "reached",
                        Some(false) => "missed",
                        None => "",
                    };
                    print_row(row.figure, method, &row.value, row.goal, word, &row.detail);
                }
            }
            Err(error) => {
                missing += 1;
                print_row(
                    what,
                    method,
                    "-",
                    "",
                    "",
                    &format!("could not be measured: {error:#}"),
                );
            }
        }
    }
    missing
}

/// Start to attached, memory, and the time to end.
fn starts(start: &dyn Fn(&str) -> Result<Tool>) -> Result<Vec<Row>> {
    let (mut attach, mut end) = (Vec::new(), Vec::new());
    let mut committed = Vec::new();
    let mut last = None;
    for _ in 0..STARTS {
        let before = crate::limits::meminfo("Committed_AS")?;
        let tool = start("start")?;
        let now = crate::limits::meminfo("Committed_AS")?;
        committed.push(now as f64 / MIB - before as f64 / MIB);
        let line = tool.start_line()?;
        let nanoseconds = line["attach_ns"].as_u64().context("no attach_ns")?;
        attach.push(nanoseconds as f64 / 1e6);
        let memory = tool.memory()?;
        let (_, took) = tool.stop()?;
        end.push(took.as_secs_f64() * 1e3);
        last = Some((line, memory));
    }
    let (line, memory) = last.context("never started")?;
    let (fastest, attach, slowest) = spread(&mut attach);
    let (_, end, _) = spread(&mut end);
    let (_, committed, _) = spread(&mut committed);
    let resident = memory.peak_resident as f64 / MIB;
    let private = memory.private as f64 / MIB;
    Ok(vec![
        Row {
            figure: "start to attached",
            value: format!("{attach:.0} ms"),
            goal: "<= 300 ms",
            reached: Some(attach <= 300.0),
            detail: format!(
                "median of {STARTS}, {fastest:.0} to {slowest:.0} ms; method {}, {} probes; ends {end:.0} ms after Ctrl-C",
                line["method"].as_str().unwrap_or("?"),
                line["probes"]
            ),
        },
        Row {
            figure: "peak resident memory",
            value: format!("{resident:.1} MiB"),
            goal: "<= 12 MB",
            reached: Some(memory.peak_resident <= 12_000_000),
            detail: "VmHWM".to_owned(),
        },
        Row {
            figure: "private commit",
            value: format!("{private:.1} MiB"),
            goal: "<= 8 MiB",
            reached: Some(private <= 8.0),
            detail: format!("VmData + VmStk; Committed_AS rose by {committed:.1} MiB (median)"),
        },
    ])
}

fn fork_cost(
    plan: &Plan,
    bench: &load::Pgbench<'_>,
    start: &dyn Fn(&str) -> Result<Tool>,
) -> Result<Vec<Row>> {
    const FIGURE: &str = "cost per successful fork";
    const GOAL: &str = "<= 1 %";
    if plan.bindir.is_some() {
        return Ok(vec![Row {
            figure: FIGURE,
            value: "-".to_owned(),
            goal: GOAL,
            reached: None,
            detail: "not measured natively: kernel.bpf_stats_enabled slows every BPF program on the host"
                .to_owned(),
        }]);
    }
    let cost = cost::measure(bench, start)?;
    let percent = |nanoseconds: f64| 100.0 * nanoseconds / cost.fork_ns;
    let own = (cost.programs_ns - cost.runs * cost.counting_ns).max(0.0);
    let most: Vec<String> = cost
        .by_program
        .iter()
        .take(4)
        .map(|program| {
            format!(
                "{} {:.0} ns in {:.1} runs",
                program.name, program.time_ns, program.runs
            )
        })
        .collect();
    Ok(vec![
        Row {
            figure: FIGURE,
            value: format!("{:.2} %", percent(own)),
            goal: GOAL,
            reached: Some(percent(own) <= 1.0),
            detail: format!(
                "{:.1} us of a fork's {:.0} us (medians of {} forks), less what counting adds: {:.0} ns to each run",
                own / 1e3,
                cost.fork_ns / 1e3,
                cost.forks,
                cost.counting_ns
            ),
        },
        Row {
            figure: "  as counted",
            value: format!("{:.2} %", percent(cost.programs_ns)),
            goal: "",
            reached: None,
            detail: format!(
                "{:.1} us in {:.0} runs of programs; most: {}",
                cost.programs_ns / 1e3,
                cost.runs,
                most.join(", ")
            ),
        },
    ])
}

fn ratio(
    figure: &'static str,
    goal: &'static str,
    at_least: f64,
    paired: &Paired,
    unit: &str,
) -> Row {
    let mut ratios: Vec<f64> = paired
        .pairs
        .iter()
        .map(|(without, with)| with / without)
        .collect();
    let mut without: Vec<f64> = paired.pairs.iter().map(|pair| pair.0).collect();
    let (lowest, median, highest) = spread(&mut ratios);
    let (_, rate, _) = spread(&mut without);
    Row {
        figure,
        value: format!("{median:.3}"),
        goal,
        reached: Some(median >= at_least),
        detail: format!(
            "median of {} pairs, {lowest:.3} to {highest:.3}; without: {rate:.0} {unit}",
            paired.pairs.len()
        ),
    }
}

/// Least, median and greatest; there is at least one value.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (half, last) = (values.len() / 2, values.len() - 1);
    let median = if values.len() % 2 == 1 {
        values[half]
    } else {
        f64::midpoint(values[half - 1], values[half])
    };
    (values[0], median, values[last])
}

/// Waits a moment, so that what was just started or ended does not disturb.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}
