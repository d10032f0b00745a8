//! One run of QEMU: its streams, its end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::VmSpec;
use super::guest::{Message, Stream};
use super::machine::{Files, Port, arguments};
use crate::{emulator, process};

const POLL: Duration = Duration::from_millis(50);
/// A guest that has not started its command by then never will.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// From the exit status until the last byte of the streams.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
const CONSOLE_TAIL: usize = 40;
const QEMU_LOG: &str = "qemu.log";

/// What the guest sent.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Exit status of the command.
    pub(crate) status: u8,
    /// Its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error.
    pub(crate) stderr: Vec<u8>,
    /// The tar of `/out`.
    pub(crate) files: Vec<u8>,
    /// Whether that tar holds everything.
    pub(crate) files_complete: bool,
    /// From power on to the start of the command.
    pub(crate) boot: Duration,
}

enum Event {
    Message(Message),
    Data(Port, Vec<u8>),
    Ended,
}

/// Boots the guest and stays until its command has ended.
pub(crate) fn run(spec: &VmSpec, files: &Files, token: &str) -> Result<Outcome> {
    let (sender, events) = channel();
    for port in Port::ALL {
        let path = files.dir.join(port.name());
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}: is TMPDIR too long?", path.display()))?;
        let (sender, token, live) = (sender.clone(), token.to_owned(), spec.live);
        thread::spawn(move || serve(port, &listener, &token, live, &sender));
    }
    let mut machine = Machine::start(spec, files)?;
    let mut outcome = Outcome {
        files_complete: true,
        ..Outcome::default()
    };
    let result = machine.watch(spec, &events, &mut outcome);
    machine.stop();
    match (result, process::check_interrupt()) {
        (Ok(()), _) => Ok(outcome),
        // To a user who has interrupted it, the console is of no interest.
        (Err(error), Err(_)) => Err(error),
        (Err(error), Ok(())) => Err(explain(&error, spec, &outcome, &files.console)),
    }
}

/// Adds what the command had printed, unless that was shown, and what the guest's console says
/// to an error.
fn explain(
    error: &anyhow::Error,
    spec: &VmSpec,
    outcome: &Outcome,
    console: &Path,
) -> anyhow::Error {
    let read =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let text = read(console);
    let mut message = error.to_string();
    if let Some(panic) = panic_reason(&text) {
        message += &format!(": kernel panic: {panic}");
    }
    for (name, data) in [("output", &outcome.stdout), ("errors", &outcome.stderr)] {
        if !spec.live && !data.is_empty() {
            let text = String::from_utf8_lossy(data);
            message += &format!("\nthe command's {name} so far:\n{}", text.trim_end());
        }
    }
    let qemu = read(&console.with_file_name(QEMU_LOG));
    for (name, text) in [("the guest's console", text), ("QEMU's messages", qemu)] {
        let tail = console_tail(&text);
        if !tail.is_empty() {
            message += &format!("\nlast lines of {name}:\n{tail}");
        }
    }
    anyhow::anyhow!(message)
}

fn panic_reason(console: &str) -> Option<&str> {
    let (_, rest) = console.split_once("Kernel panic - not syncing: ")?;
    rest.lines().next().map(str::trim)
}

/// The end of the console, without the stack frames of which the kernel is not sure.
fn console_tail(console: &str) -> String {
    let sure: Vec<&str> = console
        .lines()
        .filter(|line| !line.contains("]  ? "))
        .collect();
    process::tail(sure.join("\n").trim(), CONSOLE_TAIL)
}

fn serve(port: Port, listener: &UnixListener, token: &str, live: bool, events: &Sender<Event>) {
    let Ok((socket, _)) = listener.accept() else {
        return;
    };
    // A closed channel means that the run is over: then nobody misses what is not sent.
    if port == Port::Control {
        let lines = BufReader::new(socket).lines().map_while(Result::ok);
        for message in lines.filter_map(|line| Message::parse(&line)) {
            let _ = events.send(Event::Message(message));
        }
    } else {
        receive(port, socket, token, live, events);
        let _ = events.send(Event::Ended);
    }
}

fn receive(port: Port, mut socket: UnixStream, token: &str, live: bool, events: &Sender<Event>) {
    let mut stream = Stream::new(token);
    let mut buffer = vec![0; 64 << 10];
    while !stream.ended() {
        let Ok(length @ 1..) = socket.read(&mut buffer) else {
            break;
        };
        let new = stream.push(&buffer[..length]);
        // The guest goes on without a reader of its output, as after a closed pipe.
        let _ = match port {
            Port::Stdout if live => std::io::stdout()
                .write_all(&new)
                .and_then(|()| std::io::stdout().flush()),
            Port::Stderr if live => std::io::stderr().write_all(&new),
            _ => Ok(()),
        };
        let _ = events.send(Event::Data(port, new));
    }
}

struct Machine {
    child: Child,
    start: Instant,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Machine {
    fn start(spec: &VmSpec, files: &Files) -> Result<Self> {
        // If this process is killed, the guest goes with it.
        let emulator = emulator::find()?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(emulator.program)
            .args(emulator.arguments)
            .args(arguments(spec, files))
            .envs(emulator.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(files.dir.join(QEMU_LOG))?)
            .spawn()
            .context("cannot start QEMU: run `cargo xtask setup`")?;
        Ok(Self {
            child,
            start: Instant::now(),
        })
    }

    fn stop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn watch(
        &mut self,
        spec: &VmSpec,
        events: &Receiver<Event>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut booted = None;
        let mut exited: Option<Instant> = None;
        let mut streams = 0;
        while exited.is_none() || streams < 3 {
            match events.recv_timeout(POLL) {
                Ok(Event::Message(Message::Ready)) => booted = Some(self.start.elapsed()),
                Ok(Event::Message(Message::Incomplete)) => outcome.files_complete = false,
                Ok(Event::Message(Message::Exit(status))) => {
                    outcome.status = status;
                    exited = Some(Instant::now());
                }
                Ok(Event::Data(port, data)) => match port {
                    Port::Stdout => outcome.stdout.extend(data),
                    Port::Stderr => outcome.stderr.extend(data),
                    Port::Files | Port::Control => outcome.files.extend(data),
                },
                Ok(Event::Ended) => streams += 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.check(spec, booted, exited)?;
        }
        outcome.boot = booted.unwrap_or_default();
        Ok(())
    }

    /// Fails when waiting has become pointless.
    fn check(
        &mut self,
        spec: &VmSpec,
        booted: Option<Duration>,
        exited: Option<Instant>,
    ) -> Result<()> {
        process::check_interrupt()?;
        let elapsed = self.start.elapsed();
        if exited.is_some_and(|time| time.elapsed() > DRAIN_LIMIT) {
            bail!("the command has ended, but its output or files did not arrive completely");
        }
        if exited.is_none()
            && let Some(status) = self.child.try_wait()?
        {
            bail!("{}", sudden_end(status, booted.is_some()));
        }
        if elapsed > spec.timeout {
            bail!(
                "the command did not end within {} s (--timeout){}",
                spec.timeout.as_secs(),
                if booted.is_none() {
                    "; the guest had not even started it"
                } else {
                    ""
                }
            );
        }
        if booted.is_none() && elapsed > BOOT_LIMIT {
            bail!(
                "the guest did not start the command within {} s",
                BOOT_LIMIT.as_secs()
            );
        }
        Ok(())
    }
}

fn sudden_end(status: ExitStatus, booted: bool) -> String {
    let when = if booted {
        "while the command ran"
    } else {
        "before the command started"
    };
    if status.success() {
        format!("the guest went down {when}")
    } else {
        format!("QEMU failed {when}: {status}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sudden_end_says_when() {
        assert!(sudden_end(ExitStatus::default(), false).contains("before the command"));
        assert!(sudden_end(ExitStatus::default(), true).contains("while the command ran"));
    }

    #[test]
    fn a_panic_is_named() {
        let console = "[ 1.0] x\n[ 4.3] Kernel panic - not syncing: Attempted to kill init!\r\n\
            [ 4.3]  ? maybe\n[ 4.3]  surely\n";
        assert_eq!(panic_reason(console), Some("Attempted to kill init!"));
        assert_eq!(panic_reason("quiet"), None);
        assert!(!console_tail(console).contains("maybe"));
        assert!(console_tail(console).ends_with("surely"));
    }
}
