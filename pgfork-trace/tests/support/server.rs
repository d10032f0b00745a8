//! A PostgreSQL server of the test's own, in a temporary directory, on no network but the host's own.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use super::{unique, wait_for};

/// How a server is started.
#[derive(Default)]
pub(crate) struct Options {
    /// `cgroup.procs` to put it into.
    pub(crate) cgroup: Option<PathBuf>,
    /// Name of a copy of the executable.
    pub(crate) name: Option<&'static str>,
    /// In a pid and mount namespace of its own.
    pub(crate) namespaces: bool,
    /// Listens on the loopback addresses as well.
    pub(crate) tcp: bool,
}

pub(crate) struct Server {
    directory: tempfile::TempDir,
    port: u16,
    options: Options,
    child: Option<Child>,
}

/// Where initdb and postgres are.
pub(crate) fn binaries() -> Option<PathBuf> {
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|path| PathBuf::from(path.trim()));
    let installed = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    configured
        .into_iter()
        .chain(installed)
        .find(|path| path.join("initdb").exists() && path.join("postgres").exists())
}

/// A user that is in the password file and not root: initdb insists on both.
fn user() -> (u32, u32) {
    let passwords = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |name: &str| {
        let line = passwords
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(str::parse);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    };
    of("postgres")
        .or_else(|| of("nobody"))
        .unwrap_or((65_534, 65_534))
}

/// A command run as that user.
pub(crate) fn as_user(program: impl AsRef<Path>) -> Command {
    let (uid, gid) = user();
    let mut command = Command::new(program.as_ref());
    command.uid(uid).gid(gid).current_dir("/");
    command
}

fn template_path() -> PathBuf {
    std::env::temp_dir().join(format!("pgfork-trace-template-{}", std::process::id()))
}

/// One cluster is made and then copied; it goes with the process.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        let _ = fs::remove_dir_all(template_path());
    }
    TEMPLATE.get_or_init(|| {
        let path = template_path();
        fs::create_dir(&path).unwrap();
        // SAFETY: a function that may be called at exit.
        unsafe { libc::atexit(remove) };
        let (uid, gid) = user();
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        let output = as_user(binaries().unwrap().join("initdb"))
            .args(["--auth=trust", "--username=postgres", "--no-sync", "-D"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        path
    })
}

impl Server {
    /// Made, not started.
    pub(crate) fn new(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let port = 20_000 + u16::try_from(std::process::id() % 1000 * 32 + unique()).unwrap();
        let server = Self {
            directory,
            port,
            options,
            child: None,
        };
        let copied = Command::new("cp")
            .arg("-a")
            .arg(template())
            .arg(server.data_dir())
            .status()
            .unwrap();
        assert!(copied.success());
        server
    }

    pub(crate) fn running(options: Options) -> Self {
        let mut server = Self::new(options);
        server.start();
        server
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Major version, as the cluster says.
    pub(crate) fn version(&self) -> Option<String> {
        let text = fs::read_to_string(self.data_dir().join("PG_VERSION")).ok()?;
        Some(text.trim().to_owned())
    }

    pub(crate) fn port(&self) -> String {
        self.port.to_string()
    }

    /// The postmaster's pid here, whatever it believes.
    pub(crate) fn pid(&self) -> u32 {
        let child = self.child.as_ref().unwrap().id();
        if !self.options.namespaces {
            return child;
        }
        // unshare waits for it.
        let path = format!("/proc/{child}/task/{child}/children");
        wait_for("the postmaster in its namespace", || {
            fs::read_to_string(&path).unwrap().trim().parse().ok()
        })
    }

    pub(crate) fn start(&mut self) {
        let (uid, gid) = user();
        let executable = self.executable();
        let log = File::create(self.directory.path().join("log")).unwrap();
        let mut command = if self.options.namespaces {
            let mut command = Command::new("unshare");
            command
                .args(["--pid", "--fork", "--kill-child", "--mount-proc", "setpriv"])
                .args([format!("--reuid={uid}"), format!("--regid={gid}")])
                .arg("--clear-groups")
                .arg(&executable);
            command
        } else {
            Command::new(&executable)
        };
        command
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port()])
            .arg("-k")
            .arg(self.data_dir())
            .args([
                "-c",
                if self.options.tcp {
                    "listen_addresses=127.0.0.1,::1"
                } else {
                    "listen_addresses="
                },
            ])
            .args(["-c", "autovacuum=off", "-c", "fsync=off"])
            .args(["-c", "shared_buffers=1MB", "-c", "max_connections=20"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let procs = self.options.cgroup.as_ref().map(|cgroup| {
            let options = &mut fs::OpenOptions::new();
            options
                .write(true)
                .open(cgroup.join("cgroup.procs"))
                .unwrap()
        });
        let drop_root = !self.options.namespaces;
        // SAFETY: system calls only, on what was made before the fork.
        unsafe {
            command.pre_exec(move || {
                if let Some(mut procs) = procs.as_ref() {
                    procs.write_all(b"0")?;
                }
                let dropped = !drop_root
                    || libc::setgroups(0, std::ptr::null()) == 0
                        && libc::setgid(gid) == 0
                        && libc::setuid(uid) == 0;
                if dropped {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        self.child = Some(command.spawn().unwrap());
        wait_for("a server that takes connections", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            self.connect().ok()
        });
        self.settle();
    }

    /// Waits until the backends of earlier connections are gone.
    pub(crate) fn settle(&self) {
        wait_for("the end of backends", || {
            let titles = fs::read_dir("/proc").unwrap().filter_map(|entry| {
                let path = entry.ok()?.path();
                let stat = fs::read_to_string(path.join("stat")).ok()?;
                let parent: u32 = stat
                    .rsplit_once(')')?
                    .1
                    .split_whitespace()
                    .nth(1)?
                    .parse()
                    .ok()?;
                (parent == self.pid())
                    .then(|| fs::read_to_string(path.join("cmdline")).unwrap_or_default())
            });
            let backends = titles.filter(|title| title.contains("[local]") || title.is_empty());
            (backends.count() == 0).then_some(())
        });
    }

    fn executable(&self) -> PathBuf {
        let real = binaries().unwrap().join("postgres");
        let Some(name) = self.options.name else {
            return real;
        };
        // Not a link: what it is called is then what its own `exe` says.
        let copy = self.directory.path().join(name);
        if !copy.exists() {
            fs::copy(real, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// A connection, up to the server's answer: the stream, or its complaint.
    pub(crate) fn connect(&self) -> Result<UnixStream, String> {
        let path = self.data_dir().join(format!(".s.PGSQL.{}", self.port));
        let stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
        greet(stream)
    }

    /// A connection to this address, served.
    #[track_caller]
    pub(crate) fn connect_over(&self, address: &str) -> TcpStream {
        greet(TcpStream::connect((address, self.port)).unwrap()).unwrap()
    }

    /// A refused connection to this address; the client's own port.
    #[track_caller]
    pub(crate) fn refused_over(&self, address: &str) -> u16 {
        let stream = TcpStream::connect((address, self.port)).unwrap();
        let port = stream.local_addr().unwrap().port();
        assert!(greet(stream).is_err(), "no fork was refused");
        port
    }

    /// Pid of the child whose title has these words.
    pub(crate) fn child(&self, words: &str) -> Option<u32> {
        let of = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let parent = format!("PPid:\t{}\n", self.pid());
        let pids = fs::read_dir("/proc").unwrap();
        let mut pids =
            pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| {
            of(*pid, "status").is_ok_and(|status| status.contains(&parent))
                && of(*pid, "cmdline").is_ok_and(|title| title.contains(words))
        })
    }

    /// A connection that fails because the fork does.
    #[track_caller]
    pub(crate) fn refused(&self) {
        let complaint = self.connect().expect_err("no fork was refused");
        assert!(
            self.log()
                .contains("could not fork new process for connection"),
            "{complaint}: {}",
            self.log()
        );
    }

    pub(crate) fn stop(&mut self) {
        if self.child.is_none() {
            return;
        }
        let pid = self.pid();
        let mut child = self.child.take().unwrap();
        // SAFETY: a process of this test; SIGQUIT ends a server at once.
        unsafe { libc::kill(pid as i32, libc::SIGQUIT) };
        wait_for("the end of the server", || child.try_wait().unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && child.try_wait().unwrap().is_some()
        {
            self.child = None;
        }
        self.stop();
    }
}

/// Asks to be served, up to the server's answer: the stream, or its complaint.
fn greet<S: Read + Write>(mut stream: S) -> Result<S, String> {
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 4).unwrap();
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(body);
    stream
        .write_all(&message)
        .map_err(|error| error.to_string())?;
    let mut kind = [0];
    stream
        .read_exact(&mut kind)
        .map_err(|error| error.to_string())?;
    if kind == *b"R" {
        return Ok(stream);
    }
    let mut complaint = Vec::new();
    let _ = stream.read_to_end(&mut complaint);
    Err(String::from_utf8_lossy(&complaint).into_owned())
}
