//! Tests of verdicts on OOM kills.

use super::*;
use crate::{host::oom_log::Sizes, verdict::UnitFact};

fn kill(valid: u32) -> OomKill {
    OomKill {
        victim: 812,
        valid,
        ..OomKill::default()
    }
}

fn facts() -> OomFacts {
    OomFacts {
        page_size: 4096,
        cgroup: Some((
            1,
            CgroupFact {
                runtime: None,
                id: 77,
                path: "/system.slice/pg.service".to_owned(),
                directory: "/sys/fs/cgroup/system.slice/pg.service".to_owned(),
                unit: Some(UnitFact {
                    name: "pg.service".to_owned(),
                    property: "MemoryMax".to_owned(),
                }),
                container: None,
            },
        )),
        unit: Some("pg.service".to_owned()),
        watched: true,
        server: true,
        ..OomFacts::default()
    }
}

#[test]
fn a_cgroup_by_the_record() {
    let record = OomKill {
        memcg_id: 77,
        memcg_usage: 65_536,
        memcg_max: 65_536,
        total_vm_pages: 1000,
        ..kill(oom_valid::TASK | oom_valid::SCOPE)
    };
    let verdict = judge(&record, &OomReport::default(), &facts());
    assert_eq!(
        (verdict.cause, verdict.certainty),
        (Cause::MemcgOomKill, Certainty::Observed)
    );
    assert_eq!(verdict.evidence.limit_bytes, Some(256 * MIB));
    assert_eq!(verdict.evidence.total_vm_bytes, Some(4_096_000));
    assert_eq!(verdict.evidence.anon_rss_bytes, None);
    assert!(
        matches!(&verdict.scope, Some(Scope::Cgroup { cgroup_id: 77, ancestor: 1, unit: Some(unit), .. }) if unit == "pg.service")
    );
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        format!("systemctl set-property pg.service MemoryMax={}", 320 * MIB)
    );
    // A backend died, so nothing is said about the postmaster's score.
    assert!(
        !verdict
            .remedy
            .iter()
            .any(|it| it.change.contains("OOMScoreAdjust"))
    );
}

#[test]
fn the_host_by_the_record_and_a_postmaster() {
    let facts = OomFacts {
        cgroup: None,
        postmaster: true,
        overcommit_memory: Some(0),
        ..facts()
    };
    let verdict = judge(&kill(oom_valid::SCOPE), &OomReport::default(), &facts);
    assert_eq!(verdict.cause, Cause::GlobalOomKill);
    assert_eq!(verdict.scope, Some(Scope::Host));
    assert!(verdict.remedy[0].change.contains("overcommit_memory=2"));
    assert!(
        verdict
            .remedy
            .last()
            .unwrap()
            .change
            .contains("OOMScoreAdjust")
    );
    let strict = OomFacts {
        overcommit_memory: Some(2),
        ..facts
    };
    let verdict = judge(&kill(oom_valid::SCOPE), &OomReport::default(), &strict);
    assert!(
        !verdict
            .remedy
            .iter()
            .any(|it| it.change.contains("overcommit_memory=2"))
    );
}

#[test]
fn without_the_hook_the_log_tells() {
    let none = OomFacts {
        cgroup: None,
        ..facts()
    };
    let report = OomReport {
        usage: Some(Usage {
            usage_bytes: 5,
            limit_bytes: 6,
        }),
        chosen: Some(Chosen {
            pid: 812,
            global: false,
            oom_memcg: Some("/a".to_owned()),
            task_memcg: Some("/a/b".to_owned()),
        }),
        killed: Some(Killed {
            sizes: Sizes {
                total_vm_bytes: Some(1),
                anon_rss_bytes: Some(2),
                ..Sizes::default()
            },
            ..Killed::default()
        }),
    };
    let verdict = judge(&kill(0), &report, &none);
    assert_eq!(verdict.cause, Cause::MemcgOomKill);
    assert_eq!(verdict.evidence.oom_cgroup.as_deref(), Some("/a"));
    assert_eq!(verdict.evidence.limit_bytes, Some(6));
    assert_eq!(verdict.evidence.anon_rss_bytes, Some(2));
    // No number for the limit of a cgroup that is not known here.
    assert_eq!(verdict.scope, None);
    let global = OomReport {
        killed: Some(Killed::default()),
        ..OomReport::default()
    };
    assert_eq!(judge(&kill(0), &global, &none).cause, Cause::GlobalOomKill);
    let nothing = judge(&kill(0), &OomReport::default(), &none);
    assert_eq!(
        (nothing.cause, nothing.certainty),
        (Cause::Unknown, Certainty::Unknown)
    );
    assert!(nothing.remedy.is_empty());
    assert_eq!(nothing.evidence, OomEvidence::default());
}

#[test]
fn what_is_no_server_gets_no_advice_about_one() {
    let record = OomKill {
        memcg_id: 77,
        memcg_max: 65_536,
        ..kill(oom_valid::SCOPE)
    };
    let pooler = OomFacts {
        server: false,
        ..facts()
    };
    let verdict = judge(&record, &OomReport::default(), &pooler);
    assert_eq!(verdict.remedy.len(), 1);
    let other = OomFacts {
        watched: false,
        ..pooler
    };
    assert!(
        judge(&record, &OomReport::default(), &other)
            .remedy
            .is_empty()
    );
}

/// As seen on a 6.18 with cgroup v1.
#[test]
fn a_cgroup_of_version_1_without_a_unit() {
    let mut facts = OomFacts {
        cgroup_v1: true,
        ..facts()
    };
    if let Some((_, cgroup)) = &mut facts.cgroup {
        cgroup.unit = None;
        cgroup.directory = "/sys/fs/cgroup/memory/a".to_owned();
    }
    let record = OomKill {
        memcg_id: 77,
        memcg_max: 51_200,
        ..kill(oom_valid::SCOPE)
    };
    let verdict = judge(&record, &OomReport::default(), &facts);
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "echo 262144000 > /sys/fs/cgroup/memory/a/memory.limit_in_bytes"
    );
    assert!(
        matches!(verdict.scope, Some(Scope::Cgroup { property, .. }) if property == "memory.limit_in_bytes")
    );
}

#[test]
fn two_records_of_one_victim_are_one() {
    let marked = OomKill {
        trigger: 5,
        time_ns: 20,
        ..kill(0)
    };
    let chosen = OomKill {
        watched: 3,
        trigger: 5,
        time_ns: 10,
        memcg_id: 77,
        memcg_max: 9,
        comm: *b"postgres\0\0\0\0\0\0\0\0",
        ..kill(oom_valid::TASK | oom_valid::SCOPE)
    };
    assert_eq!(merged(&marked, &chosen), chosen);
    assert_eq!(merged(&chosen, &marked), chosen);
}
