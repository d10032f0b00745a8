//! Tests of the reporter with writers in memory, and with writers that fail.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use jiff::tz::TimeZone;

use super::{
    super::{
        Color,
        line::{EndReason, Notice},
        samples::{self, time},
    },
    *,
};

#[derive(Clone, Default)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    error: Arc<Mutex<Option<i32>>>,
}

impl Memory {
    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }

    fn fail(&self, errno: Option<i32>) {
        *self.error.lock().unwrap() = errno;
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(errno) = *self.error.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.bytes.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Run {
    reporter: Reporter,
    stdout: Memory,
    stderr: Memory,
}

fn run(options: &OutputOptions, terminals: bool) -> Run {
    let surroundings = Surroundings {
        stdout_terminal: terminals,
        stderr_terminal: terminals,
        no_color: false,
        time_zone: TimeZone::UTC,
    };
    let (stdout, stderr) = (Memory::default(), Memory::default());
    Run {
        reporter: Reporter::new(options, &surroundings, stdout.clone(), stderr.clone()).unwrap(),
        stdout,
        stderr,
    }
}

impl Run {
    fn emit(&mut self, line: &Line) -> Result<(), Closed> {
        self.reporter.emit(time("12:00:00"), line)
    }

    fn emit_all(&mut self) {
        for line in lines() {
            self.emit(&line).unwrap();
        }
        self.reporter.finish().unwrap();
    }
}

fn lines() -> Vec<Line> {
    vec![
        samples::start(vec![samples::postmaster()], &[]),
        Notice::line("x", "a notice"),
        refusal(),
        refusal(),
        Line::Totals(samples::totals(
            samples::postmaster(),
            5,
            &[("commit_limit", 2)],
        )),
        Line::End(samples::end(2, 0, true)),
    ]
}

fn refusal() -> Line {
    Line::Refusal(Box::new(samples::commit_limit()))
}

fn types(json: &str) -> Vec<String> {
    json.lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            value["type"].as_str().unwrap().to_owned()
        })
        .collect()
}

const ALL_TYPES: [&str; 6] = ["start", "notice", "refusal", "refusal", "totals", "end"];

#[test]
fn text_goes_to_standard_output() {
    let mut run = run(&OutputOptions::default(), false);
    run.emit_all();
    let text = run.stdout.text();
    assert!(text.starts_with("Watching 1 postmaster on"), "{text}");
    assert_eq!(text.matches("REFUSED").count(), 1);
    assert!(text.contains("1 more refusal, same cause"));
    assert!(!text.contains('\x1b'));
    assert_eq!(run.stderr.text(), "");
}

#[test]
fn json_has_every_record_and_people_read_standard_error() {
    let json = OutputOptions {
        json: true,
        ..OutputOptions::default()
    };
    for (options, terminals, people) in [
        (json.clone(), true, true),
        (json.clone(), false, false),
        (
            OutputOptions {
                verbose: 1,
                ..json.clone()
            },
            false,
            true,
        ),
        (
            OutputOptions {
                quiet: 1,
                ..json.clone()
            },
            true,
            false,
        ),
    ] {
        let mut run = run(&options, terminals);
        run.emit_all();
        assert_eq!(types(&run.stdout.text()), ALL_TYPES);
        let stderr = run.stderr.text();
        for part in ["Watching 1", "note: a notice", "accounted for"] {
            assert_eq!(stderr.contains(part), people, "{options:?}: {stderr}");
        }
        assert!(!stderr.contains("REFUSED"));
    }
}

#[test]
fn colours() {
    for (color, terminals, colored) in [
        (Color::Auto, true, true),
        (Color::Auto, false, false),
        (Color::Always, false, true),
        (Color::Never, true, false),
    ] {
        let options = OutputOptions {
            color,
            ..OutputOptions::default()
        };
        let mut run = run(&options, terminals);
        run.emit(&refusal()).unwrap();
        assert_eq!(
            run.stdout.text().contains("\x1b["),
            colored,
            "{color:?} {terminals}"
        );
    }
    let surroundings = Surroundings {
        stdout_terminal: true,
        stderr_terminal: true,
        no_color: true,
        time_zone: TimeZone::UTC,
    };
    assert!(!surroundings.colors(Color::Auto, true));
    assert!(surroundings.colors(Color::Always, true));
}

#[test]
fn file_has_every_record_next_to_text() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.json");
    let options = OutputOptions {
        file: Some(path.clone()),
        quiet: 2,
        ..OutputOptions::default()
    };
    let mut run = run(&options, false);
    // Created before anything is said, and valid after every line.
    for (done, line) in lines().iter().enumerate() {
        assert_eq!(
            types(&fs::read_to_string(&path).unwrap()),
            ALL_TYPES[..done]
        );
        run.emit(line).unwrap();
    }
    run.reporter.finish().unwrap();
    assert_eq!(types(&fs::read_to_string(&path).unwrap()), ALL_TYPES);
    assert!(run.stdout.text().starts_with("\nWatched 2 min 14 s."));
    let again = Reporter::new(&options, &Surroundings::read(), io::sink(), io::sink());
    assert!(matches!(again, Err(OpenError::Exists(_))));
}

#[test]
fn file_without_a_line_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.json");
    let options = OutputOptions {
        file: Some(path.clone()),
        ..OutputOptions::default()
    };
    let run = run(&options, false);
    assert!(path.exists());
    drop(run);
    assert!(!path.exists());
}

#[test]
fn closed_pipe_is_said_once_and_the_file_goes_on() {
    for json in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.json");
        let options = OutputOptions {
            json,
            file: Some(path.clone()),
            ..OutputOptions::default()
        };
        let mut run = run(&options, false);
        run.emit(&lines()[0]).unwrap();
        run.stdout.fail(Some(libc::EPIPE));
        assert_eq!(run.emit(&refusal()), Err(Closed));
        for line in &lines()[3..] {
            assert_eq!(run.emit(line), Ok(()));
        }
        assert_eq!(run.reporter.tick(time("12:01:00")), Ok(()));
        assert_eq!(run.reporter.finish(), Ok(()));
        let wanted = ["start", "refusal", "refusal", "totals", "end"];
        assert_eq!(types(&fs::read_to_string(&path).unwrap()), wanted);
        assert_eq!(run.stderr.text(), "");
    }
}

#[test]
fn closed_pipe_is_noticed_by_a_tick() {
    let mut run = run(&OutputOptions::default(), false);
    run.emit(&refusal()).unwrap();
    run.emit(&refusal()).unwrap();
    run.stdout.fail(Some(libc::EPIPE));
    assert_eq!(run.reporter.tick(time("12:00:00.5")), Ok(()));
    assert_eq!(run.reporter.tick(time("12:00:02")), Err(Closed));
}

#[test]
fn full_disk_is_said_once_and_watching_goes_on() {
    for json in [false, true] {
        let options = OutputOptions {
            json,
            ..OutputOptions::default()
        };
        let mut run = run(&options, false);
        run.emit(&lines()[0]).unwrap();
        run.stdout.fail(Some(libc::ENOSPC));
        for _ in 0..3 {
            run.emit(&Notice::line("x", "y")).unwrap();
        }
        assert_eq!(
            run.stderr.text(),
            "pgfork-trace: cannot write to standard output: No space left on device; watching goes on\n"
        );
        assert_eq!(run.reporter.unwritten(), 3);
        run.stdout.fail(None);
        run.emit(&lines()[5]).unwrap();
        if json {
            let text = run.stdout.text();
            assert_eq!(types(&text), ["start", "notice", "end"]);
            assert!(
                text.contains("3 lines before this one could not be written"),
                "{text}"
            );
        }
    }
}

#[test]
fn full_device() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let stderr = Memory::default();
    let options = OutputOptions {
        json: true,
        ..OutputOptions::default()
    };
    let mut reporter =
        Reporter::new(&options, &Surroundings::read(), full, stderr.clone()).unwrap();
    for line in lines() {
        reporter.emit(time("12:00:00"), &line).unwrap();
    }
    assert_eq!(reporter.unwritten(), 6);
    assert!(stderr.text().contains("No space left on device"));
}

#[test]
fn max_size_holds_for_the_file_alone_in_text_mode() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.json");
    let options = OutputOptions {
        file: Some(path.clone()),
        max_size: Some(64 * 1024),
        ..OutputOptions::default()
    };
    let mut run = run(&options, false);
    for _ in 0..200 {
        run.emit(&refusal()).unwrap();
    }
    run.emit(&Line::End(super::super::line::End {
        reason: EndReason::Until,
        ..samples::end(200, 0, true)
    }))
    .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.len() <= 64 * 1024);
    let types = types(&text);
    assert_eq!(types[types.len() - 3..], ["notice", "repeat", "end"]);
    assert!(run.stdout.text().contains("199 more refusals"));
}
