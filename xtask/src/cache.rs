//! Downloads and images: made once per user, complete or absent, safe to ask for from two runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::progress::say;

/// `$XDG_CACHE_HOME/pgfork-trace`, by default `~/.cache/pgfork-trace`.
pub(crate) fn dir() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .context("no cache directory: set HOME or XDG_CACHE_HOME")?;
    let dir = base.join("pgfork-trace");
    create_dir(&dir)?;
    Ok(dir)
}

/// Creates a directory and its parents.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Holds the lock file `PATH.lock` until the result is dropped; waits for another run.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let name = path.with_added_extension("lock");
    if let Some(parent) = name.parent() {
        create_dir(parent)?;
    }
    let file = File::create(&name).with_context(|| format!("cannot create {}", name.display()))?;
    if file.try_lock().is_err() {
        say(format_args!(
            "waiting for another run that works on {}",
            path.display()
        ));
        file.lock()
            .with_context(|| format!("cannot lock {}", name.display()))?;
    }
    Ok(file)
}

/// The directory `group/name` of the cache, filled by `make` if it is not there yet (or always,
/// with `renew`). It appears only when `make` has succeeded.
pub(crate) fn entry(
    group: &str,
    name: &str,
    renew: bool,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dir = dir()?.join(group);
    let path = dir.join(name);
    if path.exists() && !renew {
        return Ok(path);
    }
    let _lock = lock(&path)?;
    if path.exists() && !renew {
        return Ok(path);
    }
    let fresh = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(&dir)
        .with_context(|| format!("cannot create a directory in {}", dir.display()))?;
    make(fresh.path())?;
    replace(fresh, &path).with_context(|| format!("cannot put {} in place", path.display()))?;
    Ok(path)
}

fn replace(fresh: tempfile::TempDir, path: &Path) -> std::io::Result<()> {
    if path.exists() {
        // A guest that still runs keeps its open files; only the names go.
        fs::remove_dir_all(path)?;
    }
    fs::rename(fresh.path(), path)?;
    let _ = fresh.keep();
    Ok(())
}
