//! Proof of the BTF reader on real kernels, with bpftool as the judge.
//!
//! `testdata/linux-*.txt` is what `bpftool btf dump file vmlinux format raw` says
//! about each kernel's `/sys/kernel/btf/vmlinux`: the offset of every field, the
//! enum constants, the prototypes of every function in the plan's table.
//! `testdata/linux-*.btf` are extracts of the same files, small enough to keep.
//! To make both anew, or to hold the reader to the whole files again:
//!
//! ```text
//! cargo xtask vm --kernel 6.1 --pg 15 --out DIR/6.1 -- cp /sys/kernel/btf/vmlinux /out/   (for each)
//! PGFORK_TRACE_FULL_BTF=DIR [PGFORK_TRACE_BLESS=1] cargo test -p pgfork-trace kernel::proof
//! ```

mod dump;
mod extract;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
};

use pgfork_trace_common::{ABSENT, Check, OFFSET_FIELDS};

use super::{
    btf::{self, Btf},
    layout::Layout,
    open_btf,
    plan::Plan,
};
use dump::{Dump, bpftool_works};

const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.2"];
const LARGEST_EXTRACT: usize = 120_000;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/kernel/testdata")
        .join(name)
}

/// A skipped test must not look like a passed one: past the test harness, which would keep it to
/// itself.
fn skipped(why: &str) {
    let test = thread::current().name().unwrap_or("test").to_owned();
    let line = format!("skipped: {test}: {why}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

fn open(path: &Path) -> Btf {
    open_btf(path).unwrap()
}

fn functions() -> Vec<&'static str> {
    let mut functions: Vec<&str> = Plan::functions().into_iter().collect();
    functions.sort_unstable();
    functions
}

/// One line per fact, as bpftool has it.
fn according_to_bpftool(dump: &Dump) -> String {
    let mut text = String::new();
    for (structure, path) in OFFSET_FIELDS {
        let offset = dump
            .offset(structure, path)
            .map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        writeln!(text, "offset {structure}.{path} {offset}").unwrap();
    }
    let id = dump.constant("pids_cgrp_id").unwrap();
    writeln!(text, "constant pids_cgrp_id {id}").unwrap();
    for function in functions() {
        for (_, prototype) in dump.prototypes(function) {
            writeln!(text, "function {function} {prototype}").unwrap();
        }
    }
    text
}

/// The same, as the reader under test has it.
fn according_to_reader(btf: &Btf) -> String {
    let mut text = String::new();
    let layout = Layout::resolve(btf).unwrap();
    for ((structure, path), offset) in OFFSET_FIELDS.iter().zip(layout.offsets) {
        let offset = match offset {
            ABSENT => "-".to_owned(),
            offset => offset.to_string(),
        };
        writeln!(text, "offset {structure}.{path} {offset}").unwrap();
    }
    writeln!(text, "constant pids_cgrp_id {}", layout.pids_cgrp_id).unwrap();
    for function in functions() {
        for prototype in btf.prototypes(function).unwrap() {
            writeln!(text, "function {function} {prototype}").unwrap();
        }
    }
    text
}

#[track_caller]
fn assert_same(kernel: &str, expected: &str, actual: &str) {
    for (expected, actual) in expected.lines().zip(actual.lines()) {
        assert_eq!(actual, expected, "Linux {kernel}");
    }
    assert_eq!(actual.lines().count(), expected.lines().count());
}

fn committed(kernel: &str) -> String {
    fs::read_to_string(testdata(&format!("linux-{kernel}.txt"))).unwrap()
}

#[test]
fn extracts_are_read_as_bpftool_reads_the_whole() {
    for kernel in KERNELS {
        let btf = open(&testdata(&format!("linux-{kernel}.btf")));
        assert_same(kernel, &committed(kernel), &according_to_reader(&btf));
    }
}

#[test]
fn whole_files_are_read_as_bpftool_reads_them() {
    let Some(directory) = std::env::var_os("PGFORK_TRACE_FULL_BTF") else {
        return skipped("PGFORK_TRACE_FULL_BTF names no directory with whole BTF files");
    };
    let bless = std::env::var_os("PGFORK_TRACE_BLESS").is_some();
    let whole = |kernel: &str| Path::new(&directory).join(kernel).join("vmlinux");
    let found = KERNELS.into_iter().filter(|kernel| whole(kernel).exists());
    let found: Vec<&str> = found.collect();
    assert!(!found.is_empty(), "no whole BTF file in {directory:?}");
    for kernel in found {
        let path = whole(kernel);
        let dump = Dump::of(&path);
        let expected = according_to_bpftool(&dump);
        let btf = open(&path);
        assert_same(kernel, &expected, &according_to_reader(&btf));
        assert_ids(&btf, &dump);
        // The extract is valid BTF for others too, and says the same.
        let extract = extract::extract(&dump);
        assert!(extract.len() < LARGEST_EXTRACT, "{}", extract.len());
        let kept = tempfile::NamedTempFile::new().unwrap();
        fs::write(kept.path(), &extract).unwrap();
        let extracted = Dump::of(kept.path());
        assert_same(kernel, &expected, &according_to_bpftool(&extracted));
        // The committed ones may be of an older build of the same series.
        if bless {
            fs::write(testdata(&format!("linux-{kernel}.txt")), &expected).unwrap();
            fs::write(testdata(&format!("linux-{kernel}.btf")), extract).unwrap();
        }
        println!("read: Linux {kernel}");
    }
}

#[test]
fn the_running_kernel_is_read_as_bpftool_reads_it() {
    let path = Path::new(btf::VMLINUX);
    if !path.exists() {
        return skipped("this kernel does not show its types");
    }
    let btf = open(path);
    let layout = Layout::resolve(&btf).unwrap();
    assert!(layout.offsets.iter().any(|offset| *offset != ABSENT));
    if !bpftool_works() {
        return skipped("bpftool is not installed: nothing to compare with");
    }
    let dump = Dump::of(path);
    assert_same(
        "of this host",
        &according_to_bpftool(&dump),
        &according_to_reader(&btf),
    );
    assert_ids(&btf, &dump);
}

/// The ids by which programs are attached.
fn assert_ids(btf: &Btf, dump: &Dump) {
    for function in functions() {
        let prototypes = btf.prototypes(function).unwrap();
        let read: Vec<u32> = prototypes.iter().map(|it| it.id).collect();
        let dumped: Vec<u32> = dump.prototypes(function).iter().map(|it| it.0).collect();
        assert_eq!(read, dumped, "{function}");
    }
}

/// What is hooked where, from the kernels' sources (kernel/fork.c, kernel/ucount.c,
/// kernel/events/core.c, fs/file.c, kernel/sched/core.c) and attaching by hand:
/// `None` where there is nothing to hook. All others have the same program everywhere.
fn varying(check: Check) -> Option<[Option<&'static str>; 5]> {
    let since_6_1 = |name| [None, Some(name), Some(name), Some(name), Some(name)];
    let program = match check {
        // 5.10 keeps the count in user_struct and compares it in copy_process itself.
        Check::IsRlimitOverlimit => since_6_1("is_rlimit_overlimit_fexit"),
        // Debian's 5.10 has no BTF for it: the file is built without -pg.
        Check::PerfEventInitTask => since_6_1("perf_event_init_task_fexit"),
        Check::DupFd => {
            let two = Some("dup_fd_2_fexit");
            [Some("dup_fd_3_fexit"), two, two, two, two]
        }
        Check::CopyThread => {
            let two = Some("copy_thread_2_fexit");
            [Some("copy_thread_5_fexit"), two, two, two, two]
        }
        Check::TaskExecStateCopy => [None, None, None, None, Some("task_exec_state_copy_fexit")],
        Check::IoUringFork => [None, None, None, None, Some("io_uring_fork_fexit")],
        Check::CopyIo => since_6_1("copy_io_fexit"),
        Check::FutexHashAllocate => {
            let program = Some("futex_hash_allocate_default_fexit");
            [None, None, None, program, program]
        }
        // Where it is not inlined.
        Check::DupMmap => {
            let program = Some("dup_mmap_fexit");
            [None, program, None, program, program]
        }
        Check::MemcgKmemCharge => [Some("memcg_kmem_charge_fexit"), None, None, None, None],
        Check::DoBrkFlags => {
            let five = Some("do_brk_flags_5_fexit");
            [Some("do_brk_flags_4_fexit"), five, five, five, five]
        }
        Check::Mremap => {
            let four = Some("vma_to_resize_4_fexit");
            let since = Some("do_mremap_fexit");
            [Some("vma_to_resize_5_fexit"), four, four, since, since]
        }
        Check::Mprotect => {
            let seven = Some("mprotect_fixup_7_fexit");
            let (five, six) = ("mprotect_fixup_5_fexit", "mprotect_fixup_6_fexit");
            [Some(five), Some(six), seven, seven, seven]
        }
        Check::HugetlbReservePages => {
            let (ok, error) = (
                Some("hugetlb_reserve_pages_bool_fexit"),
                Some("hugetlb_reserve_pages_long_fexit"),
            );
            [ok, ok, ok, error, error]
        }
        // 5.10 has it inline.
        Check::MlockFuture => {
            let ok = Some("mlock_future_ok_fexit");
            [None, Some("mlock_future_check_fexit"), ok, ok, ok]
        }
        Check::GetUnmappedArea => {
            let (five, six) = (
                Some("get_unmapped_area_5_fexit"),
                Some("get_unmapped_area_6_fexit"),
            );
            [five, five, six, six, six]
        }
        // Absent, then without a result, then with one.
        Check::SchedCgroupFork => {
            let int = Some("sched_cgroup_fork_fexit");
            [None, None, int, int, int]
        }
        _ => return None,
    };
    Some(program)
}

#[test]
fn each_check_is_hooked_by_the_program_made_for_its_prototype() {
    for (number, kernel) in KERNELS.into_iter().enumerate() {
        let btf = open(&testdata(&format!("linux-{kernel}.btf")));
        let plan = Plan::choose(&btf).unwrap();
        let chosen: BTreeMap<Check, &str> = plan
            .hooks
            .iter()
            .map(|hook| {
                let alternative = hook.alternative;
                let program = alternative.fexit.or(alternative.fentry);
                (hook.check, program.unwrap())
            })
            .collect();
        for check in Check::ALL {
            let actual = chosen.get(&check).copied();
            match varying(check) {
                Some(programs) => assert_eq!(actual, programs[number], "{kernel}: {check:?}"),
                None => assert!(actual.is_some(), "{kernel}: {check:?} is not hooked"),
            }
        }
    }
}

#[test]
fn what_a_kernel_lacks_is_told_only_where_it_matters() {
    let not_seen = |kernel: &str| -> Vec<Check> {
        let btf = open(&testdata(&format!("linux-{kernel}.btf")));
        let plan = Plan::choose(&btf).unwrap();
        plan.not_seen.iter().map(|it| it.check).collect()
    };
    // sched_cgroup_fork cannot refuse before 6.12: nothing is missing without it.
    assert!(!not_seen("5.10").contains(&Check::SchedCgroupFork));
    assert!(not_seen("5.10").contains(&Check::PerfEventInitTask));
    for kernel in &KERNELS[1..] {
        assert_eq!(not_seen(kernel), [], "{kernel}");
    }
}

#[test]
fn the_layout_follows_the_kernels_history() {
    let absent = |kernel: &str, field: (&str, &str)| {
        let btf = open(&testdata(&format!("linux-{kernel}.btf")));
        let layout = Layout::resolve(&btf).unwrap();
        let number = OFFSET_FIELDS.iter().position(|it| *it == field).unwrap();
        layout.offsets[number] == ABSENT
    };
    const UNTIL_6_1: [bool; 5] = [false, false, true, true, true];
    let table: &[((&str, &str), [bool; 5])] = &[
        (
            ("user_struct", "processes"),
            [false, true, true, true, true],
        ),
        (("cred", "ucounts"), [true, false, false, false, false]),
        (("ucounts", "rlimit"), [true, false, false, false, false]),
        (
            ("user_namespace", "rlimit_max"),
            [true, false, false, false, false],
        ),
        (
            ("pid_namespace", "pid_max"),
            [true, true, true, false, false],
        ),
        (
            ("task_struct", "syscall_dispatch.selector"),
            [true, false, false, false, false],
        ),
        (
            ("task_struct", "syscall_dispatch.len"),
            [true, false, false, false, false],
        ),
        // Debian builds 6.12 and later without the memory controller of cgroup v1.
        (("mem_cgroup", "kmem.usage"), UNTIL_6_1),
        (("mem_cgroup", "kmem.max"), UNTIL_6_1),
        (("mem_cgroup", "oom_kill_disable"), UNTIL_6_1),
    ];
    for (field, expected) in table {
        for (kernel, expected) in KERNELS.iter().zip(expected) {
            assert_eq!(absent(kernel, *field), *expected, "{kernel}: {field:?}");
        }
    }
    for field in OFFSET_FIELDS {
        if table.iter().all(|(varying, _)| varying != field) {
            for kernel in KERNELS {
                assert!(!absent(kernel, *field), "{kernel}: {field:?}");
            }
        }
    }
}
