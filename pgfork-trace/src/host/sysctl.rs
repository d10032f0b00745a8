//! Kernel settings and host-wide task counts.

use super::Root;
use super::read::{self, ReadError};

/// The settings that a fork can run into. `None` where this kernel does not show one.
/// Units are those of the kernel's own files: kbytes are KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// `vm.overcommit_memory`: 0 heuristic, 1 always, 2 strict.
    pub overcommit_memory: Option<u64>,
    /// `vm.overcommit_ratio`, percent of RAM without huge pages; not in force while
    /// `overcommit_kbytes` is not 0.
    pub overcommit_ratio: Option<u64>,
    /// `vm.overcommit_kbytes`, KiB.
    pub overcommit_kbytes: Option<u64>,
    /// `vm.admin_reserve_kbytes`, KiB that strict overcommit keeps for CAP_SYS_ADMIN.
    pub admin_reserve_kbytes: Option<u64>,
    /// `vm.user_reserve_kbytes`, KiB; strict overcommit keeps min(this, 1/32 of the process).
    pub user_reserve_kbytes: Option<u64>,
    /// `kernel.threads-max`, tasks on the whole host.
    pub threads_max: Option<u64>,
    /// `kernel.pid_max`: pids stay below this.
    pub pid_max: Option<u64>,
    /// Tasks on the whole host: the number behind the slash in `/proc/loadavg` (`nr_threads`,
    /// fs/proc/loadavg.c), which `kernel.threads-max` is compared with.
    pub nr_threads: Option<u64>,
}

/// Reads all of [`Sysctls`]. A file that holds something else than a number is absent, and named
/// in the list.
pub fn sysctls(root: &Root) -> (Sysctls, Vec<String>) {
    let mut unread = Vec::new();
    let mut number = |name| read::noted(sysctl_number(root, name), &mut unread);
    let mut found = Sysctls {
        overcommit_memory: number("vm/overcommit_memory"),
        overcommit_ratio: number("vm/overcommit_ratio"),
        overcommit_kbytes: number("vm/overcommit_kbytes"),
        admin_reserve_kbytes: number("vm/admin_reserve_kbytes"),
        user_reserve_kbytes: number("vm/user_reserve_kbytes"),
        threads_max: number("kernel/threads-max"),
        pid_max: number("kernel/pid_max"),
        nr_threads: None,
    };
    found.nr_threads = read::noted(nr_threads(root), &mut unread);
    (found, unread)
}

/// The text of one setting without the line end, for example `read_sysctl(root,
/// "vm/overcommit_ratio")`; at most 4 KiB. `name` is a path below `/proc/sys`; one that leads
/// out of it reads as absent.
///
/// # Errors
/// When reading fails for another reason than absence or permission.
pub fn read_sysctl(root: &Root, name: &str) -> Result<Option<String>, ReadError> {
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Ok(None);
    }
    let path = root.proc().join("sys").join(name);
    let text = read::small(&path, 4096)?;
    Ok(text.map(|text| String::from_utf8_lossy(text.trim_ascii_end()).into_owned()))
}

/// One setting that is a number.
///
/// # Errors
/// When it is not.
pub fn sysctl_number(root: &Root, name: &str) -> Result<Option<u64>, ReadError> {
    let Some(text) = read_sysctl(root, name)? else {
        return Ok(None);
    };
    match read::parse(text.as_bytes()) {
        Some(number) => Ok(Some(number)),
        None => {
            let path = root.proc().join("sys").join(name);
            Err(ReadError::parse(&path, 1, "a number", text.as_bytes()))
        }
    }
}

/// Whether `vm.overcommit_memory` is 2, strict: only then, but for requests of more than RAM and
/// swap, does `__vm_enough_memory` refuse (mm/util.c, 5.10 to 7.2). Also where it cannot be read.
#[must_use]
pub fn may_promise_strictly(root: &Root) -> bool {
    let mode = sysctl_number(root, "vm/overcommit_memory").ok().flatten();
    mode.is_none_or(|mode| mode == 2)
}

/// Tasks (processes and threads, zombies included) on the whole host, see
/// [`Sysctls::nr_threads`].
///
/// # Errors
/// When field 4 of `/proc/loadavg` is not `running/total`.
pub fn nr_threads(root: &Root) -> Result<Option<u64>, ReadError> {
    let path = root.proc().join("loadavg");
    let Some(text) = read::small(&path, 256)? else {
        return Ok(None);
    };
    let field = read::fields(&text).nth(3).unwrap_or_default();
    let total = field.splitn(2, |&byte| byte == b'/').nth(1);
    match total.and_then(read::parse) {
        Some(total) => Ok(Some(total)),
        None => Err(ReadError::parse(
            &path,
            1,
            "running/total as field 4",
            &text,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    #[test]
    fn settings_are_read_and_absent_ones_are_none() {
        let fake = FakeRoot::new();
        assert_eq!(sysctls(fake.root()), (Sysctls::default(), vec![]));
        fake.write("proc/sys/vm/overcommit_memory", "2\n");
        fake.write("proc/sys/vm/overcommit_ratio", "50\n");
        fake.write("proc/sys/kernel/threads-max", "192730\n");
        fake.write("proc/loadavg", "0.20 0.18 0.12 1/80 11206\n");
        let (found, unread) = sysctls(fake.root());
        assert_eq!(unread.len(), 0);
        assert_eq!(found.overcommit_memory, Some(2));
        assert_eq!(found.overcommit_ratio, Some(50));
        assert_eq!(found.threads_max, Some(192_730));
        assert_eq!(found.nr_threads, Some(80));
        assert_eq!(found.pid_max, None);
    }

    #[test]
    fn nonsense_is_named_with_its_place_and_takes_nothing_with_it() {
        let fake = FakeRoot::new();
        fake.write("proc/sys/kernel/pid_max", "many\n");
        fake.write("proc/sys/kernel/threads-max", "7\n");
        let (found, unread) = sysctls(fake.root());
        assert!(
            unread[0].contains("pid_max\":1: expected a number, found \"many\""),
            "{unread:?}"
        );
        assert_eq!((found.threads_max, found.pid_max), (Some(7), None));
        fake.write("proc/loadavg", "0.20 0.18 0.12\n");
        assert!(nr_threads(fake.root()).is_err());
    }

    #[test]
    fn names_do_not_lead_out() {
        let fake = FakeRoot::new();
        fake.write("proc/loadavg", "0 0 0 1/2 3\n");
        fake.write("proc/sys/vm/x", "1\n");
        for name in ["../loadavg", "/etc/passwd", "vm/../../loadavg", "", "vm//x"] {
            assert_eq!(read_sysctl(fake.root(), name).unwrap(), None, "{name}");
        }
        assert_eq!(
            read_sysctl(fake.root(), "vm/x").unwrap().as_deref(),
            Some("1")
        );
    }

    #[test]
    fn what_cannot_be_read_may_be_strict() {
        let fake = FakeRoot::new();
        assert!(may_promise_strictly(fake.root()));
        for (text, strict) in [("0\n", false), ("1\n", false), ("2\n", true), ("?", true)] {
            fake.write("proc/sys/vm/overcommit_memory", text);
            assert_eq!(may_promise_strictly(fake.root()), strict, "{text}");
        }
    }

    #[test]
    fn the_real_host_has_them() {
        let (found, _) = sysctls(&Root::default());
        assert!(found.pid_max.unwrap() > 300);
        assert!(found.nr_threads.unwrap() > 0);
        assert!(found.overcommit_memory.unwrap() <= 2);
    }
}
