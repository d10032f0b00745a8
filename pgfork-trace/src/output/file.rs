//! Lines that are written whole or not at all.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The output file could not be created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A symbolic link: it may lead anywhere.
    #[error("{} is a symbolic link, which is not followed; name the file itself, and one that does not exist yet", .0.display())]
    Symlink(PathBuf),
    /// It exists.
    #[error("{} exists and is not overwritten; remove it or choose another name", .0.display())]
    Exists(PathBuf),
    /// Anything else.
    #[error("cannot create {}: {source}", .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Creates the file: never an existing one, never through a symbolic link, for its owner only.
pub(super) fn create(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .append(true)
        // O_EXCL; O_NOFOLLOW says it for those who read system calls.
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| {
            if source.kind() != io::ErrorKind::AlreadyExists {
                return OpenError::Other {
                    path: path.to_owned(),
                    source,
                };
            }
            if path.is_symlink() {
                OpenError::Symlink(path.to_owned())
            } else {
                OpenError::Exists(path.to_owned())
            }
        })
}

/// Removes a file that nothing was written to: the next attempt may want the
/// name. Only this very file, and failing is no harm.
pub(super) fn remove_empty(path: &Path, created: (u64, u64)) {
    let same = fs::symlink_metadata(path)
        .is_ok_and(|found| found.len() == 0 && identity(&found) == created);
    if same {
        let _ = fs::remove_file(path);
    }
}

/// A file that was created here, and goes again if nothing is written to it.
pub(super) struct Created {
    pub(super) path: PathBuf,
    identity: (u64, u64),
}

impl Created {
    /// [`create`]s it.
    pub(super) fn new(path: &Path) -> Result<(File, Self), OpenError> {
        let file = create(path)?;
        let metadata = file.metadata().map_err(|source| OpenError::Other {
            path: path.to_owned(),
            source,
        })?;
        let created = Self {
            path: path.to_owned(),
            identity: identity(&metadata),
        };
        Ok((file, created))
    }

    /// Nothing was written to it.
    pub(super) fn remove_empty(&self) {
        remove_empty(&self.path, self.identity);
    }
}

/// Device and inode.
pub(super) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A place for lines.
pub(super) trait Store: Send {
    /// One write; may take less than all.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Takes the last bytes back.
    fn take_back(&mut self, bytes: u64) -> io::Result<()>;
}

impl Store for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn take_back(&mut self, bytes: u64) -> io::Result<()> {
        // From what the file is now: others may have truncated it.
        let length = self.metadata()?.len();
        self.set_len(length.saturating_sub(bytes))
    }
}

/// A stream: what was written stays.
pub(super) struct Stream(pub(super) Box<dyn Write + Send>);

impl Store for Stream {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.0.write(bytes)?;
        self.0.flush()?;
        Ok(taken)
    }

    fn take_back(&mut self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes lines to a store and repairs what a failed write leaves behind.
pub(super) struct LineWriter {
    store: Box<dyn Store>,
    written: u64,
    /// A part of a line stands at the end.
    torn: bool,
    /// Lines that failed since the last that did not.
    missing: u64,
    unwritten: u64,
}

impl LineWriter {
    pub(super) fn new(store: Box<dyn Store>) -> Self {
        Self {
            store,
            written: 0,
            torn: false,
            missing: 0,
            unwritten: 0,
        }
    }

    /// Bytes written.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Lines that failed since the last that did not.
    pub(super) const fn missing(&self) -> u64 {
        self.missing
    }

    /// Lines that failed.
    pub(super) const fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Writes a line; counts it when that fails.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let result = self.try_write(line);
        if result.is_err() {
            self.missing += 1;
            self.unwritten += 1;
        }
        result
    }

    /// Writes a line about the missing ones, which are then told. Failing is no
    /// news: the line that follows fails too.
    pub(super) fn write_notice(&mut self, line: &[u8]) {
        if self.try_write(line).is_ok() {
            self.missing = 0;
        }
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            // The part becomes a line of its own, and this one is whole.
            self.append_all(b"\n")?;
            self.torn = false;
        }
        self.append_all(line)
    }

    fn append_all(&mut self, line: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < line.len() {
            match self.store.append(&line[done..]) {
                Ok(0) => return Err(self.repair(done, io::ErrorKind::WriteZero.into())),
                Ok(taken) => done += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.repair(done, error)),
            }
        }
        self.written += done as u64;
        Ok(())
    }

    fn repair(&mut self, done: usize, error: io::Error) -> io::Error {
        if done > 0 && self.store.take_back(done as u64).is_err() {
            self.written += done as u64;
            self.torn = true;
        }
        error
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
