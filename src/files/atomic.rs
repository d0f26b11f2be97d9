//! Atomic replacement of files: a file is written completely and then takes the place of the old one, or nothing changes.
//!
//! Until it is complete, a new file lies beside the one that it is to replace, under a temporary name. A reader never sees
//! half of a file, two programs that write the same file at once leave one of the two, and a full disk leaves the old file.

use std::fs::{self, File, Metadata, OpenOptions};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::error::{Error, Result};

/// What the names of new files begin with until they are whole, those that safetensors makes among them.
pub const TEMPORARY: &str = ".tmp";
/// Maximum number of links from one to the next.
const MAX_LINKS: usize = 40;

/// A new file that takes the place of an old one when it is whole, and is removed if that never comes.
#[derive(Debug)]
pub struct Replacement {
    path: TempPath,
    /// What is replaced: where links lead.
    target: PathBuf,
    /// That file, whose mode and owner the new one gets; none where there is none yet.
    old: Option<Metadata>,
}

impl Replacement {
    /// An empty file beside the one that `file` is or leads to, which may be missing.
    ///
    /// # Errors
    /// [`Error::Io`] where no file can be made beside it, [`Error::Argument`] for links that lead in a circle.
    pub fn of(file: &Path) -> Result<Self> {
        let target = followed(file)?;
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // What every new file gets; the mask of the process takes away from it.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let new = builder.tempfile_in(folder).map_err(Error::io(file))?;
        let old = fs::metadata(&target).ok();
        Ok(Replacement { path: new.into_temp_path(), target, old })
    }

    /// Where the new file lies until [`Replacement::put`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that is replaced: where links lead.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes the new file out, gives it mode and owner of the old one, and puts it in its place.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file is as it was then.
    pub fn put(self) -> Result<()> {
        let io = |e| Error::io(&self.target)(e);
        // Before its mode, which may forbid writing: Windows writes out only what was opened for it.
        OpenOptions::new().write(true).open(&self.path).and_then(|file| file.sync_all()).map_err(io)?;
        if let Some(old) = &self.old {
            fs::set_permissions(&self.path, old.permissions()).map_err(io)?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                // Only root gives files away; for others the file is theirs, as any that they write.
                let _ = std::os::unix::fs::chown(&self.path, Some(old.uid()), Some(old.gid()));
            }
        }
        let Replacement { path, target, .. } = self;
        path.persist(&target).map_err(|e| Error::io(target)(e.error))
    }
}

/// Where a file's links lead, which may be to no file.
pub(crate) fn followed(file: &Path) -> Result<PathBuf> {
    let mut path = file.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(Error::argument(file.display(), format!("is a link that leads to others, more than {MAX_LINKS}")))
}

/// Lets `write` fill a new file, whose path it gets, and puts that in the place of `file`.
///
/// # Errors
/// Those of `write`, and [`Error::Io`].
fn write_with(file: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new = Replacement::of(file)?;
    write(new.path())?;
    new.put()
}

/// Writes a file. What is not an ordinary file (a pipe, a terminal) is written as it is.
///
/// # Errors
/// [`Error::Io`].
pub fn write(file: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    if fs::metadata(file).is_ok_and(|m| !m.is_file()) {
        return fs::write(file, bytes).map_err(Error::io(file));
    }
    write_with(file, |new| fs::write(new, bytes).map_err(Error::io(file)))
}

/// Checks that [`write()`] can write a file later. One that exists stays as it is, and no new one is left behind.
///
/// # Errors
/// [`Error::Io`].
pub fn check_writable(file: &Path) -> Result<()> {
    match fs::metadata(file) {
        Ok(old) if !old.is_file() => File::options().append(true).open(file).map(drop).map_err(Error::io(file)),
        Ok(_) => {
            // One that may not be changed is not replaced either.
            File::options().append(true).open(file).map_err(Error::io(file))?;
            Replacement::of(file).map(drop)
        }
        Err(_) => Replacement::of(file).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_new_or_old_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        write(&file, "old").unwrap();
        let failed = write_with(&file, |new| {
            fs::write(new, "half").unwrap();
            Err(Error::argument("x", "y"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        write(&file, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(check_writable(&folder.path().join("none/b")).is_err());
        check_writable(&folder.path().join("b")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_modes_stay() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let [file, link, dangling] = ["file", "link", "dangling"].map(|name| folder.path().join(name));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("file", &link).unwrap();
        symlink("not yet", &dangling).unwrap();
        write(&link, "new").unwrap();
        write(&dangling, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(folder.path().join("not yet")).unwrap(), "new");
        let circle = folder.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(matches!(write(&circle, "x"), Err(Error::Argument { .. })));
    }

    #[test]
    fn many_at_once_leave_one_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let texts: Vec<String> = (0..8).map(|i| i.to_string().repeat(100_000)).collect();
        std::thread::scope(|scope| {
            for text in &texts {
                let file = &file;
                scope.spawn(move || write(file, text).unwrap());
            }
        });
        assert!(texts.contains(&fs::read_to_string(&file).unwrap()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
