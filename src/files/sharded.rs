//! Checkpoints in several safetensors files, tied together by an index of which tensor is in which file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::checkpoint::{Contents, sort_by_name};
use super::mapped::{Form, map_file, recognise};
use super::safetensors::{self, MAX_HEADER, Named};
use super::text;
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Index {
    weight_map: Named<String>,
}

/// Reads the index `path` and the headers of its shards; tensors that the index does not list are left out.
pub(super) fn read(path: &Path) -> Result<Contents> {
    let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in read_index(path)?.weight_map.pairs {
        wanted.entry(shard).or_default().push(tensor);
    }
    let mut contents = Contents { entries: Vec::new(), backings: Vec::new(), metadata: BTreeMap::new() };
    let mut files = Vec::with_capacity(wanted.len());
    for (shard, tensors) in &mut wanted {
        tensors.sort();
        if let Some([name, ..]) = tensors.windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(Error::format(path.display(), format!("tensor {name:?} is listed twice")));
        }
        files.push((shard_path(path, shard, tensors)?, tensors));
    }
    for (file, tensors) in files {
        add_shard(&mut contents, &file, tensors)?;
    }
    sort_by_name(path, &mut contents.entries)?;
    Ok(contents)
}

fn read_index(path: &Path) -> Result<Index> {
    let file = map_file(path)?;
    let length = file.bytes().len();
    if length > MAX_HEADER {
        return Err(Error::format(path.display(), format!("has {length} bytes, an index has at most {MAX_HEADER}")));
    }
    text::json(&path.display().to_string(), file.bytes(), "index of shards")
}

/// The file of a shard, which must be a plain name and lie beside its index.
fn shard_path(index: &Path, shard: &str, tensors: &[String]) -> Result<PathBuf> {
    let object = format!("{}: shard {shard:?}", index.display());
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || shard.contains(['/', '\\', ':', '\0']) {
        return Err(Error::format(object, "must be a plain file name; shards lie beside their index"));
    }
    let directory = match index.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = directory.join(shard);
    if fs::symlink_metadata(&file).is_err() || !file.exists() {
        let first = tensors.first().map_or("", String::as_str);
        let problem = format!("is missing; it holds {} tensors, the first is {first:?}", tensors.len());
        return Err(Error::format(object, problem));
    }
    let real = |path: &Path| fs::canonicalize(path).map_err(Error::io(path));
    let real_file = real(&file)?;
    // In a download cache both the index and its shards are links into one folder of blobs: still beside each other.
    let beside_link = real_file.parent() == Some(&real(directory)?);
    let beside_target = real_file.parent() == real(index)?.parent();
    if !beside_link && !beside_target {
        return Err(Error::format(object, "is a link out of the directory of its index"));
    }
    Ok(file)
}

/// Adds the listed tensors (sorted names) of one shard to `contents`.
fn add_shard(contents: &mut Contents, file: &Path, tensors: &[String]) -> Result<()> {
    let map = map_file(file)?;
    if recognise(file, map.bytes())? != Form::Safetensors {
        return Err(Error::format(file.display(), "is not a safetensors file, as the shards of this index must be"));
    }
    let mut shard = safetensors::read(file, map)?;
    let held = |name: &String| shard.entries.binary_search_by(|entry| entry.info.name.cmp(name)).is_ok();
    let missing: Vec<String> = tensors.iter().filter(|name| !held(name)).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::MissingTensors { file: file.display().to_string(), names: missing });
    }
    shard.entries.retain(|entry| tensors.binary_search(&entry.info.name).is_ok());
    let backing = contents.backings.len();
    for mut entry in shard.entries {
        entry.backing = backing;
        contents.entries.push(entry);
    }
    contents.backings.append(&mut shard.backings);
    for (key, value) in shard.metadata {
        contents.metadata.entry(key).or_insert(value);
    }
    Ok(())
}
