//! Checkpoints in several files of either form, tied together by an index of which tensor is in which file.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::checkpoint::bytes::{FileFormat, map_file, recognise};
use crate::files::checkpoint::safetensors;
use crate::files::checkpoint::safetensors::{MAX_HEADER, MAX_INDEXED, Named};
use crate::files::checkpoint::torch;
use crate::files::checkpoint::{Contents, sort_by_name};
use crate::files::text;

#[derive(Deserialize)]
struct Index {
    weight_map: Named<String, MAX_INDEXED>,
}

/// Reads the index `path` and the headers of its shards; tensors that the index does not list are left out.
pub(crate) fn read(path: &Path) -> Result<Contents> {
    let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in read_index(path)?.weight_map.pairs {
        wanted.entry(shard).or_default().push(tensor);
    }
    let mut contents = Contents::default();
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
    text::json(&path.display().to_string(), file.bytes(), "an index of shards")
}

/// The file of a shard, which must be a plain name beside its index; as a link it may lead anywhere, as a single file may.
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
    if !file.exists() {
        let first = tensors.first().map_or("", String::as_str);
        let problem = format!("is missing; it holds {} tensors, the first is {first:?}", tensors.len());
        return Err(Error::format(object, problem));
    }
    Ok(file)
}

/// Adds the listed tensors (sorted names) of one shard to `contents`.
fn add_shard(contents: &mut Contents, file: &Path, tensors: &[String]) -> Result<()> {
    let map = map_file(file)?;
    let mut shard = match recognise(file, map.bytes())? {
        FileFormat::Safetensors => safetensors::read(file, map)?,
        FileFormat::TorchZip => torch::read(file, map)?,
        FileFormat::Gguf => {
            return Err(Error::format(file.display(), "is a GGUF file, which no index names; give it alone"));
        }
    };
    let held = |name: &String| {
        let found = shard.entries.binary_search_by(|entry| entry.info.name.cmp(name));
        found.is_ok() || shard.unreadable.contains_key(name)
    };
    let missing: Vec<String> = tensors.iter().filter(|name| !held(name)).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::MissingTensors { file: file.display().to_string(), names: missing });
    }
    shard.entries.retain(|entry| tensors.binary_search(&entry.info.name).is_ok());
    shard.unreadable.retain(|name, _| tensors.binary_search(name).is_ok());
    contents.unreadable.append(&mut shard.unreadable);
    let before = contents.backings.len();
    for mut entry in shard.entries {
        entry.backing += before;
        contents.entries.push(entry);
    }
    for mut sum in shard.sums {
        sum.backing += before;
        contents.sums.push(sum);
    }
    contents.backings.append(&mut shard.backings);
    for (key, value) in shard.metadata {
        contents.metadata.entry(key).or_insert(value);
    }
    Ok(())
}
