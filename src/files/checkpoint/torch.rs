//! The torch form: a zip archive of one pickle, which describes the tensors, and one entry per storage.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::checkpoint::archive::{Archive, Found};
use crate::files::checkpoint::bytes::{Bytes, Sum};
use crate::files::checkpoint::pickle;
use crate::files::checkpoint::pickle_objects::{Id, Node, Pickle, RawTensor};
use crate::files::checkpoint::safetensors::MAX_DIMS;
use crate::files::checkpoint::storage_dtype::StorageDType;
use crate::files::checkpoint::{CONFIG_ENTRY, Contents, Entry, TensorInfo, Unreadable, sort_by_name};

/// The keys under which trainers keep the model's tensors, first match wins: averaged weights come last.
const STATE_DICT_KEYS: [&str; 9] =
    ["model_state_dict", "state_dict", "model", "module", "net", "ema_state_dict", "model_ema", "ema_model", "ema"];
/// About how many bytes an entry takes, its name aside.
const ENTRY_BYTES: usize = 256;
/// How many of these dicts may lie in one another.
const MAX_NESTING: usize = 4;
/// Maximum number of elements of a tensor that has more of them than its storage: an expanded view takes memory when it is read.
const MAX_EXPANDED: usize = 1 << 26;

/// Reads the pickle of the torch archive `path`, whose content is `file`, and locates the storages that it names.
pub(crate) fn read(path: &Path, file: Bytes) -> Result<Contents> {
    let Parsed { entries, unreadable, inflated, sums, metadata } = parse(path, file.bytes())?;
    let mut backings = vec![file];
    backings.extend(inflated.into_iter().map(Bytes::Inflated));
    Ok(Contents { entries, unreadable, backings, sums, metadata, gguf: None })
}

/// What an archive holds.
struct Parsed {
    entries: Vec<Entry>,
    unreadable: Unreadable,
    /// Inflated storages: the backings 1 and up. Bytes 0 is the map.
    inflated: Vec<Vec<u8>>,
    /// Those of the storages that are mapped.
    sums: Vec<Sum>,
    /// [`CONFIG_ENTRY`], if it is there.
    metadata: BTreeMap<String, String>,
}

fn parse(path: &Path, map: &[u8]) -> Result<Parsed> {
    let mut archive = Archive::open(path, map)?;
    let data = archive.pickle()?;
    let pickle = pickle::load(data.bytes(map), &mut archive.budget).map_err(|error| {
        let object = format!("{}: {}data.pkl at byte {}", path.display(), archive.prefix, error.offset);
        Error::format(object, error.problem)
    })?;
    let (storages, inflated, sums) = (HashMap::new(), Vec::new(), Vec::new());
    let mut reader = Reader { path, archive, pickle: &pickle, storages, inflated, sums };
    let (mut entries, unreadable) = reader.entries()?;
    sort_by_name(path, &mut entries)?;
    let Reader { inflated, mut sums, .. } = reader;
    sums.sort_by_key(Sum::place);
    let config = match pickle.root() {
        Node::Dict(top) => pickle.value_of(top, CONFIG_ENTRY).and_then(|id| pickle.settings(id)),
        _ => None,
    };
    let config = config.map(|json| (CONFIG_ENTRY.to_owned(), serde_json::Value::Object(json).to_string()));
    Ok(Parsed { entries, unreadable, inflated, sums, metadata: config.into_iter().collect() })
}

/// Makes entries of a pickle's tensors.
struct Reader<'p, 'a> {
    path: &'p Path,
    archive: Archive<'a>,
    pickle: &'p Pickle<'p>,
    /// Bytes and range of the storages found so far, by key.
    storages: HashMap<&'p str, (usize, Range<usize>)>,
    inflated: Vec<Vec<u8>>,
    sums: Vec<Sum>,
}

impl<'p> Reader<'p, '_> {
    /// All tensors of the state dict, and its other entries.
    fn entries(&mut self) -> Result<(Vec<Entry>, Unreadable)> {
        let (mut entries, mut unreadable) = (Vec::new(), Unreadable::new());
        let mut names = HashSet::new();
        for &(key, value) in self.state_dict()? {
            let name = match self.pickle.node(key) {
                &Node::Str(name) => name,
                other => {
                    unreadable.insert(other.to_string(), "this is its name, expected a string".to_owned());
                    continue;
                }
            };
            // Before it is copied: a pickle names one long text many times over in a few bytes each.
            if !names.insert(name) {
                return Err(self.broken(name, "is there twice; names must be unique".to_owned()));
            }
            self.archive.budget.take((ENTRY_BYTES + name.len()) as u64).map_err(|all| {
                Error::format(self.path.display(), format!("describes tensors that take more than {all} bytes to list"))
            })?;
            let name = name.to_owned();
            let found = match self.pickle.node(value) {
                Node::Tensor(raw) => self.entry(&name, raw)?,
                other @ (Node::Object(_) | Node::Global(_)) => {
                    Err(format!("it is {other}, which is not run; expected a tensor"))
                }
                other => Err(format!("it is {other}, expected a tensor")),
            };
            match found {
                Ok(entry) => entries.push(entry),
                Err(why) => drop(unreadable.insert(name, why)),
            }
        }
        match unreadable.first_key_value() {
            Some((name, why)) if entries.is_empty() => {
                let object = format!("{}: tensor {name:?}", self.path.display());
                Err(Error::Unsupported { object, problem: format!("{why}; no other can be read either") })
            }
            _ => Ok((entries, unreadable)),
        }
    }

    /// The pairs of the dict that holds the tensors: one under a usual key, else the outermost.
    fn state_dict(&self) -> Result<&'p [(Id, Id)]> {
        let root = self.pickle.root();
        let Node::Dict(top) = root else {
            let problem = format!("holds {root}, expected a dict of tensors; save the model's state_dict()");
            return Err(Error::format(self.path.display(), problem));
        };
        if let Some(found) = self.inner_dict(top, MAX_NESTING) {
            return Ok(found);
        }
        if self.any(top, |value| matches!(value, Node::Tensor(_))) {
            return Ok(top);
        }
        let keys: Vec<String> = top.iter().take(20).map(|&(key, value)| self.describe(key, value)).collect();
        let problem = format!("holds no tensors; its {} top-level keys: {}", top.len(), keys.join(", "));
        Err(Error::format(self.path.display(), problem))
    }

    /// A dict of tensors under a usual key, in others such if need be.
    fn inner_dict(&self, pairs: &[(Id, Id)], depth: usize) -> Option<&'p [(Id, Id)]> {
        let depth = depth.checked_sub(1)?;
        STATE_DICT_KEYS.into_iter().find_map(|wanted| {
            let Node::Dict(inner) = self.pickle.node(self.pickle.value_of(pairs, wanted)?) else { return None };
            let tensors = self.any(inner, |value| matches!(value, Node::Tensor(_) | Node::Object(_)));
            self.inner_dict(inner, depth).or_else(|| tensors.then_some(inner.as_slice()))
        })
    }

    fn any(&self, pairs: &[(Id, Id)], test: impl Fn(&Node) -> bool) -> bool {
        pairs.iter().any(|pair| test(self.pickle.node(pair.1)))
    }

    fn describe(&self, key: Id, value: Id) -> String {
        let value = self.pickle.node(value);
        match self.pickle.node(key) {
            Node::Str(key) => format!("{:?} ({value})", key.chars().take(80).collect::<String>()),
            key => format!("{key} ({value})"),
        }
    }

    /// A tensor's entry, or why it cannot be read.
    fn entry(&mut self, name: &str, raw: &RawTensor) -> Result<std::result::Result<Entry, String>> {
        if let Some(why) = self.altered(raw) {
            return Ok(Err(why));
        }
        let broken = |problem| Error::format(format!("{}: tensor {name:?}", self.path.display()), problem);
        let &Node::Storage { stored, key, elements } = self.pickle.node(raw.storage) else {
            return Err(broken("has no storage".to_string()));
        };
        let format = raw.stored.or(stored).unwrap_or(StorageDType::U8);
        let shape = self.dims(raw.shape, "shape").map_err(broken)?;
        let strides = self.dims(raw.strides, "strides").map_err(broken)?;
        // An untyped storage is counted in bytes.
        let bytes = usize::try_from(elements).ok().and_then(|n| n.checked_mul(stored.map_or(1, StorageDType::size)));
        let bytes = bytes.ok_or_else(|| broken(format!("its storage {key:?} has {elements} elements")))?;
        let extent = usize::try_from(raw.offset).map_err(|_| format!("its offset is {}", raw.offset));
        let extent =
            extent.and_then(|offset| Extent::new(&shape, &strides, offset, bytes / format.size())).map_err(broken)?;
        if extent.count > MAX_EXPANDED.max(bytes / format.size()) {
            let (n, held) = (extent.count, bytes / format.size());
            return Ok(Err(format!("it is {n} elements in a storage of {held}; save a contiguous copy")));
        }
        let (backing, storage) = self.storage(name, key, bytes)?;
        let at = |element: usize| storage.start + element * format.size();
        let bytes = at(extent.elements.start)..at(extent.elements.end);
        let info = TensorInfo { name: name.to_string(), stored: format, shape };
        Ok(Ok(Entry { info, backing, bytes, strides: (!extent.contiguous).then_some(strides) }))
    }

    /// Why a tensor's numbers are others than those of its storage, if they may be: torch keeps a view with the other sign,
    /// or a conjugated one, as a mark beside the unchanged storage.
    fn altered(&self, raw: &RawTensor) -> Option<String> {
        let set = |pair: &&(Id, Id)| !matches!(self.pickle.node(pair.1), Node::Bool(false));
        let marks: Vec<String> = match self.pickle.node(raw.metadata?) {
            Node::Other("None") => Vec::new(),
            Node::Dict(pairs) => pairs.iter().filter(set).take(4).map(|&(key, v)| self.describe(key, v)).collect(),
            other => vec![other.to_string()],
        };
        let advice = "save a plain copy, with resolve_neg() or resolve_conj()";
        (!marks.is_empty())
            .then(|| format!("its numbers are not those stored: it is marked {}; {advice}", marks.join(", ")))
    }

    /// A tuple of at most [`MAX_DIMS`] non-negative numbers.
    fn dims(&self, id: Id, what: &str) -> std::result::Result<Vec<usize>, String> {
        let (Node::Tuple(items) | Node::List(items)) = self.pickle.node(id) else {
            return Err(format!("its {what} is {}", self.pickle.node(id)));
        };
        if items.len() > MAX_DIMS {
            return Err(format!("has {} dimensions in its {what}, at most {MAX_DIMS} are allowed", items.len()));
        }
        let dim = |&id: &Id| match self.pickle.node(id) {
            Node::Int(value) => usize::try_from(*value).map_err(|_| format!("its {what} has {value} in it")),
            other => Err(format!("its {what} has {other} in it")),
        };
        items.iter().map(dim).collect()
    }

    /// Bytes and range of the storage `key`, which must have `bytes` bytes or more.
    fn storage(&mut self, name: &str, key: &'p str, bytes: usize) -> Result<(usize, Range<usize>)> {
        let found = match self.storages.get(key) {
            Some(found) => found.clone(),
            None => {
                let found = match self.archive.find(&format!("data/{key}"))? {
                    Some(Found::Mapped(range, sum)) => {
                        self.sums.extend(sum.map(|sum| Sum::new(key, range.clone(), sum)));
                        (0, range)
                    }
                    Some(Found::Inflated(bytes)) => {
                        let range = 0..bytes.len();
                        self.inflated.push(bytes);
                        (self.inflated.len(), range)
                    }
                    None => return Err(self.broken(name, format!("its storage data/{key} is missing"))),
                };
                self.storages.insert(key, found.clone());
                found
            }
        };
        if found.1.len() < bytes {
            let problem = format!("its storage data/{key} needs {bytes} bytes, the archive has {}", found.1.len());
            return Err(self.broken(name, problem));
        }
        Ok(found)
    }

    fn broken(&self, name: &str, problem: String) -> Error {
        Error::format(format!("{}: tensor {name:?}", self.path.display()), problem)
    }
}

/// Which elements of its storage a tensor spans.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    elements: Range<usize>,
    /// The tensor's own elements: more than the span where strides are 0 or overlap.
    count: usize,
    contiguous: bool,
}

impl Extent {
    /// The span of a tensor in a storage of `available` elements.
    fn new(shape: &[usize], strides: &[usize], offset: usize, available: usize) -> std::result::Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!("has {} dimensions, but {} strides", shape.len(), strides.len()));
        }
        let overflow = || format!("its shape {shape:?} with strides {strides:?} overflows");
        let count = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or_else(overflow)?;
        if count == 0 {
            return Ok(Self { elements: 0..0, count, contiguous: true });
        }
        let mut last = offset;
        let mut dense = 1;
        let mut contiguous = true;
        for (&dim, &stride) in shape.iter().zip(strides).rev() {
            let reach = (dim - 1).checked_mul(stride).and_then(|reach| last.checked_add(reach));
            last = reach.ok_or_else(overflow)?;
            contiguous &= dim == 1 || stride == dense;
            // The partial product is at most `count`, as no dimension is 0.
            dense *= dim;
        }
        let end = last.checked_add(1).ok_or_else(overflow)?;
        if end > available {
            return Err(format!("needs {end} elements of its storage, which has {available}"));
        }
        Ok(Self { elements: offset..end, count, contiguous })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_spans_what_strides_reach() {
        let extent = |shape: &[usize], strides: &[usize], offset| {
            let Extent { elements, count, contiguous } = Extent::new(shape, strides, offset, 24).unwrap();
            (elements, count, contiguous)
        };
        assert_eq!(extent(&[2, 3], &[3, 1], 4), (4..10, 6, true));
        assert_eq!(extent(&[3, 2], &[1, 3], 4), (4..10, 6, false));
        assert_eq!(extent(&[], &[], 23), (23..24, 1, true));
        assert_eq!(extent(&[1, 5], &[99, 1], 0), (0..5, 5, true));
        assert_eq!(extent(&[0, 5], &[5, 1], 99), (0..0, 0, true));
        assert_eq!(extent(&[100, 2], &[0, 1], 3), (3..5, 200, false), "an expanded view");
    }

    #[test]
    fn an_extent_beyond_its_storage_is_refused() {
        let refusal = |shape: &[usize], strides: &[usize], offset| Extent::new(shape, strides, offset, 6).unwrap_err();
        assert!(refusal(&[2, 3], &[3, 1], 1).contains("needs 7"));
        assert!(refusal(&[2, 3], &[1], 0).contains("1 strides"));
        assert!(refusal(&[usize::MAX, 2], &[1, 1], 0).contains("overflows"));
        assert!(refusal(&[2, 2], &[usize::MAX, 1], 0).contains("overflows"));
        assert!(refusal(&[1], &[1], usize::MAX).contains("overflows"));
    }
}
