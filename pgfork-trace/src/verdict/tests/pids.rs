//! `pids_cgroup_max`: whose limit, and a remedy that opens every level.

use pgfork_trace_common::{PIDS_MAX, valid};

use super::*;

/// Seen in `pids_can_fork`, on a path of these levels.
fn refused(levels: &[(i64, i64)]) -> Attempt {
    hooked(EAGAIN)
        .reached(Check::CgroupFork)
        .pids(levels)
        .with(valid::PIDS_AT_CHECK)
        .failed(Check::PidsCanFork, EAGAIN)
        .failed(Check::CgroupCanFork, EAGAIN)
        .failed(Check::CopyProcess, EAGAIN)
        .done()
}

fn on_path(paths: &[&str]) -> Facts {
    Facts {
        cgroups: paths
            .iter()
            .enumerate()
            .map(|(number, path)| cgroup(number as u64, path))
            .collect(),
        ..facts()
    }
}

fn service() -> Facts {
    let mut facts = on_path(&["/system.slice/postgresql.service", "/system.slice"]);
    facts.cgroups[0].unit = unit("postgresql.service");
    facts.cgroups[1].unit = unit("system.slice");
    facts
}

/// The limits after `echo N > DIRECTORY/pids.max` and `systemctl set-property`.
fn remedied(levels: &[(i64, i64)], facts: &Facts, remedy: &[Remedy]) -> Vec<(i64, i64)> {
    let mut after = levels.to_vec();
    for remedy in remedy {
        let (number, limit) = facts
            .cgroups
            .iter()
            .enumerate()
            .find_map(|(number, fact)| {
                let echo = remedy
                    .change
                    .strip_suffix(&format!(" > {}/pids.max", fact.directory))
                    .and_then(|rest| rest.strip_prefix("echo "));
                let unit = fact.unit.as_ref().and_then(|unit| {
                    remedy.change.strip_prefix(&format!(
                        "systemctl set-property {} {}=",
                        unit.name, unit.property
                    ))
                });
                Some((number, echo.or(unit)?.parse().ok()?))
            })
            .unwrap_or_else(|| panic!("{}", remedy.change));
        assert!(limit > after[number].1, "{} lowers a limit", remedy.change);
        after[number].1 = limit;
    }
    after
}

/// In a storm another task ends between the refusal and the reading of the counters.
#[test]
fn a_slot_that_became_free_since_hides_neither_whose_limit_it_is_nor_the_remedy() {
    let levels = [(40, 500), (88, 90)];
    let verdict = judge(&refused(&levels), &service(), &all_hooks());
    assert_eq!(verdict.certainty, Certainty::Observed);
    assert!(
        matches!(verdict.scope, Some(Scope::Cgroup { ancestor: 1, .. })),
        "{:?}",
        verdict.scope
    );
    let after = remedied(&levels, &service(), &verdict.remedy);
    assert!(room(&after) >= 50, "{after:?}");
    // The one that refused may be above those that were read.
    let mut deeper = refused(&levels);
    deeper.valid |= valid::PIDS_TRUNCATED;
    let verdict = judge(&deeper, &service(), &all_hooks());
    assert_eq!(verdict.scope, None);
    assert!(verdict.remedy.is_empty());
}

/// kernel/cgroup/pids.c `pids_try_charge`: how many more tasks fit.
fn room(levels: &[(i64, i64)]) -> i64 {
    levels
        .iter()
        .map(|(count, limit)| limit - count)
        .min()
        .unwrap()
}

/// Name, levels, number of the refusing one, number of commands.
type Row = (&'static str, &'static [(i64, i64)], usize, usize);

#[test]
fn the_first_full_level_is_the_scope_and_the_remedy_opens_all() {
    const MAX: i64 = PIDS_MAX;
    let table: &[Row] = &[
        ("own level", &[(40, 40), (90, MAX)], 0, 1),
        ("own level above its limit", &[(45, 40), (90, MAX)], 0, 1),
        ("ancestor", &[(40, MAX), (90, 90)], 1, 1),
        ("ancestor, own level roomy", &[(40, 1000), (90, 90)], 1, 1),
        (
            "ancestor, own level nearly full",
            &[(40, 42), (90, 90)],
            1,
            2,
        ),
        ("both full", &[(40, 40), (90, 90)], 0, 2),
        ("own full, ancestor nearly", &[(40, 40), (90, 95)], 0, 2),
        ("limit 0", &[(1, 0), (90, MAX)], 0, 1),
        ("large", &[(20_000, 20_000), (20_100, 20_500)], 0, 2),
    ];
    for (name, levels, ancestor, commands) in table {
        for facts in [service(), on_path(&["/a/b", "/a"])] {
            let verdict = judge(&refused(levels), &facts, &all_hooks());
            assert_eq!(verdict.cause, Cause::PidsCgroupMax, "{name}");
            assert_eq!(verdict.certainty, Certainty::Observed, "{name}");
            assert_eq!(verdict.check.as_ref().unwrap().function, "pids_can_fork");
            let Some(Scope::Cgroup {
                ancestor: found,
                cgroup_id,
                path,
                unit,
                property,
                ..
            }) = &verdict.scope
            else {
                panic!("{name}: {:?}", verdict.scope)
            };
            assert_eq!(found, ancestor, "{name}");
            let fact = &facts.cgroups[*ancestor];
            assert_eq!(*cgroup_id, fact.id);
            assert_eq!(path.as_ref(), Some(&fact.path));
            assert_eq!(unit.as_ref(), fact.unit.as_ref().map(|unit| &unit.name));
            assert_eq!(
                property,
                if fact.unit.is_some() {
                    "TasksMax"
                } else {
                    "pids.max"
                }
            );
            assert_eq!(verdict.remedy.len(), *commands, "{name}");
            let after = remedied(levels, &facts, &verdict.remedy);
            assert!(room(&after) >= 50, "{name}: {after:?}");
            // What the effect promises holds on the whole path.
            let first = &verdict
                .remedy
                .iter()
                .find(|it| it.effect.contains("room for"));
            let promised: i64 = first.unwrap().effect["room for ".len()..]
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(room(&after), promised, "{name}");
        }
    }
}

#[test]
fn levels_without_a_limit_have_none_in_the_evidence() {
    let verdict = judge(
        &refused(&[(40, 40), (90, PIDS_MAX)]),
        &service(),
        &all_hooks(),
    );
    assert_eq!(verdict.evidence.pids[0].limit, Some(40));
    assert_eq!(verdict.evidence.pids[1].limit, None);
    assert_eq!(verdict.evidence.pids[1].tasks, 90);
}

#[test]
fn a_path_that_could_not_be_read_leaves_the_cause_but_no_scope() {
    let attempt = hooked(EAGAIN).failed(Check::PidsCanFork, EAGAIN).done();
    let verdict = judge(&attempt, &service(), &all_hooks());
    assert_eq!(verdict.cause, Cause::PidsCgroupMax);
    assert_eq!(verdict.scope, None);
    assert!(verdict.evidence.pids.is_empty());
}

#[test]
fn a_path_deeper_than_what_is_read_says_so() {
    let levels = [(5, PIDS_MAX); 16];
    let mut attempt = refused(&levels);
    attempt.valid |= valid::PIDS_TRUNCATED;
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::PidsCgroupMax);
    assert!(verdict.evidence.pids_truncated);
    assert_eq!(verdict.scope, None, "the full level is further up");
    assert_eq!(verdict.evidence.pids.len(), 16);
}

#[test]
fn a_cgroup_without_a_name_is_still_found() {
    let verdict = judge(
        &refused(&[(40, 40), (90, PIDS_MAX)]),
        &facts(),
        &all_hooks(),
    );
    let Some(Scope::Cgroup {
        path, cgroup_id, ..
    }) = verdict.scope
    else {
        panic!("a cgroup")
    };
    assert_eq!((path, cgroup_id), (None, 101));
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        r#"echo 90 > "$(find /sys/fs/cgroup -inum 101 -exec test -e {}/pids.max \; -print)/pids.max""#
    );
}

#[test]
fn containers_are_named_and_their_limit_is_set_at_the_cgroup() {
    let id = "7f3c1b2a90de4455667788990011223344556677";
    let mut facts = on_path(&["/system.slice/docker-7f3c.scope", "/system.slice"]);
    facts.cgroups[0].unit = unit("docker-7f3c.scope");
    facts.cgroups[0].container = Some(id.to_owned());
    let verdict = judge(&refused(&[(40, 40), (90, PIDS_MAX)]), &facts, &all_hooks());
    let Some(Scope::Cgroup { container, .. }) = &verdict.scope else {
        panic!("a cgroup")
    };
    assert_eq!(container.as_deref(), Some(id));
    let remedy = &verdict.remedy[0];
    assert_eq!(
        remedy.change.to_string(),
        "echo 90 > /sys/fs/cgroup/system.slice/docker-7f3c.scope/pids.max"
    );
    assert!(
        remedy
            .effect
            .contains("until container 7f3c1b2a90de is recreated")
    );
    // A short or strange id is shown as it is.
    facts.cgroups[0].container = Some("pg1".to_owned());
    let verdict = judge(&refused(&[(40, 40)]), &facts, &all_hooks());
    assert!(verdict.remedy[0].effect.contains("container pg1 is"));
}

#[test]
fn hostile_names_stay_one_word_of_the_shell() {
    let mut facts = on_path(&["/a; rm -rf ~/$(id)'s \"dir\"", "/a"]);
    let command = |facts: &Facts| {
        judge(&refused(&[(40, 40)]), facts, &all_hooks()).remedy[0]
            .change
            .clone()
    };
    let file = "/sys/fs/cgroup/a; rm -rf ~/$(id)'s \"dir\"/pids.max";
    assert_eq!(shell_words(&command(&facts)), ["echo", "90", ">", file]);
    facts.cgroups[0].unit = unit("x'; reboot; '.service");
    assert_eq!(
        shell_words(&command(&facts)),
        [
            "systemctl",
            "set-property",
            "x'; reboot; '.service",
            "TasksMax=90"
        ]
    );
    facts.cgroups[0].unit = unit("");
    assert_eq!(shell_words(&command(&facts))[2], "");
    // Names as systemd escapes them.
    facts.cgroups[0].unit = unit(r"dev-disk\x2d1.service");
    assert_eq!(shell_words(&command(&facts))[2], r"dev-disk\x2d1.service");
}

/// The words that a shell makes of a command without expansions.
fn shell_words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut any, mut quoted) = (Vec::new(), String::new(), false, false);
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            _ if quoted => word.push(c),
            '\\' => word.extend(chars.next()),
            ' ' => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            '$' | '`' | ';' | '&' | '|' | '"' | '~' | '*' | '(' | ')' | '\n' => {
                panic!("{c:?} is open to the shell in {command}")
            }
            c => word.push(c),
        }
    }
    assert!(!quoted, "an open quote in {command}");
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn limits_that_the_kernel_would_not_take_become_none() {
    let almost = PIDS_MAX - 2;
    let mut facts = on_path(&["/a"]);
    let verdict = judge(&refused(&[(almost, almost)]), &facts, &all_hooks());
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "echo max > /sys/fs/cgroup/a/pids.max"
    );
    facts.cgroups[0].unit = unit("a.slice");
    let verdict = judge(&refused(&[(almost, almost)]), &facts, &all_hooks());
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "systemctl set-property a.slice TasksMax=infinity"
    );
}

#[test]
fn the_controller_seen_but_another_error_at_the_end_is_not_it() {
    let mut attempt = refused(&[(40, 40)]);
    attempt.ret = ENOMEM;
    assert_eq!(
        judge(&attempt, &service(), &all_hooks()).cause,
        Cause::Unknown
    );
}
