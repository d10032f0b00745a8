//! Loads every program of the plan without attaching any: whether the verifier takes it here, and
//! at what cost.

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};
use serde::Serialize;

use super::{
    CaptureError, Settings,
    error::{explain_load, or_too_old},
    loader::{Kernel, function_ids, load, raise_memlock, ready},
};
use crate::kernel::plan::{Alternative, Method};

/// One program, loaded and unloaded again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// Its name in the object.
    pub program: String,
    /// The function that it would hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<&'static str>,
    /// The method that uses it; a tracepoint program is used by each.
    pub method: Method,
    /// Instructions that the verifier processed (`bpf_prog_info.verified_insns`, kernel/bpf/syscall.c,
    /// 5.16 and later).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_instructions: Option<u32>,
    /// Why it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Loads all programs that this kernel's plan names, one after the other.
///
/// # Errors
/// When nothing can be loaded: no privilege, no types, no maps.
pub fn load_all(settings: &Settings) -> Result<Vec<Loaded>, CaptureError> {
    let standing = ready()?;
    let kernel = Kernel::read(&settings.btf).map_err(|error| or_too_old(error, &standing))?;
    raise_memlock();
    let mut ebpf = load(&kernel, settings).map_err(|error| explain_load(error, &standing))?;
    let btf = function_ids(&kernel.plan.hooks)?;
    let wanted = |method| settings.method.is_none_or(|only| only == method);
    let mut loaded = Vec::new();
    for hook in &kernel.plan.hooks {
        let alternative = hook.alternative;
        for (method, names) in programs_of(alternative) {
            if !wanted(method) {
                continue;
            }
            for name in names.into_iter().flatten() {
                let function = Some(alternative.function);
                loaded.push(one(&mut ebpf, name, function, method, &btf));
            }
        }
    }
    if wanted(Method::Tracepoint) {
        for name in others(&ebpf) {
            loaded.push(one(&mut ebpf, &name, None, Method::Tracepoint, &btf));
        }
    }
    Ok(loaded)
}

const fn programs_of(of: &Alternative) -> [(Method, [Option<&'static str>; 2]); 2] {
    [
        (Method::Fexit, [of.fentry, of.fexit]),
        (Method::Kprobe, [of.kprobe, of.kretprobe]),
    ]
}

/// Programs that hook no function of the kernel.
fn others(ebpf: &Ebpf) -> Vec<String> {
    let mut names: Vec<String> = ebpf
        .programs()
        .filter(|(_, program)| {
            matches!(
                program,
                Program::UProbe(_) | Program::TracePoint(_) | Program::RawTracePoint(_)
            )
        })
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort_unstable();
    names
}

fn one(
    ebpf: &mut Ebpf,
    name: &str,
    function: Option<&'static str>,
    method: Method,
    btf: &Btf,
) -> Loaded {
    let result = match ebpf.program_mut(name) {
        Some(program) => cost(program, function.unwrap_or_default(), btf),
        None => Err(ProgramError::NotLoaded),
    };
    let (verified_instructions, error) = match result {
        Ok(count) => (count, None),
        Err(error) => (None, Some(error.to_string())),
    };
    Loaded {
        program: name.to_owned(),
        function,
        method,
        verified_instructions,
        error,
    }
}

/// What the verifier processed, where the kernel tells. Unloaded at once: one is enough at a time.
fn cost(program: &mut Program, function: &str, btf: &Btf) -> Result<Option<u32>, ProgramError> {
    macro_rules! measured {
        ($program:expr, $loaded:expr) => {{
            $loaded?;
            let count = $program.info()?.verified_instruction_count();
            $program.unload()?;
            Ok(count)
        }};
    }
    match program {
        Program::FEntry(program) => measured!(program, program.load(function, btf)),
        Program::FExit(program) => measured!(program, program.load(function, btf)),
        Program::KProbe(program) => measured!(program, program.load()),
        Program::UProbe(program) => measured!(program, program.load()),
        Program::TracePoint(program) => measured!(program, program.load()),
        Program::RawTracePoint(program) => measured!(program, program.load()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
