//! What was chosen for an adapter, on disk: a file for each adapter, driver and version of this crate.

use std::error::Error as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::engine::autotune::possible;
use crate::error::{Error, Result};
use crate::files::whole;
use crate::plan::{Caps, Tuning};

/// Names the folder of the cache; empty: there is none.
const VARIABLE: &str = "TERNION_CACHE";
/// Longest part of an adapter's name in the name of a file.
const MAX_NAME: usize = 120;
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 16;

/// This crate's version, and a number that goes up when the kernels change among which is chosen.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-2");

/// What a choice belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    adapter: String,
    caps: Caps,
}

/// A file of the cache.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    version: String,
    adapter: String,
    /// What the adapter has: subgroups, dot4, shuffles.
    has: [bool; 3],
    /// What of it is worth using.
    uses: [bool; 3],
    tuning: Tuning,
}

/// A folder of choices.
#[derive(Debug)]
pub struct Cache(PathBuf);

impl Key {
    /// `adapter` names adapter, driver and its version; `caps` is all that it has.
    pub fn new(adapter: &str, caps: Caps) -> Self {
        Key { adapter: adapter.to_owned(), caps }
    }

    fn entry(&self, chosen: Caps) -> Entry {
        let flags = |c: Caps| [c.subgroups, c.dot4, c.shuffles];
        Entry {
            version: VERSION.to_owned(),
            adapter: self.adapter.clone(),
            has: flags(self.caps),
            uses: flags(chosen),
            tuning: chosen.tuning,
        }
    }

    /// What an entry says, if it is of this adapter and makes sense.
    fn caps(&self, entry: Entry) -> std::result::Result<Caps, String> {
        let [subgroups, dot4, shuffles] = entry.uses;
        let caps = Caps { subgroups, dot4, shuffles, tuning: entry.tuning, ..self.caps };
        if self.entry(caps) != entry {
            return Err(format!("is of {} (ternion {})", entry.adapter, entry.version));
        }
        if !self.caps.subsets().iter().any(|c| Caps { tuning: caps.tuning, ..*c } == caps) || !possible(caps.tuning) {
            return Err(format!("asks for what no kernel has: {:?}, {:?}", entry.uses, entry.tuning));
        }
        Ok(caps)
    }

    fn file(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let name: String = self.adapter.chars().map(plain).take(MAX_NAME).collect();
        format!("tuning-{VERSION}-{name}.json")
    }
}

impl Cache {
    /// The user's: what `TERNION_CACHE` names, else `ternion` in the system's folder for caches. None if there is
    /// neither, or the variable is empty.
    pub fn of_user() -> Option<Self> {
        match std::env::var_os(VARIABLE) {
            Some(dir) => (!dir.is_empty()).then(|| Cache(dir.into())),
            None => match etcetera::base_strategy::choose_native_strategy() {
                Ok(folders) => Some(Cache(folders.cache_dir().join("ternion"))),
                Err(error) => {
                    log::warn!("what is chosen for the adapter is not kept: {error}");
                    None
                }
            },
        }
    }

    /// What was chosen before. A file that cannot be read, or is not of this key, is passed over with a warning.
    pub fn load(&self, key: &Key) -> Option<Caps> {
        let path = self.0.join(key.file());
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                log::warn!("{} is passed over: {error}", path.display());
                return None;
            }
        };
        let entry = serde_json::from_str(&text).map_err(|e| e.to_string());
        entry
            .and_then(|entry| key.caps(entry))
            .map_err(|problem| log::warn!("{} is passed over: it {problem}", path.display()))
            .ok()
    }

    /// Keeps a choice; a folder that cannot be written is a warning.
    pub fn store(&self, key: &Key, chosen: Caps) {
        let path = self.0.join(key.file());
        if let Err(error) = self.write(&path, &key.entry(chosen)) {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            log::warn!("variants are timed again next time: {error}{cause}");
        }
    }

    fn write(&self, path: &Path, entry: &Entry) -> Result<()> {
        fs::create_dir_all(&self.0).map_err(Error::io(&self.0))?;
        let text = serde_json::to_string_pretty(entry).map_err(|e| Error::format(path.display(), e))?;
        whole::write(path, text + "\n")
    }
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(adapter: &str) -> Key {
        Key::new(adapter, Caps { subgroups: true, dot4: true, max_binding: 1 << 27, ..Caps::PLAIN })
    }

    fn chosen(key: &Key) -> Caps {
        Caps { subgroups: false, tuning: Tuning::ALL[2], ..key.caps }
    }

    #[test]
    fn a_choice_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, key) = (Cache(dir.path().join("new/folder")), key("GPU 1 (Vulkan, driver 2.3)"));
        assert_eq!(cache.load(&key), None);
        cache.store(&key, chosen(&key));
        assert_eq!(cache.load(&key), Some(chosen(&key)));
        let names: Vec<_> = fs::read_dir(&cache.0).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(names, [key.file().as_str()], "and nothing else is left behind");
    }

    #[test]
    fn another_driver_does_not_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, one) = (Cache(dir.path().into()), key("GPU (Vulkan, driver 1)"));
        cache.store(&one, chosen(&one));
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
        cache.store(&key, chosen(&key));
        let path = cache.0.join(key.file());
        let good = fs::read_to_string(&path).unwrap();
        let broken = [
            String::new(),
            "{".into(),
            good[..good.len() / 2].into(),
            good.replace("\"split\": 2", "\"split\": 64"),
            good.replace("\"split\": 2", "\"split\": -1"),
            good.replace("\"quads\"", "\"quarks\""),
            good.replace(VERSION, "0.0.0"),
            " ".repeat(1 << 17) + &good,
        ];
        for text in broken {
            assert_ne!(text, good);
            fs::write(&path, &text).unwrap();
            assert_eq!(cache.load(&key), None, "{text:?}");
        }
        fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert_eq!(cache.load(&key), None, "no UTF-8");
        cache.store(&key, chosen(&key));
        assert_eq!(cache.load(&key), Some(chosen(&key)));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "no folder").unwrap();
        let (cache, key) = (Cache(file.clone()), key("GPU"));
        cache.store(&key, chosen(&key));
        assert_eq!(cache.load(&key), None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "no folder");
    }
}
