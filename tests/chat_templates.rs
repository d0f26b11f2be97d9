//! Chat templates against what transformers renders (in `tests/golden`; `TERNION_GOLDENS=DIR` checks another set).

mod support {
    pub mod golden;
}

use std::time::SystemTime;

use minijinja::Value;
use serde::Deserialize;
use support::golden::golden_root;
use ternion::files::chat_template::ChatTemplate;

#[derive(Deserialize)]
struct Case {
    template: String,
    variables: Value,
    expected: Option<String>,
    error: Option<String>,
}

#[test]
fn chat_templates_render_as_in_transformers() {
    let folder = golden_root().join("gguf/chat");
    let json = std::fs::read_to_string(folder.join("cases.json")).expect("cases.json");
    let cases: Vec<Case> = serde_json::from_str(&json).expect("cases");
    assert!(cases.len() >= 20, "{} cases", cases.len());
    let (mut compared, mut absent) = (0, Vec::new());
    for (number, case) in cases.iter().enumerate() {
        // A template whose licence does not let it be copied may be absent beside its cases.
        let Ok(source) = std::fs::read_to_string(folder.join(&case.template)) else {
            absent.push(&case.template);
            continue;
        };
        let template = ChatTemplate::new(&case.template, source, ["", ""]).expect("a template that compiles");
        let rendered = template.render_with(&case.variables, SystemTime::now());
        match (rendered, &case.expected, &case.error) {
            (Ok(text), Some(expected), _) => assert_eq!(&text, expected, "case {number} of {}", case.template),
            (Err(_), None, Some(_)) => {}
            (rendered, expected, error) => panic!("case {number}: {rendered:?}, not {expected:?} or {error:?}"),
        }
        compared += 1;
    }
    absent.dedup();
    eprintln!("{compared} cases agree; absent: {absent:?}");
    assert!(compared >= 20, "{compared} cases");
}
