//! Capabilities by number (include/uapi/linux/capability.h, 5.10 to 7.2).

/// Reading any file.
pub const DAC_READ_SEARCH: u32 = 2;
/// Looking into other processes; sees through `hidepid`.
pub const SYS_PTRACE: u32 = 19;
/// Most of what root may; spares `RLIMIT_NPROC` and a reserve of strict overcommit.
pub const SYS_ADMIN: u32 = 21;
/// Spares `RLIMIT_NPROC`.
pub const SYS_RESOURCE: u32 = 24;
/// Kernel addresses.
pub const SYSLOG: u32 = 34;
/// Probes (5.8 and later).
pub const PERFMON: u32 = 38;
/// eBPF (5.8 and later).
pub const BPF: u32 = 39;

/// Its bit in a set of capabilities.
#[must_use]
pub const fn mask(number: u32) -> u64 {
    1 << number
}
