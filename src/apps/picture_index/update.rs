//! Scanning folders: new pictures are embedded, missing ones are dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::apps::bitgen::similarity::{finite, not_finite};
use crate::apps::picture_index::walk;
use crate::apps::picture_index::walk::{Skipped, walk};
use crate::apps::picture_index::{Folder, Picture, PictureIndex, file, stamp};
use crate::engine::open::{Progress, proceed};
use crate::error::{Error, Result};
use crate::files::hash::{HASH, hash};
use crate::files::{Image, Lock, image, read_at_most};
use crate::threads;

/// Keeps other programs from writing the file.
const LOCK: &str = "picture-index.lock";
/// Files that are read and decoded at once, and about as many bytes as they may take together.
const GROUP: usize = 8;
const GROUP_BYTES: u64 = 512 << 20;
/// Pictures that are embedded at once, and bytes of them after which fewer are.
const BATCH: usize = 16;
const BATCH_BYTES: usize = 256 << 20;
/// Saving may take at most 1/SAVE_SHARE of the run time.
const SAVE_SHARE: u32 = 20;

/// What was done with the pictures of folders.
#[derive(Debug, Default)]
pub struct Update {
    /// Pictures that were embedded.
    pub embedded: usize,
    /// Files that hold what a picture of the index holds already: renamed, copied, or touched only.
    pub known: usize,
    /// Files with the size and the time of change that they had.
    pub unchanged: usize,
    /// Paths without a picture now, renamed ones included.
    pub removed: usize,
    /// What could not be read.
    pub skipped: Vec<Skipped>,
}

/// A file to look at.
struct Task<'a> {
    folder: &'a str,
    file: walk::File,
}

/// What a file holds.
enum Looked {
    /// A picture of the index, in this row.
    Known(usize),
    /// One to embed.
    New([u8; HASH], Image),
}

/// Pictures to be embedded together, and the files that hold each.
#[derive(Default)]
struct Batch<'a> {
    images: Vec<Image>,
    hashes: Vec<[u8; HASH]>,
    files: Vec<Vec<Task<'a>>>,
}

impl<'a> Batch<'a> {
    fn push(&mut self, hash: [u8; HASH], image: Image, task: Task<'a>) {
        match self.hashes.iter().position(|&h| h == hash) {
            Some(same) => self.files[same].push(task),
            None => {
                self.images.push(image);
                self.hashes.push(hash);
                self.files.push(vec![task]);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.images.len() >= BATCH || self.images.iter().map(|i| i.rgb.len()).sum::<usize>() >= BATCH_BYTES
    }
}

impl PictureIndex {
    /// Scans folders and their subfolders for pictures, recognised by their extensions ([`crate::apps::picture_index::ENDINGS`]),
    /// and embeds those that the index does not have; missing pictures are dropped. The file is written at the end and
    /// now and then before, so that an interrupted run can be continued. What cannot be read is left out and reported.
    ///
    /// A folder below one of the index is scanned as part of that one; a folder above one takes its place. Links to files are
    /// followed, links to folders and names that begin with a dot are not.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] for what is not a folder and while another program writes the index; those of
    /// [`crate::apps::bitgen::BitGen::image_features`], after what was embedded is written. The index stays usable.
    pub fn add(&mut self, folders: &[PathBuf], progress: impl FnMut(Progress) -> ControlFlow<()>) -> Result<Update> {
        let _lock = self.lock()?;
        if let Some(file) = folders.iter().find(|folder| !folder.is_dir() && folder.exists()) {
            return Err(walk::no_folder(file));
        }
        let names: Result<BTreeSet<String>> = folders.iter().map(|folder| self.name(folder)).collect();
        let mut all = BTreeSet::new();
        for name in names? {
            all.insert(self.enter(name));
        }
        // One of them may lie below another.
        all.retain(|name| self.table.folders.contains_key(name));
        self.update(&all, progress)
    }

    /// Scans all folders of the index again, as [`PictureIndex::add`] does.
    ///
    /// # Errors
    /// As [`PictureIndex::add`]; a folder that does not exist any more is one, see [`PictureIndex::forget`].
    pub fn refresh(&mut self, progress: impl FnMut(Progress) -> ControlFlow<()>) -> Result<Update> {
        let _lock = self.lock()?;
        let all = self.table.folders.keys().cloned().collect();
        self.update(&all, progress)
    }

    /// Drops a folder and its pictures from the index; the folder itself may be gone.
    ///
    /// # Errors
    /// [`Error::Argument`] for a folder that the index does not have, and those of writing.
    pub fn forget(&mut self, folder: &Path) -> Result<()> {
        let _lock = self.lock()?;
        let is = |name: &&String| self.real(name) == folder || self.name(folder).is_ok_and(|n| n == **name);
        let Some(name) = self.table.folders.keys().find(is).cloned() else {
            let all: Vec<String> = self.folders().iter().map(|f| f.path.display().to_string()).collect();
            return Err(Error::argument(
                folder.display(),
                format!("is not in the index, which has: {}", all.join(", ")),
            ));
        };
        self.table.folders.remove(&name);
        self.table.compact();
        self.save()
    }

    /// Keeps other programs from writing, and takes over what one has written meanwhile.
    fn lock(&mut self) -> Result<Lock> {
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let lock = Lock::at(&self.dir.join(LOCK), &self.path())?;
        if self.stamp.is_some() && stamp(&self.path()) != self.stamp {
            self.read()?;
        }
        Ok(lock)
    }

    /// What the file calls a folder: its path from the index's folder, or from the root.
    fn name(&self, folder: &Path) -> Result<String> {
        let real = |path: &Path| fs::canonicalize(path).map_err(Error::io(path));
        let (home, folder) = (real(&self.dir)?, real(folder)?);
        let name = folder.strip_prefix(&home).unwrap_or(&folder);
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        let name = name.to_str().map(str::to_owned);
        name.ok_or_else(|| Error::argument(folder.display(), "its name is not UTF-8, so it cannot be kept; rename it"))
    }

    /// Makes a folder one of the index's; the one that has its pictures is returned.
    fn enter(&mut self, name: String) -> String {
        let path = self.real(&name);
        // The index's own folder is "." to those below it, and has a whole path to those above.
        let whole = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = whole(&path);
        let names: Vec<String> = self.table.folders.keys().cloned().collect();
        if let Some(above) = names.iter().find(|other| own.starts_with(whole(&self.real(other)))) {
            return above.clone();
        }
        let mut folder = Folder::default();
        for below in names {
            let inner = whole(&self.real(&below));
            let Ok(inside) = inner.strip_prefix(&own) else { continue };
            let Some(parts) = inside.iter().map(|part| part.to_str()).collect::<Option<Vec<&str>>>() else { continue };
            let front = parts.join("/");
            let moved = self.table.folders.remove(&below).unwrap_or_default().pictures;
            folder.pictures.extend(moved.into_iter().map(|(path, picture)| (format!("{front}/{path}"), picture)));
        }
        self.table.folders.insert(name.clone(), folder);
        name
    }

    /// Scans folders of the index.
    fn update(
        &mut self,
        names: &BTreeSet<String>,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Update> {
        let (mut update, mut tasks, mut there) = (Update::default(), Vec::new(), BTreeMap::new());
        let mut walked = Vec::new();
        for name in names {
            walked.push((name, walk(&self.real(name))?));
        }
        let mut changed = self.stamp.is_none();
        for (name, (files, skipped)) in walked {
            update.skipped.extend(skipped);
            let folder = self.table.folders.entry(name.clone()).or_default();
            changed |= !folder.complete;
            folder.complete = false;
            let paths: BTreeSet<String> = files.iter().map(|file| file.path.clone()).collect();
            there.insert(name.clone(), paths);
            for file in files {
                match folder.pictures.get(&file.path) {
                    Some(old) if (old.bytes, old.modified) == (file.bytes, file.modified) => update.unchanged += 1,
                    _ => tasks.push(Task { folder: name, file }),
                }
            }
        }
        changed |= !tasks.is_empty();
        if let Err(error) = self.embed(tasks, &mut update, progress) {
            if let Err(second) = self.save() {
                log::warn!("what was embedded could not be kept: {second}");
            }
            return Err(error);
        }
        for (name, paths) in there {
            let Some(folder) = self.table.folders.get_mut(&name) else { continue };
            let before = folder.pictures.len();
            folder.pictures.retain(|path, _| paths.contains(path));
            folder.complete = true;
            update.removed += before - folder.pictures.len();
        }
        self.table.compact();
        if changed || update.removed > 0 {
            self.save()?;
        }
        Ok(update)
    }

    /// Embeds what the files hold that the index does not.
    fn embed(
        &mut self,
        tasks: Vec<Task>,
        update: &mut Update,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<()> {
        let (total, mut done) = (tasks.len(), 0);
        let mut rows = self.table.compact();
        let (mut batch, mut saved, mut interval) = (Batch::default(), Instant::now(), self.interval);
        let mut tasks = tasks.into_iter().peekable();
        while let Some(first) = tasks.peek() {
            proceed(progress(Progress { done, total, what: first.file.path.clone() }))?;
            let group = self.next_group(&mut tasks);
            done += group.len();
            let looked: Vec<Result<Looked>> = threads::shared().map(&group, |task| look(&self.path_of(task), &rows));
            for (task, looked) in group.into_iter().zip(looked) {
                match looked {
                    Ok(Looked::Known(row)) => {
                        self.put(&task, row);
                        update.known += 1;
                    }
                    Ok(Looked::New(hash, image)) => batch.push(hash, image, task),
                    Err(error) => {
                        // What it held before is not what it holds.
                        self.table.folders.get_mut(task.folder).map(|f| f.pictures.remove(&task.file.path));
                        update.skipped.push(Skipped { path: self.path_of(&task), error });
                    }
                }
            }
            if batch.is_full() || tasks.peek().is_none() {
                self.embed_batch(std::mem::take(&mut batch), update, &mut rows)?;
            }
            if saved.elapsed() >= interval && tasks.peek().is_some() {
                let start = Instant::now();
                self.save()?;
                (saved, interval) = (Instant::now(), self.interval.max(SAVE_SHARE * start.elapsed()));
            }
        }
        proceed(progress(Progress { done, total, what: String::new() }))?;
        Ok(())
    }

    /// The first files, which are looked at together.
    fn next_group<'a>(&self, tasks: &mut Peekable<impl Iterator<Item = Task<'a>>>) -> Vec<Task<'a>> {
        let (mut group, mut left) = (Vec::new(), GROUP_BYTES);
        while let Some(task) = tasks.peek() {
            let Some(rest) = room_for(image::decoded_bytes(&self.path_of(task)), left, group.len()) else { break };
            left = rest;
            group.extend(tasks.next());
        }
        group
    }

    fn embed_batch(&mut self, batch: Batch, update: &mut Update, rows: &mut HashMap<[u8; HASH], usize>) -> Result<()> {
        let features = self.model.image_features(&batch.images)?;
        for ((features, hash), files) in features.into_iter().zip(batch.hashes).zip(batch.files) {
            if let Some(first) = files.first().filter(|_| features.len() != self.table.width || !finite(&features)) {
                return Err(not_finite(format!("features of {}", self.path_of(first).display())));
            }
            let row = self.table.hashes.len();
            self.table.hashes.push(hash);
            self.table.features.extend(features);
            rows.insert(hash, row);
            files.iter().for_each(|task| self.put(task, row));
            update.embedded += 1;
            update.known += files.len() - 1;
        }
        Ok(())
    }

    fn path_of(&self, task: &Task) -> PathBuf {
        self.real(task.folder).join(&task.file.path)
    }

    /// A file holds what a row is made of.
    fn put(&mut self, task: &Task, row: usize) {
        let walk::File { path, bytes, modified } = task.file.clone();
        if let Some(folder) = self.table.folders.get_mut(task.folder) {
            folder.pictures.insert(path, Picture { row, bytes, modified });
        }
    }

    /// Writes the file.
    fn save(&mut self) -> Result<()> {
        let path = self.path();
        file::write(&path, &self.fingerprint, &self.table)?;
        self.stamp = stamp(&path);
        Ok(())
    }
}

/// What is left of `left` bytes for one more file behind `n` others; none where there is no room. One alone always has it.
fn room_for(bytes: u64, left: u64, n: usize) -> Option<u64> {
    match left.checked_sub(bytes) {
        None if n == 0 => Some(0),
        rest => rest.filter(|_| n < GROUP),
    }
}

/// Reads a file, and decodes it if the index does not know what it holds.
fn look(path: &Path, rows: &HashMap<[u8; HASH], usize>) -> Result<Looked> {
    let bytes = read_at_most(path, image::MAX_BYTES)?;
    let hash = hash(&bytes);
    match rows.get(&hash) {
        Some(&row) => Ok(Looked::Known(row)),
        None => Ok(Looked::New(hash, Image::decode(&path.display().to_string(), &bytes)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_decoded_together_fit_together() {
        let together = |bytes: u64| {
            let (mut n, mut left) = (0, GROUP_BYTES);
            while let Some(rest) = room_for(bytes, left, n) {
                (n, left) = (n + 1, rest);
            }
            n
        };
        assert_eq!([1, GROUP_BYTES / 3, GROUP_BYTES / 2 + 1, 2 * GROUP_BYTES].map(together), [GROUP, 3, 1, 1]);
    }

    #[test]
    fn what_a_picture_takes_is_told_by_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grey.png");
        ::image::GrayImage::new(300, 200).save(&path).unwrap();
        let of_file = fs::metadata(&path).unwrap().len();
        assert_eq!(image::decoded_bytes(&path), of_file + 300 * 200 * 6);
        fs::write(&path, b"text").unwrap();
        assert_eq!(image::decoded_bytes(&path), 4);
        assert_eq!(image::decoded_bytes(&dir.path().join("none")), 0);
    }
}
