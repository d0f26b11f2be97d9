//! The zip archive around a torch file, and whether it is whole: names, places and sums of its entries agree.
//!
//! Nothing of the archive is written anywhere, and entries are found by exact name, so names that lead out of a
//! directory lead nowhere.

use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::files::checkpoint::budget::FileBudget;

/// An entry's header in front of its bytes: what it begins with, its length, and where in it the length of the name is, which
/// follows it.
const LOCAL_SIGNATURE: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: usize = 30;
const LOCAL_NAME_LENGTH: Range<usize> = 26..28;

/// The bytes of an archive entry: in the map as they are, with their sum if the archive has it, or inflated.
pub(super) enum Found {
    Mapped(Range<usize>, Option<u32>),
    Inflated(Vec<u8>),
}

impl Found {
    pub(super) fn bytes<'f>(&'f self, map: &'f [u8]) -> &'f [u8] {
        match self {
            Found::Mapped(range, _) => map.get(range.clone()).unwrap_or_default(),
            Found::Inflated(bytes) => bytes,
        }
    }
}

pub(super) struct Archive<'a> {
    path: &'a Path,
    map: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// What comes before `data.pkl` and all other names.
    pub(super) prefix: String,
    /// What the file may still take in memory.
    pub(super) budget: FileBudget,
}

impl<'a> Archive<'a> {
    /// Reads the directory of the archive `path`, whose content is `map`.
    ///
    /// # Errors
    /// [`Error::Format`] for one that is broken, or has not one pickle.
    pub(super) fn open(path: &'a Path, map: &'a [u8]) -> Result<Self> {
        let file = path.display();
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let zip = ZipArchive::with_config(config, Cursor::new(map)).map_err(|error| {
            let problem = format!("the zip directory at the end of its {} bytes is broken or cut off", map.len());
            Error::format(&file, format!("{problem} ({error}); fetch it again"))
        })?;
        if zip.has_duplicate_names() {
            return Err(Error::format(file, "is a zip archive with a name in it twice"));
        }
        let prefixes: Vec<String> = zip
            .file_names_raw()
            .filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix("data.pkl"))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
            .map(str::to_string)
            .collect();
        let [prefix] = prefixes.as_slice() else {
            let problem = format!("is a zip archive with {} data.pkl in it; a torch file has one", prefixes.len());
            return Err(Error::format(file, problem));
        };
        let prefix = prefix.clone();
        let mut archive = Self { path, map, zip, prefix, budget: FileBudget::of_file(map.len()) };
        archive.check_places()?;
        Ok(archive)
    }

    /// Checks that no two entries share bytes, nor an entry and the directory, and that each has the same name in front of its
    /// bytes: readers may go by either of the two.
    fn check_places(&mut self) -> Result<()> {
        let mut places: Vec<(u64, u64, usize)> = Vec::with_capacity(self.zip.len());
        for index in 0..self.zip.len() {
            let entry = self.zip.by_index_raw(index).map_err(|error| {
                Error::format(self.path.display(), format!("entry {index} of the zip directory is broken ({error})"))
            })?;
            let (start, data, packed) = (entry.header_start(), entry.data_start(), entry.compressed_size());
            if local_name(self.map, start) != Some(entry.name_raw()) {
                let object = format!("{}: entry {:?}", self.path.display(), String::from_utf8_lossy(entry.name_raw()));
                return Err(Error::format(object, "has another name in front of its bytes than in the zip directory"));
            }
            places.push((start, data.and_then(|data| data.checked_add(packed)).unwrap_or(u64::MAX), index));
        }
        places.push((self.zip.central_directory_start(), u64::MAX, 0));
        places.sort_unstable();
        let Some(pair) = places.windows(2).find(|pair| pair[0].1 > pair[1].0) else { return Ok(()) };
        let name = self.zip.file_names_raw().nth(pair[0].2).map(String::from_utf8_lossy).unwrap_or_default();
        Err(Error::format(self.object(&name), "has bytes that are another's as well; the archive is damaged"))
    }

    fn object(&self, name: &str) -> String {
        format!("{}: entry {name:?}", self.path.display())
    }

    /// The pickle, after a check that the storages are little-endian.
    pub(super) fn pickle(&mut self) -> Result<Found> {
        if let Some(order) = self.find("byteorder")?
            && order.bytes(self.map) != b"little"
        {
            let object = format!("{}: byte order", self.path.display());
            return Err(Error::Unsupported { object, problem: "only little-endian files can be read".to_string() });
        }
        let missing = || Error::format(self.path.display(), "its data.pkl cannot be found under its own name");
        let found = self.find("data.pkl").transpose().unwrap_or_else(|| Err(missing()))?;
        if let Found::Mapped(_, Some(sum)) = &found {
            check_sum(found.bytes(self.map), *sum)
                .map_err(|problem| Error::format(self.object(&format!("{}data.pkl", self.prefix)), problem))?;
        }
        Ok(found)
    }

    /// The entry called `name` after the prefix, if there is one.
    pub(super) fn find(&mut self, name: &str) -> Result<Option<Found>> {
        let name = format!("{}{name}", self.prefix);
        let object = self.object(&name);
        let broken = |error: ZipError| Error::format(&object, error);
        let Some(index) = self.zip.index_for_name(&name) else { return Ok(None) };
        let entry = self.zip.by_index_raw(index).map_err(broken)?;
        let (size, packed, method, sum) = (entry.size(), entry.compressed_size(), entry.compression(), entry.crc32());
        let (start, encrypted) = (entry.data_start(), entry.encrypted());
        drop(entry);
        match method {
            _ if encrypted => {
                Err(Error::Unsupported { object, problem: "it is encrypted; decrypt the archive".to_string() })
            }
            CompressionMethod::Stored => {
                let start = start.and_then(|start| usize::try_from(start).ok());
                let end = start.zip(usize::try_from(size).ok()).and_then(|(start, size)| start.checked_add(size));
                match start.zip(end) {
                    Some((start, end)) if size == packed && end <= self.map.len() => {
                        // 0 stands for none: torch.save leaves sums out where it is told to (`set_crc32_options`).
                        Ok(Some(Found::Mapped(start..end, Some(sum).filter(|&sum| sum != 0))))
                    }
                    _ => Err(Error::format(object, format!("its {size} bytes are not within the file"))),
                }
            }
            CompressionMethod::Deflated => self.inflate(index, size, &object).map(|bytes| Some(Found::Inflated(bytes))),
            other => {
                let problem = format!("it is compressed as {other}; write it again with torch.save");
                Err(Error::Unsupported { object, problem })
            }
        }
    }

    /// The bytes of a compressed entry, whose sum the zip library checks.
    fn inflate(&mut self, index: usize, size: u64, object: &str) -> Result<Vec<u8>> {
        let left = self.budget.left();
        self.budget.take(size).map_err(|_| Error::Limit {
            what: object.to_string(),
            wanted: format!("{size} bytes when inflated"),
            available: format!("{left} bytes"),
            advice: "write it again with torch.save, which does not compress".to_string(),
        })?;
        let entry = self.zip.by_index(index).map_err(|error| Error::format(object, error))?;
        let mut bytes = Vec::new();
        let read = entry.take(size.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| Error::format(object, format!("cannot be inflated to its {size} bytes: {error}")))?;
        if bytes.len() as u64 != size {
            let problem = format!("inflates to {} bytes, the zip directory says {size}", bytes.len());
            return Err(Error::format(object, problem));
        }
        Ok(bytes)
    }
}

/// The name of the entry whose header is at byte `start`, as it stands there.
fn local_name(map: &[u8], start: u64) -> Option<&[u8]> {
    let header = map.get(usize::try_from(start).ok()?..)?;
    let length = header.get(LOCAL_NAME_LENGTH)?.first_chunk().map(|&bytes| u16::from_le_bytes(bytes))?;
    header.starts_with(LOCAL_SIGNATURE).then(|| header.get(LOCAL_BYTES..)?.get(..usize::from(length))).flatten()
}

/// Checks the CRC-32 of an entry's bytes.
///
/// # Errors
/// What the two sums are.
pub(crate) fn check_sum(bytes: &[u8], sum: u32) -> std::result::Result<(), String> {
    let found = crc32fast::hash(bytes);
    if found == sum {
        return Ok(());
    }
    Err(format!("its CRC-32 is {found:08x}, the archive says {sum:08x}: it is damaged, fetch it again"))
}
