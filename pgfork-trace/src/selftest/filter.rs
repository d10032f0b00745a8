//! A seccomp filter that refuses new processes.

use libc::{sock_filter, sock_fprog};

const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// Offsets in `struct seccomp_data` (include/uapi/linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// `AUDIT_ARCH_*` (include/uapi/linux/audit.h): numbers of system calls differ.
#[cfg(target_arch = "x86_64")]
const OWN: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN: u32 = 0xc000_00b7;

#[cfg(target_arch = "x86_64")]
const CALLS: [libc::c_long; 4] = [
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(target_arch = "aarch64")]
const CALLS: [libc::c_long; 2] = [libc::SYS_clone, libc::SYS_clone3];

/// Loads and one test before those of the calls, two ends behind them.
const BEFORE: usize = 3;
const LENGTH: usize = BEFORE + CALLS.len() + 2;

const fn step(code: u32, k: u32, yes: usize, no: usize) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: yes as u8,
        jf: no as u8,
        k,
    }
}

/// Jumps count the steps in between.
const fn program() -> [sock_filter; LENGTH] {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut steps = [step(end, libc::SECCOMP_RET_ALLOW, 0, 0); LENGTH];
    steps[0] = step(load, ARCHITECTURE, 0, 0);
    steps[1] = step(equal, OWN, 0, CALLS.len() + 1);
    steps[2] = step(load, NUMBER, 0, 0);
    let mut call = 0;
    while call < CALLS.len() {
        let number = CALLS[call] as u32;
        steps[BEFORE + call] = step(equal, number, CALLS.len() - call, 0);
        call += 1;
    }
    steps[LENGTH - 1] = step(end, REFUSE, 0, 0);
    steps
}

/// Sets it for the calling process, for good. Allocates nothing.
pub(super) fn set() -> bool {
    let mut steps = program();
    let program = sock_fprog {
        len: LENGTH as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: a valid program that lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do, for the few instructions used here.
    fn run(architecture: u32, number: u32) -> u32 {
        let steps = program();
        let (mut at, mut value) = (0, 0);
        loop {
            let step = steps[at];
            at += 1;
            match u32::from(step.code) & 7 {
                libc::BPF_LD if step.k == ARCHITECTURE => value = architecture,
                libc::BPF_LD => value = number,
                libc::BPF_JMP if value == step.k => at += usize::from(step.jt),
                libc::BPF_JMP => at += usize::from(step.jf),
                _ => return step.k,
            }
        }
    }

    #[test]
    fn refuses_new_processes_and_nothing_else() {
        for call in CALLS {
            assert_eq!(run(OWN, call as u32), REFUSE, "{call}");
            assert_eq!(run(OWN ^ 1, call as u32), libc::SECCOMP_RET_ALLOW);
        }
        for call in [libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_write] {
            assert_eq!(run(OWN, call as u32), libc::SECCOMP_RET_ALLOW, "{call}");
        }
    }
}
