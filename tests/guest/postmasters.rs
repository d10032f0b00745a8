//! Which postmasters are found, and how watching starts: several, other names, namespaces, later
//! ones; a method that fails half-way; a kernel that is locked down.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    limits,
    scenarios::{EAGAIN, expect_eq},
    server::{HBA, SOCKET_DIR, Server, psql, wait_for},
    tracer::Tracer,
};

const SECOND: &str = "/srv/second";
const PORT: u16 = 5433;

/// A second server, in a pid and mount namespace of its own, by a program of another name.
struct Second {
    /// `unshare`, which waits for it.
    child: Child,
    /// The postmaster's pid here.
    pid: u32,
}

impl Second {
    /// Copies the stopped cluster and the program, once.
    fn prepare(server: &Server) -> Result<()> {
        if Path::new(SECOND).exists() {
            return Ok(());
        }
        fs::create_dir_all("/srv")?;
        let copied = Command::new("cp")
            .arg("-a")
            .arg(server.data_dir())
            .arg(SECOND)
            .status()?;
        ensure!(copied.success(), "cp: {copied}");
        let program = PathBuf::from(format!(
            "/usr/lib/postgresql/{}/bin/postgres",
            server.major()
        ));
        fs::copy(program, Self::program())?;
        Ok(fs::set_permissions(
            Self::program(),
            fs::Permissions::from_mode(0o755),
        )?)
    }

    fn program() -> &'static Path {
        Path::new("/srv/edb-postgres")
    }

    fn start(server: &Server) -> Result<Self> {
        let log = fs::File::create("/tmp/second.log")?;
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc"])
            .args(["setpriv", "--reuid=postgres", "--regid=postgres"])
            .arg("--init-groups")
            .arg(Self::program())
            .args(["-D", SECOND, "-p", &PORT.to_string(), "-k", SOCKET_DIR])
            .args([
                "-c",
                &format!(
                    "config_file=/etc/postgresql/{}/main/postgresql.conf",
                    server.major()
                ),
            ])
            .args(["-c", &format!("data_directory={SECOND}")])
            .args(["-c", &format!("hba_file={HBA}"), "-c", "external_pid_file="])
            .args(["-c", "logging_collector=off", "-c", "autovacuum=off"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut second = Self { child, pid: 0 };
        wait_for("the second server takes connections", || {
            connect(PORT).is_ok().then_some(())
        })
        .with_context(|| fs::read_to_string("/tmp/second.log").unwrap_or_default())?;
        second.pid = second.first().context("it is gone")?;
        Ok(second)
    }

    /// The first process of its namespace, by its pid here.
    fn first(&self) -> Option<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(children).ok()?.trim().parse().ok()
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // With its first process the namespace ends, and everything in it; then unshare, too.
        if let Some(pid) = self.first().and_then(|pid| i32::try_from(pid).ok()) {
            // SAFETY: a child of a child that has not been waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let _ = self.child.wait();
    }
}

fn connect(port: u16) -> Result<()> {
    let output = psql()
        .args(["-p", &port.to_string(), "-c", "select 1"])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn appeared(tracer: &Tracer, pid: u32) -> Result<Value> {
    wait_for("the new postmaster is watched", || {
        let mut lines = tracer.lines().into_iter();
        lines.find(|line| line["type"] == "postmaster" && line["postmaster"]["pid"] == pid)
    })
}

/// None runs, and that is said; then one starts, and a second one in namespaces of its own, by
/// another name. Both are refused, and told apart.
pub(crate) fn postmasters(server: &mut Server, method: &str) -> Result<()> {
    server.stop()?;
    Second::prepare(server)?;
    let tracer = Tracer::start("postmasters", method, &[])?;
    wait_for("it says that it waits", || {
        let mut lines = tracer.lines().into_iter();
        lines.find(|line| line["type"] == "notice" && line["code"] == "waiting")
    })?;
    server.launch()?;
    let first = appeared(&tracer, server.pid)?;
    let second = Second::start(server)?;
    let other = appeared(&tracer, second.pid)?;
    let data_dir = server.data_dir();
    for (line, port, data_dir) in [
        (&first, 5432, data_dir.as_path()),
        (&other, PORT, Path::new(SECOND)),
    ] {
        expect_eq!(line["event"], "appeared", "event");
        let postmaster = &line["postmaster"];
        expect_eq!(postmaster["kind"], "postmaster", "kind");
        expect_eq!(postmaster["port"], port, "port");
        expect_eq!(postmaster["version"], server.major(), "version");
        expect_eq!(postmaster["data_dir"], *data_dir.to_string_lossy(), "data");
        ensure!(postmaster["started"].is_string(), "its age: {postmaster}");
    }
    let exe = fs::read_link(format!("/proc/{}/exe", second.pid))?;
    expect_eq!(exe, Second::program(), "a copy, not a link");
    for (pid, port) in [(second.pid, PORT), (server.pid, 5432)] {
        limits::set_nproc(pid, 1)?;
        ensure!(connect(port).is_err(), "port {port}: not refused");
        limits::set_nproc(pid, 4096)?;
    }
    let logged = |log: &str| {
        log.matches(&format!("new process for connection: {EAGAIN}"))
            .count()
    };
    let of_second = logged(&fs::read_to_string("/tmp/second.log")?);
    ensure!(of_second > 0, "the second server logged no refusal");
    wait_for("both are told", || {
        let lines = tracer.lines();
        let told = |port: u16| {
            lines
                .iter()
                .any(|line| line["type"] == "refusal" && line["postmaster"]["port"] == port)
        };
        (told(5432) && told(PORT)).then_some(())
    })?;
    let said = tracer.stop()?;
    for refusal in said.of("refusal") {
        let postmaster = &refusal["postmaster"];
        let pid = if postmaster["port"] == PORT {
            second.pid
        } else {
            server.pid
        };
        expect_eq!(postmaster["pid"], pid, "whose it was");
        expect_eq!(refusal["process"]["pid"], pid, "who forked");
        expect_eq!(refusal["cause"], "rlimit_nproc", "cause");
    }
    let refused = |port: u16| {
        let refusals = said.of("refusal");
        let of_port = refusals
            .iter()
            .filter(|it| it["postmaster"]["port"] == port);
        of_port.count()
    };
    expect_eq!(refused(PORT), of_second, "against the second server's log");
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    connect(5432)
}

/// The kernel's types with another id for `kernel_clone`: the function is known, and hooking it
/// last is refused when everything else is attached.
fn with_a_wrong_id(types: &[u8]) -> Result<Vec<u8>> {
    /// Of a `btf_type` (include/uapi/linux/btf.h).
    const TYPE: usize = 12;
    let word = |at: usize| -> Result<usize> {
        let bytes = types.get(at..at + 4).context("short BTF")?;
        Ok(u32::from_le_bytes(bytes.try_into()?).try_into()?)
    };
    let (header, types_at, types_len) = (word(4)?, word(8)?, word(12)?);
    let (strings_at, strings_len) = (word(16)?, word(20)?);
    ensure!(types_at + types_len == strings_at, "strings follow types");
    let strings = header + strings_at;
    let name = b"\0kernel_clone\0";
    let found = types[strings..strings + strings_len]
        .windows(name.len())
        .position(|window| window == name)
        .context("no kernel_clone")?;
    let offset = u32::try_from(found + 1)?.to_le_bytes();
    // BTF_KIND_FUNC: 12 in bits 24 to 28 of the second word.
    let function = (header + types_at..strings)
        .step_by(4)
        .find(|at| types[*at..*at + 4] == offset && types[at + 7] & 0x1f == 12)
        .context("no function kernel_clone")?;
    let mut changed = types[..strings].to_vec();
    // The old one gets a name that nobody asks for: its own without the first letter.
    let nameless = (u32::try_from(found + 2)?).to_le_bytes();
    changed.extend_from_slice(&types[function..function + TYPE]);
    changed[function..function + 4].copy_from_slice(&nameless);
    changed.extend_from_slice(&types[strings..]);
    let grown =
        |at: usize| -> Result<[u8; 4]> { Ok(u32::try_from(word(at)? + TYPE)?.to_le_bytes()) };
    changed[12..16].copy_from_slice(&grown(12)?);
    changed[16..20].copy_from_slice(&grown(16)?);
    Ok(changed)
}

/// Programs of type `BPF_PROG_TYPE_TRACING` (include/uapi/linux/bpf.h) that a process holds.
fn trampolines(pid: u32) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        count += usize::from(info.lines().any(|line| line == "prog_type:\t26"));
    }
    Ok(count)
}

/// A method that fails at its last hook leaves none of the others behind.
pub(crate) fn half_attached(_: &mut Server, method: &str) -> Result<()> {
    let wrong = Path::new("/tmp/wrong.btf");
    fs::write(
        wrong,
        with_a_wrong_id(&fs::read("/sys/kernel/btf/vmlinux")?)?,
    )?;
    let started = Tracer::start_with_btf("half_attached", method, wrong);
    if method == "fexit" {
        let error = started
            .err()
            .context("kernel_clone was hooked")?
            .to_string();
        ensure!(
            error.contains("method fexit does not work") && error.contains("kernel_clone"),
            "{error}"
        );
        // What is looked for below is there when nothing fails.
        let whole = Tracer::start("half_attached", method, &[])?;
        ensure!(trampolines(whole.pid())? > 10, "trampolines are not seen");
        return Ok(());
    }
    let tracer = started?;
    expect_eq!(trampolines(tracer.pid())?, 0, "trampolines left behind");
    let said = tracer.stop()?;
    let expected = if method == "auto" { "kprobe" } else { method };
    expect_eq!(said.method(), expected, "method");
    let notices = said.of("notice");
    let fallback = notices.iter().find(|line| line["code"] == "fallback");
    let message = fallback.and_then(|line| line["message"].as_str());
    expect_eq!(
        message.is_some_and(|it| it.contains("fexit: ") && it.contains("kernel_clone")),
        method == "auto",
        "the fallback is told"
    );
    Ok(())
}

/// lockdown=confidentiality lets no method work, and that is the reason given.
pub(crate) fn locked_down(_: &mut Server, method: &str) -> Result<()> {
    let mode = fs::read_to_string("/sys/kernel/security/lockdown")?;
    ensure!(mode.contains("[confidentiality]"), "{mode}");
    let error = Tracer::start("locked_down", method, &[]).err();
    let text = error.context("it watches")?.to_string();
    for words in ["locked down (confidentiality)", "pgfork-trace check"] {
        ensure!(text.contains(words), "{words} is not in: {text}");
    }
    let check = Command::new("pgfork-trace").arg("check").output()?;
    ensure!(
        check.status.code() != Some(2),
        "check does not work either: {}",
        String::from_utf8_lossy(&check.stderr)
    );
    Ok(())
}
