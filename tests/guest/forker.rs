//! A process that forks while signals rain on it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    ptr,
};

use anyhow::{Context as _, Result, ensure};

/// Starts as a child process and waits to be told.
pub(crate) struct Forker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Forker {
    /// Children that it makes each time.
    pub(crate) const FORKS: u64 = 300;

    /// Starts it; it does not fork yet.
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["forker", "now"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self {
            child,
            stdin,
            stdout,
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it fork, and waits until it has.
    pub(crate) fn fork_now(&mut self) -> Result<()> {
        writeln!(self.stdin, "go")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(line == "done\n", "the forker said: {line}");
        Ok(())
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// Sets the timer that sends SIGALRM; 0 turns it off.
fn fire_every(microseconds: libc::suseconds_t) {
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: reads the timer.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}

/// What the process does when it is told to: forks under a timer that fires every 200 microseconds.
pub(crate) fn run() -> Result<()> {
    // SAFETY: all zeroes is a valid sigaction; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut());
    }
    for line in std::io::stdin().lines() {
        line?;
        fire_every(200);
        let outcome = (0..Forker::FORKS).try_for_each(|_| fork_one());
        fire_every(0);
        outcome?;
        println!("done");
    }
    Ok(())
}

fn fork_one() -> Result<()> {
    // SAFETY: the child only ends; the parent has one thread and waits for it.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(0);
        }
        ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        while libc::waitpid(pid, ptr::null_mut(), 0) == -1 {}
    }
    Ok(())
}
