//! Which words a tokenizer does not know, and where in a text its tokens are.

use std::ops::Range;

use serde_json::{Value, json};
use ternion::files::Tokenizer;

fn tokenizer(model: Value, normalizer: Value, template: Value) -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": template, "decoder": null, "model": model,
    });
    Tokenizer::from_bytes("words", json.to_string().into_bytes()).unwrap()
}

fn words() -> Tokenizer {
    let model = json!({ "type": "WordLevel", "vocab": { "?": 0, "cat": 1, "red": 2 }, "unk_token": "?" });
    tokenizer(model, json!({ "type": "Lowercase" }), Value::Null)
}

#[test]
fn unknown_words_are_named_as_they_were_written_and_once() {
    let found = |text: &str| words().unknown_words(text).unwrap();
    assert_eq!(found("a red Cat"), ["a"]);
    assert_eq!(found("The  Höhle\tred The cat"), ["The", "Höhle"]);
    assert!(found("RED cat").is_empty() && found("").is_empty());
}

#[test]
fn a_word_with_an_unknown_part_is_unknown() {
    let model = json!({ "type": "BPE", "vocab": { "?": 0, "a": 1, "b": 2 }, "merges": [], "unk_token": "?" });
    let tokenizer = tokenizer(model, Value::Null, Value::Null);
    assert_eq!(tokenizer.unknown_words("ab axb b").unwrap(), ["axb"]);
    assert_eq!(tokenizer.unknown_words("ba").unwrap(), [""; 0]);
}

#[test]
fn pieces_have_their_places_and_those_of_a_template_none() {
    let template = json!({
        "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "red", "type_id": 0 } },
        { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [],
        "special_tokens": { "red": { "id": "red", "ids": [2], "tokens": ["red"] } },
    });
    let model = json!({ "type": "WordLevel", "vocab": { "?": 0, "cat": 1, "red": 2 }, "unk_token": "?" });
    let found = tokenizer(model, Value::Null, template).pieces(" cat dog", true).unwrap();
    let found: Vec<(u32, Range<usize>)> = found.into_iter().map(|p| (p.id, p.span)).collect();
    assert_eq!(found, [(2, 0..0), (1, 1..4), (0, 5..8)]);
}
