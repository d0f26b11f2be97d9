//! An index of the pictures in folders: each is embedded once, and found by text or by picture.
//!
//! * here: [`PictureIndex`], what it holds, and finding pictures.
//! * `walk`: which files of a folder are pictures.
//! * `update`: embedding those that are new.
//! * `file`: the index as a file.

mod file;
mod update;
mod walk;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::apps::bitgen::BitGen;
use crate::apps::bitgen::similarity::{cosine, finite, not_finite};
use crate::error::{Error, Result};
use crate::files::hash::HASH;
use crate::files::{Image, absolute};
use crate::threads;

pub use update::Update;
pub use walk::{ENDINGS, Skipped};

/// Pictures that one task compares.
const TASK_ROWS: usize = 1024;
/// Time between writes of the file, unless writing takes long.
const SAVE_INTERVAL: Duration = Duration::from_secs(15);

/// The features of the pictures in some folders, kept in one file, and the model that they are found with.
///
/// A picture is identified by the SHA-256 of its file: one that was renamed, copied or only touched is not embedded again.
/// A file whose size and modification time are unchanged is not read.
///
/// ```
/// use std::sync::Arc;
/// use ternion::engine::Progress;
/// use ternion::{BitGen, PictureIndex};
///
/// # fn find() -> ternion::Result<()> {
/// let model = Arc::new(BitGen::open("path/to/model", Default::default())?);
/// let mut index = PictureIndex::new("path/to/index", model)?; // or PictureIndex::open
/// index.add(&["holiday".into(), "work".into()], Progress::ignore)?;
/// for found in index.by_text("a dog on a beach", 10)? {
///     println!("{:.3} {}", found.cosine, found.path.display());
/// }
/// # Ok(())
/// # }
/// ```
pub struct PictureIndex {
    dir: PathBuf,
    model: Arc<BitGen>,
    fingerprint: String,
    table: Table,
    interval: Duration,
    /// Length and time of change of the file when it was read or written here.
    stamp: Option<(u64, SystemTime)>,
}

/// A folder whose pictures are in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFolder {
    /// The folder, from the root.
    pub path: PathBuf,
    /// Pictures of it in the index.
    pub pictures: usize,
    /// Whether the index has all pictures that the folder had at the last scan; an interrupted run leaves some out.
    pub complete: bool,
}

/// A picture that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// The cosine of its features and those it was compared with, in -1..=1.
    pub cosine: f32,
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq)]
struct Table {
    /// Hashes of pictures' files, one for each row of `features`, no two equal.
    hashes: Vec<[u8; HASH]>,
    /// `[hashes, width]`, each of length 1.
    features: Vec<f32>,
    /// Values of a picture's features.
    width: usize,
    /// By their paths as the file holds them: from the index's folder, or from the root.
    folders: BTreeMap<String, Folder>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Folder {
    complete: bool,
    /// By their paths from the folder, parts joined by `/`.
    pictures: BTreeMap<String, Picture>,
}

/// A file of a folder.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Picture {
    row: usize,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i64,
}

impl PictureIndex {
    /// The name of the file in an index's folder. A second file, `picture-index.lock`, keeps two programs from writing
    /// it at once, and is there as long.
    pub const FILE: &str = "picture-index.safetensors";

    /// An index without pictures, to be kept in the folder `dir`. Nothing is written, and what was there stays, until
    /// folders are added.
    ///
    /// # Errors
    /// As [`BitGen::fingerprint`]; [`Error::Io`] for an empty path.
    pub fn new(dir: impl Into<PathBuf>, model: Arc<BitGen>) -> Result<Self> {
        let fingerprint = model.fingerprint()?;
        let table = Table { width: model.sizes().d, ..Table::default() };
        let dir = absolute(&dir.into())?;
        Ok(PictureIndex { dir, model, fingerprint, table, interval: SAVE_INTERVAL, stamp: None })
    }

    /// The index in the folder `dir`, which was made with the same model.
    ///
    /// # Errors
    /// [`Error::Format`] for a folder without an index and for a broken one, [`Error::Argument`] for one of another
    /// model, [`Error::Unsupported`] for one of another version, [`Error::Io`]; those of [`PictureIndex::new`].
    pub fn open(dir: impl Into<PathBuf>, model: Arc<BitGen>) -> Result<Self> {
        let mut index = Self::new(dir, model)?;
        index.read()?;
        Ok(index)
    }

    /// An index without pictures that has the folders of the one in `dir`, whichever model made that. Nothing is written
    /// until they are looked through.
    ///
    /// # Errors
    /// As [`PictureIndex::open`], but for other models.
    pub fn rebuilt(dir: impl Into<PathBuf>, model: Arc<BitGen>) -> Result<Self> {
        let mut index = Self::new(dir, model)?;
        let (_, old) = file::read(&index.path())?;
        index.table.folders = old.folders.into_keys().map(|folder| (folder, Folder::default())).collect();
        Ok(index)
    }

    /// Sets the time between writes of the file, 15 s by default: at most that much work is lost if the program is
    /// killed. The time is longer if writing would take more than a twentieth of it.
    pub fn save_every(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(Self::FILE)
    }

    /// The model.
    pub fn model(&self) -> &Arc<BitGen> {
        &self.model
    }

    /// Number of pictures, copies included.
    pub fn len(&self) -> usize {
        self.table.folders.values().map(|f| f.pictures.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The folders, sorted by path.
    pub fn folders(&self) -> Vec<IndexedFolder> {
        let folder = |(path, folder): (&String, &Folder)| IndexedFolder {
            path: self.real(path),
            pictures: folder.pictures.len(),
            complete: folder.complete,
        };
        self.table.folders.iter().map(folder).collect()
    }

    /// The pictures with their features `[d]`, sorted by folder and path.
    pub fn pictures(&self) -> impl Iterator<Item = (PathBuf, &[f32])> {
        let folders = self.table.folders.iter();
        folders.flat_map(move |(folder, held)| {
            let at = self.real(folder);
            held.pictures.iter().map(move |(path, picture)| (at.join(path), self.table.row(picture.row)))
        })
    }

    /// The `k` pictures whose features are nearest to those of a text, the nearest first; all if there are fewer.
    ///
    /// # Errors
    /// Those of [`BitGen::tokens`], [`BitGen::text_features`] and [`PictureIndex::nearest`].
    pub fn by_text(&self, text: &str, k: usize) -> Result<Vec<Found>> {
        let tokens = self.model.tokens(text)?;
        self.nearest(&self.model.text_features(&[&tokens])?.concat(), k)
    }

    /// The `k` pictures that are nearest to a picture; itself, if it is among them.
    ///
    /// # Errors
    /// Those of [`BitGen::image_features`] and [`PictureIndex::nearest`].
    pub fn by_image(&self, image: &Image, k: usize) -> Result<Vec<Found>> {
        self.nearest(&self.model.image_features(std::slice::from_ref(image))?.concat(), k)
    }

    /// The `k` pictures whose features are nearest to `features` `[d]` of length 1, the nearest first, equals by path.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number of features, [`Error::Format`] if some are not finite.
    pub fn nearest(&self, features: &[f32], k: usize) -> Result<Vec<Found>> {
        let width = self.table.width;
        if features.len() != width {
            return Err(Error::argument("features", format!("{} values, expected {width}", features.len())));
        }
        if !finite(features) {
            return Err(not_finite("the features to look for"));
        }
        let near: Vec<f32> = threads::shared()
            .map(self.table.features.chunks(TASK_ROWS * width.max(1)), |rows| {
                rows.chunks(width.max(1)).map(|row| cosine(row, features)).collect::<Vec<f32>>()
            })
            .concat();
        let folders = self.table.folders.iter();
        let places =
            folders.flat_map(|(folder, held)| held.pictures.iter().map(move |(path, p)| (folder, path, p.row)));
        let mut found: Vec<(f32, &String, &String)> =
            places.filter_map(|(folder, path, row)| Some((*near.get(row)?, folder, path))).collect();
        // The order of places is that of their paths, and this keeps it.
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = found.into_iter().take(k);
        Ok(found.map(|(cosine, folder, path)| Found { path: self.real(folder).join(path), cosine }).collect())
    }

    /// The path of a folder.
    fn real(&self, folder: &str) -> PathBuf {
        if folder == "." { self.dir.clone() } else { self.dir.join(folder) }
    }

    /// Loads the file.
    fn read(&mut self) -> Result<()> {
        let path = self.path();
        let (fingerprint, table) = file::read(&path)?;
        if fingerprint != self.fingerprint {
            let start = |all: &str| all.get(..12).unwrap_or(all).to_owned();
            let (old, new) = (start(&fingerprint), start(&self.fingerprint));
            let problem = format!(
                "was made with another model ({old}…; this one is {new}…); give that model, or embed the pictures again \
                 with the option `rebuild`"
            );
            return Err(Error::argument(path.display(), problem));
        }
        if table.width != self.table.width {
            let expected = format!("[{}, {}] f32", table.hashes.len(), self.table.width);
            let found = format!("[{}, {}] f32", table.hashes.len(), table.width);
            return Err(Error::shape(format!("{}: tensor features", path.display()), expected, found));
        }
        (self.table, self.stamp) = (table, stamp(&path));
        Ok(())
    }
}

impl std::fmt::Debug for PictureIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PictureIndex").field("dir", &self.dir).field("pictures", &self.len()).finish_non_exhaustive()
    }
}

impl Table {
    fn row(&self, row: usize) -> &[f32] {
        self.features.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
    }

    /// Drops rows that no picture has, and returns which row each hash has then.
    fn compact(&mut self) -> HashMap<[u8; HASH], usize> {
        let pictures = || self.folders.values().flat_map(|f| f.pictures.values());
        let mut used = vec![false; self.hashes.len()];
        pictures().for_each(|p| used[p.row] = true);
        let (mut now, mut n) = (vec![0; used.len()], 0);
        for (row, _) in used.iter().enumerate().filter(|(_, used)| **used) {
            self.hashes[n] = self.hashes[row];
            self.features.copy_within(row * self.width..(row + 1) * self.width, n * self.width);
            now[row] = n;
            n += 1;
        }
        self.hashes.truncate(n);
        self.features.truncate(n * self.width);
        self.folders.values_mut().flat_map(|f| f.pictures.values_mut()).for_each(|p| p.row = now[p.row]);
        self.hashes.iter().enumerate().map(|(row, &hash)| (hash, row)).collect()
    }
}

/// Length and time of change of a file.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let found = fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()?))
}
