//! What goes into the guest (its first process and the job), and how it reports back.
//!
//! The guest writes to four virtio ports. Three are streams, each ended by the token of the job:
//! the standard output and error of the command, and a tar of `/out`. The fourth carries a line
//! per event: `ready`, `incomplete`, `exit STATUS`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Cgroup, Init, VmSpec};

const INITRD_INIT: &str = include_str!("../../guest/initrd-init");
const PLAIN_INIT: &str = include_str!("../../guest/plain-init");
const RUN: &str = include_str!("../../guest/run");
const SYSTEMD_UNITS: &[(&str, &str)] = &[
    (
        "etc/systemd/system/pgfork-vm.target",
        include_str!("../../guest/pgfork-vm.target"),
    ),
    (
        "etc/systemd/system/pgfork-vm.service",
        include_str!("../../guest/pgfork-vm.service"),
    ),
];

/// Where executables go in the guest, and everything else.
const BIN: &str = "usr/local/bin";
const HOME: &str = "root";

/// A file or directory to copy into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopyIn {
    /// Path on the host.
    pub(crate) source: PathBuf,
    /// Absolute path in the guest; by default `/usr/local/bin/NAME` for what is executable,
    /// `/root/NAME` for the rest.
    pub(crate) target: Option<String>,
}

impl CopyIn {
    /// Reads `SOURCE` or `SOURCE:TARGET`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (source, target) = match text.rsplit_once(':') {
            Some((source, target)) if target.starts_with('/') => (source, Some(target.to_owned())),
            _ => (text, None),
        };
        if source.is_empty() {
            return Err("the file to copy is not named".to_owned());
        }
        Ok(Self {
            source: source.into(),
            target,
        })
    }

    /// Path in the guest, without the leading slash.
    fn guest_path(&self) -> Result<String> {
        if let Some(target) = &self.target {
            return Ok(target.trim_matches('/').to_owned());
        }
        let metadata = fs::metadata(&self.source)
            .with_context(|| format!("cannot copy {} into the guest", self.source.display()))?;
        let executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        let name = self.source.canonicalize()?;
        let name = name
            .file_name()
            .context("cannot copy / into the guest")?
            .to_string_lossy();
        Ok(format!("{}/{name}", if executable { BIN } else { HOME }))
    }
}

/// A string that ends the streams of one run, and that nothing else contains.
pub(crate) fn new_token(dir: &Path) -> String {
    let unique = dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("[end of stream {unique} {}]", time.as_nanos())
}

/// Writes the initial RAM disk: what the kernel's cache holds, then the first process.
pub(crate) fn write_initrd(base: &Path, target: &Path) -> Result<()> {
    let mut file =
        File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    io::copy(&mut File::open(base)?, &mut file)?;
    cpio_entry(&mut file, "init", 0o100_755, INITRD_INIT.as_bytes())?;
    cpio_entry(&mut file, "TRAILER!!!", 0, &[])?;
    Ok(())
}

/// One entry of a cpio archive in the format "newc".
fn cpio_entry(out: &mut impl Write, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
    let size = u32::try_from(data.len()).map_err(io::Error::other)?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    // inode, mode, uid, gid, links, time, size, device (2), special device (2), name, checksum
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = b"070701".to_vec();
    for field in fields {
        write!(header, "{field:08X}")?;
    }
    header.extend(name.bytes());
    header.push(0);
    for part in [&header[..], data] {
        out.write_all(part)?;
        out.write_all(&[0; 3][..(4 - part.len() % 4) % 4])?;
    }
    Ok(())
}

/// Writes the job: a tar that the guest unpacks over its root filesystem.
pub(crate) fn write_job(spec: &VmSpec, token: &str, target: &Path) -> Result<()> {
    let file =
        File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let mut tar = tar::Builder::new(file);
    let init = match spec.init {
        Init::Plain => "/pgfork-vm/plain-init\n",
        Init::Systemd => "/sbin/init\n",
    };
    let mut texts = vec![
        ("pgfork-vm/init", init.to_owned()),
        ("pgfork-vm/plain-init", PLAIN_INIT.to_owned()),
        ("pgfork-vm/run", RUN.to_owned()),
        ("pgfork-vm/job", job_variables(spec, token)),
        ("pgfork-vm/command", command_script(&spec.command)?),
    ];
    if spec.init == Init::Systemd {
        texts.extend(
            SYSTEMD_UNITS
                .iter()
                .map(|(path, text)| (*path, (*text).to_owned())),
        );
    }
    for (path, text) in texts {
        let mode = if path.starts_with("pgfork-vm/") {
            0o755
        } else {
            0o644
        };
        let mut header = header(text.len() as u64, mode);
        tar.append_data(&mut header, path, text.as_bytes())?;
    }
    for copy in &spec.copy {
        append(&mut tar, &copy.source, &copy.guest_path()?)
            .with_context(|| format!("cannot copy {} into the guest", copy.source.display()))?;
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

/// Everything in the guest belongs to root, and directories appear only as parts of paths: the
/// guest's own directories keep their modes and symbolic links.
fn append(tar: &mut tar::Builder<File>, source: &Path, target: &str) -> Result<()> {
    let metadata = fs::metadata(source)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            append(
                tar,
                &entry.path(),
                &format!("{target}/{}", entry.file_name().to_string_lossy()),
            )?;
        }
    } else if metadata.is_file() {
        let mut header = header(metadata.len(), metadata.permissions().mode() & 0o7777);
        tar.append_data(&mut header, target, File::open(source)?)?;
    } else {
        bail!("{} is neither a file nor a directory", source.display());
    }
    Ok(())
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn job_variables(spec: &VmSpec, token: &str) -> String {
    let cgroup = match spec.cgroup {
        Cgroup::V1 => "v1",
        Cgroup::V2 => "v2",
    };
    format!(
        "JOB_TOKEN='{token}'\nJOB_CGROUP={cgroup}\nPG_MAJOR={}\n",
        spec.postgres.major()
    )
}

fn command_script(command: &[String]) -> Result<String> {
    if command.is_empty() {
        bail!("no command for the guest");
    }
    let words = shlex::try_join(command.iter().map(String::as_str))
        .context("the command for the guest contains a NUL character")?;
    Ok(format!("exec {words}\n"))
}

/// One of the streams of a guest: passes on what comes before the token, and knows when it came.
#[derive(Debug)]
pub(crate) struct Stream {
    token: Vec<u8>,
    /// What may be the beginning of the token.
    held: Vec<u8>,
    ended: bool,
}

impl Stream {
    /// A stream that ends with `token`.
    pub(crate) fn new(token: &str) -> Self {
        Self {
            token: token.into(),
            held: Vec::new(),
            ended: false,
        }
    }

    /// Whether the token has been seen.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Takes the next bytes and returns those which certainly precede the token.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.ended {
            return Vec::new();
        }
        self.held.extend_from_slice(bytes);
        if let Some(at) = self
            .held
            .windows(self.token.len())
            .position(|part| part == self.token)
        {
            self.ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let longest = self.held.len().min(self.token.len() - 1);
        let keep = (0..=longest)
            .rev()
            .find(|length| self.held.ends_with(&self.token[..*length]));
        let rest = self.held.split_off(self.held.len() - keep.unwrap_or(0));
        std::mem::replace(&mut self.held, rest)
    }
}

/// A line on the control port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The command starts now.
    Ready,
    /// Not everything in `/out` could be sent.
    Incomplete,
    /// The command has ended with this status (128 + N: by signal N).
    Exit(u8),
}

impl Message {
    /// Reads a line; none if it is not one of ours.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "ready" => Some(Self::Ready),
            "incomplete" => Some(Self::Incomplete),
            other => other.strip_prefix("exit ")?.parse().ok().map(Self::Exit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_named_by_source_and_target() {
        let plain = CopyIn::parse("a/b.sh").expect("valid");
        assert_eq!(
            (plain.source.to_str(), plain.target),
            (Some("a/b.sh"), None)
        );
        let both = CopyIn::parse("a:b/c:/etc/x").expect("valid");
        assert_eq!(
            (both.source.to_str(), both.target.as_deref()),
            (Some("a:b/c"), Some("/etc/x"))
        );
        assert!(CopyIn::parse(":/etc/x").is_err());
    }

    #[test]
    fn executables_land_on_the_path() {
        let guest = |name: &str| {
            CopyIn {
                source: name.into(),
                target: None,
            }
            .guest_path()
        };
        assert_eq!(
            guest("/bin/sh").expect("exists").split('/').next(),
            Some("usr")
        );
        assert_eq!(guest("Cargo.toml").expect("exists"), "root/Cargo.toml");
        assert!(guest("/no/such/file").is_err());
    }

    #[test]
    fn a_command_keeps_its_words() {
        let words = ["sh", "-c", "echo 'a  b' $x"].map(str::to_owned);
        let script = command_script(&words).expect("valid");
        let read = shlex::split(script.strip_prefix("exec ").expect("exec"));
        assert_eq!(read.expect("valid shell"), words);
        assert!(command_script(&[]).is_err());
    }

    #[test]
    fn a_stream_ends_at_the_token_wherever_it_is_cut() {
        let text = b"one [end of two [end of x] late";
        for cut in 0..text.len() {
            let mut stream = Stream::new("[end of x]");
            let mut seen = stream.push(&text[..cut]);
            seen.extend(stream.push(&text[cut..]));
            assert_eq!(seen, b"one [end of two ", "cut at {cut}");
            assert!(stream.ended());
            assert!(stream.push(b"more").is_empty());
        }
    }

    #[test]
    fn a_stream_is_not_held_back() {
        let mut stream = Stream::new("[end]");
        assert_eq!(stream.push(b"progress 1\n"), b"progress 1\n");
        assert_eq!(stream.push(b"x[en"), b"x");
        assert_eq!(stream.push(b"emy"), b"[enemy");
        assert!(!stream.ended());
    }

    #[test]
    fn messages() {
        assert_eq!(Message::parse("ready\n"), Some(Message::Ready));
        assert_eq!(Message::parse("exit 3\n"), Some(Message::Exit(3)));
        assert_eq!(Message::parse("exit 256"), None);
        assert_eq!(Message::parse("exit"), None);
        assert_eq!(Message::parse("noise"), None);
    }

    #[test]
    fn cpio_entries_are_aligned() {
        let mut out = Vec::new();
        cpio_entry(&mut out, "init", 0o100_755, b"12345").expect("writes");
        // 110 bytes of header, 5 of name, padded; 5 of data, padded.
        assert_eq!(out.len(), 116 + 8);
        assert_eq!(
            &out[..22],
            b"0707010000000100008"
                .iter()
                .chain(b"1ED")
                .copied()
                .collect::<Vec<u8>>()
                .as_slice()
        );
    }
}
