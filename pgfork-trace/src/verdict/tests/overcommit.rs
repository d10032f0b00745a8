//! `commit_limit`, observed: the kernel's own arithmetic, and remedies that really suffice.

use pgfork_trace_common::{Overcommit, valid};

use super::*;

/// What `__vm_enough_memory` compares, written down once more from mm/util.c and
/// independent of the code under test. All in pages.
struct Kernel {
    ram: u64,
    hugetlb: u64,
    swap: u64,
    ratio: u64,
    kbytes: u64,
    admin_reserve_kbytes: u64,
    user_reserve_kbytes: u64,
    total_vm: u64,
    cap_sys_admin: bool,
    committed: u64,
}

impl Kernel {
    fn commit_limit(&self) -> u64 {
        let base = if self.kbytes > 0 {
            self.kbytes >> 2
        } else {
            (self.ram - self.hugetlb) * self.ratio / 100
        };
        base + self.swap
    }

    fn allowed(&self) -> i64 {
        let mut allowed = self.commit_limit() as i64;
        if !self.cap_sys_admin {
            allowed -= (self.admin_reserve_kbytes >> 2) as i64;
        }
        allowed - (self.total_vm / 32).min(self.user_reserve_kbytes >> 2) as i64
    }

    fn refuses(&self, pages: u64) -> bool {
        (self.committed + pages) as i64 >= self.allowed()
    }

    fn facts(&self, fork_charge: u64) -> Facts {
        Facts {
            memory: Some(MemoryFacts {
                mem_total: self.ram * PAGE,
                mem_available: self.ram * PAGE / 2,
                swap_total: self.swap * PAGE,
                commit_limit: self.commit_limit() * PAGE,
                // The fork is undone by the time /proc is read.
                committed_as: (self.committed - self.committed / 100) * PAGE,
                hugetlb: self.hugetlb * PAGE,
            }),
            overcommit: Some(OvercommitSettings {
                mode: 2,
                ratio: self.ratio,
                kbytes: self.kbytes,
                admin_reserve_kbytes: self.admin_reserve_kbytes,
                user_reserve_kbytes: self.user_reserve_kbytes,
            }),
            fork_charge_bytes: Some(fork_charge * PAGE),
            ..facts()
        }
    }

    fn attempt(&self, pages: u64) -> Build {
        hooked(ENOMEM)
            .reached(Check::CgroupFork)
            .overcommit_call(Overcommit {
                pages: pages as i64,
                total_vm_pages: self.total_vm,
                committed_pages: self.committed as i64,
                cap_sys_admin: self.cap_sys_admin.into(),
                mode: 2,
            })
            .failed(Check::VmEnoughMemory, ENOMEM)
            .failed(Check::CopyProcess, ENOMEM)
    }
}

/// A host whose counter stands `room` pages below what is allowed.
fn host(room: u64, change: impl FnOnce(&mut Kernel)) -> Kernel {
    let mut kernel = Kernel {
        ram: 4 << 18,
        hugetlb: 0,
        swap: 0,
        ratio: 50,
        kbytes: 0,
        admin_reserve_kbytes: 8192,
        user_reserve_kbytes: 131_072,
        total_vm: 60_000,
        cap_sys_admin: false,
        committed: 0,
    };
    change(&mut kernel);
    kernel.committed = kernel.allowed() as u64 - room;
    kernel
}

const VMA: u64 = 37;
const FORK: u64 = 3_158;

fn hosts() -> Vec<(&'static str, Kernel)> {
    vec![
        ("plain", host(20, |_| ())),
        ("swap", host(20, |it| it.swap = 1 << 18)),
        (
            "huge pages",
            host(20, |it| (it.hugetlb, it.ratio) = (1 << 18, 80)),
        ),
        ("ratio over 100", host(20, |it| it.ratio = 140)),
        ("kbytes", host(20, |it| it.kbytes = 1_500_003)),
        (
            "kbytes and swap",
            host(20, |it| (it.kbytes, it.swap) = (1_500_003, 1 << 18)),
        ),
        ("whole user reserve", host(20, |it| it.total_vm = 1 << 24)),
        ("privileged", host(20, |it| it.cap_sys_admin = true)),
        (
            "no reserves",
            host(20, |it| {
                (it.admin_reserve_kbytes, it.user_reserve_kbytes) = (0, 0);
            }),
        ),
        (
            "reserves of no whole page",
            host(20, |it| {
                (it.admin_reserve_kbytes, it.user_reserve_kbytes) = (8191, 4097);
            }),
        ),
        ("just one page too few", host(VMA, |_| ())),
        ("odd sizes", host(3, |it| it.ram = 1_000_003)),
    ]
}

#[test]
fn observed_with_numbers_that_add_up() {
    for (name, kernel) in hosts() {
        assert!(kernel.refuses(VMA), "{name}: the host is made wrongly");
        let verdict = judge(
            &kernel.attempt(VMA).done(),
            &kernel.facts(FORK),
            &all_hooks(),
        );
        assert_eq!(verdict.cause, Cause::CommitLimit, "{name}");
        assert_eq!(verdict.certainty, Certainty::Observed, "{name}");
        assert_eq!(verdict.scope, Some(Scope::Host), "{name}");
        let check = verdict.check.unwrap();
        assert_eq!(check.function, "__vm_enough_memory");
        assert_eq!(check.returned.as_deref(), Some("-ENOMEM"));
        let it = verdict.evidence.overcommit.unwrap();
        assert_eq!(it.usable_bytes, Some(kernel.allowed() as u64 * PAGE));
        assert_eq!(it.committed_bytes, Some(kernel.committed * PAGE));
        assert_eq!(it.requested_bytes, Some(VMA * PAGE));
        assert!(
            it.committed_bytes.unwrap() + it.requested_bytes.unwrap() >= it.usable_bytes.unwrap()
        );
        assert_eq!(
            it.commit_limit_bytes.unwrap()
                - it.admin_reserve_bytes.unwrap()
                - it.user_reserve_bytes.unwrap(),
            it.usable_bytes.unwrap(),
            "{name}"
        );
        assert_eq!(it.overcommit_memory, Some(2));
    }
}

#[test]
fn the_reserves_are_the_kernels() {
    let reserves = |kernel: &Kernel| {
        let verdict = judge(
            &kernel.attempt(VMA).done(),
            &kernel.facts(FORK),
            &all_hooks(),
        );
        let it = verdict.evidence.overcommit.unwrap();
        (
            it.admin_reserve_bytes.unwrap(),
            it.user_reserve_bytes.unwrap(),
        )
    };
    // total_vm / 32, rounded down to pages, while that is less than the sysctl.
    let small = host(20, |it| it.total_vm = 32 * 100 + 31);
    assert_eq!(reserves(&small), (8 * MIB, 100 * PAGE));
    let large = host(20, |it| it.total_vm = 1 << 24);
    assert_eq!(reserves(&large), (8 * MIB, 128 * MIB));
    let privileged = host(20, |it| it.cap_sys_admin = true);
    assert_eq!(reserves(&privileged).0, 0);
}

/// The remedied setting, as the command gives it, put to the kernel's own predicate.
fn remedied(kernel: &Kernel, command: &str) -> Kernel {
    let mut after = Kernel { ..*kernel };
    let number = |prefix: &str| -> Option<u64> { command.strip_prefix(prefix)?.parse().ok() };
    if let Some(ratio) = number("sysctl vm.overcommit_ratio=") {
        assert_eq!(
            kernel.kbytes, 0,
            "the ratio has no effect while kbytes is set"
        );
        after.ratio = ratio;
    } else if let Some(kbytes) = number("sysctl vm.overcommit_kbytes=") {
        assert_ne!(kernel.kbytes, 0);
        after.kbytes = kbytes;
    } else {
        let mib: u64 = command
            .strip_prefix("add ")
            .and_then(|rest| rest.strip_suffix(" MiB of swap"))
            .and_then(|mib| mib.parse().ok())
            .unwrap_or_else(|| panic!("{command}"));
        // The first page of a swap area is its header.
        after.swap += mib * 256 - 1;
    }
    after
}

#[test]
fn each_remedy_lets_the_fork_and_nine_more_pass() {
    for (name, kernel) in hosts() {
        let verdict = judge(
            &kernel.attempt(VMA).done(),
            &kernel.facts(FORK),
            &all_hooks(),
        );
        assert_eq!(verdict.remedy.len(), 2, "{name}");
        for remedy in &verdict.remedy {
            let mut after = remedied(&kernel, &remedy.change);
            assert!(
                after.commit_limit() > kernel.commit_limit(),
                "{name}: {}",
                remedy.change
            );
            for fork in 1..=10 {
                assert!(
                    !after.refuses(FORK),
                    "{name}: {}: fork {fork}",
                    remedy.change
                );
                after.committed += FORK;
            }
            assert!(remedy.immediate);
        }
    }
}

#[test]
fn a_remedy_never_lowers_the_limit() {
    // The kernel's counter is hidden, and the memory was given back before /proc was read.
    let kernel = host(20, |_| ());
    let mut facts = kernel.facts(FORK);
    facts.memory.as_mut().unwrap().committed_as = 0;
    let attempt = kernel.attempt(VMA).without(valid::COMMITTED).done();
    let verdict = judge(&attempt, &facts, &all_hooks());
    let it = verdict.evidence.overcommit.as_ref().unwrap();
    assert_eq!(it.committed_bytes, None, "absent is not zero");
    for remedy in &verdict.remedy {
        assert!(
            !remedied(&kernel, &remedy.change).refuses(FORK),
            "{}",
            remedy.change
        );
    }
}

#[test]
fn a_limit_beyond_ram_and_swap_comes_with_a_warning() {
    let effect = |kernel: &Kernel| {
        let attempt = kernel.attempt(VMA).done();
        let verdict = judge(&attempt, &kernel.facts(FORK), &all_hooks());
        verdict.remedy[0].effect.clone()
    };
    assert!(!effect(&host(20, |_| ())).contains("OOM killer"));
    assert!(effect(&host(20, |it| it.ratio = 140)).contains("OOM killer"));
}

#[test]
fn room_is_counted_in_backends() {
    let kernel = host(20, |_| ());
    let mut facts = kernel.facts(FORK);
    facts.backends.commit_bytes = Some(20 * MIB);
    let verdict = judge(&kernel.attempt(VMA).done(), &facts, &all_hooks());
    let it = verdict.evidence.overcommit.as_ref().unwrap();
    let after = remedied(&kernel, &verdict.remedy[0].change);
    let free = after.allowed() as u64 * PAGE - kernel.committed * PAGE;
    let room = (free - it.counter_skew_bytes.unwrap()) / (20 * MIB);
    assert!(
        verdict.remedy[0]
            .effect
            .starts_with(&format!("room for about {room} more backends")),
        "{}: {room}",
        verdict.remedy[0].effect
    );
    assert!(room >= 50);
    // Little memory is available: fewer are aimed for, but never none.
    facts.memory.as_mut().unwrap().mem_available = MIB;
    let verdict = judge(&kernel.attempt(VMA).done(), &facts, &all_hooks());
    let fewer = remedied(&kernel, &verdict.remedy[0].change);
    assert!(fewer.commit_limit() < after.commit_limit());
    assert!(!fewer.refuses(9 * 5120 + FORK));
}

#[test]
fn absurd_settings_do_not_overflow() {
    let kernel = host(20, |_| ());
    let mut facts = kernel.facts(FORK);
    let settings = facts.overcommit.as_mut().unwrap();
    settings.admin_reserve_kbytes = u64::MAX;
    settings.user_reserve_kbytes = u64::MAX;
    settings.kbytes = u64::MAX;
    facts.memory.as_mut().unwrap().swap_total = u64::MAX / 2;
    let attempt = kernel
        .attempt(VMA)
        .change(|it| {
            it.overcommit.pages = i64::MAX;
            it.overcommit.committed_pages = i64::MAX;
            it.overcommit.total_vm_pages = u64::MAX;
        })
        .done();
    let _ = judge(&attempt, &facts, &all_hooks());
    facts.overcommit.as_mut().unwrap().kbytes = 0;
    facts.memory.as_mut().unwrap().mem_total = 0;
    let _ = judge(&attempt, &facts, &all_hooks());
    facts.cpus = 0;
    let _ = judge(&attempt, &facts, &all_hooks());
}

#[test]
fn reserves_above_the_limit_leave_nothing_usable() {
    // allowed is then negative, and every request is refused.
    let kernel = host(20, |_| ());
    let mut facts = kernel.facts(FORK);
    facts.overcommit.as_mut().unwrap().admin_reserve_kbytes = 1 << 40;
    let verdict = judge(&kernel.attempt(VMA).done(), &facts, &all_hooks());
    assert_eq!(verdict.cause, Cause::CommitLimit);
    assert_eq!(verdict.evidence.overcommit.unwrap().usable_bytes, Some(0));
}

#[test]
fn a_negative_counter_counts_as_zero() {
    let kernel = host(20, |_| ());
    let attempt = kernel
        .attempt(VMA)
        .change(|it| it.overcommit.committed_pages = -5)
        .done();
    let verdict = judge(&attempt, &kernel.facts(FORK), &all_hooks());
    assert_eq!(
        verdict.evidence.overcommit.unwrap().committed_bytes,
        Some(0)
    );
}

#[test]
fn the_check_in_another_mode_is_another_cause() {
    let kernel = host(20, |_| ());
    let heuristic = |attempt: Attempt, mode: i32| {
        let mut facts = kernel.facts(FORK);
        facts.overcommit.as_mut().unwrap().mode = mode;
        judge(&attempt, &facts, &all_hooks())
    };
    // What the kernel had in the call counts, not what /proc says later.
    let verdict = heuristic(
        kernel
            .attempt(VMA)
            .change(|it| it.overcommit.mode = 0)
            .done(),
        2,
    );
    assert_eq!(verdict.cause, Cause::OvercommitHeuristic);
    assert_eq!(verdict.certainty, Certainty::Observed);
    assert_eq!(verdict.check.unwrap().function, "__vm_enough_memory");
    assert_eq!(
        heuristic(kernel.attempt(VMA).done(), 0).cause,
        Cause::CommitLimit
    );
    let unread = kernel.attempt(VMA).without(valid::OVERCOMMIT_MODE).done();
    // So small a request is not refused in that mode: it was another a moment ago.
    assert_eq!(heuristic(unread, 0).cause, Cause::Unknown);
    assert_eq!(heuristic(unread, 1).cause, Cause::Unknown);
    assert_eq!(heuristic(unread, 2).cause, Cause::CommitLimit);
}

#[test]
fn without_facts_there_is_a_cause_but_no_remedy() {
    let kernel = host(20, |_| ());
    let facts = Facts {
        page_size: PAGE,
        cpus: 2,
        ..Facts::default()
    };
    let verdict = judge(&kernel.attempt(VMA).done(), &facts, &all_hooks());
    assert_eq!(verdict.cause, Cause::CommitLimit);
    assert_eq!(verdict.certainty, Certainty::Observed);
    assert!(verdict.remedy.is_empty());
    assert_eq!(verdict.evidence.overcommit.unwrap().usable_bytes, None);
}

#[test]
fn a_later_refusal_of_another_kind_is_not_blamed_on_it() {
    // Seen failing, but the fork ended with another error.
    let kernel = host(20, |_| ());
    let attempt = kernel.attempt(VMA).change(|it| it.ret = EAGAIN).done();
    let verdict = judge(&attempt, &kernel.facts(FORK), &all_hooks());
    assert_eq!(verdict.cause, Cause::Unknown);
}
