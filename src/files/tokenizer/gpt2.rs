//! GPT-2's two files, `vocab.json` and `merges.txt`, as the tokenizer.json that says the same: byte-level BPE (Radford et
//! al. 2019), with `<|endoftext|>` as a special token.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::text;

/// Names of the files beside a model.
pub(crate) const VOCAB: &str = "vocab.json";
pub(crate) const MERGES: &str = "merges.txt";
/// Ends a text, and stands in front of one.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// The tokenizer.json of a vocabulary and its merges; `names` are what messages call the two.
///
/// # Errors
/// [`Error::Format`] for a broken file, with its line where there is one.
pub(crate) fn tokenizer_json(names: [&str; 2], vocab: &[u8], merges: &[u8]) -> Result<Vec<u8>> {
    let vocab = vocabulary(names[0], vocab)?;
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let special = |id: &Value| {
        json!({"id": id, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let added: Vec<Value> = vocab.get(END_OF_TEXT).map(special).into_iter().collect();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": pairs(names[1], merges)?});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level, "model": model});
    Ok(file.to_string().into_bytes())
}

/// Tokens with their ids: one for each byte at least.
fn vocabulary(name: &str, json: &[u8]) -> Result<Map<String, Value>> {
    let vocab: Map<String, Value> = text::json(name, json, "a JSON object of tokens")?;
    let mut tokens = BTreeMap::new();
    for (token, id) in &vocab {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number =
            number.ok_or_else(|| Error::format(name, format!("the id of {token:?} is {id}, expected a number")))?;
        if let Some(other) = tokens.insert(number, token) {
            return Err(Error::format(name, format!("the id {number} is that of {other:?} and of {token:?}")));
        }
    }
    check_bytes(name, &vocab)?;
    Ok(vocab)
}

/// Refuses a vocabulary without a token for each byte: text would be dropped in silence.
pub(crate) fn check_bytes(name: &str, vocab: &Map<String, Value>) -> Result<()> {
    match (0..=255).find(|&byte| !vocab.contains_key(byte_char(byte).encode_utf8(&mut [0; 4]) as &str)) {
        None => Ok(()),
        Some(byte) => {
            Err(Error::format(name, format!("has no token for the byte {byte:#04x}; it is not GPT-2's form")))
        }
    }
}

/// The two tokens of each merge, which a space parts.
fn pairs<'a>(name: &str, merges: &'a [u8]) -> Result<Vec<[&'a str; 2]>> {
    let lines = text::decode(name, merges)?
        .lines()
        .enumerate()
        .filter(|(i, line)| !(line.is_empty() || *i == 0 && line.starts_with("#version")));
    let pair = |(i, line): (usize, &'a str)| {
        let pair = line.split_once(' ').filter(|(a, b)| !(a.is_empty() || b.is_empty() || b.contains(' ')));
        let problem =
            || Error::format(name, format!("line {}: {line:?} is not two tokens with a space between", i + 1));
        pair.map(|(a, b)| [a, b]).ok_or_else(problem)
    };
    lines.map(pair).collect()
}

/// The character that stands for a byte in a vocabulary: itself where it prints, else one from U+0100 on.
pub(crate) fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if plain(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !plain(b)).count();
    char::from_u32(0x100 + rank as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{DecodeStream, ModelFiles, Tokenizer};

    /// Each byte, "he", "ll", "hell", "hello", " w", and the end of text.
    fn vocab() -> Map<String, Value> {
        let mut vocab: Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), json!(b))).collect();
        for (i, word) in ["he", "ll", "hell", "hello", "\u{120}w", END_OF_TEXT].iter().enumerate() {
            vocab.insert((*word).to_string(), json!(256 + i));
        }
        vocab
    }

    const MERGES_TEXT: &str = "#version: 0.2\nh e\nl l\nhe ll\nhell o\n\u{120} w\n";

    fn folder(vocab: impl AsRef<[u8]>, merges: impl AsRef<[u8]>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(VOCAB), vocab).unwrap();
        std::fs::write(dir.path().join(MERGES), merges).unwrap();
        dir
    }

    fn good() -> (tempfile::TempDir, Tokenizer) {
        let dir = folder(Value::Object(vocab()).to_string(), MERGES_TEXT);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        (dir, tokenizer)
    }

    #[test]
    fn merges_are_applied_in_their_order_to_words_and_bytes() {
        let (_dir, tokenizer) = good();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap();
        assert_eq!(ids("hello"), [259]);
        assert_eq!(ids("hello world"), [259, 260, 111, 114, 108, 100]);
        assert_eq!(ids("help hell"), [256, 108, 112, 32, 258]);
        assert_eq!(ids("hi\n\u{e9}"), [104, 105, 10, 0xc3, 0xa9]);
        assert_eq!(ids("a<|endoftext|>b"), [97, 261, 98]);
        assert_eq!((tokenizer.token_id(END_OF_TEXT), tokenizer.vocab_size()), (Some(261), 262));
    }

    #[test]
    fn text_survives_the_round_trip_and_a_copy_as_one_file() {
        let (_dir, tokenizer) = good();
        let copy = Tokenizer::from_bytes("copy", tokenizer.json().to_vec()).unwrap();
        for text in ["", "hello, world", " two  words\n\t", "\u{e9}\u{6f22}\u{1f642}\0 d'\u{e9}t\u{e9}"] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
            assert_eq!(copy.encode(text, true).unwrap(), ids);
            let mut stream = DecodeStream::new(true);
            let mut pieces: String = ids.iter().map(|&id| stream.push(&tokenizer, id).unwrap()).collect();
            pieces.push_str(&stream.finish());
            assert_eq!(pieces, text);
        }
        assert_eq!(tokenizer.decode(&[259, 261], true).unwrap(), "hello");
    }

    #[test]
    fn a_tokenizer_json_comes_first_and_one_file_of_the_two_is_an_error() {
        let (dir, tokenizer) = good();
        let files = ModelFiles::from(dir.path());
        assert_eq!(Tokenizer::beside(&files).unwrap().unwrap().json(), tokenizer.json());
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(Tokenizer::beside(&files).err().unwrap().to_string().contains("tokenizer.json"));
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        for (gone, left) in [(MERGES, VOCAB), (VOCAB, MERGES)] {
            let (dir, _) = good();
            std::fs::remove_file(dir.path().join(gone)).unwrap();
            for error in
                [Tokenizer::beside(&dir.path().into()).err().unwrap(), Tokenizer::open(dir.path()).err().unwrap()]
            {
                assert!(error.to_string().contains(gone) && error.to_string().contains(left), "{error}");
            }
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(Tokenizer::beside(&empty.path().into()).unwrap().is_none());
        assert!(Tokenizer::open(empty.path()).err().unwrap().to_string().contains("tokenizer.json"));
    }

    #[test]
    fn broken_files_are_named_with_what_is_wrong() {
        let fails = |vocab: &str, merges: &[u8], says: &[&str]| {
            let error = Tokenizer::open(folder(vocab, merges).path()).err().unwrap();
            assert!(matches!(error, Error::Format { .. }));
            assert!(says.iter().all(|part| error.to_string().contains(part)), "{error}");
        };
        let with = |token: &str, id: Value| {
            let mut vocab = vocab();
            vocab.insert(token.into(), id);
            Value::Object(vocab).to_string()
        };
        let fine = Value::Object(vocab()).to_string();
        let merges = MERGES_TEXT.as_bytes();
        fails("[1]", merges, &[VOCAB, "JSON object"]);
        fails(&fine[..40], merges, &[VOCAB]);
        fails("{\"a\": 0}", merges, &[VOCAB, "byte 0x00"]);
        fails(&with("x y", json!(-1)), merges, &[VOCAB, "\"x y\"", "-1"]);
        fails(&with("x y", json!(1u64 << 32)), merges, &["\"x y\"", "4294967296"]);
        fails(&with("zz", json!(256)), merges, &["256", "\"he\"", "\"zz\""]);
        fails(&fine, b"h e\nthree of them\n", &[MERGES, "line 2", "three of them"]);
        fails(&fine, b"#version: 0.2\nhe\n", &[MERGES, "line 2"]);
        fails(&fine, b"h e\nz\xff\n", &[MERGES, "byte 5"]);
        fails(&fine, b"q z\n", &[VOCAB, "qz"]);
        // A vocabulary that a model cannot hold is refused where the model is known.
        let dir = folder(with("far", json!(u32::MAX)), merges);
        let error = Tokenizer::open(dir.path()).unwrap().check_vocab(262, "").err().unwrap();
        assert!(error.to_string().contains("\"far\"") && error.to_string().contains("262"), "{error}");
    }
}
