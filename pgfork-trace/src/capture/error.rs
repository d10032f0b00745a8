//! Why tracing is not possible, and what to do about it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use crate::{
    host::capability,
    kernel::{btf::BtfError, layout::LayoutError},
};

/// Always true where no hook is: what the user can still do.
const BITS: &[(u32, &str)] = &[
    (capability::BPF, "CAP_BPF"),
    (capability::PERFMON, "CAP_PERFMON"),
];

/// Why the kernel side could not be started, or a process not be watched.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process lacks capabilities.
    #[error(
        "tracing needs root: this process lacks {missing}. Run it with sudo, or give the container these capabilities"
    )]
    Privilege {
        /// Capabilities that are missing.
        missing: String,
    },
    /// The kernel does not show its types.
    #[error(
        "{source}\nTracing reads kernel structures by the kernel's own description of them, which needs a kernel built with CONFIG_DEBUG_INFO_BTF (5.10 and later of every large distribution are) and /sys mounted"
    )]
    Btf {
        /// What failed.
        source: BtfError,
    },
    /// The kernel's types are not what any supported kernel has.
    #[error(
        "{0}: this kernel cannot be traced by this version; please report its version (uname -r)"
    )]
    Layout(#[from] LayoutError),
    /// The bpf system call is refused.
    #[error("bpf() is refused ({source}): {why}")]
    Refused {
        /// What the system said.
        source: io::Error,
        /// Who refuses, as far as can be told, and what to do.
        why: String,
    },
    /// There is no memory for what only the fexit method needs.
    #[error("{mib} MiB for the kernel's ids of its functions, needed for a moment, are not to be had", mib = bytes.div_ceil(1 << 20))]
    Memory {
        /// Bytes.
        bytes: usize,
    },
    /// The kernel lacks something that every method needs.
    #[error("kernel {release} is too old: it has no BPF ring buffer (5.8 and later have)")]
    TooOld {
        /// uname -r.
        release: String,
    },
    /// The object is not accepted.
    #[error("the eBPF object cannot be loaded: {0}")]
    Object(#[from] EbpfError),
    /// A map of the object is missing or of another type.
    #[error("the eBPF object's map {name} cannot be used: {source}")]
    Map {
        /// Map.
        name: &'static str,
        /// What aya said.
        source: MapError,
    },
    /// A program is not accepted.
    #[error("eBPF program {program}{on} is refused: {why}", on = on(function), why = in_one_line(source))]
    Program {
        /// Program.
        program: String,
        /// Kernel function or tracepoint; empty when loading.
        function: String,
        /// What aya said.
        source: Box<ProgramError>,
    },
    /// The method asked for does not work here.
    #[error(
        "method {method} does not work here: {why}\nWithout --method the best one that works is chosen"
    )]
    Method {
        /// Method.
        method: &'static str,
        /// Why.
        why: String,
    },
    /// No method works here.
    #[error(
        "no method of tracing works on this kernel: {why}\n`pgfork-trace check` works without tracing"
    )]
    NoMethod {
        /// Each method, and why.
        why: String,
    },
    /// The kernel forbids BPF programs to read its memory.
    #[error(
        "the kernel is locked down ({mode}), and then lets no BPF program read its memory, which every method does; \
         it takes a boot without lockdown={mode} (it cannot be lifted at run time).\n\
         `pgfork-trace check` works without tracing"
    )]
    LockedDown {
        /// As the kernel names it.
        mode: String,
    },
    /// An eBPF program is missing.
    #[error("the eBPF object has no program {program}")]
    NoProgram {
        /// Program.
        program: String,
    },
    /// A probe on the return of `fork` could end the process.
    #[error(
        "a probe at the return of fork is not set on process {pid}: on kernel {release} a seccomp filter can end the process for it; 6.12.20, 6.13.10 and 6.14 have the correction"
    )]
    ReturnProbe {
        /// Process id.
        pid: u32,
        /// Kernel release.
        release: String,
    },
    /// The process's `fork` cannot be found.
    #[error(
        "the return of fork cannot be watched in process {pid}: {why}; the tracepoint method with --syscalls watches its forks, at some cost to every process of the host"
    )]
    NoLibc {
        /// Process.
        pid: u32,
        /// Why.
        why: String,
    },
    /// A file of the process cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The table of watched processes is full.
    #[error("process {pid} cannot be watched: {source} (at most {max} processes at once)", max = pgfork_trace_common::MAX_WATCHED)]
    TooManyWatched {
        /// Process.
        pid: u32,
        /// What aya said.
        source: MapError,
    },
}

/// An error with its causes, without the verifier's log when that is empty.
fn in_one_line(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text.trim_end()
        .trim_end_matches("Verifier output:")
        .trim_end_matches([' ', '.', ';', ':'])
        .to_owned()
}

fn on(function: &str) -> String {
    if function.is_empty() {
        String::new()
    } else {
        format!(" on {function}")
    }
}

/// What this process may do, as far as it decides about bpf().
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Effective capabilities.
    pub(super) capabilities: u64,
    /// A seccomp filter is in force.
    pub(super) seccomp_filter: bool,
    /// Kernel lockdown, for example `confidentiality`.
    pub(super) lockdown: Option<String>,
    /// uname -r.
    pub(super) release: String,
}

/// Capabilities that tracing needs and this process lacks
/// (kernel/bpf/syscall.c, 5.8 and later: `CAP_SYS_ADMIN` stands for both).
pub(super) fn missing_capabilities(standing: &Standing) -> Option<String> {
    let has = |bit: u32| standing.capabilities >> bit & 1 == 1;
    if has(capability::SYS_ADMIN) {
        return None;
    }
    let missing: Vec<&str> = BITS
        .iter()
        .filter(|(bit, _)| !has(*bit))
        .map(|(_, name)| *name)
        .collect();
    (!missing.is_empty()).then(|| format!("{} (or CAP_SYS_ADMIN)", missing.join(" and ")))
}

/// Explains a failed load.
pub(super) fn explain_load(error: EbpfError, standing: &Standing) -> CaptureError {
    let code = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => io_error.raw_os_error(),
        EbpfError::MapError(MapError::SyscallError(syscall)) => syscall.io_error.raw_os_error(),
        _ => None,
    };
    match code {
        Some(code @ (libc::EPERM | libc::ENOSYS | libc::EACCES)) => CaptureError::Refused {
            source: io::Error::from_raw_os_error(code),
            why: who_refuses(standing).to_owned(),
        },
        Some(libc::EINVAL) if is_old(standing) => CaptureError::TooOld {
            release: standing.release.clone(),
        },
        _ => error.into(),
    }
}

/// What the kernel does not have may be what none so old has: then its age is what to tell.
pub(super) fn or_too_old(error: CaptureError, standing: &Standing) -> CaptureError {
    match error {
        CaptureError::Btf { .. } | CaptureError::Layout(_) if is_old(standing) => {
            CaptureError::TooOld {
                release: standing.release.clone(),
            }
        }
        error => error,
    }
}

/// `BPF_MAP_TYPE_RINGBUF` is unknown before 5.8 (kernel/bpf/syscall.c `map_create`).
fn is_old(standing: &Standing) -> bool {
    release_before(&standing.release, 5, 8)
}

/// Why programs are refused where lockdown does it: `bpf_tracing_func_proto`
/// (kernel/trace/bpf_trace.c, 5.10 to 7.2) hides the helpers that read kernel memory from the
/// verifier, which then only says that it knows no such function.
pub(super) fn locked_down(standing: &Standing) -> Option<CaptureError> {
    let mode = standing.lockdown.clone()?;
    (mode == "confidentiality").then_some(CaptureError::LockedDown { mode })
}

fn who_refuses(standing: &Standing) -> &'static str {
    if standing.seccomp_filter {
        "a seccomp filter is in force, as container runtimes set it. Run on the host, or let the runtime allow bpf() and perf_event_open() (Docker: --security-opt seccomp=unconfined)"
    } else {
        "a policy of this kernel or a security module forbids it"
    }
}

fn release_before(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) => (a, b) < (major, minor),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(capabilities: u64) -> Standing {
        Standing {
            capabilities,
            release: "6.1.0-50-amd64".to_owned(),
            ..Standing::default()
        }
    }

    fn create_error(code: i32) -> EbpfError {
        EbpfError::MapError(MapError::CreateError {
            name: "RECORDS".to_owned(),
            io_error: io::Error::from_raw_os_error(code),
        })
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(
            missing_capabilities(&standing(0)).unwrap(),
            "CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)"
        );
        assert_eq!(
            missing_capabilities(&standing(1 << 39)).unwrap(),
            "CAP_PERFMON (or CAP_SYS_ADMIN)"
        );
        assert_eq!(missing_capabilities(&standing(1 << 39 | 1 << 38)), None);
        assert_eq!(missing_capabilities(&standing(1 << 21)), None);
    }

    #[test]
    fn a_refused_bpf_call_says_who_refuses() {
        let filtered = Standing {
            seccomp_filter: true,
            ..standing(1 << 21)
        };
        assert!(
            explain_load(create_error(libc::EPERM), &filtered)
                .to_string()
                .contains("seccomp")
        );
        let text = explain_load(create_error(libc::EPERM), &standing(1 << 21)).to_string();
        assert!(text.contains("policy"), "{text}");
    }

    #[test]
    fn only_confidentiality_keeps_programs_from_reading() {
        let locked = |mode: &str| {
            locked_down(&Standing {
                lockdown: Some(mode.to_owned()),
                ..standing(1 << 21)
            })
        };
        let text = locked("confidentiality").unwrap().to_string();
        assert!(text.contains("locked down (confidentiality)"), "{text}");
        assert!(text.contains("pgfork-trace check"), "{text}");
        assert!(locked("integrity").is_none() && locked("none").is_none());
        assert!(locked_down(&standing(1 << 21)).is_none());
    }

    #[test]
    fn an_old_kernel_is_named_as_such() {
        let old = Standing {
            release: "4.18.0-553.el8".to_owned(),
            ..standing(1 << 21)
        };
        let text = explain_load(create_error(libc::EINVAL), &old).to_string();
        assert!(text.contains("kernel 4.18.0-553.el8 is too old"), "{text}");
        assert!(matches!(
            explain_load(create_error(libc::EINVAL), &standing(1 << 21)),
            CaptureError::Object(_)
        ));
        // What it lacks first is the description of its types.
        let no_btf = || CaptureError::Btf {
            source: crate::kernel::open_btf("/no/such/file".as_ref()).unwrap_err(),
        };
        let text = or_too_old(no_btf(), &old).to_string();
        assert!(text.contains("kernel 4.18.0-553.el8 is too old"), "{text}");
        let text = or_too_old(no_btf(), &standing(1 << 21)).to_string();
        assert!(text.contains("CONFIG_DEBUG_INFO_BTF"), "{text}");
        assert!(!release_before("5.8.0", 5, 8));
        assert!(!release_before("6.1.0", 5, 8));
        assert!(release_before("5.7.19", 5, 8));
        assert!(!release_before("strange", 5, 8));
    }
}
