//! An index as a safetensors file: `features` `[rows, d]` f32, and `pictures`, bytes of JSON that say what the rows are.
//!
//! A row is what a file holds; several files may hold the same. Nothing in the file is trusted.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::apps::bitgen::similarity::length;
use crate::apps::picture_index::walk::is_inside;
use crate::apps::picture_index::{Folder, Picture, Table};
use crate::error::{Error, Result};
use crate::files::hash::{HASH, from_hex, hex};
use crate::files::{Checkpoint, NewTensor, StorageDType, write_tensors};

/// The metadata entry of an index: its version.
const KEY: &str = "ternion.pictures";
const VERSION: &str = "1";
const FEATURES: &str = "features";
const PICTURES: &str = "pictures";
/// Tolerance of the length of features, which is 1.
const LENGTH_ERROR: f32 = 0.01;
/// What to do about a broken file.
const ADVICE: &str = "embed the pictures again with the option `rebuild`";

/// The JSON of the tensor `pictures`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    model: String,
    /// Hashes of what the rows' files hold.
    sha256: Vec<String>,
    folders: Vec<FolderJson>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FolderJson {
    path: String,
    complete: bool,
    pictures: Vec<PictureJson>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PictureJson {
    path: String,
    row: usize,
    bytes: u64,
    modified: i64,
}

/// The model's fingerprint and the table that the file `path` holds.
pub(crate) fn read(path: &Path) -> Result<(String, Table)> {
    let checkpoint = Checkpoint::open(path).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            let dir = path.parent().unwrap_or(path);
            Error::format(
                dir.display(),
                "holds no index of pictures; make one by adding a folder with the option `add`",
            )
        }
        Error::Format { object, problem } => Error::format(object, format!("{problem}, or {ADVICE}")),
        other => other,
    })?;
    let broken = |problem: String| Error::format(path.display(), format!("{problem}; {ADVICE}"));
    match checkpoint.metadata().get(KEY).map(String::as_str) {
        Some(VERSION) => {}
        None => return Err(broken("is not an index of pictures".into())),
        Some(other) => {
            let object = format!("{}: version {other:?} of the index", path.display());
            return Err(Error::Unsupported { object, problem: format!("version {VERSION} is read; {ADVICE}") });
        }
    }
    let (hashes, width, features) = {
        let tensor = |name: &str, stored: StorageDType, rank: usize| {
            let found = checkpoint.get(name).ok_or_else(|| broken(format!("has no tensor {name}")))?;
            let fits = found.stored == stored && found.shape.len() == rank;
            let is = || format!("its tensor {name} is {:?} of {}", found.shape, found.stored);
            if fits { Ok(found.shape.clone()) } else { Err(broken(is())) }
        };
        tensor(PICTURES, StorageDType::U8, 1)?;
        let shape = tensor(FEATURES, StorageDType::F32, 2)?;
        (shape[0], shape[1], checkpoint.read_f32(FEATURES, 0..shape[0] * shape[1])?)
    };
    let json = checkpoint.bytes(PICTURES)?;
    let json: Json =
        serde_json::from_slice(&json).map_err(|e| broken(format!("its tensor {PICTURES} is wrong: {e}")))?;
    if json.sha256.len() != hashes {
        return Err(broken(format!("has {hashes} rows of features, and hashes of {}", json.sha256.len())));
    }
    check_features(&features, width).map_err(broken)?;
    table(&json, width, features).map(|table| (json.model.clone(), table)).map_err(broken)
}

/// Each row must be finite and have length 1.
fn check_features(features: &[f32], width: usize) -> Result<(), String> {
    for (row, values) in features.chunks(width.max(1)).enumerate() {
        let length = length(values);
        // NaN is not near either.
        if (length - 1.0).abs().partial_cmp(&LENGTH_ERROR).is_none_or(|o| o.is_gt()) {
            return Err(format!("row {row} of its features has length {length}, expected 1"));
        }
    }
    Ok(())
}

/// Checks what the JSON says against the number of rows.
fn table(json: &Json, width: usize, features: Vec<f32>) -> Result<Table, String> {
    let hash = |text: &String| from_hex(text).ok_or_else(|| format!("{text:?} is not a SHA-256"));
    let hashes: Vec<[u8; HASH]> = json.sha256.iter().map(hash).collect::<Result<_, _>>()?;
    if hashes.iter().collect::<HashSet<_>>().len() != hashes.len() {
        return Err("two of its rows have the same hash".into());
    }
    let mut folders = BTreeMap::new();
    for folder in &json.folders {
        let mut pictures = BTreeMap::new();
        for &PictureJson { ref path, row, bytes, modified } in &folder.pictures {
            if !is_inside(path) {
                return Err(format!("the picture {path:?} leads out of its folder {:?}", folder.path));
            }
            if row >= hashes.len() {
                return Err(format!("the picture {path:?} has row {row}, there are {}", hashes.len()));
            }
            if pictures.insert(path.to_string(), Picture { row, bytes, modified }).is_some() {
                return Err(format!("the picture {path:?} is there twice"));
            }
        }
        if folders.insert(folder.path.to_string(), Folder { complete: folder.complete, pictures }).is_some() {
            return Err(format!("the folder {:?} is there twice", folder.path));
        }
    }
    Ok(Table { hashes, features, width, folders })
}

/// Writes a table: the whole file, or none.
pub(crate) fn write(path: &Path, model: &str, table: &Table) -> Result<()> {
    let folder = |(path, folder): (&String, &Folder)| {
        let picture = |(path, &Picture { row, bytes, modified }): (&String, &Picture)| PictureJson {
            path: path.clone(),
            row,
            bytes,
            modified,
        };
        let pictures = folder.pictures.iter().map(picture).collect();
        FolderJson { path: path.clone(), complete: folder.complete, pictures }
    };
    let json = Json {
        model: model.to_owned(),
        sha256: table.hashes.iter().map(|hash| hex(hash)).collect(),
        folders: table.folders.iter().map(folder).collect(),
    };
    let json = serde_json::to_vec(&json).map_err(|e| Error::format(path.display(), e))?;
    let features = bytemuck::cast_slice(&table.features);
    let tensors = [
        (FEATURES, NewTensor { stored: StorageDType::F32, shape: &[table.hashes.len(), table.width], bytes: features }),
        (PICTURES, NewTensor { stored: StorageDType::U8, shape: &[json.len()], bytes: &json }),
    ];
    write_tensors(path, tensors, &[(KEY, VERSION.to_owned())])
}
