//! Loading and attaching single programs.

use std::num::NonZeroU32;

use aya::{
    Btf, Ebpf,
    programs::{
        FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint, UProbe,
        uprobe::{UProbeLink, UProbeScope},
    },
};

use super::{CaptureError, libc_fork::Library};
use crate::kernel::plan::Alternative;

fn refused(program: &str, function: &str, source: ProgramError) -> CaptureError {
    CaptureError::Program {
        program: program.to_owned(),
        function: function.to_owned(),
        source: Box::new(source),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, CaptureError> {
    ebpf.program_mut(name)
        .ok_or_else(|| CaptureError::NoProgram {
            program: name.to_owned(),
        })
}

macro_rules! typed {
    ($ebpf:expr, $name:expr, $kind:ty) => {{
        let program: &mut $kind = program($ebpf, $name)?
            .try_into()
            .map_err(|error| refused($name, "", error))?;
        program
    }};
}

/// Attaches the fentry and fexit programs of a function; returns how many. When one fails, all are
/// as before: one that stayed loaded could never be tried again.
pub(super) fn trampolines(
    ebpf: &mut Ebpf,
    hook: &Alternative,
    btf: &Btf,
) -> Result<usize, CaptureError> {
    let function = hook.function;
    let mut attached = 0;
    if let Some(name) = hook.fentry {
        let fentry = typed!(ebpf, name, FEntry);
        if let Err(error) = fentry.load(function, btf).and_then(|()| fentry.attach()) {
            detach(ebpf, hook);
            return Err(refused(name, function, error));
        }
        attached += 1;
    }
    if let Some(name) = hook.fexit {
        let fexit = typed!(ebpf, name, FExit);
        if let Err(error) = fexit.load(function, btf).and_then(|()| fexit.attach()) {
            detach(ebpf, hook);
            return Err(refused(name, function, error));
        }
        attached += 1;
    }
    Ok(attached)
}

/// Attaches the kprobe and kretprobe programs of a function; returns how many. When one fails, all
/// are as before.
pub(super) fn kprobes(ebpf: &mut Ebpf, hook: &Alternative) -> Result<usize, CaptureError> {
    let function = hook.function;
    let mut attached = 0;
    for name in [hook.kprobe, hook.kretprobe].into_iter().flatten() {
        let probe = typed!(ebpf, name, KProbe);
        if let Err(error) = probe.load().and_then(|()| probe.attach(function, 0)) {
            detach(ebpf, hook);
            return Err(refused(name, function, error));
        }
        attached += 1;
    }
    Ok(attached)
}

/// Attaches a program to the tracepoint of the same name.
pub(super) fn tracepoint(ebpf: &mut Ebpf, name: &str) -> Result<(), CaptureError> {
    let tracepoint = typed!(ebpf, name, RawTracePoint);
    tracepoint
        .load()
        .and_then(|()| tracepoint.attach(name))
        .map(|_| ())
        .map_err(|error| refused(name, name, error))
}

/// Detaches and unloads the programs of a function, whichever of them are attached.
pub(super) fn detach(ebpf: &mut Ebpf, hook: &Alternative) {
    for name in [hook.fentry, hook.fexit, hook.kprobe, hook.kretprobe]
        .into_iter()
        .flatten()
    {
        // Not loaded is what is wanted.
        match ebpf.program_mut(name) {
            Some(Program::FEntry(program)) => drop(program.unload()),
            Some(Program::FExit(program)) => drop(program.unload()),
            Some(Program::KProbe(program)) => drop(program.unload()),
            _ => {}
        }
    }
}

const FORK_ENTRY: &str = "libc_fork_uprobe";
const FORK_RETURN: &str = "libc_fork_uretprobe";

/// Probes on one process's own `fork`; detached when dropped.
pub(super) struct ForkProbes {
    _entry: UProbeLink,
    _return: UProbeLink,
}

/// Whether a probe on a function's return calls the kernel by a system call that a seccomp filter
/// may answer, by killing the process: `uretprobe` (arch/x86/kernel/uprobes.c, 6.11), until filters
/// were not asked any more (kernel/seccomp.c, 6.14; then taken over into 6.12 and 6.13).
/// Distributions that do not give the stable release in theirs count as without it.
pub(super) fn return_probe_meets_filters(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (6, 11, _) => true,
        (6, 12, stable) => stable < 20,
        (6, 13, stable) => stable < 10,
        _ => false,
    }
}

/// Loads the programs that watch `fork` of C libraries, unless they are.
pub(super) fn load_fork_probes(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    for name in [FORK_ENTRY, FORK_RETURN] {
        match typed!(ebpf, name, UProbe).load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(refused(name, "", error)),
        }
    }
    Ok(())
}

/// Attaches them to one process: no cost for any other.
pub(super) fn fork_probes(
    ebpf: &mut Ebpf,
    pid: u32,
    library: &Library,
) -> Result<ForkProbes, CaptureError> {
    let scope = NonZeroU32::new(pid).ok_or_else(|| CaptureError::NoLibc {
        pid,
        why: "no such process".to_owned(),
    })?;
    let mut attach = |name: &str| -> Result<UProbeLink, CaptureError> {
        let probe = typed!(ebpf, name, UProbe);
        let link = probe
            .attach(
                library.fork_offset,
                &library.path,
                UProbeScope::OneProcess(scope),
            )
            .map_err(|error| refused(name, "fork", error))?;
        probe
            .take_link(link)
            .map_err(|error| refused(name, "fork", error))
    };
    // The return first: an entry without it would leave an attempt open.
    let _return = attach(FORK_RETURN)?;
    let _entry = attach(FORK_ENTRY)?;
    Ok(ForkProbes { _entry, _return })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_whose_return_probes_meet_filters() {
        let meets = return_probe_meets_filters;
        for release in [
            "6.11.0-29-generic",
            "6.12.9-amd64",
            "6.12.0-55.el10",
            "6.13.1",
        ] {
            assert!(meets(release), "{release}");
        }
        for release in [
            "5.10.0-46-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12.107+deb13-amd64",
            "6.14.0-15-generic",
            "7.2.12",
            "",
        ] {
            assert!(!meets(release), "{release}");
        }
    }
}
