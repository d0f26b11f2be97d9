//! `ternion bench`: rows that say something, in every form, and bad requests refused before anything is loaded; what a step
//! reads, counted by hand.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod golden;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use support::cli::{assert_fails, has_adapter, succeeds, ternion, text};
use support::golden::golden_root;
use tempfile::TempDir;
use ternion::engine::NamedValues;
use ternion::files::Weights;
use ternion::tools::synthetic::{self, PublishedModel};
use ternion::unstable::models;
use ternion::unstable::models::{LoadOptions, TextShape};
use ternion::unstable::plan::{Plan, Step};
use ternion::unstable::tensor::{DType, Pack, WeightRef};

fn tiny() -> PathBuf {
    golden_root().join("embernet/tiny")
}

/// The arguments of a short run on tiny, with more of them.
fn args<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["bench", "-m", model, "-p", "9,70", "-n", "5", "-d", "0,33", "-s", "1,2", "-r", "2"];
    [&usual, more].concat()
}

#[track_caller]
fn bench(more: &[&str]) -> String {
    succeeds(&args(&text(tiny()), more))
}

fn rows(json: &str) -> Vec<Value> {
    let rows: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
    rows.as_array().expect("a list").clone()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} is not a number: {row}"))
}

const TESTS: [&str; 10] = [
    "pp9",
    "pp70",
    "pp9 @ d33",
    "pp70 @ d33",
    "image",
    "image+pp32",
    "tg5",
    "tg5 @ d33",
    "tg5 × 2 sessions",
    "tg5 @ d33 × 2 sessions",
];

/// Rows of a run on a device, checked for numbers that can be.
fn checked(device: &str) -> BTreeMap<String, Value> {
    let rows = rows(&bench(&["--device", device, "--image", "-o", "json"]));
    let names: Vec<&str> = rows.iter().filter_map(|r| r["test"].as_str()).collect();
    assert_eq!(names, TESTS);
    for row in &rows {
        let above_0 = ["tokens_per_s", "ms", "bytes_per_token", "bandwidth", "bandwidth_share", "dispatches_per_token"];
        for key in above_0 {
            let n = number(row, key);
            assert!(n.is_finite() && n > 0.0, "{key} is {n}: {row}");
        }
        for key in ["weight_bytes", "parameters", "device_bytes"] {
            assert!(row[key].as_u64() > Some(1000), "{key}: {row}");
        }
        let host = number(row, "host_us_per_token");
        assert!(if device == "cpu" { host == 0.0 } else { host > 0.0 && host < 1e6 }, "{row}");
        assert!(number(row, "stddev") >= 0.0 && row["device"].as_str().is_some_and(|d| !d.is_empty()), "{row}");
        let samples = row["samples_ns"].as_array().expect("samples");
        assert_eq!((samples.len(), row["samples_ts"].as_array().map(Vec::len)), (2, Some(2)), "{row}");
        let [min, median, max] = ["min", "median", "max"].map(|name| number(row, &format!("tokens_per_s_{name}")));
        assert!(min <= median && median <= max && (2.0 * median / (min + max) - 1.0).abs() < 1e-9, "{row}");
        let share = number(row, "bytes_per_token") * number(row, "tokens_per_s") / number(row, "bandwidth");
        assert!((share / number(row, "bandwidth_share") - 1.0).abs() < 1e-6, "{row}");
        assert_eq!(row["images_per_s"].is_null(), row["test"] != "image", "{row}");
    }
    rows.into_iter().map(|row| (row["test"].as_str().expect("a name").to_owned(), row)).collect()
}

#[test]
fn rows_say_what_a_step_costs() {
    let rows = checked("cpu");
    let get = |test: &str, key: &str| number(&rows[test], key);
    // 6 a layer, and 5: embedding, the rows wanted, norm, head, choice. Two rows write the cache and attend in two.
    assert_eq!(get("tg5", "dispatches_per_token"), 6.0 * 3.0 + 5.0);
    assert_eq!(get("tg5 × 2 sessions", "dispatches_per_token"), (7.0 * 3.0 + 5.0) / 2.0);
    // 70 tokens are two steps, of 16 nodes a layer.
    assert_eq!(get("pp70", "dispatches_per_token"), 2.0 * (16.0 * 3.0 + 5.0) / 70.0);
    // Keys and values of 33 more tokens: 3 layers, 2 heads of 16, 16 bits.
    assert_eq!(get("tg5 @ d33", "bytes_per_token") - get("tg5", "bytes_per_token"), 33.0 * 3.0 * 2.0 * 2.0 * 32.0);
    // A prompt of one step reads the same keys and values once.
    let more = 9.0 * (get("pp9 @ d33", "bytes_per_token") - get("pp9", "bytes_per_token"));
    assert!((more - 33.0 * 3.0 * 2.0 * 2.0 * 32.0).abs() < 1e-6, "{more}");
    assert_eq!(get("pp70 @ d33", "dispatches_per_token"), get("pp70", "dispatches_per_token"));
    assert!(get("tg5 × 2 sessions", "bytes_per_token") < get("tg5", "bytes_per_token"));
}

#[test]
fn a_head_in_8_bits_reads_half_the_bytes() {
    let row = |head: &str| {
        let model = text(tiny());
        let usual = ["bench", "-m", &model, "-p", "4", "-n", "5", "-r", "1", "--device", "cpu", "-o", "json"];
        rows(&succeeds(&[&usual, &["--head", head][..]].concat())).pop().expect("a row")
    };
    let [full, eight] = ["f16", "int8"].map(row);
    assert_eq!([&full["head"], &eight["head"]], ["f16", "int8"]);
    let config: Value =
        serde_json::from_slice(&std::fs::read(tiny().join("config.json")).expect("read")).expect("JSON");
    let size = |key: &str| config["language_decoder"][key].as_f64().unwrap_or_else(|| panic!("{key}: {config}"));
    let (vocab, d) = (size("vocab_size"), size("hidden_size"));
    // 8 bits for 16, and a scale per row.
    let saved = number(&full, "bytes_per_token") - number(&eight, "bytes_per_token");
    assert!((saved - vocab * (d - 4.0)).abs() <= 16.0, "{saved} for {vocab} x {d}");
    // The table stays for embeddings.
    let more = number(&eight, "weight_bytes") - number(&full, "weight_bytes");
    assert!((more - vocab * (d + 4.0)).abs() <= 16.0, "{more} for {vocab} x {d}");
}

#[test]
fn a_gpu_is_measured_too() {
    if has_adapter() {
        let rows = checked("gpu");
        assert!(rows.values().all(|r| r["backend"] == "gpu"));
    }
}

#[test]
fn a_bitgen_is_measured_by_images_and_texts() {
    let model = text(golden_root().join("bitgen_stage1/dino_tiny"));
    let devices: &[&str] = if has_adapter() { &["cpu", "gpu"] } else { &["cpu"] };
    for device in devices {
        let usual = ["bench", "-m", &model, "-r", "2", "--profile", "--device", device, "-o", "json"];
        let rows = rows(&succeeds(&usual));
        let names: Vec<&str> = rows.iter().filter_map(|r| r["test"].as_str()).collect();
        assert_eq!(names, ["image", "image × 8", "text × 64"]);
        for (row, (rate, none)) in rows.iter().zip([
            ("images_per_s", "texts_per_s"),
            ("images_per_s", "texts_per_s"),
            ("texts_per_s", "images_per_s"),
        ]) {
            assert!(number(row, rate) > 0.0 && row[none].is_null() && row["backend"] == *device, "{row}");
            for key in ["tokens_per_s", "bytes_per_token", "bandwidth_share", "dispatches_per_token"] {
                assert!(number(row, key) > 0.0, "{key}: {row}");
            }
            let ops = row["profile"].as_array().expect("a profile");
            assert!(ops.iter().any(|op| op["op"] == "matmul"), "{row}");
        }
        // 256 patches an image; eight take two steps, whose weights are read twice and not eight times.
        assert!((number(&rows[0], "tokens_per_s") / number(&rows[0], "images_per_s") / 256.0 - 1.0).abs() < 0.5);
        let [one, eight] = [0, 1].map(|i| number(&rows[i], "dispatches_per_token"));
        assert!((eight - one / 4.0).abs() < 1e-9 * one, "{one} and {eight}");
        assert!(number(&rows[1], "bytes_per_token") < number(&rows[0], "bytes_per_token"));
    }
    let table = succeeds(&["bench", "-m", &model, "-r", "1", "--device", "cpu"]);
    assert!(table.contains("| image × 8 (images) |") && table.contains("| text × 64 (texts) "), "{table}");
}

#[test]
fn every_form_holds_every_row() {
    let objects = |text: &str| text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect::<Vec<Value>>();
    let lines = objects(&bench(&["--device", "cpu", "-o", "jsonl"]));
    assert_eq!(lines.len(), 8);
    let csv = bench(&["--device", "cpu", "-o", "csv"]);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().expect("a header").clone();
    let keys: Vec<&String> = lines[0].as_object().expect("an object").keys().collect();
    assert_eq!(header.len(), keys.len());
    assert!(keys.iter().all(|key| header.iter().any(|h| h == *key)), "{header:?}");
    let records: Vec<csv::StringRecord> = reader.records().map(|r| r.expect("a record")).collect();
    assert_eq!(records.len(), 8);

    let sql = bench(&["--device", "cpu", "-o", "sql"]);
    let statements: Vec<&str> = sql.lines().collect();
    assert!(statements[0].starts_with("CREATE TABLE IF NOT EXISTS bench (\"schema\", \"version\", "), "{sql}");
    assert_eq!(statements.len(), 1 + 8);
    assert!(
        statements[1..].iter().all(|s| s.starts_with("INSERT INTO bench (\"schema\", ") && s.ends_with(");")),
        "{sql}"
    );
    assert!(statements[1].contains("'pp9', 9, 0, 0, 1, ") && statements[1].contains("NULL"), "{sql}");
}

#[test]
fn a_table_fits_100_columns_under_what_was_measured() {
    let table = bench(&["--device", "cpu"]);
    let (block, table) = table.split_once("\n\n").expect("a block and a table");
    for part in
        ["- ternion ", "- model: ", "embernet/tiny", "- device: CPU", "GB/s at best", "- settings: precision f16"]
    {
        let words = block.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(part), "{part}: {block}");
    }
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2 + 8);
    assert!(lines.iter().all(|l| l.chars().count() == lines[0].chars().count()), "{table}");
    assert!(block.lines().chain(lines.iter().copied()).all(|l| l.chars().count() <= 100), "{block}\n{table}");
    assert!(lines[2].contains("| pp9 ") && lines[2].contains(" ± ") && lines[2].contains('–'), "{table}");
    // One run has no deviation, and more is told where it is asked for.
    let wide = succeeds(&["bench", "-m", &text(tiny()), "--device", "cpu", "-p", "9", "-n", "0", "-r", "1", "--wide"]);
    assert!(!wide.contains('±') && wide.contains("launches/token") && wide.contains("device memory"), "{wide}");
}

#[test]
fn every_row_says_what_and_where_it_measured() {
    const KEYS: &str = "schema version commit system processor memory_bytes time model weight_bytes parameters backend \
        device adapter vendor_id device_id api driver threads cpu_level precision head kv activations \
        batch_invariant autotune variants test n_prompt n_gen n_depth n_sessions n_images n_texts context warmup \
        repetitions samples_ns samples_ts tokens_per_s stddev tokens_per_s_median tokens_per_s_min tokens_per_s_max images_per_s texts_per_s ms \
        bytes_per_token bandwidth bandwidth_share dispatches_per_token host_us_per_token peak_host_bytes device_bytes \
        max_memory page_hit_rate moved_bytes_per_token stalled_share";
    let model = text(tiny());
    let of = |device: &str| {
        let args = ["bench", "-m", &model, "-p", "0", "-n", "5", "-d", "3", "-s", "2", "-r", "1", "-o", "csv"];
        let csv = succeeds(&[&args[..], &["--device", device]].concat());
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let header = reader.headers().expect("a header").clone();
        assert_eq!(header.iter().collect::<Vec<_>>(), KEYS.split_whitespace().collect::<Vec<_>>());
        let record = reader.records().next().expect("a row").expect("a record");
        header.iter().map(str::to_owned).zip(record.iter().map(str::to_owned)).collect::<BTreeMap<String, String>>()
    };
    let cpu = of("cpu");
    let expected = [("schema", "1"), ("n_prompt", "0"), ("n_gen", "5"), ("n_depth", "3"), ("n_sessions", "2")];
    for (key, value) in expected.into_iter().chain([("context", "9"), ("warmup", "1"), ("adapter", ""), ("kv", "f16")])
    {
        assert_eq!(cpu[key], value, "{key}: {cpu:?}");
    }
    assert!(cpu["time"].ends_with('Z') && cpu["version"] == env!("CARGO_PKG_VERSION"), "{cpu:?}");
    assert!(cpu["system"].contains(std::env::consts::ARCH) && !cpu["cpu_level"].is_empty(), "{cpu:?}");
    if has_adapter() {
        let gpu = of("gpu");
        for key in ["adapter", "vendor_id", "device_id", "api", "driver", "variants"] {
            assert!(!gpu[key].is_empty(), "{key}: {gpu:?}");
        }
        assert_eq!([&gpu["threads"], &gpu["autotune"]], ["", "false"]);
    }
}

#[test]
fn sweeps_measure_each_combination() {
    let model = text(tiny());
    let run = |more: &[&str]| {
        rows(&succeeds(&[&["bench", "-m", &model, "-r", "1", "--device", "cpu", "-o", "json"], more].concat()))
    };
    let of = |all: &[Value], key: &str| all.iter().map(|row| row[key].to_string()).collect::<Vec<_>>().join(" ");
    let all = run(&["-p", "4-16*2", "-n", "0", "--threads", "1,2"]);
    assert_eq!(of(&all, "n_prompt"), "4 8 16 4 8 16");
    assert_eq!(of(&all, "threads"), "1 1 1 2 2 2");
    let all = run(&["-p", "4", "-n", "0", "--precision", "f16,f32", "--head", "f16,int8"]);
    assert_eq!(of(&all, "precision").replace('"', ""), "f16 f16 f32 f32");
    assert_eq!(of(&all, "head").replace('"', ""), "f16 int8 f32 int8");
    let all = run(&["-m", &model, "-p", "4", "-n", "0", "--kv", "f16", "--kv", "int8"]);
    assert_eq!(of(&all, "kv").replace('"', ""), "f16 int8 f16 int8", "two models, of which each has two caches");
    let table =
        succeeds(&["bench", "-m", &model, "-r", "1", "-p", "4", "-n", "0", "--device", "cpu", "--threads", "1,2"]);
    assert_eq!(table.matches("- model: ").count(), 2, "a block for each setup: {table}");
}

#[test]
fn usual_tests_that_do_not_fit_are_left_out_with_a_word() {
    let model = text(tiny());
    let args = ["bench", "-m", &model, "--device", "cpu", "-r", "1", "-o", "jsonl"];
    let ran = ternion(&args);
    assert_eq!((ran.code, ran.out.lines().count()), (Some(0), 2), "{}", ran.err);
    assert!(ran.err.contains("pp512 is left out: the model has 256 positions"), "{}", ran.err);
    let args = ["bench", "-m", &model, "--device", "cpu", "-r", "1", "-p", "512"];
    assert_fails(&ternion(&args), &args, &["pp512", "513", "256 positions"]);
    for (kind, test) in [(["-p", "0"], "tg64"), (["-n", "0"], "pp96")] {
        let all = rows(&succeeds(
            &[&["bench", "-m", &model, "--device", "cpu", "-r", "1", "-o", "json"][..], &kind].concat(),
        ));
        assert_eq!(all.iter().filter_map(|r| r["test"].as_str()).collect::<Vec<_>>(), [test]);
    }
}

/// Rows can be read while later tests still run, and Ctrl-C ends the run with them.
#[cfg(unix)]
#[test]
fn rows_come_as_they_are_measured_and_ctrl_c_keeps_them() {
    use std::io::{BufRead, BufReader, Read};
    let model = text(tiny());
    for format in ["jsonl", "json", "md"] {
        let args = ["bench", "-m", &model, "--device", "cpu", "-p", "4,5", "-n", "200", "-r", "1000", "-o", format];
        let mut child = support::cli::command(&args).spawn().expect("the command runs");
        let mut out = BufReader::new(child.stdout.take().expect("stdout"));
        let mut text = String::new();
        while !text.contains("pp4") {
            assert_ne!(out.read_line(&mut text).expect("a line"), 0, "no row of pp4 came: {text}");
        }
        assert!(child.try_wait().expect("a state").is_none(), "the run goes on");
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
        out.read_to_string(&mut text).expect("the rest");
        let ran = child.wait_with_output().expect("the command ends");
        assert_eq!(ran.status.code(), Some(130), "{format}: {text}");
        assert!(!text.contains("tg200"), "{format}: {text}");
        match format {
            "json" => assert_eq!(rows(&text)[0]["test"], "pp4"),
            "jsonl" => assert!(text.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()), "{text}"),
            _ => assert!(text.contains("| pp4 "), "{text}"),
        }
    }
}

#[test]
fn a_report_is_a_folder_of_a_table_rows_a_chart_and_devices() {
    let dir = TempDir::new().expect("a directory");
    let folder = dir.path().join("new/report");
    bench(&["--device", "cpu", "--image", "--report", &text(&folder)]);
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(rows(&read("bench.json")).len(), 10);
    assert!(read("bench.md").contains("| tg5 @ d33 ") && read("bench.md").contains("](bench.svg)"));
    assert!(read("devices.txt").contains("auto: "), "{}", read("devices.txt"));
    let chart = read("bench.svg");
    // A panel for each unit, under a title with the version and the day.
    for part in ["tokens read per second", "tokens generated per second", "Images per second"] {
        assert!(chart.contains(part), "{part}");
    }
    assert!(chart.contains(concat!("ternion ", env!("CARGO_PKG_VERSION"))) && chart.contains(", 20"));
    let model = text(tiny());
    let args = ["bench", "-m", &model, "--device", "cpu", "--report", &text(&folder)];
    assert_fails(&ternion(&args), &args, &["report", "not empty"]);
}

#[test]
fn a_profile_lists_the_ops_of_the_plan() {
    let devices: &[&str] = if has_adapter() { &["cpu", "gpu"] } else { &["cpu"] };
    for device in devices {
        let all = rows(&bench(&["--device", device, "--profile", "--image", "-o", "json"]));
        let ops = |test: &str| -> Vec<String> {
            let row = all.iter().find(|r| r["test"] == test).unwrap_or_else(|| panic!("no {test}"));
            let ops = row["profile"].as_array().expect("a profile");
            let share: f64 = ops.iter().map(|o| number(o, "share")).sum();
            assert!((share - 1.0).abs() < 1e-6, "{row}");
            assert!(ops.iter().all(|o| number(o, "us").is_finite() && number(o, "gb_per_s").is_finite()), "{row}");
            ops.iter().filter_map(|o| o["op"].as_str().map(str::to_owned)).collect()
        };
        let (text, image) = (ops("tg5"), ops("image"));
        for op in ["embed", "bit_linear", "rope_attention", "matmul", "sample"] {
            assert!(text.iter().any(|o| o == op), "{device}: no {op}: {text:?}");
        }
        assert!(image.iter().any(|o| o == "patches") && !image.iter().any(|o| o == "embed"), "{image:?}");
    }
    let table = bench(&["--device", "cpu", "--profile"]);
    assert!(table.contains("tg5 @ d33, one step:") && table.contains("| bit_linear"), "{table}");
}

#[test]
fn a_plot_is_a_picture_with_a_bar_for_each_test() {
    let dir = TempDir::new().expect("a directory");
    let [svg, png] = ["rates.svg", "rates.png"].map(|name| text(dir.path().join(name)));
    bench(&["--device", "cpu", "--plot", &svg]);
    let source = fs::read_to_string(&svg).expect("UTF-8");
    let document = roxmltree::Document::parse(&source).unwrap_or_else(|e| panic!("{e}"));
    let texts: Vec<&str> = document.descendants().filter_map(|n| n.text()).map(str::trim).collect();
    for test in ["pp9", "pp70 @ d33", "tg5 @ d33", "tg5 @ d33 x 2 sessions"] {
        assert!(texts.contains(&test), "{test}: {texts:?}");
    }
    assert!(document.descendants().filter(|n| n.tag_name().name() == "rect").count() > 6 * 4);
    bench(&["--device", "cpu", "--plot", &png]);
    let image = ternion::Image::open(&png).expect("a picture");
    let blue = image.rgb.chunks_exact(3).filter(|p| *p == [24, 90, 188]).count();
    assert!(blue > 1000, "{blue} of {}x{}", image.width, image.height);
}

#[test]
fn bad_requests_are_refused_with_the_range() {
    let model = text(tiny());
    let fails = |more: &[&str], texts: &[&str]| {
        let args = [&["bench", "-m", model.as_str(), "--device", "cpu"], more].concat();
        assert_fails(&ternion(&args), &args, texts);
    };
    fails(&["-p", "0", "-n", "0"], &["tests", "none"]);
    fails(&["-n", "8,9999999"], &["generated", "is 9999999"]);
    fails(&["-s", "0"], &["sessions", "is 0", "1..=64"]);
    fails(&["-s", "1,65"], &["sessions", "is 65"]);
    fails(&["-r", "0"], &["repetitions", "is 0"]);
    fails(&["-p", "9", "-d", "300"], &["pp9 @ d300", "310", "256 positions"]);
    fails(&["-p", "256"], &["pp256", "257"]);
    fails(&["-o", "csv", "--profile"], &["profile", "csv"]);
    fails(&["-o", "sql", "--profile"], &["profile", "sql"]);
    fails(&["-p", "64-16"], &["64-16", "16-64"]);
    fails(&["-p", "1-99999"], &["1-99999", "1000"]);
    fails(&["--plot", "rates.txt"], &["rates.txt", ".svg or .png"]);
    fails(&["--plot", "nowhere/rates.svg"], &["rates.svg"]);
    fails(&["--shape", "bonsai-8b"], &["--shape", "cannot be used with", "--model"]);
    for (args, text) in
        [(&["bench", "-m", "nowhere"][..], "nowhere"), (&["bench", "--shape", "bonsai-9b"], "bonsai-9b")]
    {
        assert_fails(&ternion(args), args, &[text]);
    }
}

/// Bytes of a weight that has no zeros, its table aside.
fn packed_bytes(weight: &WeightRef) -> u64 {
    let elements: usize = weight.parts.iter().map(|p| p.rows.len() * p.cols).sum();
    match weight.pack {
        Pack::F32 => 4 * elements as u64,
        Pack::F16 => 2 * elements as u64,
        Pack::Int8 => (elements + 4 * weight.parts.iter().map(|p| p.rows.len()).sum::<usize>()) as u64,
        Pack::Ternary(_) => elements as u64 / 8,
        Pack::Groups { group, .. } => (elements / 8 + 2 * elements / group as usize) as u64,
    }
}

#[test]
fn the_bytes_of_a_step_are_those_of_its_rows_experts_and_context() {
    let files = synthetic::embernet().expect("a model");
    let weights = Weights::open(&files).expect("it opens");
    let load = LoadOptions::anywhere(Pack::F16);
    let model = models::open_chat(&files, &weights, load).expect("it opens");
    let shape = TextShape {
        max_rows: 8,
        max_outputs: 8,
        kv_rows: 4096,
        context: 512,
        sessions: 8,
        kv_dtype: DType::F16,
        images: false,
    };
    let plan = model.record_text(&shape).expect("it records");
    let bytes = |plan: &Plan, rows, outputs, context| {
        let step = Step::new(rows, outputs, context);
        let mut by_op = BTreeMap::new();
        for (node, bytes) in plan.nodes.iter().zip(plan.bytes_read(&step, packed_bytes)) {
            *by_op.entry(node.op.name()).or_insert(0) += bytes;
        }
        by_op
    };
    let one = bytes(&plan, 1, 1, 1000);
    // q, k, v and o; gate, up and down of three experts; a norm of each, and two in front; x of each, and two residuals.
    let weights = 16 * (768 * (768 + 2 * 384 + 768) + 3 * 3 * 768 * 2048) / 8;
    let norms = 16 * 4 * ((3 + 1 + 6 + 2) * 768 + 3 * 2048);
    let (x, chosen) = (16 * 4 * ((3 + 2) * 768 + 3 * 2048), 16 * 3 * 8);
    assert_eq!(one["bit_linear"], weights + norms + x + chosen);
    assert_eq!(one["attention"], 16 * (4 * 768 + 2 * 2 * 1000 * 384));
    assert_eq!(one["embed"], 16 + 2 * 768);
    assert_eq!(one["matmul"], 2 * 32002 * 768 + 4 * 768);
    assert_eq!(one["route"], 16 * (4 * (768 + 768 + 8 * 768 + 8) + 16));
    // Eight sessions read more of the experts, the contexts of all, and the head once; a piece of a prompt, one context.
    let (eight, piece) = (bytes(&plan, 8, 8, 500), bytes(&plan, 8, 0, 500));
    assert_eq!(eight["attention"], 16 * 8 * (4 * 768 + 2 * 2 * 500 * 384));
    assert_eq!(piece["attention"], 16 * (8 * 4 * 768 + 2 * 2 * 500 * 384));
    assert!(eight["bit_linear"] > 2 * one["bit_linear"] && eight["bit_linear"] < 3 * one["bit_linear"]);
    assert!(eight["matmul"] < one["matmul"] + one["matmul"] / 50);
}

#[test]
fn every_shape_opens_as_its_family() {
    let families =
        [("bitnet", "BitNet"), ("bonsai", "Qwen3"), ("falcon3", "Llama"), ("llama3", "Llama"), ("ember", "EmberNet")];
    for &(name, model, _) in PublishedModel::VALUES {
        let files = model.files().expect("a model");
        let weights = Weights::open(&files).expect("it opens");
        let model = models::open_chat(&files, &weights, LoadOptions::anywhere(Pack::F16));
        let model = model.unwrap_or_else(|e| panic!("{name}: {e}"));
        let family = families.iter().find(|(part, _)| name.contains(part)).map(|(_, family)| *family);
        assert_eq!(Some(model.family().name), family, "{name}");
        let unread = weights.checkpoint().tensors().filter(|t| !model.reads().contains_key(&t.name));
        let unread: Vec<&str> = unread.map(|t| t.name.as_str()).filter(|name| !model.ignores(name)).collect();
        assert!(unread.is_empty(), "{name}: {unread:?}");
    }
}

#[test]
fn a_made_up_model_is_an_embernet_of_the_published_sizes() {
    let files = synthetic::embernet().expect("a model");
    let weights = Weights::open(&files).expect("it opens");
    let parameters: usize = weights
        .checkpoint()
        .tensors()
        .map(|t| weights.shape(&t.name).expect("a shape").iter().product::<usize>())
        .sum();
    // 840,822,056 of the published checkpoint, less the encoder's pooling head, which the model does not read.
    assert_eq!(parameters, 833_717_120);
    let part = |name: &str, cols| ternion::unstable::tensor::WeightPart { name: name.into(), rows: 0..768, cols };
    let rule = ternion::unstable::quant::WeightQuant::SignMean;
    let q = weights.ternary(&part("decoder.layers.3.attention.q_proj.weight", 768), rule).expect("a matrix");
    let [minus, zero, plus] = q.counts();
    assert!(zero == 0 && minus.abs_diff(plus) < 10_000, "{minus} {zero} {plus}");
    let norm = |name: &str| WeightRef {
        parts: vec![ternion::unstable::tensor::WeightPart { name: name.into(), rows: 0..1, cols: 768 }],
        pack: Pack::F32,
    };
    let words = weights.load(&norm("decoder.norm.weight")).expect("a norm");
    let mean: f32 = words.iter().map(|&w| f32::from_bits(w)).sum::<f32>() / 768.0;
    assert!((mean - 1.0).abs() < 0.05, "{mean}");
}
