//! Keeping other programs from changing a file between reading and writing it.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use same_file::Handle;

use crate::error::{Error, Result};
use crate::files::atomic::followed;

/// Keeps a file to one program until it is dropped.
///
/// What is locked is a file of its own beside the one that is meant, since that is replaced by another when it is written.
#[derive(Debug)]
#[must_use = "the lock ends when it is dropped"]
pub struct Lock {
    path: PathBuf,
    /// Locked as long as it is open.
    _file: File,
}

impl Lock {
    /// Locks `file`, or what its links lead to; it may be missing. The lock's file is beside it, hidden, with `.lock` behind
    /// its name.
    ///
    /// # Errors
    /// Those of [`Lock::at`].
    pub fn of(file: &Path) -> Result<Self> {
        let target = followed(file)?;
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(".lock");
        Self::at(&target.with_file_name(name), file)
    }

    /// Locks the file `path`, which is made and removed with the lock and stands for `file`.
    ///
    /// # Errors
    /// [`Error::Format`] while another program has the lock, [`Error::Io`].
    pub fn at(path: &Path, file: &Path) -> Result<Self> {
        loop {
            let lock = File::options().create(true).append(true).open(path).map_err(Error::io(file))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::format(file.display(), "is being written by another program; wait for it"));
                }
                // Some file systems of networks have no locks.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                    log::warn!("{} cannot be locked: let one program at a time write it", file.display());
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(file)(e)),
            }
            // The one who had the lock may have removed the file after it was opened here.
            if is_at(&lock, path).map_err(Error::io(file))? {
                return Ok(Lock { path: path.to_owned(), _file: lock });
            }
        }
    }
}

/// Whether an open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match Handle::from_path(path) {
        Ok(found) => Ok(Handle::from_file(file.try_clone()?)? == found),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays behind locks nothing.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_a_lock_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let lock = Lock::of(&file).unwrap();
        let refused = Lock::of(&file).unwrap_err();
        assert!(
            matches!(&refused, Error::Format { .. }) && refused.to_string().contains("another program"),
            "{refused}"
        );
        let other = Lock::of(&folder.path().join("b")).unwrap();
        drop((lock, other));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // One that a killed program has left is not a lock.
        fs::write(folder.path().join(".a.lock"), "").unwrap();
        drop(Lock::of(&file).unwrap());
        assert!(Lock::of(&folder.path().join("none/a")).is_err());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let (n, at_once, max) = (200, std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..n {
                        let Ok(_lock) = Lock::of(&file) else { continue };
                        let now = at_once.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                        max.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
                        std::thread::yield_now();
                        at_once.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(max.into_inner(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_locked_with_what_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        let _lock = Lock::of(&folder.path().join("file")).unwrap();
        assert!(Lock::of(&link).is_err());
    }
}
