//! The command line: raw flags, and the plan that they resolve to.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    host::Pid,
    kernel::plan::Method,
    output::{Color, OutputOptions},
    postgres::Filter,
    verdict::headroom::Near,
};

/// Smallest `--max-size`: room for the start, some refusals and the totals.
const SMALLEST_MAX_SIZE: u64 = 64 * 1024;

/// Most names with `--comm`: the kernel side keeps so many, next to those of PostgreSQL's own.
const MOST_COMMS: usize = 12;

const AFTER_HELP: &str = "\
Exit status:
  0  ran, and saw no refusal
  1  refusals were seen: of forks, and with --all-children of memory; kills are told, but do not count
  2  could not do the job";

const AFTER_LONG_HELP: &str = "\
Examples:
  pgfork-trace                            watch all postmasters until Ctrl-C
  pgfork-trace --port 5432 --for 5m       one of them, for five minutes
  pgfork-trace --until 1 -o refusal.json  until the first refusal, kept as JSON
  pgfork-trace --pid $(pidof pgbouncer)   any process that forks
  pgfork-trace --comm pgbouncer           all of that name, now and later
  pgfork-trace check                      what refuses next, how soon, and what to type
  pgfork-trace probes                     what can be watched on this kernel
  pgfork-trace selftest                   whether refusals are seen and explained here

Exit status:
  0  ran, and saw no refusal
  1  refusals were seen: of forks, and with --all-children of memory; kills are told, but do not count
  2  could not do the job";

const CHECK_AFTER_HELP: &str = "\
Exit status:
  0  nothing is close
  1  a limit is close or reached; with --watch, at any look
  2  could not look; or nothing that could be read is close, and not all limits could be read";

const SELFTEST_AFTER_HELP: &str = "\
Exit status:
  0  every refusal that could be provoked was seen and explained
  1  one was not, or wrongly
  2  no test could run";
const CAUSES_AFTER_HELP: &str = "\
Exit status:
  0  printed
  2  there is no such cause";

/// Says why the kernel refused a PostgreSQL fork: which check, whose limit, what to change
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP)]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    trace: TraceFlags,
    #[command(subcommand)]
    command: Option<SubFlags>,
}

#[derive(Debug, Subcommand)]
enum SubFlags {
    /// Watch, explain each refused fork, and summarize at the end (the default)
    #[command(after_help = AFTER_HELP)]
    Trace(TraceFlags),
    /// Show the room that is left under every limit that can refuse a fork; no eBPF, changes nothing
    #[command(after_help = CHECK_AFTER_HELP, args = common_of_check())]
    Check(CheckFlags),
    /// Show what would be attached on this kernel, and what cannot be seen here
    Probes {
        /// Also load each program, without attaching it: does the verifier take it, and at what cost
        #[arg(long)]
        load: bool,
    },
    /// Have throw-away processes be refused in harmless ways, and show that they are seen and explained
    #[command(after_help = SELFTEST_AFTER_HELP)]
    Selftest,
    /// List every cause of a refused fork, or explain one: evidence, meaning, remedy
    #[command(after_help = CAUSES_AFTER_HELP)]
    Causes {
        /// Id of a cause, for example commit_limit
        id: Option<String>,
    },
}

/// Options of every subcommand.
#[derive(Debug, Args)]
struct CommonFlags {
    /// JSON lines on standard output
    ///
    /// Header, notices and totals for people then go to standard error if that is a terminal, or with -v.
    #[arg(long, global = true)]
    json: bool,
    /// How to watch; auto tries fexit, kprobe, tracepoint in this order
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "METHOD"
    )]
    method: MethodFlag,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
    /// No header and no notices; -qq: totals only
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// More about what is done and why; -vv: messages of the kernel's verifier too
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

/// The same where they mean something else to `check`, which stand in for those of every
/// subcommand. There is no method to choose; the option is taken, but not shown.
fn common_of_check() -> Vec<clap::Arg> {
    let all = CommonFlags::augment_args(clap::Command::new("check"));
    let of_check = |arg: &clap::Arg| {
        // Behind its own.
        let arg = arg.clone().global(false).display_order(100);
        match arg.get_id().as_str() {
            "json" => arg
                .help("One JSON document on standard output (docs/check-schema.json); with --watch one on each line")
                .long_help(None),
            "method" => arg.hide(true),
            "quiet" => arg.help("Nothing on standard output: the exit status, and the files asked for"),
            "verbose" => arg.help(
                "Every setting and its place, lines that are overridden, notes on all limits; with --watch everything",
            ),
            _ => arg,
        }
    };
    all.get_arguments().map(of_check).collect()
}

/// Options of `trace`.
#[derive(Debug, Default, PartialEq, Args)]
struct TraceFlags {
    /// Watch this process: a postmaster, or anything else that forks (repeatable)
    #[arg(long = "pid", value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pids: Vec<Pid>,
    /// Watch the postmaster on this port (repeatable)
    #[arg(long = "port", value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// Watch the postmaster of this data directory (repeatable)
    #[arg(long = "data-dir", value_name = "DIR")]
    data_dirs: Vec<PathBuf>,
    /// Watch all processes of this name (comm, 15 bytes of it), also those that start later (repeatable)
    #[arg(long = "comm", value_name = "NAME", value_parser = parse_comm)]
    comms: Vec<String>,
    /// Also explain what is refused below the watched processes: forks (archive_command, COPY ... PROGRAM), and
    /// requests for memory, which end in "out of memory"
    #[arg(long)]
    all_children: bool,
    /// With the tracepoint method: also see clone, clone3, vfork, and programs without a C library of their own
    ///
    /// Watches system calls instead of the C library's fork(), in watched processes and, with --all-children, below
    /// them. Every system call of every process of the host then takes a little longer. Not needed with fexit and kprobe.
    #[arg(long)]
    syscalls: bool,
    /// Also write JSON lines to FILE, which must not exist yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Most bytes of JSON to write (K, M, G: powers of 1024); then refusals are only counted
    #[arg(long, value_name = "BYTES[K|M|G]", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Stop after this time: 90, 90s, 5m, 1h, 2d
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Stop after this many refusals, those of memory included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    until: Option<u64>,
}

/// Options of `check`.
#[derive(Debug, Args)]
struct CheckFlags {
    /// Look at the postmaster with this pid (repeatable)
    #[arg(long = "pid", value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pids: Vec<Pid>,
    /// Look at the postmaster on this port (repeatable)
    #[arg(long = "port", value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// Look at the postmaster of this data directory (repeatable)
    #[arg(long = "data-dir", value_name = "DIR")]
    data_dirs: Vec<PathBuf>,
    /// A limit is close when at most this many more backends fit
    #[arg(long, value_name = "N", default_value_t = Near::default().backends)]
    near_backends: u64,
    /// A limit is close when at most this much of it is left
    #[arg(long, value_name = "PERCENT", default_value_t = Near::default().percent, value_parser = clap::value_parser!(u64).range(0..=100))]
    near_percent: u64,
    /// Look again after each pause until Ctrl-C: 2, 2s, 5m; says how limits move. With --json, one document a line
    #[arg(long, value_name = "PAUSE", value_parser = parse_duration)]
    watch: Option<Duration>,
    /// Stop watching after this time: 90, 90s, 5m, 1h, 2d
    #[arg(long = "for", value_name = "DURATION", requires = "watch", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Also write JSON to FILE, which must not exist yet: one document a line
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also write metrics for node-exporter's textfile collector to FILE, replacing it in one step
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
}

impl CheckFlags {
    /// The plan, and the file for JSON.
    fn plan(self) -> (CheckPlan, Option<PathBuf>) {
        let plan = CheckPlan {
            filter: Filter {
                pids: self.pids,
                ports: self.ports,
                data_dirs: self.data_dirs,
                comms: Vec::new(),
            },
            near: Near {
                backends: self.near_backends,
                percent: self.near_percent,
            },
            watch: self.watch,
            duration: self.duration,
            prometheus: self.prometheus,
        };
        (plan, self.output)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum MethodFlag {
    #[default]
    Auto,
    Fexit,
    Kprobe,
    Tracepoint,
}

impl TraceFlags {
    /// Options given before and after the word `trace`: lists add up, else the later one counts.
    fn then(mut self, later: Self) -> Self {
        self.pids.extend(later.pids);
        self.ports.extend(later.ports);
        self.data_dirs.extend(later.data_dirs);
        self.comms.extend(later.comms);
        Self {
            pids: self.pids,
            ports: self.ports,
            data_dirs: self.data_dirs,
            comms: self.comms,
            all_children: later.all_children || self.all_children,
            syscalls: later.syscalls || self.syscalls,
            output: later.output.or(self.output),
            max_size: later.max_size.or(self.max_size),
            duration: later.duration.or(self.duration),
            until: later.until.or(self.until),
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Watch and explain.
    Trace(TracePlan),
    /// Show the room under every limit.
    Check(CheckPlan),
    /// Show what would be attached.
    Probes {
        /// Load each program, without attaching it.
        load: bool,
    },
    /// Show that refusals are seen and explained here.
    Selftest,
    /// Print the catalogue of causes, or one of them.
    Causes(Option<String>),
}

/// How to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckPlan {
    /// Which servers.
    pub filter: Filter,
    /// When a limit counts as close.
    pub near: Near,
    /// Look again after this pause, until interrupted.
    pub watch: Option<Duration>,
    /// Stop watching after this time.
    pub duration: Option<Duration>,
    /// Also write metrics here.
    pub prometheus: Option<PathBuf>,
}

/// How to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracePlan {
    /// Which processes.
    pub filter: Filter,
    /// What is refused to their descendants as well, and memory.
    pub all_children: bool,
    /// With the tracepoint method: watch system calls.
    pub syscalls: bool,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Stop after this many refusals.
    pub until: Option<u64>,
}

/// A command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub command: Command,
    /// Method asked for; none: the best one that works.
    pub method: Option<Method>,
    /// Where and how to write.
    pub output: OutputOptions,
    /// Number of `-v`.
    pub verbose: u8,
}

/// Understands a command line, program name first. An error of clap prints
/// itself with `exit()`: status 2, or 0 for `--help` and `--version`.
pub fn parse<I, T>(arguments: I) -> Result<Plan, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    resolve(Flags::try_parse_from(arguments)?)
}

/// The command line as clap has it, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Flags::command()
}

fn resolve(flags: Flags) -> Result<Plan, clap::Error> {
    let Flags {
        common,
        trace,
        command,
    } = flags;
    let mut file = None;
    let (trace, other) = match command {
        None => (trace, None),
        Some(SubFlags::Trace(later)) => (trace.then(later), None),
        Some(SubFlags::Check(flags)) => {
            let (plan, output) = flags.plan();
            file = output;
            (trace, Some(Command::Check(plan)))
        }
        Some(SubFlags::Probes { load }) => (trace, Some(Command::Probes { load })),
        Some(SubFlags::Selftest) => (trace, Some(Command::Selftest)),
        Some(SubFlags::Causes { id }) => (trace, Some(Command::Causes(id))),
    };
    match &other {
        Some(Command::Check(_)) if trace != TraceFlags::default() => {
            return Err(conflict("options of 'check' stand behind it"));
        }
        Some(Command::Selftest) if trace != TraceFlags::default() => {
            return Err(conflict(
                "'selftest' takes only --json, --method, --color, -q and -v",
            ));
        }
        Some(Command::Causes(_)) if trace != TraceFlags::default() => {
            return Err(conflict("'causes' takes only an id and --json"));
        }
        Some(_) if trace != TraceFlags::default() => {
            return Err(conflict(
                "'probes' takes only --load, --json, --method, --color, -q and -v",
            ));
        }
        _ => {}
    }
    if trace.max_size.is_some() && !common.json && trace.output.is_none() {
        return Err(conflict("--max-size limits JSON: add --json or -o FILE"));
    }
    if trace.comms.len() > MOST_COMMS {
        return Err(conflict(&format!("at most {MOST_COMMS} names with --comm")));
    }
    let output = OutputOptions {
        json: common.json,
        file: file.or(trace.output),
        max_size: trace.max_size,
        color: common.color,
        quiet: common.quiet,
        verbose: common.verbose,
    };
    let command = other.unwrap_or(Command::Trace(TracePlan {
        filter: Filter {
            pids: trace.pids,
            ports: trace.ports,
            data_dirs: trace.data_dirs,
            comms: trace.comms,
        },
        all_children: trace.all_children,
        syscalls: trace.syscalls,
        duration: trace.duration,
        until: trace.until,
    }));
    Ok(Plan {
        command,
        method: match common.method {
            MethodFlag::Auto => None,
            MethodFlag::Fexit => Some(Method::Fexit),
            MethodFlag::Kprobe => Some(Method::Kprobe),
            MethodFlag::Tracepoint => Some(Method::Tracepoint),
        },
        output,
        verbose: common.verbose,
    })
}

fn conflict(message: &str) -> clap::Error {
    Flags::command().error(ErrorKind::ArgumentConflict, message)
}

/// A number and an optional one-letter unit.
fn split_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("a number is expected".to_owned());
    }
    let number = number.parse().map_err(|_| "too large".to_owned())?;
    Ok((number, unit))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text)?;
    let scale = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err("units are s, m, h, d".to_owned()),
    };
    match number.checked_mul(scale) {
        Some(0) => Err("must be more than 0".to_owned()),
        // About 30 years: far below what adding to a clock can take.
        Some(seconds) if seconds <= 1_000_000_000 => Ok(Duration::from_secs(seconds)),
        _ => Err("too large".to_owned()),
    }
}

fn parse_comm(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a name is expected".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return Err("units are K, M, G".to_owned()),
    };
    let bytes = number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())?;
    if bytes < SMALLEST_MAX_SIZE {
        return Err(format!("at least {}K", SMALLEST_MAX_SIZE / 1024));
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
