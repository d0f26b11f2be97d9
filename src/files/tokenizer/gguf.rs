//! The tokenizer of a GGUF file's keys, as the tokenizer.json that says the same.
//!
//! Two kinds are in use. `gpt2` is byte-level BPE: special tokens, then words by a regular expression, then merges in their
//! order. `llama` is SentencePiece's BPE: characters, then again and again the neighbours that make the token of the highest
//! score, and bytes where there is no token. Ids are those of llama.cpp, which does not normalise text.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::tokenizer::pre_tokenizer::{DEFAULT, PreTokenizer};
use crate::files::tokenizer::{Tokenizer, gpt2, special};
use crate::files::{GgufMetadata, ModelFiles};

/// The key of the kind; a file without it has no tokenizer.
pub(crate) const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
/// A whole tokenizer.json.
const HUGGING_FACE: &str = "tokenizer.huggingface.json";

/// Types of tokens, as the file numbers them.
const NORMAL: u64 = 1;
const UNKNOWN_TYPE: u64 = 2;
pub(crate) const CONTROL: u64 = 3;
pub(crate) const USER_DEFINED: u64 = 4;

/// SentencePiece's space.
const SPACE: &str = "\u{2581}";
/// Bytes of the longest token that others are merged into: SentencePiece's own bound is far below.
const MAX_MERGED: usize = 256;

/// A tokenizer, and what the user should know of how it was made.
type Made = (Tokenizer, Option<String>);

impl Tokenizer {
    /// The tokenizer of a GGUF file's keys; none where they have none. Where a file names a way to split words that is not
    /// known, the tokenizer.json among `files` is taken, else a usual way with a note that says so.
    ///
    /// # Errors
    /// [`Error::Config`] for keys that are missing or do not fit each other, [`Error::Unsupported`] for another kind, and
    /// those of [`Tokenizer::from_bytes`].
    pub fn from_gguf(keys: &GgufMetadata, files: &ModelFiles) -> Result<Option<Made>> {
        let Some(kind) = keys.text(MODEL)? else { return Ok(None) };
        if let Some(json) = keys.text(HUGGING_FACE)? {
            let name = format!("{}: {HUGGING_FACE:?}", keys.file());
            return Ok(Some((Self::from_bytes(&name, json.as_bytes().to_vec())?, None)));
        }
        let (json, note) = match kind {
            "gpt2" => {
                let vocabulary = Vocabulary::read(keys)?;
                let (split, note) = pre_tokenizer(keys, vocabulary.tokens.len())?;
                if note.is_some()
                    && let Some(tokenizer) = Self::in_tokenizer_json(files)?
                {
                    log::info!("{}: the tokenizer is {}", keys.file(), tokenizer.name);
                    return Ok(Some((tokenizer, None)));
                }
                (byte_level(keys, &vocabulary, &split)?, note)
            }
            "llama" => (sentence_piece(keys, &Vocabulary::read(keys)?)?, None),
            other => {
                let object = format!("{}: {MODEL:?} {other:?}", keys.file());
                let problem = "the kinds are \"gpt2\" and \"llama\"".to_owned();
                return Err(Error::Unsupported { object, problem });
            }
        };
        Ok(Some((Self::from_bytes(keys.file(), json.to_string().into_bytes())?, note)))
    }
}

/// The tokens of a file.
struct Vocabulary<'a> {
    /// Texts by id, none of them empty.
    tokens: Vec<Cow<'a, str>>,
    /// Types by id.
    types: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(keys: &'a GgufMetadata) -> Result<Self> {
        let texts = keys.texts(TOKENS)?.ok_or_else(|| keys.missing(TOKENS))?;
        let types = keys.integers(TYPES)?.unwrap_or_else(|| vec![NORMAL; texts.len()]);
        same_length(keys, TYPES, types.len(), texts.len())?;
        // A token without text would match everywhere.
        let named = |(id, text): (usize, &'a str)| match text {
            "" => format!("[EMPTY_{id}]").into(),
            text => text.into(),
        };
        Ok(Vocabulary { tokens: texts.into_iter().enumerate().map(named).collect(), types })
    }

    /// Ids by text; the last of equal texts counts.
    fn ids(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, text)| (text.clone().into_owned(), json!(id))).collect()
    }

    /// The tokens that are found in a text before it is split.
    fn added(&self) -> Vec<Value> {
        let all = self.tokens.iter().zip(&self.types).enumerate();
        let added = all.filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED));
        added.map(|(id, (text, kind))| added_token(id, text, *kind == CONTROL)).collect()
    }

    /// The token of an id that a key gives.
    fn token(&self, keys: &GgufMetadata, key: &str) -> Result<Option<(usize, &str)>> {
        let Some(id) = keys.integer(key)? else { return Ok(None) };
        let problem = || keys.wrong(key, format!("is {id}, but there are {} tokens", self.tokens.len()));
        let id = usize::try_from(id).map_err(|_| problem())?;
        self.tokens.get(id).map(|text| Some((id, text.as_ref()))).ok_or_else(problem)
    }
}

fn same_length(keys: &GgufMetadata, key: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    Err(keys.wrong(key, format!("has {found} values, expected one for each of the {tokens} tokens")))
}

fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special})
}

/// How words are split, with a note where that is a guess.
fn pre_tokenizer(keys: &GgufMetadata, tokens: usize) -> Result<(PreTokenizer, Option<String>)> {
    let guess = |why: String| {
        let note = format!(
            "{}: {why}; words are split in the usual way, which may not be the model's: put its tokenizer.json beside it, \
             or give one with the option `tokenizer`",
            keys.file()
        );
        (DEFAULT, Some(note))
    };
    Ok(match keys.text(PRE)? {
        None => {
            PreTokenizer::unnamed(tokens).map_or_else(|| guess(format!("{PRE:?} is missing")), |known| (known, None))
        }
        Some(name) => PreTokenizer::named(name)
            .map_or_else(|| guess(format!("{PRE:?} is {name:?}, which is not known")), |known| (known, None)),
    })
}

/// What the library puts around every text: the tokens for its beginning and its end, where the file asks for them.
fn around(keys: &GgufMetadata, vocabulary: &Vocabulary, adds_bos: bool) -> Result<Value> {
    let adds_bos = keys.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
    let adds_eos = keys.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let bos = if adds_bos { vocabulary.token(keys, special::BOS)? } else { None };
    let eos = if adds_eos { vocabulary.token(keys, special::EOS)? } else { None };
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let one = |token: Option<(usize, &str)>| token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": 0}}));
    let sequence = |id: &str| Some(json!({"Sequence": {"id": id, "type_id": 0}}));
    let single: Vec<Value> = [one(bos), sequence("A"), one(eos)].into_iter().flatten().collect();
    let pair: Vec<Value> = [one(bos), sequence("A"), sequence("B"), one(eos)].into_iter().flatten().collect();
    let tokens: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}))
}

/// The tokenizer.json of a byte-level vocabulary.
fn byte_level(keys: &GgufMetadata, vocabulary: &Vocabulary, split: &PreTokenizer) -> Result<Value> {
    let ids = vocabulary.ids();
    gpt2::check_bytes(keys.file(), &ids)?;
    let merges = keys.texts(MERGES)?.ok_or_else(|| keys.missing(MERGES))?;
    let pair = |(i, merge): (usize, &&str)| -> Result<[String; 2]> {
        // A token may begin with a space in vocabularies that do not spell it.
        let parts =
            merge.char_indices().skip(1).find(|(_, c)| *c == ' ').and_then(|(at, _)| merge.split_at_checked(at));
        let (left, right) = parts.ok_or_else(|| {
            keys.wrong(MERGES, format!("is {merge:?} at place {i}, expected two tokens with a space between"))
        })?;
        Ok([left.to_owned(), right.get(1..).unwrap_or_default().to_owned()])
    };
    let merges: Vec<[String; 2]> = merges.iter().enumerate().map(pair).collect::<Result<_>>()?;
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let isolated =
        |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let steps: Vec<Value> = split.splits.iter().map(isolated).chain([level.clone()]).collect();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": split.ignore_merges,
        "vocab": ids, "merges": merges});
    Ok(json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": null, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": around(keys, vocabulary, split.adds_bos)?, "decoder": level, "model": model}))
}

/// The tokenizer.json of a SentencePiece vocabulary.
fn sentence_piece(keys: &GgufMetadata, vocabulary: &Vocabulary) -> Result<Value> {
    let ids = vocabulary.ids();
    let unknown = match vocabulary.token(keys, UNKNOWN)? {
        Some((_, text)) => Some(text),
        None => vocabulary.types.iter().position(|&kind| kind == UNKNOWN_TYPE).map(|id| vocabulary.tokens[id].as_ref()),
    };
    let adds_space = keys.bool(ADD_SPACE)?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    // The library normalises each stretch between special tokens by itself: each gets its space.
    let prepend = adds_space.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let normalizers: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    let strip = adds_space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = decoders.into_iter().chain(strip).collect();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "merges": merges_by_score(keys, vocabulary, &ids)?, "vocab": ids});
    Ok(json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": null,
        "post_processor": around(keys, vocabulary, true)?, "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model}))
}

/// The merges that a vocabulary with scores stands for: every way to put a token together from two, the highest score first.
fn merges_by_score<'a>(
    keys: &GgufMetadata,
    vocabulary: &'a Vocabulary,
    ids: &Map<String, Value>,
) -> Result<Vec<[&'a str; 2]>> {
    let scores = keys.floats(SCORES)?.ok_or_else(|| keys.missing(SCORES))?;
    same_length(keys, SCORES, scores.len(), vocabulary.tokens.len())?;
    let id = |text: &str| ids.get(text).and_then(Value::as_u64);
    let mut merges = Vec::new();
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.types).zip(&scores);
    for ((token, _), score) in tokens.filter(|((token, kind), _)| **kind == NORMAL && token.len() <= MAX_MERGED) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(a), Some(b)) = (id(left), id(right)) {
                merges.push((-score, a, b, [left, right]));
            }
        }
    }
    merges.sort_unstable_by(|x, y| x.0.total_cmp(&y.0).then((x.1, x.2).cmp(&(y.1, y.2))));
    Ok(merges.into_iter().map(|(.., pair)| pair).collect())
}
