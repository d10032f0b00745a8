//! Runs of our programs that the kernel left out.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::Ebpf;

/// The programs of which the kernel left out runs, with how many: those that would have begun while
/// the same program ran on that processor (`recursion_misses`, kernel/bpf/syscall.c
/// `bpf_prog_show_fdinfo`, 5.12 to 7.2). Programs that are not loaded any more are not among them.
pub(super) fn runs(ebpf: &Ebpf) -> Vec<(String, u64)> {
    let mut skipped: Vec<(String, u64)> = ebpf
        .programs()
        .filter_map(|(name, program)| {
            let descriptor = program.fd().ok()?.as_fd().as_raw_fd();
            let shown = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
            Some((name.to_owned(), parse(&shown)?))
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    skipped.sort_unstable();
    skipped
}

fn parse(shown: &str) -> Option<u64> {
    let mut lines = shown.lines();
    let count = lines.find_map(|line| line.strip_prefix("recursion_misses:"))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_do_not_count_them() {
        let shown =
            "pos:\t0\nprog_type:\t26\nrun_cnt:\t9\nrecursion_misses:\t3\nverified_insns:\t58\n";
        assert_eq!(parse(shown), Some(3));
        assert_eq!(parse("pos:\t0\nprog_type:\t26\nrun_cnt:\t9\n"), None);
    }
}
