//! What a GGUF file's keys say of text: tokenizers against llama.cpp's ids (in `tests/golden`; `TERNION_GOLDENS=DIR` checks
//! another set), special tokens, chat templates, sampling.

mod support {
    pub mod gguf_files;
    pub mod golden;
}

use std::path::Path;

use support::gguf_files::{GgufFile, value};
use support::golden::golden_root;
use ternion::files::chat_template::builtin::BITNET;
use ternion::files::chat_template::source::TemplateSource;
use ternion::files::chat_template::{ChatTemplate, Message, TemplateOptions};
use ternion::files::{GgufMetadata, ModelFiles, SamplingDefaults, SpecialTokens, Tokenizer};
use ternion::unstable::models::{FamilyPrompt, OpenedPrompt, Prompt};
use ternion::{Error, Result};

/// A key with its value.
type Key = (&'static str, Vec<u8>);

fn texts(all: &[&str]) -> Vec<u8> {
    value::array(&all.iter().map(value::text).collect::<Vec<_>>())
}

fn types(all: &[i32]) -> Vec<u8> {
    value::array(&all.iter().map(|&n| value::i32(n)).collect::<Vec<_>>())
}

/// A folder with a GGUF file of these keys.
fn folder(keys: &[Key]) -> (tempfile::TempDir, ModelFiles) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("m.gguf");
    std::fs::write(&file, GgufFile::new(keys).bytes()).expect("written");
    (dir, ModelFiles::Disk(file))
}

fn keys(files: &ModelFiles) -> GgufMetadata {
    GgufMetadata::of(files).expect("a file that can be read").expect("a GGUF file")
}

fn tokenizer(files: &ModelFiles) -> Result<(Tokenizer, Option<String>)> {
    Ok(Tokenizer::from_gguf(&keys(files), files)?.expect("keys of a tokenizer"))
}

/// What stands for a byte in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let rank = (0..byte).filter(|&b| !plain(b)).count() as u32;
    if plain(byte) { char::from(byte) } else { char::from_u32(0x100 + rank).expect("a character") }
}

/// A byte-level vocabulary: bytes, one merge, three tokens of control, one that a user defined.
fn byte_level() -> Vec<Key> {
    let bytes: Vec<String> = (0..=255u8).map(|b| byte_char(b).to_string()).collect();
    let more = ["he", "hex", "<s>", "<|eot_id|>", "<|im_end|>", "<think>"];
    let all: Vec<&str> = bytes.iter().map(String::as_str).chain(more).collect();
    let kinds: Vec<i32> = (0..262).map(|id| if id < 258 { 1 } else { 3 + i32::from(id == 261) }).collect();
    vec![
        ("tokenizer.ggml.model", value::text("gpt2")),
        ("tokenizer.ggml.pre", value::text("llama-bpe")),
        ("tokenizer.ggml.tokens", texts(&all)),
        ("tokenizer.ggml.token_type", types(&kinds)),
        ("tokenizer.ggml.merges", texts(&["h e"])),
        ("tokenizer.ggml.bos_token_id", value::u32(258)),
        ("tokenizer.ggml.eos_token_id", value::u32(104)),
    ]
}

/// The vocabulary with one key replaced; none leaves it out.
fn with(key: &'static str, value: Option<Vec<u8>>) -> Vec<Key> {
    let mut all = byte_level();
    all.retain(|(name, _)| *name != key);
    all.extend(value.map(|value| (key, value)));
    all
}

#[test]
fn ids_are_those_of_llama_cpp() {
    let root = golden_root().join("gguf");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines = read(&root.join("texts.txt"));
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root.join("tok")).expect("vocabularies") {
        let name = entry.expect("a file").file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".gguf").map(str::to_owned));
    }
    names.sort();
    assert!(names.len() >= 7, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let files = ModelFiles::Disk(root.join(format!("tok/{name}.gguf")));
        let (tokenizer, note) = tokenizer(&files).expect("a tokenizer");
        assert_eq!(note, None, "{name}");
        let ids = read(&root.join(format!("tok/{name}.ids")));
        for (text, want) in lines.trim_end_matches('\n').split('\n').zip(ids.split('\n')) {
            let found = tokenizer.encode(&text.replace("\\n", "\n"), true).expect("ids");
            let found: Vec<String> = found.iter().map(u32::to_string).collect();
            // Where a text begins with the token for its beginning, llama.cpp writes it twice and warns.
            let want = if text.starts_with("<s>") { want.strip_prefix("1 ").unwrap_or(want) } else { want };
            if found.join(" ") != want {
                wrong.push(format!("{name} {text:?}\n  found {}\n  want  {want}", found.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_text_survives_the_round_trip() {
    for name in ["qwen2", "qwen35", "llama-bpe", "falcon3", "gpt-2", "default", "spm"] {
        let files = ModelFiles::Disk(golden_root().join(format!("gguf/tok/{name}.gguf")));
        let (tokenizer, _) = tokenizer(&files).expect("a tokenizer");
        for text in ["hello  world\n\t", "\u{e9}\u{6f22}\u{1f642}", " leading", ""] {
            let ids = tokenizer.encode(text, true).expect("ids");
            assert_eq!(tokenizer.decode(&ids, true).expect("text"), text, "{name}");
        }
        let copy = Tokenizer::from_bytes("copy", tokenizer.json().to_vec()).expect("a tokenizer.json");
        assert_eq!(copy.encode("hello 123", true).expect("ids"), tokenizer.encode("hello 123", true).expect("ids"));
    }
}

#[test]
fn the_beginning_of_a_text_is_marked_once() {
    let (_dir, files) = folder(&byte_level());
    let (tokenizer, _) = tokenizer(&files).expect("a tokenizer");
    let ids = |text, special| tokenizer.encode(text, special).expect("ids");
    assert_eq!(ids("hex", true), [258, 257], "a word that is a token needs no merges");
    assert_eq!(ids("<s>he", true), [258, 256]);
    assert_eq!(ids("<s><s>he", true), [258, 258, 256], "a text may begin with two");
    assert_eq!(ids("he<s>", false), [256, 258]);
    let spans = tokenizer.pieces("<s>he", true).expect("pieces");
    assert_eq!(
        spans.iter().map(|piece| (piece.id, piece.span.clone())).collect::<Vec<_>>(),
        [(258, 0..3), (256, 3..5)]
    );
    for (add_bos, first) in [(Some(0), 256), (Some(1), 258), (None, 258)] {
        let (_dir, files) = folder(&with("tokenizer.ggml.add_bos_token", add_bos.map(value::bool)));
        let (tokenizer, _) = self::tokenizer(&files).expect("a tokenizer");
        assert_eq!(tokenizer.encode("he", true).expect("ids")[0], first, "{add_bos:?}");
    }
}

#[test]
fn an_unknown_way_to_split_is_said_or_read_from_tokenizer_json() {
    for (pre, says) in [(Some(value::text("new-model")), "\"new-model\""), (None, "is missing")] {
        let (dir, files) = folder(&with("tokenizer.ggml.pre", pre));
        let note = tokenizer(&files).expect("a tokenizer").1.expect("a note");
        assert!(note.contains(says) && note.contains("tokenizer.json"), "{note}");
        let (_other, known) = folder(&byte_level());
        let json = tokenizer(&known).expect("a tokenizer").0;
        std::fs::write(dir.path().join("tokenizer.json"), json.json()).expect("written");
        let (beside, note) = tokenizer(&files).expect("a tokenizer");
        assert_eq!((note, beside.json()), (None, json.json()));
    }
}

#[test]
fn keys_that_do_not_fit_are_named() {
    let fails = |key: &'static str, value: Option<Vec<u8>>, says: &str| {
        let (_dir, files) = folder(&with(key, value));
        let error = tokenizer(&files).err().expect("an error").to_string();
        assert!(error.contains("m.gguf") && error.contains(says), "{key}: {error}");
    };
    fails("tokenizer.ggml.model", Some(value::text("rwkv")), "\"rwkv\"");
    fails("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens");
    fails("tokenizer.ggml.token_type", Some(types(&[1, 1])), "has 2 values");
    fails("tokenizer.ggml.merges", None, "tokenizer.ggml.merges");
    fails("tokenizer.ggml.merges", Some(texts(&["h e", "he"])), "\"he\" at place 1");
    fails("tokenizer.ggml.merges", Some(texts(&["q z"])), "qz");
    fails("tokenizer.ggml.bos_token_id", Some(value::u32(262)), "is 262, but there are 262 tokens");
    fails("tokenizer.huggingface.json", Some(value::text("{}")), "tokenizer.huggingface.json");
    let mut few = with("tokenizer.ggml.tokens", Some(texts(&["a", "b"])));
    few.retain(|(key, _)| *key != "tokenizer.ggml.token_type");
    let (_dir, files) = folder(&few);
    assert!(tokenizer(&files).err().expect("an error").to_string().contains("byte 0x00"));
    let (_dir, files) = folder(&with("tokenizer.ggml.model", Some(value::text("llama"))));
    assert!(tokenizer(&files).err().expect("an error").to_string().contains("tokenizer.ggml.scores"));
    let (_dir, files) = folder(&with("tokenizer.ggml.model", None));
    assert!(Tokenizer::from_gguf(&keys(&files), &files).expect("no error").is_none());
}

#[test]
fn an_answer_ends_with_any_token_that_ends_a_turn() {
    let (_dir, files) = folder(&[byte_level(), vec![("tokenizer.ggml.eot_token_id", value::u32(7))]].concat());
    let special = SpecialTokens::in_gguf(&keys(&files)).expect("special tokens");
    assert_eq!(special, SpecialTokens { bos: Some(258), eos: Some(104), stop: vec![7, 104, 259, 260] });
    let (tokenizer, _) = tokenizer(&files).expect("a tokenizer");
    assert_eq!(special.texts(&tokenizer), ["<s>", "h"]);
    assert_eq!(SpecialTokens::of(&files, &tokenizer).expect("special tokens"), special);
}

#[test]
fn hugging_faces_files_say_the_same() {
    let (_dir, gguf) = folder(&byte_level());
    let json = tokenizer(&gguf).expect("a tokenizer").0;
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    std::fs::write(dir.path().join("tokenizer.json"), json.json()).expect("written");
    let files = ModelFiles::from(dir.path());
    let special = || SpecialTokens::of(&files, &json);
    assert_eq!(special().expect("none given"), SpecialTokens { bos: None, eos: None, stop: vec![259, 260] });
    write("config.json", r#"{"eos_token_id": 11}"#);
    assert_eq!(special().expect("by config.json").stop, [11, 259, 260]);
    write("generation_config.json", r#"{"eos_token_id": [1, 2], "bos_token_id": 3}"#);
    assert_eq!(special().expect("by generation_config.json").stop, [1, 2, 259, 260]);
    write("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": {"content": "<|im_end|>", "lstrip": false}}"#);
    assert_eq!(
        special().expect("by all"),
        SpecialTokens { bos: Some(258), eos: Some(260), stop: vec![1, 2, 259, 260] }
    );
    write("generation_config.json", r#"{"eos_token_id": "x"}"#);
    assert!(matches!(special(), Err(Error::Config { .. })));
}

#[test]
fn templates_are_found_where_files_have_them() {
    let source = |files: &ModelFiles, which| TemplateSource::of(files, which).expect("no error").map(|t| t.source);
    let (_dir, files) =
        folder(&[("tokenizer.chat_template", value::text("a")), ("tokenizer.chat_template.rag", value::text("b"))]);
    assert_eq!(
        [None, Some("rag"), Some("x")].map(|which| source(&files, which)),
        [Some("a".into()), Some("b".into()), None]
    );
    let (_dir, files) = folder(&[("tokenizer.chat_template.default", value::text("c"))]);
    assert_eq!(source(&files, None).as_deref(), Some("c"));
    let dir = tempfile::tempdir().expect("a folder");
    let files = ModelFiles::from(dir.path());
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    assert_eq!(source(&files, None), None);
    write("tokenizer_config.json", r#"{"chat_template": "d"}"#);
    assert_eq!([None, Some("rag")].map(|which| source(&files, which)), [Some("d".into()), None]);
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "e"}, {"name": "rag", "template": "f"}]}"#,
    );
    assert_eq!([None, Some("rag")].map(|which| source(&files, which)), [Some("e".into()), Some("f".into())]);
    write("tokenizer_config.json", r#"{"chat_template": 1}"#);
    assert!(matches!(TemplateSource::of(&files, None), Err(Error::Config { .. })));
    write("chat_template.jinja", "g");
    std::fs::create_dir(dir.path().join("additional_chat_templates")).expect("a folder");
    write("additional_chat_templates/rag.jinja", "h");
    assert_eq!([None, Some("rag")].map(|which| source(&files, which)), [Some("g".into()), Some("h".into())]);
}

#[test]
fn a_familys_conversations_follow_its_files_or_a_named_stand_in() {
    let open = |keys: &[Key], family: FamilyPrompt| -> (OpenedPrompt, ChatTemplate) {
        let (_dir, files) = folder(keys);
        let (tokenizer, _) = tokenizer(&files).expect("a tokenizer");
        let opened = family.open(&files, Some(&tokenizer)).expect("no error").expect("a form");
        let Prompt::Template(template) = opened.prompt.clone() else { panic!("{opened:?} is no template") };
        (opened, template)
    };
    let hello = |template: &ChatTemplate| {
        template.render(&[Message::new("user", "hello")], &TemplateOptions::default()).expect("text")
    };
    let own =
        with("tokenizer.chat_template", Some(value::text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")));
    let (opened, template) = open(&own, FamilyPrompt::Template(None));
    assert_eq!((opened.note, hello(&template).as_str()), (None, "<s>helloh"));
    assert_eq!(opened.stop, [104, 259, 260]);
    for keys in [byte_level(), with("tokenizer.chat_template", Some(value::text("{% if %}")))] {
        let (opened, template) = open(&keys, FamilyPrompt::Template(None));
        assert!(opened.note.is_some_and(|note| note.contains("m.gguf") && note.contains("\"plain\"")));
        assert_eq!(hello(&template), "User: hello\nAssistant:");
        let (_, template) = open(&keys, FamilyPrompt::Template(Some(BITNET)));
        assert_eq!(hello(&template), "<s>User: hello<|eot_id|>Assistant: ");
    }
    let (opened, template) = open(&own, FamilyPrompt::Builtin(BITNET));
    assert_eq!((opened.note, hello(&template).as_str()), (None, "<s>User: hello<|eot_id|>Assistant: "));
    let (_dir, files) = folder(&own);
    assert!(FamilyPrompt::Template(None).open(&files, None).expect("no error").is_none());
}

#[test]
fn sampling_is_recommended_by_keys() {
    let (_dir, files) = folder(&[
        ("general.sampling.temp", value::f32(0.5)),
        ("general.sampling.top_k", value::i32(20)),
        ("general.sampling.penalty_repeat", value::f32(1.25)),
    ]);
    let found = SamplingDefaults::of(&files).expect("defaults");
    assert_eq!(found.to_string(), "temperature 0.5, repetition penalty 1.25, top k 20");
    assert!(found.file.is_some_and(|file| file.ends_with("m.gguf")));
    // A file beside it speaks where the keys say nothing.
    let beside = |dir: &tempfile::TempDir| {
        let config = r#"{"temperature": 0.75, "top_k": 9, "top_p": 0.5}"#;
        std::fs::write(dir.path().join("generation_config.json"), config).expect("written");
    };
    let (dir, files) = folder(&[("general.sampling.temp", value::f32(0.5))]);
    beside(&dir);
    assert_eq!(SamplingDefaults::of(&files).expect("defaults").to_string(), "temperature 0.5");
    let (dir, files) = folder(&[]);
    assert!(SamplingDefaults::of(&files).expect("defaults").is_empty());
    beside(&dir);
    let found = SamplingDefaults::of(&files).expect("defaults");
    assert_eq!(found.to_string(), "temperature 0.75, top p 0.5, top k 9");
    assert!(found.file.is_some_and(|file| file.ends_with("generation_config.json")));
    let (_dir, files) = folder(&[("general.sampling.temp", value::text("hot"))]);
    assert!(matches!(SamplingDefaults::of(&files), Err(Error::Config { .. })));
}
