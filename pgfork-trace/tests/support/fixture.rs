//! A process that forks when told to, and is refused when it wants to be: this
//! very test program, started once more.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

const VARIABLE: &str = "PGFORK_TRACE_TEST_FIXTURE";
/// A user that has no other process.
const USER: libc::uid_t = 54_327;

/// To be called by a test named `fixture`: does nothing unless it was started by [`Forker`].
pub(crate) fn main() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    println!("\nready");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "limit" => limit(),
            "fork" => fork(),
            _ => break,
        }
    }
    std::process::exit(0);
}

/// Another user, who may have no process more.
fn limit() {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a valid limit; glibc changes the user of all threads.
    let done = unsafe {
        libc::setrlimit(libc::RLIMIT_NPROC, &raw const none) == 0
            && libc::setgroups(0, std::ptr::null()) == 0
            && libc::setgid(USER) == 0
            && libc::setuid(USER) == 0
    };
    println!("{}", if done { "done" } else { "failed" });
}

fn fork() {
    // SAFETY: the child ends at once and touches nothing.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            // SAFETY: async-signal-safe.
            unsafe { libc::_exit(0) }
        }
        -1 => println!(
            "{}",
            std::io::Error::last_os_error().raw_os_error().unwrap()
        ),
        pid => {
            // SAFETY: waits for the child just made.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            println!("forked");
        }
    }
}

/// The fixture, as its parent sees it.
pub(crate) struct Forker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Forker {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fixture", "--nocapture"])
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut forker = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        while forker.answer() != "ready" {}
        forker
    }

    /// One that will be refused.
    pub(crate) fn limited() -> Self {
        let mut forker = Self::start();
        assert_eq!(forker.tell("limit"), "done");
        forker
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(
            self.output.read_line(&mut line).unwrap(),
            0,
            "the fixture ended"
        );
        line.trim().to_owned()
    }

    pub(crate) fn tell(&mut self, what: &str) -> String {
        writeln!(self.input, "{what}").unwrap();
        self.answer()
    }

    /// Succeeds.
    pub(crate) fn fork(&mut self) {
        assert_eq!(self.tell("fork"), "forked");
    }

    /// Fails with EAGAIN.
    pub(crate) fn refused(&mut self) {
        assert_eq!(self.tell("fork"), libc::EAGAIN.to_string());
    }

    /// Ends it.
    pub(crate) fn quit(mut self) {
        let _ = writeln!(self.input, "quit");
        self.child.wait().unwrap();
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
