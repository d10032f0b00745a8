//! Bounded, streaming reads of small kernel files, with errors that name the place.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest line that is kept whole; the rest of a longer one is dropped. Kernel files build a line
/// in one page, except mountinfo, where the options of an overlay may take more.
const MAX_LINE: usize = 16 * 1024;

/// Why a file that exists could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Opening or reading failed for another reason than absence or permission.
    #[error("{path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The content is not what the format says.
    #[error("{path:?}:{line}: expected {expected}, found {found:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What should have been there.
        expected: &'static str,
        /// What was there, cut to 64 bytes.
        found: String,
    },
}

impl ReadError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn parse(path: &Path, line: usize, expected: &'static str, found: &[u8]) -> Self {
        Self::Parse {
            path: path.to_owned(),
            line,
            expected,
            found: String::from_utf8_lossy(&found[..found.len().min(64)]).into_owned(),
        }
    }
}

/// A limit as the kernel writes it: a number, or `max` / `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ceiling {
    /// At most this many, in the unit of the field.
    At(u64),
    /// No limit.
    Unlimited,
}

impl Ceiling {
    /// The number, unless there is no limit.
    pub fn value(self) -> Option<u64> {
        match self {
            Self::At(value) => Some(value),
            Self::Unlimited => None,
        }
    }

    pub(crate) fn from_bytes(text: &[u8]) -> Option<Self> {
        match text {
            b"max" | b"unlimited" => Some(Self::Unlimited),
            number => parse(number).map(Self::At),
        }
    }
}

/// Whether an error means that there is nothing to read, or not for us: missing file, ended
/// process (ESRCH), removed cgroup (ENODEV), no permission, a component that is no directory.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENOENT
                | libc::ESRCH
                | libc::EACCES
                | libc::EPERM
                | libc::ENODEV
                | libc::ENOTDIR
                | libc::ENOTCONN
                | libc::EOPNOTSUPP
        )
    )
}

/// The value; one that is not in its format is absent, and named in `unread`. One odd file takes no
/// other with it.
pub(crate) fn noted<T>(
    result: Result<Option<T>, ReadError>,
    unread: &mut Vec<String>,
) -> Option<T> {
    result.unwrap_or_else(|error| {
        unread.push(error.to_string());
        None
    })
}

/// `Ok(None)` for what [`is_absent`].
pub(crate) fn present<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(ReadError::io(path, error)),
    }
}

/// The first `limit` bytes of a kernel file.
pub(crate) fn small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ReadError> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut content));
    Ok(present(path, read)?.map(|_| content))
}

/// The first `limit` bytes of a file that others control. Anything but a regular file is refused
/// without waiting for it: a FIFO, a device, a symbolic link, a directory.
pub(crate) fn small_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    regular(path, limit, false)
}

/// The first `limit` bytes of a configuration file, symbolic links followed. Anything but a regular
/// file is refused without waiting for it.
pub(crate) fn config(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    regular(path, limit, true)
}

fn regular(path: &Path, limit: u64, follow: bool) -> io::Result<Vec<u8>> {
    let Some((file, _)) = open_regular(path, follow)? else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    };
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a regular file whose path others chose; without `follow` its last name is no link.
/// `Ok(None)` for anything else, which is not opened: opening a FIFO or a device may have effects, and
/// reading /proc/kmsg or trace_pipe takes what is read away from others.
pub(crate) fn open_regular(path: &Path, follow: bool) -> io::Result<Option<(File, Metadata)>> {
    let link = if follow { 0 } else { libc::O_NOFOLLOW };
    // Names it only (open(2), O_PATH).
    let named = open(path, libc::O_PATH | link)?;
    let metadata = named.metadata()?;
    if metadata.is_symlink() {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    if !metadata.is_file() || is_of_the_kernel(&named) {
        return Ok(None);
    }
    let again = format!("/proc/self/fd/{}", named.as_raw_fd());
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match open(Path::new(&again), flags) {
        // No /proc: by its name, which may be that of another file by now.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            open(path, flags | link)?
        }
        file => file?,
    };
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Whether its file system shows the kernel, and not what was stored. It need not be open for reading
/// (open(2), O_PATH: fstatfs since 3.12).
fn is_of_the_kernel(file: &File) -> bool {
    const KINDS: [i64; 3] = [
        libc::PROC_SUPER_MAGIC,
        libc::DEBUGFS_MAGIC,
        libc::TRACEFS_MAGIC,
    ];
    let mut said = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a descriptor that is open, and room for the answer.
    if unsafe { libc::fstatfs(file.as_raw_fd(), said.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call has filled it.
    let said = unsafe { said.assume_init() };
    KINDS.contains(&said.f_type)
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC | flags)
        .open(path)
}

/// Calls `each` with number and content of every line. `Ok(None)` when the file is absent, also
/// when it vanishes midway.
pub(crate) fn lines(
    path: &Path,
    mut each: impl FnMut(usize, &[u8]) -> Result<(), ReadError>,
) -> Result<Option<()>, ReadError> {
    let Some(mut file) = present(path, File::open(path))? else {
        return Ok(None);
    };
    let mut chunk = [0; 4096];
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        let size = match file.read(&mut chunk) {
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(ReadError::io(path, error)),
        };
        if size == 0 {
            break;
        }
        for piece in chunk[..size].split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = MAX_LINE - line.len();
            line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                number += 1;
                each(number, &line)?;
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        each(number + 1, &line)?;
    }
    Ok(Some(()))
}

/// Words between spaces and tabs.
pub(crate) fn fields(text: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty())
}

/// A number in ASCII digits (a leading `-` where `T` is signed).
pub(crate) fn parse<T: FromStr>(text: &[u8]) -> Option<T> {
    if text.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `"12 kB"` in bytes.
pub(crate) fn kilobytes(text: &[u8]) -> Option<u64> {
    let mut words = fields(text);
    let number: u64 = parse(words.next()?)?;
    (words.next() == Some(b"kB")).then(|| number.checked_mul(1024))?
}

/// The single number that a file holds.
pub(crate) fn number(path: &Path) -> Result<Option<u64>, ReadError> {
    value(path, "a number", parse)
}

/// The single number or `max` that a file holds.
pub(crate) fn ceiling(path: &Path) -> Result<Option<Ceiling>, ReadError> {
    value(path, "a number or \"max\"", Ceiling::from_bytes)
}

fn value<T>(
    path: &Path,
    expected: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, ReadError> {
    let Some(text) = small(path, 256)? else {
        return Ok(None);
    };
    let text = text.trim_ascii();
    match parse(text) {
        Some(value) => Ok(Some(value)),
        None => Err(ReadError::parse(path, 1, expected, text)),
    }
}

/// Splits `Key: value`, the value without surrounding space.
pub(crate) fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeRoot;

    #[test]
    fn only_regular_files_are_opened() {
        let fake = FakeRoot::new();
        fake.write("file", "12\n");
        fake.link("link", "file");
        let fifo = fake.path("fifo");
        let name = std::ffi::CString::new(fifo.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let (file, link) = (fake.path("file"), fake.path("link"));
        assert_eq!(config(&file, 2).unwrap(), b"12");
        assert_eq!(config(&link, 64).unwrap(), b"12\n");
        assert_eq!(small_regular(&file, 64).unwrap(), b"12\n");
        let refused = small_regular(&link, 64).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
        for other in [
            fifo,
            fake.path("proc"),
            "/dev/null".into(),
            "/dev/tty".into(),
        ] {
            let refused = config(&other, 64).unwrap_err();
            assert_eq!(refused.to_string(), "not a regular file", "{other:?}");
        }
        let missing = config(&fake.path("none"), 64).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    /// Whoever opens a FIFO for writing without waiting is told whether anybody reads: opening it
    /// for reading is what lets others see.
    #[test]
    fn a_fifo_never_has_a_reader() {
        let fake = FakeRoot::new();
        let fifo = fake.path("fifo");
        let name = std::ffi::CString::new(fifo.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let (done, stop) = std::sync::mpsc::channel::<()>();
        let path = fifo.clone();
        let writer = std::thread::spawn(move || {
            while stop.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let opened = OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::ENXIO));
            }
        });
        for _ in 0..20_000 {
            assert!(open_regular(&fifo, true).unwrap().is_none());
        }
        drop(done);
        writer.join().unwrap();
    }

    /// Some of them give what they say once only.
    #[test]
    fn files_of_the_kernel_are_not_what_others_stored() {
        let kernel = Path::new("/proc/self/status");
        assert!(kernel.metadata().unwrap().is_file());
        assert!(open_regular(kernel, true).unwrap().is_none());
        let stored = Path::new("/proc/self/exe");
        assert!(open_regular(stored, true).unwrap().is_some());
    }
}
