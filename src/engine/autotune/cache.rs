//! The chosen variants on disk: a file for each adapter, driver and version of this crate, with a variant for each op and
//! bucket of shapes.

use std::error::Error as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::plan::{Caps, Choices};

/// The environment variable that names the folder of the cache; if it is empty, there is no cache.
const VARIABLE: &str = "TERNION_CACHE";
/// Longest part of an adapter's name in the name of a file.
const MAX_NAME: usize = 120;
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// This crate's version, and a number that is raised when kernel variants change.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-3");

/// What a choice belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    adapter: String,
    caps: Caps,
}

/// A file of the cache.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    adapter: String,
    /// Capabilities of the adapter: subgroups, dot4, software subgroups.
    has: [bool; 3],
    choices: Vec<Entry>,
}

/// A variant that was chosen.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    op: String,
    /// The bucket of shapes.
    shapes: String,
    variant: String,
}

/// A folder of choices.
#[derive(Debug)]
pub struct Cache(PathBuf);

impl Key {
    /// `adapter` names adapter, driver and its version; `caps` is all that it has.
    pub fn new(adapter: &str, caps: Caps) -> Self {
        Key { adapter: adapter.to_owned(), caps }
    }

    fn contents(&self, choices: &Choices) -> File {
        let entry = |[op, shapes, variant]: [&str; 3]| Entry {
            op: op.to_owned(),
            shapes: shapes.to_owned(),
            variant: variant.to_owned(),
        };
        File {
            version: VERSION.to_owned(),
            adapter: self.adapter.clone(),
            has: [self.caps.subgroups, self.caps.dot4, self.caps.software_subgroups],
            choices: choices.iter().map(entry).collect(),
        }
    }

    /// The choices of a file, if it belongs to this adapter. Names that no op has are kept; looking them up ignores them.
    fn choices(&self, file: File) -> std::result::Result<Choices, String> {
        let mut choices = Choices::default();
        for Entry { op, shapes, variant } in &file.choices {
            choices.set(op, shapes, variant);
        }
        let own = self.contents(&choices);
        if (&own.version, &own.adapter, own.has) != (&file.version, &file.adapter, file.has) {
            return Err(format!("is of {} (ternion {})", file.adapter, file.version));
        }
        Ok(choices)
    }

    fn file(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let name: String = self.adapter.chars().map(plain).take(MAX_NAME).collect();
        format!("tuning-{VERSION}-{name}.json")
    }
}

/// The user's folder for [`DeviceOptions::cache`](crate::engine::DeviceOptions::cache): what the environment variable
/// `TERNION_CACHE` names, else `ternion` in the system's folder for caches. None if there is neither, or the variable is empty.
pub fn user_cache() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE) {
        Some(dir) => (!dir.is_empty()).then(|| dir.into()),
        None => match etcetera::base_strategy::choose_native_strategy() {
            Ok(folders) => Some(folders.cache_dir().join("ternion")),
            Err(error) => {
                log::warn!("there is no folder for caches: {error}");
                None
            }
        },
    }
}

impl Cache {
    /// The choices in a folder.
    pub fn in_folder(dir: PathBuf) -> Self {
        Cache(dir)
    }

    /// The choices of an earlier run. A file that cannot be read, or belongs to another key, is ignored with a warning.
    pub fn load(&self, key: &Key) -> Option<Choices> {
        let path = self.0.join(key.file());
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                log::warn!("{} is passed over: {error}", path.display());
                return None;
            }
        };
        let file = serde_json::from_str(&text).map_err(|e| e.to_string());
        file.and_then(|file| key.choices(file))
            .map_err(|problem| log::warn!("{} is passed over: it {problem}", path.display()))
            .ok()
    }

    /// Stores choices; a folder that cannot be written to is a warning.
    pub fn store(&self, key: &Key, chosen: &Choices) {
        let path = self.0.join(key.file());
        if let Err(error) = self.write(&path, &key.contents(chosen)) {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            log::warn!("variants are timed again next time: {error}{cause}");
        }
    }

    fn write(&self, path: &Path, file: &File) -> Result<()> {
        fs::create_dir_all(&self.0).map_err(Error::io(&self.0))?;
        let text = serde_json::to_string_pretty(file).map_err(|e| Error::format(path.display(), e))?;
        atomic::write(path, text + "\n")
    }
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    // Opening a pipe would wait for who writes to it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(adapter: &str) -> Key {
        Key::new(adapter, Caps { subgroups: true, dot4: true, max_binding: 1 << 27, ..Caps::PLAIN })
    }

    fn chosen() -> Choices {
        let mut choices = Choices::default();
        choices.set("matmul", "1 row: F32 1024, F16 1024 -> 4096", "16x4");
        choices.set("bit_linear", "1 row: F32 1024 -> 1024", "k8-v1-t1");
        choices
    }

    #[test]
    fn a_choice_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, key) = (Cache(dir.path().join("new/folder")), key("GPU 1 (Vulkan, driver 2.3)"));
        assert_eq!(cache.load(&key), None);
        cache.store(&key, &chosen());
        assert_eq!(cache.load(&key), Some(chosen()));
        let names: Vec<_> = fs::read_dir(&cache.0).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(names, [key.file().as_str()], "and nothing else is left behind");
    }

    #[test]
    fn another_driver_does_not_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, one) = (Cache(dir.path().into()), key("GPU (Vulkan, driver 1)"));
        cache.store(&one, &chosen());
        assert_eq!(cache.load(&key("GPU (Vulkan, driver 2)")), None);
        // The same name for a file, but not the same adapter; and the same adapter with less.
        let alike = key("GPU (Vulkan; driver 1)");
        assert_eq!(alike.file(), one.file());
        assert_eq!(cache.load(&alike), None);
        assert_eq!(cache.load(&Key::new(&one.adapter, Caps { dot4: false, ..one.caps })), None);
    }

    #[test]
    fn a_broken_file_is_passed_over_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, key) = (Cache(dir.path().into()), key("GPU"));
        cache.store(&key, &chosen());
        let path = cache.0.join(key.file());
        let good = fs::read_to_string(&path).unwrap();
        let broken = [
            String::new(),
            "{".into(),
            good[..good.len() / 2].into(),
            good.replace("\"k8-v1-t1\"", "8"),
            good.replace("\"variant\"", "\"form\""),
            good.replace("\"has\": [", "\"has\": [ true,"),
            good.replace(VERSION, "0.0.0"),
            " ".repeat(1 << 20) + &good,
        ];
        for text in broken {
            assert_ne!(text, good);
            fs::write(&path, &text).unwrap();
            assert_eq!(cache.load(&key), None, "{text:?}");
        }
        fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert_eq!(cache.load(&key), None, "no UTF-8");
        cache.store(&key, &chosen());
        assert_eq!(cache.load(&key), Some(chosen()));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "no folder").unwrap();
        let (cache, key) = (Cache(file.clone()), key("GPU"));
        cache.store(&key, &chosen());
        assert_eq!(cache.load(&key), None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "no folder");
    }
}
