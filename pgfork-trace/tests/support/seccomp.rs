//! A filter as container runtimes set it.

/// Refuses bpf() with EPERM, as container runtimes do.
pub(crate) fn forbid_bpf() -> std::io::Result<()> {
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let bpf = u32::try_from(libc::SYS_bpf).unwrap_or(0);
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut steps = [
        step(load, 0, 0, 0),
        step(equal, bpf, 0, 1),
        step(libc::BPF_RET, refuse, 0, 0),
        step(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: steps.as_mut_ptr(),
    };
    install(&program)
}

/// Kills this process when it starts a process or a thread, loads a BPF program, signals, traces,
/// or opens or changes a file for writing.
pub(crate) fn kill_changes() -> std::io::Result<()> {
    const OPENAT_FLAGS: u32 = 32;
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let end = |what| step(libc::BPF_RET, what, 0, 0);
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut steps = vec![load(0)];
    for call in [
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_bpf,
        libc::SYS_kill,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_unlinkat,
        libc::SYS_unlink,
        libc::SYS_mkdir,
        libc::SYS_mkdirat,
        libc::SYS_rename,
        libc::SYS_renameat2,
        libc::SYS_sched_setscheduler,
        libc::SYS_setpriority,
    ] {
        steps.push(step(equal, u32::try_from(call).unwrap_or(0), 0, 1));
        steps.push(end(libc::SECCOMP_RET_KILL_PROCESS));
    }
    let writes = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT).unsigned_abs();
    let any = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    steps.extend([
        step(equal, u32::try_from(libc::SYS_openat).unwrap_or(0), 0, 3),
        load(OPENAT_FLAGS),
        step(any, writes, 0, 1),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        end(libc::SECCOMP_RET_ALLOW),
    ]);
    let program = libc::sock_fprog {
        len: u16::try_from(steps.len()).unwrap_or(0),
        filter: steps.as_mut_ptr(),
    };
    install(&program)
}

fn install(program: &libc::sock_fprog) -> std::io::Result<()> {
    // SAFETY: a valid program that lives through the call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                std::ptr::from_ref(program),
            ) == 0
    };
    if set {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
