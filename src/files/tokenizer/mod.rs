//! Text to token ids and back, for every `tokenizer.json`, for GPT-2's two files, and for the keys of GGUF files.
//!
//! In reading order: this file ([`Tokenizer`]); `bounds` (what a tokenizer.json may ask for); `texts` (which texts a tokenizer
//! takes); `decode_stream` (ids that arrive one at a time); `gpt2` (its two files as a tokenizer.json); `gguf` (keys as a
//! tokenizer.json, with `pre_tokenizer`: how words are split); `special` (tokens that begin and end texts); `pieces` (which
//! bytes of a text a token stands for, and unknown words).

mod bounds;
mod decode_stream;
mod gguf;
pub(crate) mod gpt2;
pub(crate) mod pieces;
mod pre_tokenizer;
pub(crate) mod special;
mod texts;

pub use decode_stream::DecodeStream;
pub use special::SpecialTokens;

use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::files::{GgufMetadata, ModelFiles, contained, read_regular, text};

/// The longest text that [`Tokenizer::encode`] takes: 64 MiB of UTF-8.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// The largest tokenizer.json that is read: 256 MiB, ten times the largest in use.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// The name of the file in a model's directory.
const FILE_NAME: &str = "tokenizer.json";

/// The character that stands for bytes that are not UTF-8, or not yet.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// A tokenizer read from a tokenizer.json of Hugging Face's `tokenizers`. It can be shared between threads.
pub struct Tokenizer {
    pub(crate) inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    pub(crate) name: String,
    /// The token that is put in front of every text.
    begins_with: Option<u32>,
    /// By how many times a text grows at most before it is cut.
    growth: usize,
    /// Bytes of the longest token, once they are asked for.
    longest: OnceLock<usize>,
}

impl Tokenizer {
    /// Reads the tokenizer.json at `path`, or the files in the directory `path` ([`Tokenizer::beside`]).
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, and those of [`Tokenizer::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir()
            && let Some(tokenizer) = Self::beside(&path.into())?
        {
            return Ok(tokenizer);
        }
        let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
        Self::from_bytes(&file.display().to_string(), read_regular(&file, MAX_FILE_BYTES)?)
    }

    /// The tokenizer among a model's files: the keys of a GGUF file, tokenizer.json, or GPT-2's vocab.json and merges.txt;
    /// none where there is none of them.
    ///
    /// # Errors
    /// [`Error::Format`] for a vocab.json or merges.txt without the other, and those of [`Tokenizer::from_gguf`] and
    /// [`Tokenizer::from_bytes`].
    pub fn beside(files: &ModelFiles) -> Result<Option<Self>> {
        // A folder need not hold a checkpoint, and whoever opens the checkpoint reports what is wrong with it.
        if let Ok(Some(keys)) = GgufMetadata::of(files)
            && let Some((tokenizer, note)) = Self::from_gguf(&keys, files)?
        {
            note.into_iter().for_each(|note| log::warn!("{note}"));
            return Ok(Some(tokenizer));
        }
        match Self::in_tokenizer_json(files)? {
            Some(tokenizer) => Ok(Some(tokenizer)),
            None => Self::in_gpt2_files(files),
        }
    }

    fn in_tokenizer_json(files: &ModelFiles) -> Result<Option<Self>> {
        if !files.has(FILE_NAME) {
            return Ok(None);
        }
        let name = files.path(FILE_NAME).display().to_string();
        Self::from_bytes(&name, files.read(FILE_NAME, MAX_FILE_BYTES)?.into_owned()).map(Some)
    }

    fn in_gpt2_files(files: &ModelFiles) -> Result<Option<Self>> {
        let name = |file: &str| files.path(file).display().to_string();
        let read = |file: &str| -> Result<Vec<u8>> {
            let bytes = files.read(file, MAX_FILE_BYTES)?;
            check_size(&name(file), &bytes).map(|()| bytes.into_owned())
        };
        let (vocab, merges) = (name(gpt2::VOCAB), name(gpt2::MERGES));
        let alone = |file: &str, other: &str| Error::format(file, format!("cannot be used without {other} beside it"));
        match (files.has(gpt2::VOCAB), files.has(gpt2::MERGES)) {
            (false, false) => Ok(None),
            (true, false) => Err(alone(&vocab, gpt2::MERGES)),
            (false, true) => Err(alone(&merges, gpt2::VOCAB)),
            (true, true) => {
                let json = gpt2::tokenizer_json([&vocab, &merges], &read(gpt2::VOCAB)?, &read(gpt2::MERGES)?)?;
                Self::from_bytes(&vocab, json).map(Some)
            }
        }
    }

    /// The tokenizer that `json`, the bytes of a tokenizer.json, describes; `name` stands for it in messages.
    ///
    /// Truncation and padding that the file asks for are switched off: a prompt is never cut or filled in silence.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not a tokenizer, [`Error::Limit`] when it is above [`MAX_FILE_BYTES`].
    pub fn from_bytes(name: &str, mut json: Vec<u8>) -> Result<Self> {
        check_size(name, &json)?;
        let byte_order_mark = json.len() - text::decode(name, &json)?.len();
        json.drain(..byte_order_mark);
        let growth = bounds::growth(name, &json)?;
        let mut inner = calling(name, "is not a tokenizer of the `tokenizers` library", || {
            tokenizers::Tokenizer::from_bytes(&json)
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::format(name, e))?;
        // What stands in front of any text, here of a letter.
        let letter = |special| calling(name, "cannot encode a text", || inner.encode_fast("a", special));
        let (around, bare) = (letter(true)?, letter(false)?);
        let begins_with = around.get_ids().first().copied().filter(|id| bare.get_ids().first() != Some(id));
        Ok(Self { inner, json, name: name.to_string(), begins_with, growth, longest: OnceLock::new() })
    }

    /// Checks that every id that this tokenizer can give, added and special tokens included, is below `vocab_size`,
    /// the number of rows of the model's embedding; `note` is appended to the message.
    ///
    /// # Errors
    /// [`Error::Format`] with the first token beyond it, its id and `vocab_size`.
    pub fn check_vocab(&self, vocab_size: usize, note: &str) -> Result<()> {
        let beyond = |id: &u32| *id as usize >= vocab_size;
        let vocab = self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token));
        // The template that adds special tokens holds ids of its own, which need not be in the vocabulary.
        let special = self.encode("", true)?.into_iter().map(|id| (id, "added by the template".to_string()));
        match vocab.chain(special).filter(|(id, _)| beyond(id)).min() {
            None => Ok(()),
            Some((id, token)) => {
                let space = if note.is_empty() { "" } else { "; " };
                let problem = format!(
                    "the token {token:?} has id {id}, but the model has only {vocab_size} tokens (ids 0 to {last})\
                     {space}{note}",
                    last = vocab_size.saturating_sub(1)
                );
                Err(Error::format(&self.name, problem))
            }
        }
    }

    /// The ids of `text`; with `add_special`, those that the file's template puts around a text as well (a
    /// beginning-of-text token mostly, which is not put in front of a text that begins with it). Special tokens written out
    /// in `text`, such as `<image>`, become their ids.
    ///
    /// # Errors
    /// [`Error::Limit`] above [`MAX_TEXT_BYTES`], [`Error::Format`] when the tokenizer has no way to write the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.check_length(text)?;
        let encoding = calling(&self.name, "cannot encode the text", || self.inner.encode_fast(text, add_special))?;
        let ids = encoding.get_ids();
        Ok(ids.get(self.doubled(ids, add_special)..).unwrap_or_default().to_vec())
    }

    /// The ids of a text that a model goes on with: the token for the beginning of a text in front, once, where the file
    /// puts one there, and nothing behind.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, false)?;
        if let Some(begins_with) = self.begins_with.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, begins_with);
        }
        Ok(ids)
    }

    /// How many of the first ids are one too many: the token for the beginning of a text stands there once.
    pub(crate) fn doubled(&self, ids: &[u32], add_special: bool) -> usize {
        match ids {
            [added, own, ..] if add_special && added == own && self.begins_with == Some(*added) => 1,
            _ => 0,
        }
    }

    /// The text of `ids`; ids that the tokenizer lacks, and with `skip_special` special tokens, give nothing, and
    /// bytes that are not UTF-8 give U+FFFD.
    ///
    /// # Errors
    /// [`Error::Format`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        calling(&self.name, "cannot decode the ids", || self.inner.decode(ids, skip_special))
    }

    /// The id of a token given as the file spells it, such as `</s>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that stands in front of a text, by the names in use.
    pub(crate) fn start_of_text(&self) -> Option<u32> {
        ["<s>", gpt2::END_OF_TEXT].iter().find_map(|token| self.token_id(token))
    }

    /// The token that ends a text, by the names in use.
    pub(crate) fn end_of_text(&self) -> Option<u32> {
        ["</s>", gpt2::END_OF_TEXT].iter().find_map(|token| self.token_id(token))
    }

    /// The number of tokens, added ones included. Ids may have gaps, so [`Tokenizer::check_vocab`] is what tells
    /// whether a model fits.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The bytes of the tokenizer.json, as they were read or made of GPT-2's files, for writing a copy.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Whether `id` never gives text: it is unknown, or special and those are skipped.
    pub(crate) fn is_silent(&self, id: u32, skip_special: bool) -> bool {
        match self.inner.id_to_token(id) {
            None => true,
            Some(token) => skip_special && self.inner.get_added_vocabulary().is_special_token(&token),
        }
    }
}

/// Refuses a file above [`MAX_FILE_BYTES`].
fn check_size(name: &str, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 <= MAX_FILE_BYTES {
        return Ok(());
    }
    Err(Error::Limit {
        what: format!("{name}: the tokenizer"),
        wanted: format!("more than {MAX_FILE_BYTES} bytes"),
        available: format!("{MAX_FILE_BYTES} bytes"),
        advice: "check that it is a tokenizer's file".into(),
    })
}

/// Runs `work` of the `tokenizers` library and names the file in its error. A file that is crafted badly enough makes
/// that library panic (out-of-range slices in its decoders and merges), which becomes an error here too.
fn calling<T>(name: &str, what: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match contained(work) {
        Some(result) => result.map_err(|e| Error::format(name, format!("{what}: {e}"))),
        None => Err(Error::format(name, format!("{what}: the file is inconsistent"))),
    }
}

#[cfg(test)]
mod tests {
    use super::gpt2::byte_char;
    use super::*;
    use serde_json::{Map, Value, json};

    /// One token per byte, id = byte, and `</s>` = 256.
    fn byte_level() -> Tokenizer {
        let vocab: Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), json!(b))).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = json!({
            "version": "1.0", "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "!"},
            "added_tokens": [{"id": 256, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        Tokenizer::from_bytes("bytes", json.to_string().into_bytes()).unwrap()
    }

    /// Words with a leading mark as sentencepiece has them, and byte tokens from id 10 on.
    fn sentencepiece() -> Tokenizer {
        let mut vocab = Map::new();
        for (id, word) in ["<unk>", "\u{2581}Hello", "\u{2581}world", "\u{2581}", "!", "x"].into_iter().enumerate() {
            vocab.insert(word.to_string(), json!(id));
        }
        for byte in 0..=255u32 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(byte + 10));
        }
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "added_tokens": [],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<unk>"},
        });
        Tokenizer::from_bytes("pieces", json.to_string().into_bytes()).unwrap()
    }

    fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = DecodeStream::new(true);
        let mut out: Vec<String> = ids.iter().map(|&id| stream.push(tokenizer, id).unwrap()).collect();
        assert!(stream.ids.len() <= DecodeStream::MAX_WINDOW);
        out.push(stream.finish());
        out
    }

    fn bytes_of(text: &[u8]) -> Vec<u32> {
        text.iter().map(|&b| u32::from(b)).collect()
    }

    #[test]
    fn text_survives_the_round_trip_uncut_and_unpadded() {
        let tokenizer = byte_level();
        for text in ["", "plain", " two  words\n", "é漢🙂\0"] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids, bytes_of(text.as_bytes()));
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("a</s>", false).unwrap(), [97, 256]);
        assert_eq!((tokenizer.token_id("</s>"), tokenizer.token_id("zz")), (Some(256), None));
        assert_eq!(tokenizer.vocab_size(), 257);
        assert!(tokenizer.json().starts_with(b"{"));
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_named() {
        let tokenizer = byte_level();
        assert!(tokenizer.check_vocab(257, "").is_ok());
        let text = tokenizer.check_vocab(256, "pad the embedding").unwrap_err().to_string();
        assert!(text.contains("\"</s>\" has id 256") && text.contains("256 tokens (ids 0 to 255)"), "{text}");
        assert!(text.starts_with("bytes:") && text.ends_with("; pad the embedding"), "{text}");
        assert!(tokenizer.check_vocab(0, "").unwrap_err().to_string().contains("id 0,"));
    }

    #[test]
    fn long_prompts_are_refused_with_both_numbers() {
        let text = "a".repeat(MAX_TEXT_BYTES + 1);
        let error = byte_level().encode(&text, false).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }));
        assert!(error.to_string().contains("67108865") && error.to_string().contains("67108864"), "{error}");
    }

    #[test]
    fn a_character_comes_out_whole() {
        let tokenizer = byte_level();
        let out = pieces(&tokenizer, &bytes_of("aé🙂b".as_bytes()));
        assert_eq!(out, ["a", "", "é", "", "", "", "🙂", "b", ""]);
    }

    #[test]
    fn an_incomplete_end_comes_with_finish_only() {
        let tokenizer = byte_level();
        let out = pieces(&tokenizer, &bytes_of(b"a\xF0\x9F\x99"));
        assert_eq!(out, ["a", "", "", "", "\u{FFFD}"]);
        let out = pieces(&tokenizer, &bytes_of(b"a\xFFb"));
        assert_eq!(out, ["a", "", "\u{FFFD}b", ""]);
    }

    #[test]
    fn special_and_unknown_ids_give_nothing() {
        let out = pieces(&byte_level(), &[104, 256, 9999, 105]);
        assert_eq!(out, ["h", "", "", "i", ""]);
    }

    #[test]
    fn streams_of_any_bytes_equal_the_text_at_once() {
        let tokenizer = byte_level();
        let mut state = 7u32;
        for round in 0..300 {
            let bytes: Vec<u8> = (0..150)
                .map(|_| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    // Mostly bytes of multi-byte characters, valid ones and not.
                    let alphabet: &[u8] = b"\xF0\x9F\x99\x82\xE2\x82\xACa\xC3\xA9\x80\xFF";
                    alphabet[(state >> 16) as usize % if round % 2 == 0 { alphabet.len() } else { 4 }]
                })
                .collect();
            let ids = bytes_of(&bytes);
            assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids, true).unwrap(), "{bytes:?}");
        }
    }

    #[test]
    fn endless_broken_bytes_stay_bounded() {
        let tokenizer = byte_level();
        for byte in [0x80u32, 0xE2, 0xFF] {
            let out = pieces(&tokenizer, &vec![byte; 1000]);
            assert_eq!(out.concat(), "\u{FFFD}".repeat(1000));
            assert!(out[..1000].concat().chars().count() > 990);
        }
    }

    #[test]
    fn sentencepiece_spaces_and_byte_runs_come_out_right() {
        let tokenizer = sentencepiece();
        assert_eq!(pieces(&tokenizer, &[1, 2, 4, 3, 2]), ["Hello", " world", "!", " ", " world", ""]);
        let byte = |b: u8| u32::from(b) + 10;
        let ids: Vec<u32> = [1].into_iter().chain("🙂é".bytes().map(byte)).chain([2]).collect();
        assert_eq!(pieces(&tokenizer, &ids), ["Hello", "", "", "", "🙂", "", "é", " world", ""]);
        // The broken third byte spoils the run for the decoder, after the first character is out.
        let ids = [1, byte(0xC3), byte(0xA9), byte(0xC3), 5];
        assert_eq!(pieces(&tokenizer, &ids), ["Hello", "", "é", "", "\u{FFFD}x", ""]);
        let long: Vec<u32> = (0..300).map(|_| byte(0xFF)).chain([1]).collect();
        assert_eq!(pieces(&tokenizer, &long).concat(), format!("{} Hello", "\u{FFFD}".repeat(300)));
    }

    #[test]
    fn broken_files_are_errors() {
        let good = String::from_utf8(byte_level().json().to_vec()).unwrap();
        for cut in (0..good.len()).step_by(97) {
            assert!(Tokenizer::from_bytes("cut", good.as_bytes()[..cut].to_vec()).is_err());
        }
        for bytes in [&b""[..], b"{}", b"[1]", b"\xFF\xFE", b"version https://git-lfs.github.com/spec/v1"] {
            let error = Tokenizer::from_bytes("bad.json", bytes.to_vec()).err().unwrap();
            assert!(matches!(error, Error::Format { .. }) && error.to_string().starts_with("bad.json:"), "{error}");
        }
        let crafted = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "added_tokens": [],
            "decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            "model": {"type": "BPE", "vocab": {"": 0, "a": 1}, "merges": []},
        });
        let crafted = Tokenizer::from_bytes("crafted", crafted.to_string().into_bytes()).unwrap();
        assert!(crafted.decode(&[0], false).is_err());
        assert_eq!(crafted.decode(&[1], false).unwrap(), "a");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::open(dir.path()).err().unwrap();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(FILE_NAME), "{error}");
        std::fs::write(dir.path().join(FILE_NAME), byte_level().json()).unwrap();
        assert_eq!(Tokenizer::open(dir.path()).unwrap().vocab_size(), 257);
    }
}
