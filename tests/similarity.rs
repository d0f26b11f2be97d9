//! `ternion similarity`: its numbers against the original's, its table and its heat map, and what bad requests get.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod small_bitgen;
}

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::cli::{assert_fails, fed, has_adapter, succeeds, ternion, text};
use support::golden::Golden;
use support::small_bitgen::{draw, model_dir, write_tokenizer};
use tempfile::TempDir;
use ternion::files::Image;

/// The command on a golden model, with more arguments behind.
struct SimilarityArgs {
    dir: TempDir,
    args: Vec<String>,
}

impl SimilarityArgs {
    fn new(variant: &str) -> Self {
        let dir = TempDir::new().expect("a folder");
        let (model, tokenizer) = (text(model_dir(variant)), text(write_tokenizer(dir.path())));
        let args = ["similarity", "-m", &model, "--tokenizer", &tokenizer, "--precision", "f32"].map(str::to_owned);
        SimilarityArgs { dir, args: args.to_vec() }
    }

    fn file(&self, name: &str) -> String {
        text(self.dir.path().join(name))
    }

    fn with<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.args.iter().map(String::as_str).chain(more.iter().copied()).collect()
    }

    #[track_caller]
    fn succeeds(&self, more: &[&str]) -> String {
        succeeds(&self.with(more))
    }

    #[track_caller]
    fn json(&self, more: &[&str]) -> Value {
        serde_json::from_str(&self.succeeds(&[more, &["--json"]].concat())).expect("JSON and nothing else")
    }

    #[track_caller]
    fn fails(&self, more: &[&str], texts: &[&str]) {
        let args = self.with(more);
        assert_fails(&ternion(&args), &args, texts);
    }
}

fn matrix(json: &Value, key: &str) -> Vec<Vec<f64>> {
    let row = |row: &Value| row.as_array().expect("a row").iter().map(|v| v.as_f64().expect("a number")).collect();
    json[key].as_array().unwrap_or_else(|| panic!("no {key}: {json}")).iter().map(row).collect()
}

#[test]
fn its_numbers_are_the_originals() {
    for variant in ["cnn", "dino_tiny"] {
        let (rig, dir) = (SimilarityArgs::new(variant), model_dir(variant));
        let golden = Golden::open(&format!("bitgen_stage1/{variant}/golden_stage1.safetensors"));
        let (ids, length) = (golden.i32s("input_ids"), golden.shape("input_ids")[1]);
        let words = |ids: &[i32]| ids.iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ");
        let texts: Vec<String> = ids.chunks(length).map(words).collect();
        let images = [0, 1].map(|i| text(dir.join(format!("image{i}_224x224.png"))));
        let want = golden.f32s("det.sim_t2i_batch");
        for device in if has_adapter() { &["cpu", "gpu"][..] } else { &["cpu"] } {
            let mut more = vec!["--device", device, "--image", &images[0], &images[1], "--text"];
            more.extend(texts.iter().map(String::as_str));
            let found = rig.json(&more);
            let temperature = found["temperature"].as_f64().expect("a number");
            let (scaled, cosine) = (matrix(&found, "scaled"), matrix(&found, "cosine"));
            assert_eq!(scaled.concat().len(), want.len());
            for (i, want) in want.iter().enumerate() {
                let (row, column) = (i / 2, i % 2);
                assert!((scaled[row][column] - f64::from(*want)).abs() < 2e-5, "{variant}, {device}: {scaled:?}");
                assert!((cosine[row][column] - scaled[row][column] * temperature).abs() < 1e-6);
            }
            let of_texts = matrix(&found, "text_for_image");
            for column in 0..2 {
                let sum: f64 = scaled.iter().map(|row| row[column].exp()).sum();
                for (row, share) in of_texts.iter().map(|row| row[column]).enumerate() {
                    assert!((share - scaled[row][column].exp() / sum).abs() < 1e-5, "{of_texts:?}");
                }
            }
            assert!(matrix(&found, "image_for_text").iter().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-5));
            assert_eq!(found["texts"], Value::from(texts.clone()));
            assert_eq!(found["images"], Value::from(images.to_vec()));
        }
    }
}

#[test]
fn the_table_has_a_line_a_text_or_a_line_a_picture_where_these_are_many() {
    let rig = SimilarityArgs::new("cnn");
    draw(rig.dir.path(), 0..20);
    let files: Vec<String> = (0..20).map(|n| rig.file(&format!("p{n:02}.png"))).collect();
    let ask = |n: usize, rest: &[&str]| {
        let mut more = vec!["--device", "cpu", "--image"];
        more.extend(files[..n].iter().map(String::as_str));
        more.extend(["--text", "t5 t6", "t7"]);
        more.extend(rest);
        (rig.succeeds(&more), rig.json(&more))
    };
    let (out, json) = ask(2, &[]);
    let cosine = matrix(&json, "cosine");
    let lines: Vec<Vec<&str>> =
        out.lines().map(|l| l.split("  ").filter(|c| !c.is_empty()).map(str::trim).collect()).collect();
    assert_eq!(lines[0], ["p00.png", "p01.png"]);
    for (line, (name, row)) in lines[1..].iter().zip([("t5 t6", &cosine[0]), ("t7", &cosine[1])]) {
        assert_eq!(line[..], [name.to_owned(), format!("{:.3}", row[0]), format!("{:.3}", row[1])]);
    }
    assert_eq!(lines.len(), 3);
    // 20 are more than fit in a step of 16.
    let (out, json) = ask(20, &["--show", "image-for-text"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 21);
    assert!(lines[0].trim_start().starts_with("t5 t6") && lines[20].starts_with("p19.png "), "{out}");
    assert!(lines[1..].iter().all(|line| line.matches('%').count() == 2), "{out}");
    let (few, many) = (matrix(&ask(17, &[]).1, "cosine"), matrix(&json, "cosine"));
    assert_eq!(many[0].len(), 20);
    assert!(few[1].iter().zip(&many[1]).all(|(a, b)| (a - b).abs() < 1e-6), "{few:?} {many:?}");
}

#[test]
fn texts_come_from_a_file_and_from_stdin() {
    let rig = SimilarityArgs::new("cnn");
    draw(rig.dir.path(), 0..1);
    let image = rig.file("p00.png");
    fs::write(rig.file("texts.txt"), "t1\n\n t2 t3 \r\nt4\n").expect("written");
    let list = format!("@{}", rig.file("texts.txt"));
    let more = ["--device", "cpu", "--image", &image, "--text"];
    let given: Value = rig.json(&[&more[..], &["t1", "t2 t3", "t4", "t9"]].concat());
    let read = rig.json(&[&more[..], &[&list, "t9"]].concat());
    assert_eq!(given, read);
    let args = rig.with(&[&more[..], &["-", "t9", "--json"]].concat());
    let fed = fed(&args, b"t1\nt2 t3\nt4");
    assert_eq!(fed.code, Some(0), "{}", fed.err);
    assert_eq!(serde_json::from_str::<Value>(&fed.out).expect("JSON"), given);
}

/// Texts of an SVG, which must be one.
fn svg_texts(path: &str) -> Vec<String> {
    let source = fs::read_to_string(path).expect("UTF-8");
    let document = roxmltree::Document::parse(&source).unwrap_or_else(|e| panic!("{path}: {e}"));
    let texts = document.descendants().filter(|n| n.has_tag_name("text"));
    texts.filter_map(|n| n.text()).map(|t| t.trim().to_owned()).collect()
}

#[test]
fn the_heat_map_names_texts_and_pictures_and_shows_the_numbers() {
    let rig = SimilarityArgs::new("cnn");
    draw(rig.dir.path(), 0..3);
    let files: Vec<String> = (0..3).map(|n| rig.file(&format!("p{n:02}.png"))).collect();
    let (svg, png) = (rig.file("heat.svg"), rig.file("heat.png"));
    let ask = |show: &'static str, file: &str| {
        let more = ["--device", "cpu", "--show", show, "--plot", file, "--image", &files[0], &files[1], &files[2]];
        rig.json(&[&more[..], &["--text", "t5 t6", "t7"]].concat())
    };
    for show in ["cosine", "text-for-image"] {
        let json = ask(show, &svg);
        let texts = svg_texts(&svg);
        for name in ["t5 t6", "t7", "p00", "p02"] {
            assert!(texts.iter().any(|t| t == name), "no {name:?}: {texts:?}");
        }
        let numbers = matrix(&json, &show.replace('-', "_")).concat();
        let close = |text: &String, number: f64| {
            let factor = if show == "cosine" { 1.0 } else { 100.0 };
            text.parse::<f64>().is_ok_and(|found| (found - factor * number).abs() <= 0.5)
        };
        assert!(numbers.iter().all(|&n| texts.iter().any(|t| close(t, n))), "{numbers:?}: {texts:?}");
        assert_eq!(fs::read_to_string(&svg).expect("read").matches("<image ").count(), 3);
        ask(show, &png);
        let drawn = Image::open(&png).expect("a picture");
        assert!(drawn.width > 400 && drawn.height > 250, "{} x {}", drawn.width, drawn.height);
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let rig = SimilarityArgs::new("cnn");
    draw(rig.dir.path(), 0..1);
    let image = rig.file("p00.png");
    let before = fs::read(&image).expect("read");
    let broken = rig.file("broken.png");
    fs::write(&broken, &before[..before.len() / 2]).expect("written");
    let with = |more: &[&'static str]| [&["--device", "cpu", "--image", &image][..], more].concat();
    rig.fails(&["--device", "cpu", "--image", &image, &broken, "--text", "t1"], &["broken.png"]);
    rig.fails(&["--device", "cpu", "--image", &rig.file("none.png"), "--text", "t1"], &["none.png"]);
    rig.fails(&with(&["--text", ""]), &["prompt", "empty"]);
    rig.fails(&with(&["--text", "@/no/such/file"]), &["/no/such/file"]);
    let long = "t1 ".repeat(65);
    rig.fails(&["--device", "cpu", "--image", &image, "--text", "t1", &long], &["t1 t1", "65 tokens", "1..=64"]);
    rig.fails(&with(&["--text", "t1", "--head", "int8"]), &["head", "ternary"]);
    rig.fails(&with(&["--text", "t1", "--plot", "heat.pdf"]), &["plot", ".svg or .png"]);
    rig.fails(&["--image", &image, "--text", "t1", "--plot", &image], &["p00.png", "overwritten"]);
    let many = rig.file("many.txt");
    fs::write(&many, "t1\n".repeat(1001)).expect("written");
    let (many, plot) = (format!("@{many}"), rig.file("heat.png"));
    rig.fails(&["--image", &image, "--text", &many, "--plot", &plot], &["1001 texts", "too many"]);
    assert_eq!(fs::read(&image).expect("read"), before);
    assert!(!Path::new(&plot).exists());
    // A model of another family, and no tokenizer.
    let ember = text(support::golden::golden_root().join("embernet/tiny"));
    let args = ["similarity", "-m", &ember, "--device", "cpu", "--image", &image, "--text", "t1"];
    assert_eq!(ternion(&args).code, Some(2));
    let cnn = text(model_dir("cnn"));
    let args = ["similarity", "-m", &cnn, "--device", "cpu", "--image", &image, "--text", "t1"];
    assert_fails(&ternion(&args), &args, &["tokenizer"]);
}
