//! What this process gives up once it watches.

use std::io;

use crate::host::capability;

/// `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h).
const VERSION: u32 = 0x2008_0522;

/// Kept: reading other processes' files in /proc (`CAP_DAC_READ_SEARCH`, `CAP_SYS_PTRACE`), kernel
/// addresses (`CAP_SYSLOG`), maps, and probes on postmasters that start later (`CAP_BPF`,
/// `CAP_PERFMON`; Debian's kernels, and not only those, ask for `CAP_SYS_ADMIN` then).
const KEPT: [u32; 6] = [
    capability::DAC_READ_SEARCH,
    capability::SYS_PTRACE,
    capability::SYSLOG,
    capability::PERFMON,
    capability::BPF,
    capability::SYS_ADMIN,
];

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Keeps the capabilities that watching needs and drops the rest, for good.
///
/// # Errors
/// What the system said; watching is possible all the same.
pub(super) fn drop_capabilities() -> io::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 reads a header and writes two elements.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut kept = [0u32; 2];
    for bit in KEPT {
        kept[bit as usize / 32] |= 1 << (bit % 32);
    }
    for (data, kept) in data.iter_mut().zip(kept) {
        data.permitted &= kept;
        data.effective &= kept;
        data.inheritable = 0;
    }
    // SAFETY: reads a header and two elements.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
