//! A server of our own on this host: in a directory that is given, without TCP.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::server::wait_for;

/// A running server; stopped when dropped, or when this program ends in another way.
pub(super) struct Server {
    child: Child,
    /// Names the socket; nothing listens on the TCP port of that number.
    pub(super) port: u16,
    /// Where the socket is.
    pub(super) socket_dir: PathBuf,
}

struct User {
    uid: u32,
    gid: u32,
}

impl Server {
    /// Makes a cluster in `directory` and starts it.
    pub(super) fn start(bindir: &Path, directory: &Path) -> Result<Self> {
        let user = ["postgres", "nobody"]
            .into_iter()
            .find_map(user)
            .context("neither a user postgres nor a user nobody")?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o711))?;
        let (data, socket_dir) = (directory.join("data"), directory.join("socket"));
        for path in [&data, &socket_dir] {
            fs::create_dir(path)?;
            chown(path, Some(user.uid), Some(user.gid))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
        let output = as_user(&bindir.join("initdb"), &user)
            .args(["-U", "postgres", "-A", "trust", "-N", "-D"])
            .arg(&data)
            .output()
            .context("cannot run initdb")?;
        ensure!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = fs::File::create(directory.join("server.log"))?;
        let mut command = as_user(&bindir.join("postgres"), &user);
        command
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&socket_dir)
            .args(["-h", "", "-p", &port.to_string()])
            // Without autovacuum only connections fork.
            .args(["-c", "autovacuum=off"])
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: prctl is async-signal-safe. The server shuts down at once when we are gone.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT);
                Ok(())
            });
        }
        let child = command.spawn().context("cannot run postgres")?;
        let mut server = Self {
            child,
            port,
            socket_dir,
        };
        let lock = data.join("postmaster.pid");
        wait_for("PostgreSQL is ready", || {
            let ended = server.child.try_wait().ok().flatten().is_some();
            let ready = fs::read_to_string(&lock).is_ok_and(|text| {
                text.lines()
                    .nth(7)
                    .is_some_and(|state| state.trim() == "ready")
            });
            (ended || ready).then_some(())
        })?;
        ensure!(
            server.child.try_wait()?.is_none(),
            "PostgreSQL ended at once: {}",
            fs::read_to_string(directory.join("server.log")).unwrap_or_default()
        );
        Ok(server)
    }

    /// The postmaster.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: sends a signal to a child that has not been waited for: a fast shutdown.
            unsafe { libc::kill(pid, libc::SIGINT) };
        }
        let _ = self.child.wait();
    }
}

fn as_user(program: &Path, user: &User) -> Command {
    let mut command = Command::new(program);
    command
        .uid(user.uid)
        .gid(user.gid)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

fn user(name: &str) -> Option<User> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .split(':')
        .skip(1);
    Some(User {
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}
