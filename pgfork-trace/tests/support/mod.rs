//! Running the program as a user does, and waiting for what it says.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod cgroup;
pub(crate) mod fixture;
pub(crate) mod seccomp;
pub(crate) mod server;

use std::{
    io::{self, BufRead, BufReader, Read as _, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_pgfork-trace");
/// Generous: only a test that fails waits so long.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A skipped test must not look like a passed one: past the test harness, which would keep it to
/// itself.
pub(crate) fn skipped(why: &str) {
    let test = thread::current().name().unwrap_or("test").to_owned();
    let line = format!("skipped: {test}: {why}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

pub(crate) fn is_root() -> bool {
    // SAFETY: reads only.
    unsafe { libc::geteuid() == 0 }
}

/// Waits for a condition; the limit is there only to end a test that fails.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A number that no other test of this run has.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The program with these arguments, to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    output(Command::new(BINARY).args(arguments))
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// It could not do the job, and says all of these words.
#[track_caller]
pub(crate) fn assert_refuses(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// Whether tracing works for this user on this kernel; else why not.
pub(crate) fn tracing() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let pid = std::process::id().to_string();
            let output = run(&["--json", "--pid", &pid, "--for", "1"]);
            if output.status.success() {
                Ok(())
            } else {
                Err(format!("tracing does not work here: {}", stderr(&output)))
            }
        })
        .clone()
}

/// Returns from the test, visibly, where tracing does not work.
#[macro_export]
macro_rules! needs_tracing {
    () => {
        if let Err(why) = $crate::support::tracing() {
            return $crate::support::skipped(&why);
        }
    };
}

/// Returns from the test, visibly, without root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::support::is_root() {
            return $crate::support::skipped("not root");
        }
    };
}

/// Another user, without any capability, runs a copy of the program that it can reach.
pub(crate) fn as_nobody(directory: &tempfile::TempDir) -> Command {
    use std::os::unix::fs::PermissionsExt as _;
    if !is_root() {
        return Command::new(BINARY);
    }
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open.clone()).unwrap();
    let copy = directory.path().join("pgfork-trace");
    std::fs::copy(BINARY, &copy).unwrap();
    std::fs::set_permissions(&copy, open).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg("--inh-caps=-all")
        .arg(copy);
    command
}

/// The program, watching, with JSON on its standard output.
pub(crate) struct Tracer {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<Value>,
    ended: bool,
}

impl Tracer {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("--json").args(arguments);
        Self::spawn(&mut command)
    }

    /// Starts and waits until it watches.
    pub(crate) fn watching(arguments: &[&str]) -> Self {
        let mut tracer = Self::start(arguments);
        tracer.line("start", |_| true);
        tracer
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines() {
                if sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
            ended: false,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of this type that fits; every line on the way must be valid.
    #[track_caller]
    pub(crate) fn line(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let left = LIMIT.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let line = valid(&line);
                    self.seen.push(line.clone());
                    if line["type"] == kind && fits(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {kind} line in {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => {
                    let mut text = String::new();
                    let _ = self.child.stderr.take().unwrap().read_to_string(&mut text);
                    panic!("it ended without a {kind} line: {text}\n{:#?}", self.seen)
                }
            }
        }
    }

    /// The first line of this type so far.
    #[track_caller]
    pub(crate) fn seen(&self, kind: &str) -> Value {
        let mut seen = self.seen.iter();
        seen.find(|line| line["type"] == kind).unwrap().clone()
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Its last words and its status, once it ends by itself.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        while let Ok(line) = self.lines.recv_timeout(LIMIT) {
            self.seen.push(valid(&line));
        }
        let status = wait_for("the end of the tracer", || self.child.try_wait().unwrap());
        self.ended = true;
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        Finished {
            lines: std::mem::take(&mut self.seen),
            status,
            stderr,
        }
    }

    /// Ends it as Ctrl-C does.
    #[track_caller]
    pub(crate) fn stop(self) -> Finished {
        self.signal(libc::SIGINT);
        self.finish()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a tracer said in all.
pub(crate) struct Finished {
    pub(crate) lines: Vec<Value>,
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        self.lines
            .iter()
            .filter(|line| line["type"] == kind)
            .collect()
    }

    /// The last line, which says that everything is accounted for.
    #[track_caller]
    pub(crate) fn end(&self, reason: &str) -> &Value {
        let end = self.lines.last().unwrap();
        assert_eq!(end["type"], "end", "{:#?}", self.lines);
        assert_eq!(end["reason"], reason);
        assert_eq!(end["accounted"], true, "{:#?}", self.lines);
        end
    }
}

/// A line is an object as the schema describes it, without a field more.
#[track_caller]
pub(crate) fn valid(line: &str) -> Value {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    let validator = VALIDATOR.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json-schema.json");
        let text = std::fs::read_to_string(path).unwrap();
        let mut schema: Value = serde_json::from_str(&text).unwrap();
        schema["unevaluatedProperties"] = false.into();
        jsonschema::validator_for(&schema).unwrap()
    });
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    if let Some(error) = validator.iter_errors(&value).next() {
        panic!("{error} at {}: {value:#}", error.instance_path());
    }
    value
}

/// A file that is there, by name.
pub(crate) fn lines_of(path: &PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "the last line is whole");
    text.lines().map(valid).collect()
}

/// What a child reads from.
pub(crate) fn input(child: &mut Child) -> ChildStdin {
    child.stdin.take().unwrap()
}
