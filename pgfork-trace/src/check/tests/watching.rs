//! `--watch`: the loop, trends, and where reports go.

use std::time::Duration;

use super::*;

/// Time that passes only in pauses; a signal comes in the pause after `signal_after` of them.
struct Fake {
    now: Instant,
    pauses: Vec<Duration>,
    signal_after: usize,
}

impl Fake {
    fn new(signal_after: usize) -> Self {
        Self {
            now: Instant::now(),
            pauses: Vec::new(),
            signal_after,
        }
    }
}

impl Clock for Fake {
    fn now(&self) -> Instant {
        self.now
    }

    fn pause(&mut self, pause: Duration) -> bool {
        self.now += pause;
        self.pauses.push(pause);
        self.pauses.len() > self.signal_after
    }
}

fn plan(duration: Option<u64>) -> CheckPlan {
    CheckPlan {
        watch: Some(Duration::from_secs(2)),
        duration: duration.map(Duration::from_secs),
        ..CheckPlan::default()
    }
}

fn tree() -> FakeRoot {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    fake
}

fn tasks(fake: &FakeRoot, tasks: u64) {
    let file = "sys/fs/cgroup/app.slice/pg.service/pids.current";
    fake.write(file, format!("{tasks}\n"));
}

fn looked(fake: &FakeRoot) -> Result<Report> {
    look(fake.root(), &Filter::default(), Near::default())
}

#[test]
fn it_ends_after_its_time_or_with_a_signal() {
    let fake = tree();
    for (duration, signal_after, looks) in [(Some(5), 99, 3), (Some(4), 99, 2), (None, 3, 4)] {
        let mut clock = Fake::new(signal_after);
        let mut written = 0;
        let near = watch(
            &plan(duration),
            || looked(&fake),
            &mut clock,
            |_| {
                written += 1;
                Ok(())
            },
        );
        // 5 of 17 tasks are left.
        assert!(near.unwrap().near > 0);
        assert_eq!(written, looks, "{duration:?}");
        if let Some(duration) = duration {
            assert_eq!(clock.pauses.iter().sum::<Duration>().as_secs(), duration);
        }
    }
}

#[test]
fn the_status_is_of_the_worst_look_and_a_restart_ends_nothing() {
    let fake = tree();
    let mut looks = 0;
    let mut written = Vec::new();
    let look = || {
        looks += 1;
        let mut report = looked(&fake)?;
        report.near = [3, 0, 0, 1][looks - 1];
        if looks == 2 {
            bail!("no postmaster was found");
        }
        Ok(report)
    };
    let near = watch(&plan(Some(8)), look, &mut Fake::new(99), |report| {
        written.push(report.near);
        Ok(())
    });
    assert_eq!(near.unwrap().near, 3);
    assert_eq!(written, [3, 0, 1]);
    let failed = watch(
        &plan(None),
        || bail!("nothing"),
        &mut Fake::new(9),
        |_| Ok(()),
    );
    assert_eq!(failed.unwrap_err().to_string(), "nothing");
    // Nobody reads any more.
    let look = || looked(&fake);
    let closed = watch(&plan(None), look, &mut Fake::new(9), |_| bail!("closed"));
    assert_eq!(closed.unwrap_err().to_string(), "closed");
}

#[test]
fn a_limit_that_moves_says_when_it_is_full() {
    let fake = tree();
    let start = Instant::now();
    let mut trends = Trends::default();
    let mut last = None;
    // On the whole one task in two seconds, with noise.
    for (at, tasks_now) in [(0, 5), (2, 7), (4, 6), (6, 9), (8, 8), (10, 10)] {
        tasks(&fake, tasks_now);
        let mut report = looked(&fake).unwrap();
        trends.add(&mut report, start + Duration::from_secs(at));
        last = Some(report);
    }
    let report = last.unwrap();
    let limit = &report.servers[0].limits[0];
    let trend = limit.trend.unwrap();
    assert_eq!((trend.used_change, trend.over_ms), (4, 10_000), "{trend:?}");
    // 7 more at 0.93 in 2 s.
    assert_eq!(trend.full_in_s, Some(15));
    let summary = &report.servers[0].summary;
    assert!(
        summary.starts_with("After 7 more backends, in 15 s at this rate, TasksMax "),
        "{summary}"
    );
    let text = text_of(&report);
    assert!(
        text.contains(", +4 tasks in 10.0 s, full in 15 s"),
        "{text}"
    );
    // Another limit is another line, and looks that are too old are forgotten.
    fake.write("sys/fs/cgroup/app.slice/pg.service/pids.max", "20\n");
    let mut report = looked(&fake).unwrap();
    trends.add(&mut report, start + Duration::from_secs(12));
    assert_eq!(report.servers[0].limits[0].trend, None);
    for at in 0..30 {
        trends.add(
            &mut looked(&fake).unwrap(),
            start + Duration::from_secs(14 + at),
        );
    }
    let mut report = looked(&fake).unwrap();
    trends.add(&mut report, start + Duration::from_secs(50));
    let trend = report.servers[0].limits[0].trend.unwrap();
    assert_eq!((trend.used_change, trend.full_in_s), (0, None));
    assert!(trend.over_ms < 20_000, "{trend:?}");
}

#[test]
fn what_is_redrawn_is_what_matters_and_json_goes_to_a_file_as_well() {
    let fake = tree();
    for pid in 701..=704 {
        backend(&fake, pid, "postgres: app db [local] idle in transaction");
    }
    let options = OutputOptions::default();
    let path = fake.path("watch.json");
    let mut out = Output {
        options: &options,
        around: Surroundings {
            stdout_terminal: true,
            stderr_terminal: false,
            no_color: true,
            time_zone: jiff::tz::TimeZone::UTC,
        },
        again: true,
        file: Some(CheckFile::create(&path).unwrap()),
        prometheus: None,
    };
    let mut screen = Vec::new();
    watch(
        &plan(Some(4)),
        || looked(&fake),
        &mut Fake::new(99),
        |report| out.write(report, &mut screen),
    )
    .unwrap();
    let screen = String::from_utf8(screen).unwrap();
    let last = screen.rsplit("\x1b[H\x1b[J").next().unwrap();
    assert_eq!(screen.matches("\x1b[H\x1b[J").count(), 2);
    assert!(
        last.contains("pids_cgroup_max") && last.contains("CLOSE"),
        "{last}"
    );
    assert!(
        last.contains("4 connections: 0 idle, 4 idle in transaction"),
        "{last}"
    );
    assert!(!last.contains("threads_max"), "far away: {last}");
    assert!(last.lines().count() < 24, "one screen: {last}");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2);
    let validator = jsonschema::validator_for(&check_schema()).unwrap();
    for line in text.lines() {
        assert!(
            validator.is_valid(&serde_json::from_str(line).unwrap()),
            "{line}"
        );
    }
    assert!(
        CheckFile::create(&path).is_err(),
        "never over an existing file"
    );
    let unused = fake.path("unused.json");
    drop(CheckFile::create(&unused).unwrap());
    assert!(!unused.exists(), "nothing was written");
}
