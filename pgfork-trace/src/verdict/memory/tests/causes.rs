//! Tests of every cause.

use super::*;

#[test]
fn address_space() {
    let limited = |record| MemoryRefusal {
        rlimit_as: 600 * MIB,
        ..record
    };
    let expand = limited(asking(Check::MayExpandVm, 0, 256 * MIB));
    let verdict = verdict(&[call(&[expand, expand], Some(limited(mmap(256 * MIB))))]);
    assert_eq!(found(&verdict), (Cause::RlimitAs, Certainty::Observed));
    assert_eq!(verdict.scope, Some(Scope::Process));
    let check = verdict.check.unwrap();
    assert_eq!(
        (check.function, check.path, check.returned.as_deref()),
        ("may_expand_vm", vec!["vm_mmap_pgoff"], Some("false"))
    );
    // Asked twice for one mapping, it is told once.
    assert_eq!(verdict.trail.len(), 2);
    assert_eq!(verdict.evidence.total_vm_bytes, Some(512 * MIB));
    assert_eq!(verdict.evidence.rlimit_as_bytes, Some(600 * MIB));
    assert_eq!(verdict.evidence.rlimit_data_bytes, None);
    // 512 MiB and twice the request, which is more than half as much again as the limit.
    let target = 1024 * MIB;
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        format!("prlimit --pid 1843 --as={target}:{target}")
    );
    assert_eq!(
        verdict.remedy[1].change.to_string(),
        format!(
            "mkdir -p /etc/systemd/system/postgresql@15-main.service.d && \
             printf '[Service]\\nLimitAS={target}\\n' > /etc/systemd/system/postgresql@15-main.service.d/LimitAS.conf && \
             systemctl daemon-reload"
        )
    );
}

#[test]
fn private_writable_memory() {
    let limited = |record| MemoryRefusal {
        rlimit_data: 100 * MIB,
        ..record
    };
    let verdict = verdict(&[
        call(
            &[limited(asking(Check::MayExpandVm, 0, 64 * MIB))],
            Some(limited(mmap(64 * MIB))),
        ),
        call(
            &[limited(asking(Check::MayExpandVm, 0, 65 * MIB))],
            Some(limited(mmap(65 * MIB))),
        ),
    ]);
    assert_eq!(found(&verdict), (Cause::RlimitData, Certainty::Observed));
    assert_eq!(verdict.asked.len(), 2);
    assert!(verdict.also_possible.is_empty());
    assert!(verdict.remedy[0].change.contains("--data="));
}

/// `may_expand_vm` is inlined into mmap and brk there.
#[test]
fn limits_on_5_10_are_computed() {
    let space = MemoryRefusal {
        rlimit_as: 600 * MIB,
        ..mmap(256 * MIB)
    };
    let both = MemoryRefusal {
        rlimit_data: 100 * MIB,
        ..space
    };
    let data = MemoryRefusal {
        rlimit_as: u64::MAX,
        ..both
    };
    let coverage = coverage(&[Check::MayExpandVm]);
    let of = |record| judge(&request(&[call(&[], Some(record))]), &facts(), &coverage).unwrap();
    let verdict = of(space);
    assert_eq!(found(&verdict), (Cause::RlimitAs, Certainty::Deduced));
    assert_eq!(verdict.check.as_ref().unwrap().returned, None);
    assert!(!verdict.remedy.is_empty());
    // Both are passed: the kernel tests RLIMIT_AS first.
    let verdict = of(both);
    assert_eq!(found(&verdict), (Cause::RlimitAs, Certainty::Deduced));
    assert_eq!(verdict.also_possible[0].what, "rlimit_data");
    assert_eq!(found(&of(data)), (Cause::RlimitData, Certainty::Deduced));
    // Shared mappings are no data.
    let shared = MemoryRefusal {
        flags: MAP_SHARED | ANONYMOUS,
        ..data
    };
    assert_eq!(of(shared).cause, Cause::Unknown);
    // brk, which has no flags.
    let heap = MemoryRefusal {
        rlimit_data: 100 * MIB,
        ..brk(64 * MIB)
    };
    let verdict = of(heap);
    assert_eq!(found(&verdict), (Cause::RlimitData, Certainty::Deduced));
    assert!(
        verdict.because.contains("may have got it"),
        "{}",
        verdict.because
    );
}

#[test]
fn a_limit_whose_numbers_do_not_tell() {
    // The state could not be read.
    let blind = MemoryRefusal {
        valid: valid::BYTES,
        ..asking(Check::MayExpandVm, 0, MIB)
    };
    let unknown = verdict(&[call(&[blind, blind], None)]);
    assert_eq!(found(&unknown), (Cause::Unknown, Certainty::Unknown));
    let possible: Vec<&str> = unknown.also_possible.iter().map(|it| it.what).collect();
    assert_eq!(possible, ["rlimit_as", "rlimit_data"]);
    assert!(unknown.remedy.is_empty());
    assert_eq!(unknown.evidence.total_vm_bytes, None);
    // The numbers fit neither, but only one limit is set.
    for (limits, cause) in [
        ((900 * MIB, u64::MAX), Cause::RlimitAs),
        ((u64::MAX, 900 * MIB), Cause::RlimitData),
    ] {
        let moved = MemoryRefusal {
            rlimit_as: limits.0,
            rlimit_data: limits.1,
            ..asking(Check::MayExpandVm, 0, MIB)
        };
        assert_eq!(
            found(&verdict(&[call(&[moved, moved], None)])),
            (cause, Certainty::Deduced)
        );
    }
}

/// `mmap_region` to 6.12 may be told no, subtract what it replaces, and be told yes.
#[test]
fn a_check_that_the_call_may_have_passed_all_the_same() {
    let limited = MemoryRefusal {
        rlimit_as: 600 * MIB,
        ..asking(Check::MayExpandVm, 0, 256 * MIB)
    };
    let once = verdict(&[call(&[limited], None)]);
    assert_eq!(found(&once), (Cause::Unknown, Certainty::Unknown));
    assert_eq!(once.also_possible[0].what, "rlimit_as");
    assert!(once.remedy.is_empty());
    let twice = verdict(&[call(&[limited, limited], None)]);
    assert_eq!(found(&twice), (Cause::RlimitAs, Certainty::Observed));
    // Where mmap cannot be watched, its failure could not have been seen.
    let unseen = judge(
        &request(&[call(&[limited], None)]),
        &facts(),
        &coverage(&[Check::VmMmapPgoff]),
    );
    assert_eq!(
        found(&unseen.unwrap()),
        (Cause::RlimitAs, Certainty::Observed)
    );
}

#[test]
fn too_many_mappings() {
    let full = |record, count| MemoryRefusal {
        map_count: count,
        ..record
    };
    for (record, cause) in [
        (full(mmap(MIB), 65_531), Cause::MaxMapCount),
        (full(mmap(MIB), 65_530), Cause::Unknown),
        (full(brk(MIB), 65_531), Cause::MaxMapCount),
        // A split needs one, a move up to three more.
        (
            full(asking(Check::Mprotect, ENOMEM, MIB), 65_530),
            Cause::MaxMapCount,
        ),
        (
            full(asking(Check::Mprotect, ENOMEM, MIB), 65_529),
            Cause::Unknown,
        ),
        (
            full(asking(Check::Mremap, ENOMEM, MIB), 65_527),
            Cause::MaxMapCount,
        ),
        (
            full(asking(Check::Mremap, ENOMEM, MIB), 65_526),
            Cause::Unknown,
        ),
    ] {
        let verdict = verdict(&[call(&[], Some(record))]);
        assert_eq!(verdict.cause, cause, "{record:?}");
        if cause == Cause::Unknown {
            assert!(
                verdict
                    .ruled_out
                    .iter()
                    .any(|it| it.what == "max_map_count")
            );
            assert!(verdict.remedy.is_empty());
        } else {
            assert_eq!(verdict.certainty, Certainty::Deduced);
            assert_eq!(
                verdict.remedy[0].change.to_string(),
                format!(
                    "sysctl vm.max_map_count={}",
                    65_531.min(record.map_count.max(65_530)) * 2
                )
            );
            assert_eq!(verdict.scope, Some(Scope::Process));
        }
    }
}

#[test]
fn strict_and_heuristic_overcommit() {
    let strict = verdict(&[call(&[overcommit(GIB, 2)], Some(mmap(GIB)))]);
    assert_eq!(found(&strict), (Cause::CommitLimit, Certainty::Observed));
    assert_eq!(strict.scope, Some(Scope::Host));
    let numbers = strict.evidence.overcommit.as_ref().unwrap();
    assert_eq!(numbers.requested_bytes, Some(GIB));
    assert_eq!(numbers.committed_bytes, Some(3 * GIB));
    // 1/32 of the backend's address space.
    assert_eq!(numbers.user_reserve_bytes, Some(16 * MIB));
    assert_eq!(numbers.usable_bytes, Some(4 * GIB - 8 * MIB - 16 * MIB));
    assert!(
        strict.remedy[0]
            .change
            .starts_with("sysctl vm.overcommit_ratio=")
    );
    assert!(
        strict
            .remedy
            .iter()
            .all(|it| !it.effect.contains("backends like"))
    );
    assert!(strict.remedy.last().unwrap().change.contains("work_mem"));

    let heuristic = verdict(&[call(&[overcommit(9 * GIB, 0)], Some(mmap(9 * GIB)))]);
    assert_eq!(
        found(&heuristic),
        (Cause::OvercommitHeuristic, Certainty::Observed)
    );
    assert!(
        heuristic
            .remedy
            .iter()
            .any(|it| &*it.change == "add 1024 MiB of swap")
    );
    // The mode was changed between.
    let mut odd = overcommit(GIB, 1);
    odd.valid &= !valid::OVERCOMMIT_MODE;
    let mut facts = facts();
    facts.host.overcommit = None;
    let odd = judge(&request(&[call(&[odd], None)]), &facts, &coverage(&[])).unwrap();
    assert_eq!(found(&odd), (Cause::CommitLimit, Certainty::Deduced));
    assert!(odd.because.contains("shmget"));
}

/// The tracepoint method, or a kernel where the check cannot be hooked.
#[test]
fn overcommit_that_could_not_be_watched() {
    let coverage = coverage(&[Check::VmEnoughMemory]);
    let mut strict = facts();
    if let Some(settings) = &mut strict.host.overcommit {
        settings.mode = 2;
    }
    let of = |bytes, facts: &RequestFacts| {
        judge(&request(&[call(&[], Some(mmap(bytes)))]), facts, &coverage).unwrap()
    };
    assert_eq!(
        found(&of(2 * GIB, &strict)),
        (Cause::CommitLimit, Certainty::Deduced)
    );
    let fits = of(MIB, &strict);
    assert_eq!(found(&fits), (Cause::Unknown, Certainty::Unknown));
    assert!(fits.ruled_out.iter().any(|it| it.what == "commit_limit"));
    assert_eq!(
        found(&of(9 * GIB, &facts())),
        (Cause::OvercommitHeuristic, Certainty::Deduced)
    );
    assert_eq!(of(MIB, &facts()).cause, Cause::Unknown);
}

#[test]
fn shared_memory() {
    let shared = MemoryRefusal {
        flags: MAP_SHARED | ANONYMOUS,
        ..mmap(2 * GIB)
    };
    let verdict = verdict(&[call(&[overcommit(2 * GIB, 2)], Some(shared))]);
    assert_eq!(
        found(&verdict),
        (Cause::ShmCommitRefused, Certainty::Observed)
    );
    assert!(
        verdict.remedy[0]
            .change
            .starts_with("sysctl vm.overcommit_ratio=")
    );
    assert!(
        verdict
            .remedy
            .last()
            .unwrap()
            .change
            .contains("shared_buffers")
    );
}

#[test]
fn locked_memory() {
    let eagain = |record| MemoryRefusal {
        ret: -libc::EAGAIN,
        ..record
    };
    let seen = verdict(&[call(
        &[asking(Check::MlockFuture, 0, 16 * MIB)],
        Some(eagain(mmap(16 * MIB))),
    )]);
    assert_eq!(found(&seen), (Cause::RlimitMemlock, Certainty::Observed));
    assert!(seen.remedy[0].change.contains("--memlock="));
    // Inline on 5.10.
    let inline = verdict(&[call(&[], Some(eagain(mmap(16 * MIB))))]);
    assert_eq!(found(&inline), (Cause::RlimitMemlock, Certainty::Deduced));
    let room = verdict(&[call(&[], Some(eagain(mmap(MIB))))]);
    assert_eq!(found(&room), (Cause::Unknown, Certainty::Unknown));
}

#[test]
fn huge_pages() {
    let asked = |bytes| MemoryRefusal {
        flags: MAP_SHARED | ANONYMOUS | MAP_HUGETLB,
        ..mmap(bytes)
    };
    let seen = |bytes, facts: &RequestFacts| {
        let inner = failed(Check::HugetlbReservePages, ENOMEM);
        judge(
            &request(&[call(&[inner], Some(asked(bytes)))]),
            facts,
            &coverage(&[]),
        )
        .unwrap()
    };
    // 40 of 60 free pages are not promised.
    let verdict = seen(100 * MIB, &facts());
    assert_eq!(
        found(&verdict),
        (Cause::HugetlbExhausted, Certainty::Observed)
    );
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "sysctl vm.nr_hugepages=110"
    );
    assert_eq!(verdict.evidence.huge_pages, facts().huge_pages);
    assert_eq!(seen(80 * MIB, &facts()).cause, Cause::Unknown);
    let blind = RequestFacts {
        huge_pages: None,
        ..facts()
    };
    let verdict = seen(100 * MIB, &blind);
    assert_eq!(
        found(&verdict),
        (Cause::HugetlbExhausted, Certainty::Deduced)
    );
    assert_eq!(verdict.remedy.len(), 1);
    // Of 1 GiB, whose pool was not read.
    let gigantic = MemoryRefusal {
        flags: asked(GIB).flags | 30 << 26,
        ..asked(GIB)
    };
    let inner = failed(Check::HugetlbReservePages, ENOMEM);
    let other = self::verdict(&[call(&[inner], Some(gigantic))]);
    assert_eq!(found(&other), (Cause::HugetlbExhausted, Certainty::Deduced));
    assert_eq!(other.evidence.huge_pages, None);
    assert_eq!(other.remedy.len(), 1);
    let unseen = self::verdict(&[call(&[], Some(asked(100 * MIB)))]);
    assert_eq!(
        found(&unseen),
        (Cause::HugetlbExhausted, Certainty::Deduced)
    );
}

/// A shared memory segment of 8 MiB in a tmpfs of 64 MiB, of which 2 MiB are left.
#[test]
fn a_full_tmpfs() {
    let facts = RequestFacts {
        tmpfs: Some(TmpfsRoom {
            mounted_on: "/dev/shm".to_owned(),
            size_bytes: Some(64 * MIB),
            free_bytes: Some(2 * MIB),
        }),
        ..facts()
    };
    let asked = |ret| asking(Check::ShmemFallocate, ret, 8 * MIB);
    let judged = |inner: &[MemoryRefusal], ret, facts: &RequestFacts, without: &[Check]| {
        let request = request(&[call(inner, Some(asked(ret)))]);
        judge(&request, facts, &coverage(without)).unwrap()
    };
    let full = judged(&[], -libc::ENOSPC, &facts, &[]);
    assert_eq!(found(&full), (Cause::ShmTmpfsFull, Certainty::Observed));
    assert_eq!(full.asked[0].way, Way::Fallocate);
    assert_eq!(full.check.unwrap().function, "shmem_fallocate");
    assert_eq!(full.evidence.requested_bytes, Some(8 * MIB));
    assert_eq!(full.evidence.mapping_flags, None);
    assert_eq!(full.evidence.tmpfs, facts.tmpfs);
    let command = full.remedy[0].change.to_string();
    assert_eq!(
        command,
        "nsenter -t 1843 -m mount -o remount,size=96M /dev/shm"
    );
    // A much larger one: what is used, and twice of it.
    let request_of = |bytes| asking(Check::ShmemFallocate, -libc::ENOSPC, bytes);
    let large = request(&[call(&[], Some(request_of(100 * MIB)))]);
    let large = judge(&large, &facts, &coverage(&[])).unwrap();
    assert!(large.remedy[0].change.contains("size=262M"));
    // A name that a shell would take for more than that is not put into a command.
    let mut odd = facts.clone();
    odd.tmpfs.as_mut().unwrap().mounted_on = "/dev/$(reboot)".to_owned();
    let odd = judged(&[], -libc::ENOSPC, &odd, &[]);
    assert!(odd.remedy.iter().all(|it| !it.change.contains("nsenter")));
    // Not known which one.
    let blind = judged(&[], -libc::ENOSPC, &self::facts(), &[]);
    assert_eq!(found(&blind), (Cause::ShmTmpfsFull, Certainty::Observed));
    assert!(blind.remedy.is_empty());
}

#[test]
fn what_else_ends_a_fallocate() {
    let asked = |ret| asking(Check::ShmemFallocate, ret, 8 * MIB);
    let judged = |inner: &[MemoryRefusal], ret, without: &[Check]| {
        let request = request(&[call(inner, Some(asked(ret)))]);
        judge(&request, &facts(), &coverage(without))
    };
    // One page at a time is promised.
    let promise = overcommit(PAGE, 2);
    let refused = judged(&[promise], -libc::ENOSPC, &[]).unwrap();
    assert_eq!(
        found(&refused),
        (Cause::ShmCommitRefused, Certainty::Observed)
    );
    assert!(refused.because.contains("tmpfs"));
    assert_eq!(refused.check.unwrap().path, ["shmem_fallocate"]);
    let unseen = judged(&[], -libc::ENOSPC, &[Check::VmEnoughMemory]).unwrap();
    assert_eq!(found(&unseen), (Cause::ShmTmpfsFull, Certainty::Deduced));
    assert_eq!(unseen.also_possible[0].what, "shm_commit_refused");
    let memory = judged(&[], ENOMEM, &[]).unwrap();
    assert_eq!(memory.cause, Cause::Unknown);
    // A signal came, or the file would be larger than files may be.
    assert_eq!(judged(&[], -libc::EINTR, &[]), None);
    assert_eq!(judged(&[], -libc::EFBIG, &[]), None);
}

#[test]
fn no_hole_in_the_address_space() {
    let inner = asking(Check::GetUnmappedArea, ENOMEM, 1 << 47);
    let none = verdict(&[call(&[inner], Some(mmap(1 << 47)))]);
    assert_eq!(
        found(&none),
        (Cause::AddressSpaceExhausted, Certainty::Observed)
    );
    assert!(none.remedy.is_empty());
    let denied = MemoryRefusal {
        ret: -libc::EPERM,
        ..inner
    };
    assert_eq!(verdict(&[call(&[denied], None)]).cause, Cause::Unknown);
}

#[test]
fn a_stack_that_cannot_grow() {
    let grow = failed(Check::ExpandDownwards, ENOMEM);
    let commit = verdict(&[call(&[overcommit(8192, 2)], Some(grow))]);
    assert_eq!(
        found(&commit),
        (Cause::StackGrowthRefused, Certainty::Observed)
    );
    assert_eq!(commit.behind, Some(Cause::CommitLimit));
    assert_eq!(commit.scope, Some(Scope::Host));
    assert!(commit.remedy[0].change.contains("overcommit_ratio"));
    assert_eq!(commit.asked[0].way, Way::StackGrowth);

    let full = MemoryRefusal {
        stack_vm_pages: 8 * MIB / PAGE,
        ..grow
    };
    let full = verdict(&[call(&[], Some(full))]);
    assert_eq!((full.cause, full.behind), (Cause::StackGrowthRefused, None));
    assert!(
        full.remedy[0]
            .change
            .starts_with("max_stack_depth = 7168kB")
    );
    assert!(full.remedy[1].change.contains("--stack=16777216:16777216"));

    let unknown = verdict(&[call(&[], Some(grow))]);
    assert_eq!(unknown.behind, None);
    assert!(unknown.because.contains("not known"));
    assert!(unknown.remedy.is_empty());
}

#[test]
fn the_best_known_call_decides_and_other_causes_are_named() {
    // mmap was refused by a limit that was seen, brk by the number of mappings.
    let expand = MemoryRefusal {
        rlimit_as: 600 * MIB,
        ..asking(Check::MayExpandVm, 0, GIB)
    };
    let full = MemoryRefusal {
        map_count: 65_531,
        ..brk(GIB)
    };
    let verdict = verdict(&[call(&[], Some(full)), call(&[expand], Some(mmap(GIB)))]);
    assert_eq!(found(&verdict), (Cause::RlimitAs, Certainty::Observed));
    assert_eq!(verdict.also_possible[0].what, "max_map_count");
    let ways: Vec<Way> = verdict.asked.iter().map(|it| it.way).collect();
    assert_eq!(ways, [Way::Brk, Way::Mmap]);
    assert_eq!(
        errno(&request(&[call(&[expand], Some(mmap(GIB)))])),
        Some(ENOMEM)
    );
}

#[test]
fn wrong_arguments_are_no_refusal_and_permission_is_no_limit() {
    for (ret, refused) in [
        (-libc::EINVAL, false),
        (-libc::EBADF, false),
        (-libc::EEXIST, false),
        (-libc::EPERM, true),
        (-libc::EACCES, true),
    ] {
        let record = MemoryRefusal { ret, ..mmap(MIB) };
        let verdict = judge(
            &request(&[call(&[], Some(record))]),
            &facts(),
            &coverage(&[]),
        );
        assert_eq!(verdict.is_some(), refused, "{ret}");
        if let Some(verdict) = verdict {
            assert_eq!(found(&verdict), (Cause::Unknown, Certainty::Unknown));
            assert!(verdict.because.contains("security module"));
        }
    }
}

/// Advice about PostgreSQL's settings is for PostgreSQL.
#[test]
fn what_is_no_server_gets_no_advice_about_one() {
    let other = RequestFacts {
        server: false,
        ..facts()
    };
    let full = MemoryRefusal {
        stack_vm_pages: 8 * MIB / PAGE,
        ..failed(Check::ExpandDownwards, ENOMEM)
    };
    let shared = MemoryRefusal {
        flags: MAP_SHARED | ANONYMOUS,
        ..mmap(9 * GIB)
    };
    let huge = MemoryRefusal {
        flags: MAP_SHARED | ANONYMOUS | MAP_HUGETLB,
        ..mmap(GIB)
    };
    let settings = [
        "work_mem",
        "shared_buffers",
        "max_stack_depth",
        "huge_pages =",
    ];
    for call in [
        call(&[overcommit(GIB, 2)], Some(mmap(GIB))),
        call(&[overcommit(9 * GIB, 0)], Some(shared)),
        call(&[overcommit(9 * GIB, 2)], Some(shared)),
        call(&[overcommit(9 * GIB, 0)], Some(mmap(9 * GIB))),
        call(&[], Some(full)),
        call(&[], Some(huge)),
    ] {
        let of = |facts: &RequestFacts| {
            judge(&request(std::slice::from_ref(&call)), facts, &coverage(&[])).unwrap()
        };
        let speaks = |verdict: &MemoryVerdict| {
            verdict.remedy.iter().any(|it| {
                settings
                    .iter()
                    .any(|name| it.change.contains(name) || it.effect.contains(name))
            })
        };
        assert!(speaks(&of(&facts())), "{call:?}");
        assert!(!of(&other).remedy.is_empty(), "{call:?}");
        assert!(!speaks(&of(&other)), "{call:?}");
    }
}

#[test]
fn an_access_far_below_the_stack_is_no_refusal() {
    let far = failed(Check::ExpandDownwards, -libc::EPERM);
    assert_eq!(
        judge(&request(&[call(&[], Some(far))]), &facts(), &coverage(&[])),
        None
    );
}

/// Whatever the kernel side sends, nothing panics or overflows.
#[test]
fn absurd_numbers() {
    for fill in [0u8, 1, 0x7f, 0x80, 0xff] {
        for check in Check::ALL {
            // SAFETY: made of integers only.
            let mut record: MemoryRefusal =
                unsafe { std::mem::transmute([fill; size_of::<MemoryRefusal>()]) };
            record.check = check as u32;
            let host = RequestFacts {
                host: Facts::default(),
                ..facts()
            };
            for facts in [facts(), host] {
                let mut merger = Merger::default();
                let mut done = merger.push(record);
                done.extend(merger.drain());
                for request in done {
                    let _ = judge(&request, &facts, &coverage(&[]));
                }
            }
        }
    }
}
