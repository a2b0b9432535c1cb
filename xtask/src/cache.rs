//! Things that take long to make and are kept outside the checkout: `$XDG_CACHE_HOME/nvme-vfio` or `~/.cache/nvme-vfio`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What the name of a broken-off attempt starts with.
const UNFINISHED: &str = "unfinished-";

/// The cache directory, made when it is not there.
pub(crate) fn directory() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path,
        _ => env::home_dir()
            .context("no home directory for the cache: set XDG_CACHE_HOME")?
            .join(".cache"),
    };
    let directory = base.join("nvme-vfio");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// The entry whose name ends with `suffix`, the last by name when there are several.
pub(crate) fn find(suffix: &str) -> Result<Option<PathBuf>> {
    let mut names: Vec<PathBuf> = fs::read_dir(directory()?)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().ends_with(suffix))
        })
        .collect();
    names.sort();
    Ok(names.pop())
}

/// Finds the entry whose name ends with `suffix`, or makes it: `make` fills an empty directory and returns the entry's whole name.
///
/// Only one process makes at a time, and an entry appears under its name all at once, so a broken-off attempt leaves nothing that
/// could be taken for finished.
pub(crate) fn find_or_make(
    suffix: &str,
    make: impl FnOnce(&Path) -> Result<String>,
) -> Result<PathBuf> {
    if let Some(found) = find(suffix)? {
        return Ok(found);
    }
    let directory = directory()?;
    let lock = File::create(directory.join("lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("Waiting for another process that is filling the cache.");
        lock.lock().context("cannot lock the cache")?;
    }
    if let Some(found) = find(suffix)? {
        return Ok(found);
    }
    remove_unfinished(&directory);
    let work = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(&directory)?;
    let name = make(work.path())?;
    assert!(
        name.ends_with(suffix),
        "{name} would not be found again by {suffix}"
    );
    let place = directory.join(name);
    fs::rename(work.path(), &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place)
}

/// Removes what attempts that were killed left behind; whoever calls this holds the lock, so none of them is under way.
fn remove_unfinished(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
