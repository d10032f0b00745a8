//! From the running kernel's types to attached programs.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness, VerifierLogLevel, include_bytes_aligned,
    maps::{Array, HashMap, RingBuf},
};
use pgfork_trace_common::Check;

use super::{
    Capture, CaptureError, attach,
    error::{Standing, explain_load, locked_down, missing_capabilities, or_too_old},
};
use crate::{
    gather::system_value,
    host::{Root, sysctl},
    kernel::{
        self, btf, functions,
        layout::Layout,
        plan::{Group, Hook, Method, Plan, row},
        symbols::{Symbols, VARIABLES},
    },
    verdict::Coverage,
};

static OBJECT: &[u8] = include_bytes_aligned!(env!("PGFORK_TRACE_EBPF_OBJECT_PATH"));

/// Names that a postmaster's program may have.
const EXEC_NAMES: [&str; 3] = ["postgres", "postmaster", "edb-postgres"];

/// How to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Method to use; `None` takes the best that works.
    pub method: Option<Method>,
    /// Kernel side diagnostics: off, or on with the verifier's log.
    pub verbose: bool,
    /// Also follow descendants of watched processes, and what memory they are refused.
    pub all_children: bool,
    /// With the tracepoint method: watch system calls instead of the C library's `fork`.
    pub syscalls: bool,
    /// Further program names (`comm`) whose execution is reported.
    pub comms: Vec<String>,
    /// The kernel's BTF.
    pub btf: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            method: None,
            verbose: false,
            all_children: false,
            syscalls: false,
            comms: Vec::new(),
            btf: PathBuf::from(btf::VMLINUX),
        }
    }
}

pub(super) fn start(settings: &Settings) -> Result<Capture, CaptureError> {
    let standing = ready()?;
    let kernel = Kernel::read(&settings.btf).map_err(|error| or_too_old(error, &standing))?;
    raise_memlock();
    let mut ebpf = load(&kernel, settings).map_err(|error| explain_load(error, &standing))?;
    let mut maps = Maps::take(&mut ebpf)?;
    let names = EXEC_NAMES
        .into_iter()
        .chain(settings.comms.iter().map(String::as_str));
    for name in names {
        // TASK_COMM_LEN (include/linux/sched.h): 15 bytes and a null.
        let mut comm = [0; 16];
        let length = name.len().min(comm.len() - 1);
        comm[..length].copy_from_slice(&name.as_bytes()[..length]);
        maps.exec_names
            .insert(comm, 1, 0)
            .map_err(|source| CaptureError::Map {
                name: "EXEC_NAMES",
                source,
            })?;
    }
    let mut attached = choose_method(&mut ebpf, &kernel, settings, &standing)?;
    for name in ["sched_process_exec", "sched_process_exit"] {
        attach::tracepoint(&mut ebpf, name)?;
        attached.probes += 1;
    }
    also_useful(&mut ebpf, &mut attached);
    Ok(Capture {
        ebpf,
        records: maps.records,
        watched: maps.watched,
        totals: maps.totals,
        refusals: maps.refusals,
        refusals_taken: 0,
        coverage: Coverage {
            method: attached.method,
            hooked: attached.hooked,
            not_seen: attached.not_seen,
            syscalls: settings.syscalls && attached.method == Method::Tracepoint,
        },
        probes: attached.probes,
        lost_events: maps.lost_events,
        clients: maps.clients,
        plan: kernel.plan,
        symbols: kernel.symbols,
        strict: None,
        armed: None,
        forks: StdHashMap::new(),
        refused_methods: attached.refused,
    })
}

/// How this process stands, where it may do anything at all.
pub(super) fn ready() -> Result<Standing, CaptureError> {
    let standing = standing();
    match missing_capabilities(&standing) {
        Some(missing) => Err(CaptureError::Privilege { missing }),
        None => Ok(standing),
    }
}

/// What the kernel offers.
pub(super) struct Kernel {
    layout: Layout,
    pub(super) plan: Plan,
    symbols: Symbols,
}

impl Kernel {
    pub(super) fn read(btf_path: &Path) -> Result<Self, CaptureError> {
        let btf = kernel::open_btf(btf_path).map_err(|source| CaptureError::Btf { source })?;
        let plan = Plan::choose(&btf).map_err(|source| CaptureError::Btf { source })?;
        Ok(Self {
            layout: Layout::resolve(&btf)?,
            plan,
            symbols: kernel::shown_symbols(),
        })
    }

    fn address(&self, variable: &str) -> u64 {
        self.symbols.addresses.get(variable).copied().unwrap_or(0)
    }
}

/// The kernel's ids of the functions to hook, in the form that aya takes: about 10 MiB, which
/// only trampolines need, and only while they are attached. At the commit limit they may not be
/// there; other methods then are.
pub(super) fn function_ids<'a>(
    hooks: impl IntoIterator<Item = &'a Hook>,
) -> Result<AyaBtf, CaptureError> {
    let ids: BTreeMap<u32, String> = hooks
        .into_iter()
        .filter_map(|hook| Some((hook.btf_id?, hook.alternative.function.to_owned())))
        .collect();
    // A vector that cannot grow ends the program. The allocator has a region of its own besides.
    let bytes = functions::skeleton_cost(&ids);
    if !is_to_be_had(bytes) && Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
        return Err(CaptureError::Memory { bytes });
    }
    AyaBtf::parse(&functions::skeleton(&ids), Endianness::default())
        .map_err(|error| CaptureError::Object(error.into()))
}

/// Whether the kernel would give that much memory now. Asked without the allocator first, which would
/// keep blocks of that size from then on.
fn is_to_be_had(bytes: usize) -> bool {
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping that nothing refers to.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the whole mapping, made above.
    unsafe { libc::munmap(mapped, bytes) };
    true
}

pub(super) fn load(kernel: &Kernel, settings: &Settings) -> Result<Ebpf, aya::EbpfError> {
    let addresses = VARIABLES.map(|variable| kernel.address(variable));
    let names = VARIABLES.map(str::to_ascii_uppercase);
    // aya_log::LEVEL: 0 turns every diagnostic of the kernel side into dead code.
    let verbose = settings.verbose;
    let all_children = u8::from(settings.all_children);
    let log_level: u8 = if verbose { log::Level::Debug as u8 } else { 0 };
    let mut loader = without_btf();
    loader
        .override_global("OFFSETS", &kernel.layout.offsets[..], true)
        .override_global("PIDS_CGRP_ID", &kernel.layout.pids_cgrp_id, true)
        .override_global("ALL_CHILDREN", &all_children, true)
        .override_global(aya_log::LEVEL, &log_level, true)
        .verifier_log_level(if verbose {
            VerifierLogLevel::default()
        } else {
            VerifierLogLevel::DISABLE
        });
    if !verbose {
        // Nothing is ever written to it: the least that the kernel takes
        // (kernel/bpf/ringbuf.c `ringbuf_map_alloc`: whole pages, a power of two).
        let page = system_value(libc::_SC_PAGESIZE).unwrap_or(4096);
        loader.map_max_entries("AYA_LOGS", u32::try_from(page).unwrap_or(4096));
    }
    for (name, address) in names.iter().zip(&addresses) {
        loader.override_global(name, address, true);
    }
    loader.load(OBJECT)
}

/// `EbpfLoader::new` parses the kernel's whole BTF, about 13 MiB that a host at
/// its commit limit may not have, and that an object without CO-RE relocations
/// never uses. With no file descriptor to be had it cannot open that file, and
/// goes without.
fn without_btf<'a>() -> EbpfLoader<'a> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for writing.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    let none = libc::rlimit {
        rlim_cur: 0,
        ..limit
    };
    // SAFETY: a valid limit; open descriptors stay open, and this program has one thread.
    let lowered = known && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) } == 0;
    let mut loader = EbpfLoader::new();
    if lowered {
        // SAFETY: as above, with the limit that was in force before.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    loader.btf(None);
    loader
}

/// Kernels before 5.11 charge maps to `RLIMIT_MEMLOCK` (kernel/bpf/syscall.c,
/// `bpf_charge_memlock`). Only this process's own limit is touched.
pub(super) fn raise_memlock() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid limit. Where it is refused, later kernels do not need it.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

struct Maps {
    records: RingBuf<aya::maps::MapData>,
    watched: HashMap<aya::maps::MapData, u32, pgfork_trace_common::Watched>,
    totals: HashMap<aya::maps::MapData, u32, pgfork_trace_common::Totals>,
    refusals: HashMap<aya::maps::MapData, pgfork_trace_common::RefusalKey, u64>,
    exec_names: HashMap<aya::maps::MapData, [u8; 16], u8>,
    clients: HashMap<aya::maps::MapData, pgfork_trace_common::ClientKey, u64>,
    lost_events: Array<aya::maps::MapData, u64>,
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        fn map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, CaptureError> {
            let missing = || aya::maps::MapError::InvalidName {
                name: name.to_owned(),
            };
            ebpf.take_map(name)
                .ok_or_else(missing)
                .and_then(T::try_from)
                .map_err(|source| CaptureError::Map { name, source })
        }
        Ok(Self {
            records: map(ebpf, "RECORDS")?,
            watched: map(ebpf, "WATCHED")?,
            totals: map(ebpf, "TOTALS")?,
            refusals: map(ebpf, "REFUSALS")?,
            exec_names: map(ebpf, "EXEC_NAMES")?,
            clients: map(ebpf, "CLIENTS")?,
            lost_events: map(ebpf, "LOST_EVENTS")?,
        })
    }
}

/// The outcome of attaching.
struct Attached {
    method: Method,
    hooked: HashSet<Check>,
    not_seen: Vec<(Check, String)>,
    probes: usize,
    refused: Vec<String>,
}

/// Tracepoints whose absence costs only what they tell.
fn also_useful(ebpf: &mut Ebpf, attached: &mut Attached) {
    let mut wanted = vec![
        ("mark_victim", Check::OomKillProcess),
        ("signal_generate", Check::OomKillProcess),
    ];
    if attached.method == Method::Tracepoint {
        wanted.push((
            "mm_vmscan_memcg_reclaim_begin",
            Check::TryToFreeMemCgroupPages,
        ));
    }
    for (name, check) in wanted {
        match attach::tracepoint(ebpf, name) {
            Ok(()) => attached.probes += 1,
            Err(error) => attached.not_seen.push((check, error.to_string())),
        }
    }
}

/// Tries the methods, best first, on `kernel_clone`; the first that works is
/// the method. Single checks that it cannot hook are then tried by kprobe.
fn choose_method(
    ebpf: &mut Ebpf,
    kernel: &Kernel,
    settings: &Settings,
    standing: &Standing,
) -> Result<Attached, CaptureError> {
    let forced = settings.method;
    let strict = settings.all_children || sysctl::may_promise_strictly(&Root::default());
    let wanted = |check: Check| match row(check).group {
        Group::Base => true,
        Group::Strict => strict,
        Group::Requests => settings.all_children,
        Group::Armed => false,
    };
    let mut refused = Vec::new();
    for method in [Method::Fexit, Method::Kprobe, Method::Tracepoint] {
        if forced.is_some_and(|forced| forced != method) {
            continue;
        }
        let attached = match method {
            Method::Tracepoint => state_only(ebpf, kernel, settings.syscalls),
            hooks => all_hooks(ebpf, kernel, hooks, &wanted).inspect_err(|_| {
                // The next method would record everything twice, or keep a program from loading.
                for hook in &kernel.plan.hooks {
                    attach::detach(ebpf, hook.alternative);
                }
            }),
        };
        match attached {
            Ok(attached) => {
                return Ok(Attached {
                    refused,
                    ..attached
                });
            }
            Err(error) if forced.is_some() => {
                return Err(
                    locked_down(standing).unwrap_or_else(|| CaptureError::Method {
                        method: method.name(),
                        why: error.to_string(),
                    }),
                );
            }
            Err(error) => refused.push(format!("{}: {error}", method.name())),
        }
    }
    Err(
        locked_down(standing).unwrap_or_else(|| CaptureError::NoMethod {
            why: refused.join("; "),
        }),
    )
}

/// The checks first, `kernel_clone` last: no attempt is opened before all its checks are watched.
fn all_hooks(
    ebpf: &mut Ebpf,
    kernel: &Kernel,
    method: Method,
    wanted: &impl Fn(Check) -> bool,
) -> Result<Attached, CaptureError> {
    let chosen = kernel.plan.hooks.iter().filter(|hook| wanted(hook.check));
    let ids = match method {
        Method::Fexit => Some(function_ids(chosen.clone())?),
        _ => None,
    };
    let ids = ids.as_ref();
    let (clone, checks): (Vec<&Hook>, Vec<&Hook>) =
        chosen.partition(|hook| row(hook.check).essential);
    let clone = *clone.first().ok_or_else(|| CaptureError::Method {
        method: method.name(),
        why: kernel
            .plan
            .not_seen
            .first()
            .map_or_else(String::new, |not_seen| not_seen.why.clone()),
    })?;
    let mut attached = Attached {
        method,
        hooked: HashSet::new(),
        not_seen: kernel
            .plan
            .not_seen
            .iter()
            .filter(|it| wanted(it.check))
            .map(|it| (it.check, it.why.clone()))
            .collect(),
        probes: 0,
        refused: Vec::new(),
    };
    // Asked first whether the method works at all: one program, not attached yet.
    let first = checks.first().copied().unwrap_or(clone);
    attached.probes += by(ebpf, first, ids)?;
    attached.hooked.insert(first.check);
    for hook in checks.into_iter().filter(|hook| hook.check != first.check) {
        match by_best(ebpf, hook, ids) {
            Ok(probes) => {
                attached.probes += probes;
                attached.hooked.insert(hook.check);
            }
            Err(error) => attached.not_seen.push((hook.check, error.to_string())),
        }
    }
    attached.probes += by(ebpf, clone, ids)?;
    attached.hooked.insert(clone.check);
    let hooks = kernel.plan.hooks.iter();
    let hooked: Vec<Hook> = hooks
        .filter(|hook| attached.hooked.contains(&hook.check))
        .copied()
        .collect();
    attached
        .not_seen
        .extend(partly_seen(&kernel.symbols, &hooked));
    Ok(attached)
}

/// Which of these hooks do not see all calls of their function, and why.
pub(super) fn partly_seen(
    symbols: &Symbols,
    hooks: &[Hook],
) -> impl Iterator<Item = (Check, String)> {
    hooks
        .iter()
        .filter_map(|hook| Some((hook.check, symbols.partly_seen(hook.alternative.function)?)))
}

/// By trampolines where the function's id is given, or by kprobes where they are not to be had.
pub(super) fn by_best(
    ebpf: &mut Ebpf,
    hook: &Hook,
    ids: Option<&AyaBtf>,
) -> Result<usize, CaptureError> {
    by(ebpf, hook, ids).or_else(|error| {
        if ids.is_some() {
            by(ebpf, hook, None)
        } else {
            Err(error)
        }
    })
}

fn by(ebpf: &mut Ebpf, hook: &Hook, ids: Option<&AyaBtf>) -> Result<usize, CaptureError> {
    match ids {
        Some(ids) => attach::trampolines(ebpf, hook.alternative, ids),
        None => attach::kprobes(ebpf, hook.alternative),
    }
}

/// Beginning and end of every system call.
const SYSCALLS: [&str; 2] = ["sys_enter", "sys_exit"];

/// The tracepoint method: no check is hooked; the state right after the fork is read.
fn state_only(ebpf: &mut Ebpf, kernel: &Kernel, syscalls: bool) -> Result<Attached, CaptureError> {
    let mut probes = 0;
    if syscalls {
        // The entry first: an end without it means that something else answered the call.
        for name in SYSCALLS {
            attach::tracepoint(ebpf, name)?;
            probes += 1;
        }
    } else {
        attach::load_fork_probes(ebpf)?;
    }
    let mut not_seen = vec![(
        Check::KernelClone,
        "the tracepoint method hooks no check; verdicts are deduced from the state right after the fork".to_owned(),
    )];
    let hidden: Vec<&str> = VARIABLES
        .into_iter()
        .filter(|variable| kernel.address(variable) == 0)
        .collect();
    if !hidden.is_empty() {
        not_seen.push((
            Check::KernelClone,
            format!(
                "the kernel does not show {}; /proc is read right after instead",
                hidden.join(", ")
            ),
        ));
    }
    Ok(Attached {
        method: Method::Tracepoint,
        hooked: HashSet::new(),
        not_seen,
        probes,
        refused: Vec::new(),
    })
}

/// Reads what this process may do. What cannot be read is taken as harmless:
/// the kernel's own refusal then speaks.
fn standing() -> Standing {
    let root = Root::default();
    let status = crate::host::process::status(&root, std::process::id())
        .ok()
        .flatten();
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown")
        .ok()
        .and_then(|text| {
            let (_, rest) = text.split_once('[')?;
            Some(rest.split_once(']')?.0.to_owned())
        });
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Standing {
        capabilities: status
            .as_ref()
            .and_then(|status| status.cap_effective)
            .unwrap_or(u64::MAX),
        seccomp_filter: matches!(
            status.and_then(|status| status.seccomp),
            Some(crate::host::process::Seccomp::Filter)
        ),
        lockdown,
        release: release.trim().to_owned(),
    }
}
