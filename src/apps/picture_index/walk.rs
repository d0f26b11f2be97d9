//! Finding pictures in a folder.

use std::fs::{self, Metadata};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use walkdir::{DirEntry, WalkDir};

use crate::error::{Error, Result};

/// File name extensions of pictures, in upper or lower case.
pub const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif"];

/// What could not be read, and why.
#[derive(Debug)]
pub struct Skipped {
    /// The file or folder.
    pub path: PathBuf,
    /// Why.
    pub error: Error,
}

/// A file that its name says is a picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct File {
    /// From the folder, parts joined by `/`.
    pub path: String,
    pub bytes: u64,
    /// Nanoseconds since 1970; 0 where the system does not know.
    pub modified: i64,
}

/// The pictures below a folder, sorted by path, and what could not be read.
///
/// Links to files are followed and links to folders are not, so there are no loops. Names that begin with a dot are
/// passed over, as other programs' own.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] if the folder itself cannot be read, or is not a folder.
pub(crate) fn walk(folder: &Path) -> Result<(Vec<File>, Vec<Skipped>)> {
    if !fs::metadata(folder).map_err(Error::io(folder))?.is_dir() {
        return Err(no_folder(folder));
    }
    let (mut files, mut skipped) = (Vec::new(), Vec::new());
    let hidden = |entry: &DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
    for entry in WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(|e| !hidden(e)) {
        let found = match entry {
            Ok(entry) if entry.file_type().is_dir() || !is_picture(entry.path()) => continue,
            Ok(entry) => look(folder, entry.path()).map_err(|error| (entry.into_path(), error)),
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                let top = error.depth() == 0;
                let error = Error::io(&path)(error.into());
                if top {
                    return Err(error);
                }
                Err((path, error))
            }
        };
        match found {
            Ok(Some(file)) => files.push(file),
            Ok(None) => {}
            Err((path, error)) => skipped.push(Skipped { path, error }),
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((files, skipped))
}

pub(crate) fn no_folder(path: &Path) -> Error {
    Error::format(path.display(), "is not a folder; give one with pictures")
}

fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// A file with what the system knows of it; none if it is something else.
fn look(folder: &Path, path: &Path) -> Result<Option<File>> {
    let found = fs::metadata(path).map_err(Error::io(path))?;
    if !found.is_file() {
        return Ok(None);
    }
    let inside = path.strip_prefix(folder).unwrap_or(path);
    let parts: Option<Vec<&str>> = inside.components().map(|part| part.as_os_str().to_str()).collect();
    let unnamed = || Error::format(path.display(), "its name is not UTF-8, so it cannot be kept; rename it");
    let path = parts.ok_or_else(unnamed)?.join("/");
    Ok(Some(File { path, bytes: found.len(), modified: modified(&found) }))
}

fn modified(found: &Metadata) -> i64 {
    let nanos = |t: std::time::Duration| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX);
    found.modified().ok().map_or(0, |time| match time.duration_since(UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    })
}

/// Whether a path stays inside the folder that it is joined to.
pub(crate) fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
