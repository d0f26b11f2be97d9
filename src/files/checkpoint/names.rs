//! Names of tensors: what wrappers for training put around them, and the other name of a tied tensor.

use std::path::Path;

use crate::error::Result;
use crate::files::checkpoint::{Contents, Entry, sort_by_name};

/// Parts that wrappers put anywhere into a name, and that no model uses.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Prefixes that wrappers put in front of all names.
const PREFIXES: [&str; 2] = ["module.", MODEL];
/// The ends of the names of the two tensors that are tied where a model's embedding gives its logits as well. A file may
/// hold either.
const TABLE: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// What Hugging Face's decoders have in front of all names but the head's.
const MODEL: &str = "model.";

/// Removes what wrappers put around the names. Where only the LM head of a tied embedding is stored, the embedding is listed
/// as well.
///
/// # Errors
/// [`crate::Error::Format`] if two names are equal afterwards.
pub(crate) fn unwrap(path: &Path, contents: &mut Contents) -> Result<()> {
    for entry in &mut contents.entries {
        entry.info.name = bare(&entry.info.name);
    }
    let mut aside: Vec<(String, String)> =
        std::mem::take(&mut contents.unreadable).into_iter().map(|(name, why)| (bare(&name), why)).collect();
    let is_table = |entry: &Entry| entry.info.name.strip_prefix(MODEL) == Some(TABLE);
    let wraps = |entries: &[Entry], prefix: &str| {
        // Hugging Face's decoders have this prefix of their own: in front of all names where the table gives the logits.
        let own = prefix == MODEL && entries.iter().any(is_table);
        all_begin_with(entries, prefix) && !own
    };
    while let Some(prefix) = PREFIXES.into_iter().find(|prefix| wraps(&contents.entries, prefix)) {
        contents.entries.iter_mut().for_each(|entry| drop(entry.info.name.drain(..prefix.len())));
        for (name, _) in aside.iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
            name.drain(..prefix.len());
        }
    }
    contents.unreadable = aside.into_iter().collect();
    let tied: Vec<Entry> = contents.entries.iter().filter_map(|entry| tied(&contents.entries, entry)).collect();
    contents.entries.extend(tied);
    sort_by_name(path, &mut contents.entries)
}

/// A name without the parts that wrappers put into it.
fn bare(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    if parts.is_empty() { name.to_owned() } else { parts.join(".") }
}

fn all_begin_with(entries: &[Entry], prefix: &str) -> bool {
    let wrapped = |entry: &Entry| entry.info.name.len() > prefix.len() && entry.info.name.starts_with(prefix);
    !entries.is_empty() && entries.iter().all(wrapped)
}

/// The embedding that `entry`, the matrix that gives the logits, is tied to, if it is not there under its own name: beside
/// the head, or inside of the `model` that Hugging Face's decoders have beside it.
fn tied(entries: &[Entry], entry: &Entry) -> Option<Entry> {
    let place = entry.info.name.strip_suffix(HEAD).filter(|place| place.is_empty() || place.ends_with('.'))?;
    let (beside, inside) = (format!("{place}{TABLE}"), format!("{place}{MODEL}"));
    let table = format!("{inside}{TABLE}");
    if entries.iter().any(|other| [&beside, &table].contains(&&other.info.name)) {
        return None;
    }
    let mut tied = entry.clone();
    let has_model = entries.iter().any(|other| other.info.name.starts_with(&inside));
    tied.info.name = if has_model { table } else { beside };
    Some(tied)
}

/// The whole parts (with their dot) that all names begin with; empty for none.
pub(crate) fn common_prefix(entries: &[Entry]) -> &str {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return "" };
    // Of sorted names, the first and the last differ earliest.
    let (first, last) = (first.info.name.as_str(), last.info.name.as_str());
    let same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    let dot = first.as_bytes().get(..same).and_then(|same| same.iter().rposition(|&byte| byte == b'.'));
    dot.and_then(|dot| first.get(..=dot)).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::TensorInfo;
    use super::super::storage_dtype::StorageDType;
    use super::*;

    fn unwrapped(names: &[&str]) -> Vec<String> {
        let entry = |name: &&str| {
            let info = TensorInfo { name: name.to_string(), stored: StorageDType::U8, shape: vec![] };
            Entry { info, backing: 0, bytes: 0..0, strides: None }
        };
        let entries: Vec<Entry> = names.iter().map(entry).collect();
        let unreadable = BTreeMap::from([("module.model.extra".to_string(), String::new())]);
        let mut contents = Contents { entries, unreadable, ..Contents::default() };
        unwrap(Path::new("m"), &mut contents).unwrap();
        contents.entries.into_iter().map(|entry| entry.info.name).collect()
    }

    #[test]
    fn wrappers_go_in_any_order_and_a_prefix_only_if_all_names_have_it() {
        for wrapper in ["module.module.", "_orig_mod.", "model._orig_mod.module.", "_fsdp_wrapped_module.model."] {
            let names = ["b.w", "a"].map(|name| format!("{wrapper}{name}"));
            assert_eq!(unwrapped(&names.each_ref().map(String::as_str)), ["a", "b.w"], "{wrapper}");
        }
        assert_eq!(unwrapped(&["a._checkpoint_wrapped_module.b", "a._orig_module"]), ["a._orig_module", "a.b"]);
        let own = ["model.embed_tokens.weight", "model.norm.weight"];
        assert_eq!(unwrapped(&own), own, "a Hugging Face decoder without a head of its own");
        assert_eq!(unwrapped(&own.map(|name| format!("module.model.{name}")).each_ref().map(String::as_str)), own);
        assert_eq!(unwrapped(&["module.a", "other.b"]), ["module.a", "other.b"]);
        assert_eq!(unwrapped(&["module.", "_orig_mod"]), ["_orig_mod", "module."]);
    }

    #[test]
    fn a_tied_tensor_has_both_names() {
        assert_eq!(unwrapped(&["d.lm_head.weight"]), ["d.embed_tokens.weight", "d.lm_head.weight"]);
        assert_eq!(unwrapped(&["d.xlm_head.weight"]), ["d.xlm_head.weight"]);
        for all in [
            ["d.embed_tokens.weight", "d.lm_head.weight"],
            ["lm_head.weight", "model.embed_tokens.weight"],
            ["d.lm_head.weight", "d.model.embed_tokens.weight"],
        ] {
            assert_eq!(unwrapped(&all), all);
        }
        let inside = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"];
        assert_eq!(unwrapped(&["lm_head.weight", "model.norm.weight"]), inside);
    }

    #[test]
    fn a_common_prefix_has_whole_parts() {
        let prefix = |names: &[&str]| {
            let info = |name: &&str| TensorInfo { name: name.to_string(), stored: StorageDType::U8, shape: vec![] };
            let entries: Vec<Entry> =
                names.iter().map(|name| Entry { info: info(name), backing: 0, bytes: 0..0, strides: None }).collect();
            common_prefix(&entries).to_owned()
        };
        assert_eq!(prefix(&["net.alpha.w", "net.alphabet.w"]), "net.");
        assert_eq!(prefix(&["net.a", "other.a"]), "");
        assert_eq!(prefix(&[]), "");
    }
}
