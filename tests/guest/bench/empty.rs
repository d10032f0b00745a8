//! A BPF program that does nothing: what counting the run time of programs adds to each run.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// Commands and types of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
/// `r0 = 0; exit`
const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
/// Hit by every change from one task to another.
const TRACEPOINT: &std::ffi::CStr = c"sched_switch";

/// The program, and what keeps it attached.
pub(super) struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads and attaches it.
    pub(super) fn attach() -> Result<Self> {
        let license = c"GPL";
        let load = [
            u64::from(BPF_PROG_TYPE_RAW_TRACEPOINT) | (INSTRUCTIONS.len() as u64) << 32,
            INSTRUCTIONS.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
            0,
        ];
        let program = bpf(BPF_PROG_LOAD, &load).context("cannot load an empty program")?;
        let open = [
            TRACEPOINT.as_ptr() as u64,
            u64::from(program.as_raw_fd().cast_unsigned()),
        ];
        let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open).context("cannot attach an empty program")?;
        Ok(Self {
            program,
            _link: link,
        })
    }

    /// Nanoseconds that were counted for each of its runs so far.
    pub(super) fn nanoseconds(&self) -> Result<f64> {
        let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        let text = fs::read_to_string(&path)?;
        let field = |key: &str| -> Option<f64> {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        };
        let runs = field("run_cnt:").filter(|runs| *runs > 0.0);
        let time = field("run_time_ns:").zip(runs);
        let (time, runs) = time.with_context(|| format!("{path} has no run time"))?;
        Ok(time / runs)
    }
}

fn bpf(command: libc::c_long, attributes: &[u64]) -> Result<OwnedFd> {
    // SAFETY: the kernel reads as much as it is told, and what the addresses in it lead to
    // lives as long as the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
