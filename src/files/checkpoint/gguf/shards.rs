//! A GGUF model in one file or in several: `NAME-00001-of-0000N.gguf` and the following ones.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::checkpoint::bytes::{Bytes, map_file};
use crate::files::checkpoint::gguf::layout::{Placed, place};
use crate::files::checkpoint::gguf::metadata::GgufMetadata;
use crate::files::checkpoint::gguf::names::canonical;
use crate::files::checkpoint::gguf::{read_header, shard_numbers};
use crate::files::checkpoint::{Contents, Entry, TensorInfo, sort_by_name};

/// Which shard a file is, how many there are, and how many tensors they have together.
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Maximum number of shards.
const MAX_SHARDS: u64 = 1024;

/// Reads the GGUF file `path`, whose content is `file`, and the shards that follow it.
///
/// # Errors
/// [`Error::Format`] for a broken file, with the shard that is missing; [`Error::Unsupported`] for a shard in memory.
pub(crate) fn read(path: &Path, file: Bytes) -> Result<Contents> {
    let mut contents = Contents::default();
    let first = add(&mut contents, path, file)?;
    let count = first.integer(COUNT)?.unwrap_or(1);
    if count > MAX_SHARDS {
        return Err(first.wrong(COUNT, format!("is {count}, expected at most {MAX_SHARDS}")));
    }
    if count > 1 {
        check_number(&first, 0)?;
        let in_memory = contents.backings.iter().any(|file| matches!(file, Bytes::Static(_) | Bytes::Shared(_)));
        for i in 1..count {
            if in_memory {
                let problem = "it is the first of several files, which are read from a directory".to_owned();
                return Err(Error::Unsupported { object: path.display().to_string(), problem });
            }
            let next = shard_path(path, i + 1, count)?;
            check_number(&add(&mut contents, &next, map_file(&next)?)?, i)?;
        }
        let found = contents.entries.len() + contents.unreadable.len();
        if let Some(want) = first.integer(TENSORS)?.filter(|&want| want != found as u64) {
            return Err(first.wrong(TENSORS, format!("is {want}, the {count} files have {found} tensors")));
        }
    }
    sort_by_name(path, &mut contents.entries)?;
    contents.gguf = Some(first);
    Ok(contents)
}

/// Adds the tensors of one file under the names by which models know them; returns its keys.
fn add(contents: &mut Contents, path: &Path, file: Bytes) -> Result<GgufMetadata> {
    let header = read_header(path, file.bytes())?;
    let placed = place(&path.display().to_string(), &header, file.bytes().len())?;
    for (tensor, placed) in header.tensors.into_iter().zip(placed) {
        let name = canonical(&tensor.name);
        match placed {
            Placed::At(bytes, stored) => {
                let info = TensorInfo { name, stored, shape: tensor.shape };
                contents.entries.push(Entry { info, backing: contents.backings.len(), bytes, strides: None });
            }
            Placed::Unreadable(why) => {
                contents.unreadable.insert(name, why);
            }
        }
    }
    contents.backings.push(file);
    Ok(header.metadata)
}

/// Checks that a file is shard `i`, counted from 0.
fn check_number(metadata: &GgufMetadata, i: u64) -> Result<()> {
    match metadata.integer(NUMBER)? {
        Some(number) if number == i => Ok(()),
        number => {
            let number = number.map_or("missing".to_owned(), |n| n.to_string());
            let problem =
                format!("is {number}, expected {i}; open the first of the files, whose names end in -00001-of-…");
            Err(metadata.wrong(NUMBER, problem))
        }
    }
}

/// The file of shard `number`, counted from 1, beside the first one.
fn shard_path(first: &Path, number: u64, count: u64) -> Result<PathBuf> {
    let stem = first.file_stem().and_then(|stem| stem.to_str()).and_then(shard_numbers);
    let Some((name, _, _)) = stem.filter(|(_, one, n)| *one == 1 && *n as u64 == count) else {
        let problem = format!("is the first of {count} files, so its name must end in -00001-of-{count:05}.gguf");
        return Err(Error::format(first.display(), problem));
    };
    let path = first.with_file_name(format!("{name}-{number:05}-of-{count:05}.gguf"));
    if !path.exists() {
        return Err(Error::format(path.display(), format!("is missing; {} needs it", first.display())));
    }
    Ok(path)
}
