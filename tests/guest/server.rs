//! The PostgreSQL server of the guest, and its clients.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Generous: a guest is emulated in software. No test depends on how long something took.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const SOCKET_DIR: &str = "/var/run/postgresql";
pub(crate) const SOCKET: &str = "/var/run/postgresql/.s.PGSQL.5432";
const LOG: &str = "/tmp/server.log";
/// The tests connect as root.
pub(crate) const HBA: &str = "/tmp/pg_hba.conf";

/// Waits until `done` gives a value.
pub(crate) fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        ensure!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A running server in its own two-level cgroup.
pub(crate) struct Server {
    major: String,
    /// The postmaster.
    pub(crate) pid: u32,
}

impl Server {
    /// Starts the cluster `main`.
    pub(crate) fn start() -> Result<Self> {
        let major = std::env::var("PG_MAJOR")
            .context("PG_MAJOR is not set: this program runs in a guest")?;
        fs::create_dir_all(SOCKET_DIR)?;
        fs::write(HBA, "local all all trust\n")?;
        let _ = Command::new("chown")
            .args(["postgres:", SOCKET_DIR])
            .status();
        let mut server = Self { major, pid: 0 };
        server.launch()?;
        Ok(server)
    }

    /// Major version.
    pub(crate) fn major(&self) -> &str {
        &self.major
    }

    /// The same as a number.
    pub(crate) fn major_number(&self) -> u32 {
        self.major.parse().unwrap_or(0)
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        PathBuf::from(format!("/var/lib/postgresql/{}/main", self.major))
    }

    fn pg_ctl(&self, action: &[&str]) -> Result<()> {
        let output = Command::new("runuser")
            .args(["-u", "postgres", "--", "pg_ctl", "-D"])
            .arg(self.data_dir())
            .args(action)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "pg_ctl {action:?}: {}; log: {}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(())
    }

    /// Stops it in order.
    pub(crate) fn stop(&self) -> Result<()> {
        self.pg_ctl(&["-w", "-m", "fast", "stop"])
    }

    /// Without autovacuum only connections fork.
    fn config(&self) -> String {
        format!(
            "-c config_file=/etc/postgresql/{0}/main/postgresql.conf -c hba_file={HBA} -c logging_collector=off -c autovacuum=off",
            self.major
        )
    }

    /// Stops it at once, lets the postmaster be started in `cgroup`, where it fails, and starts
    /// it anew outside. `failed` gets the pid of the one that failed, and what it wrote.
    pub(crate) fn fail_to_start_in(
        &mut self,
        cgroup: &Path,
        failed: impl FnOnce(u32, &str) -> Result<()>,
    ) -> Result<()> {
        self.pg_ctl(&["-w", "-m", "immediate", "stop"])?;
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"",
                "sh",
            ])
            .arg(cgroup)
            .args("setpriv --reuid=postgres --regid=postgres --init-groups postgres -D".split(' '))
            .arg(self.data_dir())
            .args(self.config().split(' '))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn()?;
        let pid = child.id();
        let output = child.wait_with_output()?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let outcome = match output.status.success() {
            true => Err(anyhow::anyhow!("the server ended well: {log}")),
            false => failed(pid, &log),
        };
        self.launch()?;
        outcome
    }

    /// Starts it.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let config = self.config();
        self.pg_ctl(&["-w", "-t", "120", "-l", LOG, "-o", &config, "start"])?;
        let lock = fs::read_to_string(self.data_dir().join("postmaster.pid"))?;
        self.pid = lock
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .parse()
            .context("postmaster.pid")?;
        Ok(())
    }

    /// Stops it at once and starts it anew, outside of every test cgroup.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.end()?;
        self.start_again()
    }

    /// Stops it at once, where a scenario or the OOM killer has not ended it yet.
    pub(crate) fn end(&self) -> Result<()> {
        let stopped = self.pg_ctl(&["-w", "-m", "immediate", "stop"]);
        if Path::new(&format!("/proc/{}", self.pid)).exists() {
            stopped?;
        }
        Ok(())
    }

    /// Starts it after its postmaster was killed, when the rest of it has ended.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        wait_for("the server takes its data directory again", || {
            self.launch().ok()
        })
    }

    /// The server's log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(LOG).unwrap_or_default()
    }

    /// How many connections the server says it could not fork a process for, by message.
    pub(crate) fn refused_in_log(&self, strerror: &str) -> usize {
        let message = format!("could not fork new process for connection: {strerror}");
        self.log()
            .lines()
            .filter(|line| line.contains(&message))
            .count()
    }

    /// The postmaster and its children.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid))
            .unwrap_or_default();
        let mut all = vec![self.pid];
        all.extend(
            children
                .split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
        all
    }

    /// Moves the whole server into a cgroup.
    pub(crate) fn enter(&self, cgroup: &Path) -> Result<()> {
        for pid in self.processes() {
            // A process may just have ended; the postmaster has not.
            let moved = fs::write(cgroup.join("cgroup.procs"), pid.to_string());
            if pid == self.pid {
                moved.with_context(|| {
                    format!("cannot move the postmaster to {}", cgroup.display())
                })?;
            }
        }
        Ok(())
    }

    /// Waits until the backends of earlier connections have ended and are reaped.
    pub(crate) fn settle(&self) -> Result<()> {
        self.wait_for_backends(0)
    }

    /// Waits until this many clients are connected, and no more.
    pub(crate) fn wait_for_backends(&self, count: usize) -> Result<()> {
        wait_for("the backends that are expected", || {
            let processes = self.processes();
            let backends = processes.iter().filter(|pid| {
                let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                // A zombie has no title.
                title.is_empty() || title.contains("[local]")
            });
            (backends.count() == count).then_some(())
        })
    }

    /// One new connection.
    pub(crate) fn connect(&self) -> Result<()> {
        self.query("select 1")
    }

    /// Waits until the server says that a child of it was ended by SIGKILL.
    pub(crate) fn wait_until_killed(&self, pid: u32) -> Result<()> {
        let line = format!("(PID {pid}) was terminated by signal 9");
        wait_for("the server says that a process was killed", || {
            self.log().contains(&line).then_some(())
        })
    }

    /// Waits until it takes connections again, after it has restarted all its processes.
    pub(crate) fn wait_until_ready(&self) -> Result<()> {
        wait_for("the server takes connections", || self.connect().ok())
    }

    /// One new connection for one statement.
    pub(crate) fn query(&self, sql: &str) -> Result<()> {
        let output = psql().args(["-c", sql]).output()?;
        if !output.status.success() {
            bail!(
                "{}",
                String::from_utf8_lossy(&output.stderr).trim().to_owned()
            );
        }
        Ok(())
    }
}

pub(crate) fn psql() -> Command {
    let mut command = Command::new("psql");
    command
        .args(["-X", "-q", "-h", SOCKET_DIR, "-U", "postgres"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A client that is already running: it can ask for a new connection when nobody can fork.
pub(crate) struct RunningClient {
    child: Child,
    stdin: ChildStdin,
}

impl RunningClient {
    pub(crate) fn start() -> Result<Self> {
        let mut child = psql()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let stdin = child.stdin.take().context("no pipe to psql")?;
        let mut client = Self { child, stdin };
        client.say("select 1;")?;
        Ok(client)
    }

    /// Asks for a new connection; the old one ends only when the new one stands.
    pub(crate) fn reconnect(&mut self) -> Result<()> {
        self.say("\\connect postgres")
    }

    /// Sends a line to psql.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
