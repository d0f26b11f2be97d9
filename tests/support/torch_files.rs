//! Torch's zip files, written value by value.
#![allow(dead_code)] // Each test uses a part.

use std::io::{Cursor, Write};

use zip::CompressionMethod::Stored as Uncompressed;
use zip::write::SimpleFileOptions;

/// Values of a pickle, as bytes that push them.
pub mod pickled {
    pub fn text(value: &str) -> Vec<u8> {
        [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
    }
    pub fn int(value: i64) -> Vec<u8> {
        [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
    }
    pub fn global(module: &str, name: &str) -> Vec<u8> {
        format!("c{module}\n{name}\n").into_bytes()
    }
    pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [b"(", &items.concat()[..], b"t"].concat()
    }
    pub fn ints(values: &[i64]) -> Vec<u8> {
        tuple(&values.iter().map(|&value| int(value)).collect::<Vec<_>>())
    }
    pub fn dict(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let pairs: Vec<u8> = pairs.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [b"}(", &pairs[..], b"u"].concat()
    }
    pub fn call(module: &str, name: &str, args: &[Vec<u8>]) -> Vec<u8> {
        [global(module, name), tuple(args), b"R".to_vec()].concat()
    }
    pub fn storage(class: &str, key: &str, elements: i64) -> Vec<u8> {
        let id = tuple(&[text("storage"), global("torch", class), text(key), text("cuda:0"), int(elements)]);
        [&id[..], b"Q"].concat()
    }
    pub fn tensor(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
        let hooks = call("collections", "OrderedDict", &[]);
        let args = [storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), hooks];
        call("torch._utils", "_rebuild_tensor_v2", &args)
    }
    /// A whole pickle of protocol `protocol`.
    pub fn pickle(protocol: u8, value: Vec<u8>) -> Vec<u8> {
        [&[0x80, protocol][..], &value, b"."].concat()
    }
}
use pickled::*;

pub fn zip_of(options: SimpleFileOptions, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(Uncompressed)
}

/// An archive whose directory has no sums of its entries, as torch writes it where it is told to: what is changed in it is read.
pub fn without_sums(mut archive: Vec<u8>) -> Vec<u8> {
    let find = |archive: &[u8], from: usize| {
        let found = archive[from..].windows(4).position(|bytes| bytes == b"PK\x01\x02");
        found.map(|at| from + at)
    };
    // The directory's place is in its end, which is the last of the file.
    let end = archive.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").expect("an archive");
    let mut at = u32::from_le_bytes(archive[end + 16..end + 20].try_into().expect("four bytes")) as usize;
    while let Some(entry) = find(&archive, at) {
        archive[entry + 16..entry + 20].fill(0);
        at = entry + 46;
    }
    archive
}

/// Six floats, 0 to 5.
pub fn six() -> Vec<u8> {
    (0..6).flat_map(|x| (x as f32).to_le_bytes()).collect()
}

pub fn six_floats() -> Vec<u8> {
    storage("FloatStorage", "0", 6)
}

/// A torch file of `value` with the storage `0` of [`six`].
pub fn torch_file(value: Vec<u8>) -> Vec<u8> {
    zip_of(stored(), &[("m/data.pkl", &pickle(2, value)), ("m/byteorder", b"little"), ("m/data/0", &six())])
}
