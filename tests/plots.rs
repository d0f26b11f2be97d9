//! Pictures of what a model did, as `ternion run` draws them: what the files hold, and what bad requests get.
#![cfg(feature = "cli")]

mod support {
    pub mod device;
    pub mod golden;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::device::device;
use support::golden::golden_root;
use tempfile::TempDir;
use ternion::files::Image;

fn tiny() -> PathBuf {
    golden_root().join("embernet/tiny")
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("a UTF-8 path").to_owned()
}

/// `ternion run` on tiny with a question and more options.
fn run(more: &[&str]) -> Output {
    let (model, tokenizer) = (text(tiny()), text(golden_root().join("tokenizer.json")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternion"));
    command.args(["run", "-m", &model, "--tokenizer", &tokenizer, "-p", "What is it?", "-n", "12"]).args(more);
    command.env_remove("RUST_LOG").env("XDG_RUNTIME_DIR", std::env::temp_dir()).stdin(Stdio::null());
    command.output().expect("the command runs")
}

#[track_caller]
fn succeeds(more: &[&str]) -> String {
    let ran = run(more);
    assert_eq!(ran.status.code(), Some(0), "{more:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8")
}

/// Exit code 2 and one error with these texts. `loaded`: whether the model was opened before, and the answer given.
#[track_caller]
fn fails(more: &[&str], texts: &[&str], loaded: bool) {
    let ran = run(more);
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.status.code(), Some(2), "{more:?}: {err}");
    assert_eq!(err.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{more:?}: {err}");
    assert!(!err.contains("panicked"), "{more:?}: {err}");
    for text in texts {
        assert!(err.contains(text), "{more:?} does not say {text:?}: {err}");
    }
    assert_eq!(!out.trim().is_empty(), loaded, "{more:?}: {out}{err}");
}

fn picture(name: &str) -> String {
    text(tiny().join(name))
}

/// Names in a folder.
fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).expect("a folder");
    let mut names: Vec<String> = entries.map(|e| text(e.expect("an entry").file_name())).collect();
    names.sort();
    names
}

/// Size of an SVG and its texts; each text must begin and end inside.
fn svg(path: &str) -> ([usize; 2], Vec<String>) {
    let source = fs::read_to_string(path).expect("UTF-8");
    let document = roxmltree::Document::parse(&source).unwrap_or_else(|e| panic!("{path}: {e}"));
    let number = |node: &roxmltree::Node, name: &str| -> f64 {
        node.attribute(name).and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("{path}: no {name}: {node:?}"))
    };
    let root = document.root_element();
    assert_eq!(root.tag_name().name(), "svg");
    let size = ["width", "height"].map(|name| number(&root, name));
    let all = || document.descendants().filter(roxmltree::Node::is_element);
    for node in all().filter(|n| ["rect", "image"].contains(&n.tag_name().name())) {
        let [x, y, w, h] = ["x", "y", "width", "height"].map(|name| number(&node, name));
        assert!(x >= 0.0 && y >= 0.0 && x + w <= size[0] && y + h <= size[1], "{path}: outside: {node:?}");
    }
    let mut texts = Vec::new();
    for node in all().filter(|n| n.has_tag_name(("http://www.w3.org/2000/svg", "text"))) {
        let shown = node.text().unwrap_or_default().trim().to_owned();
        let length = 0.62 * number(&node, "font-size") * shown.chars().count() as f64;
        let (x, upright) = (number(&node, "x"), node.attribute("transform").is_some());
        let [left, right] = match (upright, node.attribute("text-anchor")) {
            (true, _) => [0.0, 0.0],
            (_, Some("end")) => [length, 0.0],
            (_, Some("middle")) => [length / 2.0, length / 2.0],
            _ => [0.0, length],
        };
        assert!(x - left >= 0.0 && x + right <= size[0], "{path}: {shown:?} is cut off");
        assert!((0.0..size[1]).contains(&number(&node, "y")), "{path}: {shown:?} is cut off");
        texts.push(shown);
    }
    (size.map(|s| s as usize), texts)
}

/// A PNG; it must hold more than paper.
fn png(path: &str) -> Image {
    let image = Image::open(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert!(fs::read(path).expect("read").starts_with(b"\x89PNG"));
    let dark = image.rgb.chunks_exact(3).filter(|p| p.iter().all(|&v| v < 100)).count();
    assert!(dark > 500, "{path}: {dark} dark pixels");
    image
}

#[test]
fn pictures_are_whole_files_of_the_kind_that_their_names_say() {
    let dir = TempDir::new().expect("a folder");
    let file = |name: &str| text(dir.path().join(name));
    let image = picture("image_97x61.png");
    let plain = succeeds(&["--device", "cpu", "--image", &image]);
    let [routing, attention] = [[file("a.svg"), file("a.png")], [file("b.svg"), file("b.PNG")]];
    for i in 0..2 {
        let (routing, attention) = (&routing[i], &attention[i]);
        let more = ["--device", "cpu", "--image", &image, "--routing", routing, "--attention", "-1", attention];
        assert_eq!(succeeds(&more), plain, "drawing changes the answer");
    }
    assert_eq!(names(&dir), ["a.png", "a.svg", "b.PNG", "b.svg"], "nothing is left beside the pictures");

    let (size, texts) = svg(&routing[0]);
    for name in ["vision_ocr", "agentic_knowledge", "<image>", "By layer", "By token", "layer"] {
        assert!(texts.iter().any(|t| t == name), "no {name:?}: {texts:?}");
    }
    assert!(texts.iter().any(|t| t.contains("2 of 8")), "{texts:?}");
    let drawn = png(&routing[1]);
    assert_eq!([drawn.width, drawn.height], size);

    let (size, texts) = svg(&attention[0]);
    assert!(texts[0].starts_with("Attention of text token "), "{texts:?}");
    assert!(texts.iter().any(|t| t.contains("of its attention goes to this picture")), "{texts:?}");
    assert!(
        texts.iter().any(|t| t.contains("2 x 2 blocks of 2 x 2 patches")) && texts.iter().any(|t| t == "0 %"),
        "{texts:?}"
    );
    let drawn = png(&attention[1]);
    assert_eq!([drawn.width, drawn.height], size);
}

#[test]
fn a_cpu_and_a_gpu_draw_the_same() {
    if device().is_none() {
        return;
    }
    let dir = TempDir::new().expect("a folder");
    let image = picture("image_97x61.png");
    let files = ["cpu", "gpu"].map(|device| {
        let file = text(dir.path().join(format!("{device}.png")));
        succeeds(&["--device", device, "--precision", "f32", "--image", &image, "--attention", "3", &file]);
        png(&file)
    });
    assert_eq!(files[0].rgb.len(), files[1].rgb.len());
    let far = files[0].rgb.iter().zip(&files[1].rgb).filter(|(a, b)| a.abs_diff(**b) > 8).count();
    assert!(1000 * far < files[0].rgb.len(), "{far} of {} bytes differ", files[0].rgb.len());
}

#[test]
fn several_pictures_and_several_tokens_are_drawn() {
    let dir = TempDir::new().expect("a folder");
    let file = |name: &str| text(dir.path().join(name));
    let (one, two, first, last) =
        (picture("image_97x61.png"), picture("image_224x224.png"), file("0.svg"), file("last.svg"));
    let mut more = vec!["--device", "cpu", "--image", &one, "--image", &two];
    more.extend(["--attention", "0", &first, "--attention", "-2", &last]);
    succeeds(&more);
    let titles = [&first, &last].map(|file| {
        let texts = svg(file).1;
        assert!(["Picture 1: ", "Picture 2: "].iter().all(|p| texts.iter().any(|t| t.starts_with(p))), "{texts:?}");
        texts[0].clone()
    });
    assert_ne!(titles[0], titles[1]);
}

#[test]
fn text_alone_has_routing() {
    let dir = TempDir::new().expect("a folder");
    let file = text(dir.path().join("routing.svg"));
    succeeds(&["--device", "cpu", "--routing", &file]);
    assert!(svg(&file).1.iter().all(|t| !t.contains("pictures")));
}

#[test]
fn what_cannot_be_drawn_is_refused_before_the_model_is_opened() {
    let dir = TempDir::new().expect("a folder");
    let file = |name: &str| text(dir.path().join(name));
    let image = picture("image_97x61.png");
    let copy = file("copy.png");
    fs::copy(&image, &copy).expect("copied");
    let before = fs::read(&copy).expect("read");
    for name in ["routing.pdf", "routing", "routing.svg.gz", ".svg"] {
        fails(&["--routing", &file(name)], &["routing", ".svg or .png"], false);
    }
    fails(&["--image", &image, "--attention", "0", &file("a.jpg")], &["attention", ".svg or .png"], false);
    fails(&["--routing", &file("no/such/folder/a.svg")], &["a.svg"], false);
    fails(&["--routing", &text(tiny().join("config.json/a.svg"))], &["a.svg"], false);
    fs::create_dir(file("folder.png")).expect("created");
    fails(&["--routing", &file("folder.png")], &["folder.png"], false);
    fails(&["--attention", "0", &file("a.png")], &["attention", "--image"], false);
    for number in ["1.5", "", "99999999999999999999"] {
        fails(&["--image", &image, "--attention", number, &file("a.png")], &["attention", "number"], false);
    }
    let (twice, other) = (file("a.svg"), file("./a.svg"));
    fails(&["--image", &image, "--routing", &twice, "--attention", "0", &other], &["a.svg", "twice"], false);
    fails(&["--image", &copy, "--attention", "0", &file("../x/copy.png")], &["copy.png"], false);
    fails(&["--image", &copy, "--attention", "0", &file("./copy.png")], &["copy.png", "overwritten"], false);
    assert_eq!(fs::read(&copy).expect("read"), before, "the picture is as it was");
    assert_eq!(names(&dir), ["copy.png", "folder.png"]);
}

#[test]
fn a_token_out_of_range_is_refused_with_the_range_behind_the_answer() {
    let dir = TempDir::new().expect("a folder");
    let (image, file) = (picture("image_97x61.png"), text(dir.path().join("a.png")));
    for number in ["1000", "-1000"] {
        let more = ["--device", "cpu", "--image", &image, "--attention", number, &file];
        fails(&more, &["attention", number, "0 to ", " to -1"], true);
    }
    let more = ["--device", "cpu", "--image", &image, "--attention", "xylophone", &file];
    fails(&more, &["attention", "xylophone", "they are 0 "], true);
    assert!(names(&dir).is_empty(), "no file without a picture");
}
