//! `ternion compare`: files of two runs are joined by test and settings, in whatever form they are; unlike ones are refused by
//! name.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod golden;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::cli::{assert_fails, succeeds, ternion, text};
use support::golden::golden_root;
use tempfile::TempDir;

/// Measures tiny into a file of this form.
fn measured(dir: &Path, name: &str, form: &str, more: &[&str]) -> String {
    let model = text(golden_root().join("embernet/tiny"));
    let usual = ["bench", "-m", &model, "--device", "cpu", "-p", "9", "-n", "5", "-r", "3", "-o", form];
    let path = dir.join(name);
    fs::write(&path, succeeds(&[&usual[..], more].concat())).expect("written");
    text(path)
}

fn compared(args: &[&str]) -> Vec<Value> {
    let json = succeeds(&[&["compare", "-o", "json"], args].concat());
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"))
}

fn fails(args: &[&str], texts: &[&str]) {
    let args = [&["compare"], args].concat();
    assert_fails(&ternion(&args), &args, texts);
}

/// A copy of a file of lines in which the times of the rows are changed as a faster machine would have them.
fn faster(path: &str, times: u64) -> String {
    let change = |line: &str| {
        let mut row: Value = serde_json::from_str(line).expect("a row");
        let scaled = |value: &Value, of: &dyn Fn(f64) -> Value| {
            let all = value.as_array().expect("samples").iter().filter_map(Value::as_f64);
            Value::Array(all.map(of).collect())
        };
        row["samples_ns"] = scaled(&row["samples_ns"], &|ns| Value::from((ns / times as f64).round() as u64));
        row["samples_ts"] = scaled(&row["samples_ts"], &|rate| Value::from(rate * times as f64));
        row["processor"] = "another one".into();
        row["device"] = "CPU of another machine".into();
        row.to_string()
    };
    let changed: Vec<String> = fs::read_to_string(path).expect("read").lines().map(change).collect();
    let copy = PathBuf::from(path).with_extension("faster.jsonl");
    fs::write(&copy, changed.join("\n")).expect("written");
    text(copy)
}

#[test]
fn two_machines_are_compared_test_by_test() {
    let dir = TempDir::new().expect("a directory");
    let a = measured(dir.path(), "a.jsonl", "jsonl", &["--threads", "1,2"]);
    let b = faster(&a, 3);
    let pairs = compared(&[&a, &b]);
    assert_eq!(pairs.len(), 4);
    for pair in &pairs {
        let ratio = pair["ratio"].as_f64().expect("a ratio");
        // Times are whole nanoseconds.
        assert!((ratio - 3.0).abs() < 1e-3, "{pair}");
        let ends: Vec<f64> =
            pair["interval"].as_array().expect("an interval").iter().filter_map(Value::as_f64).collect();
        assert!(ends[0] <= ratio && ratio <= ends[1], "{pair}");
        assert_eq!(pair["a"]["threads"], pair["b"]["threads"]);
    }
    let back = compared(&[&b, &a]);
    assert!((back[0]["ratio"].as_f64().expect("a ratio") - 1.0 / 3.0).abs() < 1e-3);

    let plot = text(dir.path().join("ratios.svg"));
    let table = succeeds(&["compare", &a, &b, "--plot", &plot]);
    assert!(table.contains("| pp9, 1 thread ") && table.contains("| tg5, 2 threads "), "{table}");
    assert!(table.contains("95 % interval") && table.contains("another one"), "{table}");
    let source = fs::read_to_string(&plot).expect("UTF-8");
    let drawn = roxmltree::Document::parse(&source).expect("SVG");
    let texts: Vec<&str> = drawn.descendants().filter_map(|n| n.text()).map(str::trim).collect();
    for part in ["tg5, 2 threads", "B is slower", "B is faster", "Speed of B over speed of A"] {
        assert!(texts.contains(&part), "{part}: {texts:?}");
    }
    assert!(texts.iter().any(|t| t.starts_with("3.00 (")), "{texts:?}");
}

#[test]
fn rows_are_the_same_in_each_form() {
    let dir = TempDir::new().expect("a directory");
    let jsonl = measured(dir.path(), "a.jsonl", "jsonl", &["--image"]);
    let lines = fs::read_to_string(&jsonl).expect("read");
    let rows: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("a row")).collect();
    let list = text(dir.path().join("a.json"));
    fs::write(&list, Value::Array(rows).to_string()).expect("written");
    let pairs = compared(&[&jsonl, &list]);
    assert_eq!(pairs.len(), 4);
    assert!(pairs.iter().all(|p| p["ratio"] == 1.0 && p["a"] == p["b"] && p["differs"] == false), "{pairs:?}");
    // Of CSV the samples too, from which intervals are; two files one behind the other are one.
    let csv = measured(dir.path(), "a.csv", "csv", &["--image"]);
    let more = measured(dir.path(), "b.csv", "csv", &[]);
    let both = fs::read_to_string(&csv).expect("read") + &fs::read_to_string(more).expect("read");
    fs::write(&csv, both).expect("written");
    let ran = ternion(&["compare", "-o", "json", &csv, &jsonl]);
    assert_eq!(ran.code, Some(2), "pp9 is in both files: {}", ran.err);
    assert!(ran.err.contains("pp9") && ran.err.contains("several rows"), "{}", ran.err);
    let csv = measured(dir.path(), "c.csv", "csv", &["--image", "-d", "0,7"]);
    let ran = ternion(&["compare", "-o", "json", &csv, &jsonl]);
    let pairs: Vec<Value> = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.err));
    assert_eq!(pairs.len(), 4);
    assert!(pairs.iter().all(|p| p["interval"].is_array() && p["a"]["samples_ns"].as_array().map(Vec::len) == Some(3)));
    assert!(ran.err.contains("only in") && ran.err.contains("tg5 @ d7"), "{}", ran.err);
}

#[test]
fn other_settings_are_refused_unless_they_are_ignored() {
    let dir = TempDir::new().expect("a directory");
    let a = measured(dir.path(), "a.json", "json", &[]);
    let b = measured(dir.path(), "b.json", "json", &["--precision", "f32"]);
    fails(&[&a, &b], &["pp9", "precision", "f16", "f32", "ignore precision"]);
    fails(&[&a, &b, "--ignore", "precision"], &["head", "ignore head"]);
    let pairs = compared(&[&a, &b, "--ignore", "precision,head", "--ignore", "kv"]);
    assert_eq!(pairs.len(), 2);
    assert!(pairs.iter().all(|p| p["a"]["precision"] == "f16" && p["b"]["precision"] == "f32"));
    fails(&[&a, &b, "--ignore", "colour"], &["ignore", "colour", "precision"]);
}

#[test]
fn files_that_are_no_rows_are_refused() {
    let dir = TempDir::new().expect("a directory");
    let a = measured(dir.path(), "a.jsonl", "jsonl", &[]);
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).expect("written");
        text(path)
    };
    let row = fs::read_to_string(&a).expect("read");
    let row = row.lines().next().expect("a row").to_owned();
    let changed = |from: &str, to: &str| {
        assert!(row.contains(from), "{row}");
        row.replacen(from, to, 1).into_bytes()
    };
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("empty", Vec::new(), &["no rows"]),
        ("list", b"[]".to_vec(), &["no rows"]),
        ("prose", b"It was fast.\nVery.".to_vec(), &["row 1", "schema"]),
        ("cut", row.as_bytes()[..row.len() / 2].to_vec(), &["row 1"]),
        ("bytes", vec![0xff, 0xfe, 0x00], &["utf-8"]),
        ("schema", changed("\"schema\":1", "\"schema\":2"), &["schema is 2", "schema 1"]),
        ("no_schema", changed("\"schema\":1,", ""), &["row 1", "schema"]),
        ("no_test", changed("\"test\":", "\"tset\":"), &["row 1", "test"]),
        ("no_times", changed("\"samples_ns\":[", "\"samples_ns\":[0,"), &["samples_ns"]),
    ];
    for (name, content, texts) in cases {
        let b = file(name, &content);
        fails(&[&a, &b], &[&[name], texts].concat());
    }
    fails(&[&a, "nowhere.json"], &["nowhere.json"]);
    fails(&[&a, &a, "--plot", "ratios.txt"], &["ratios.txt", ".svg or .png"]);
}
