//! The index of pictures and `ternion search`: features and order, runs that were ended, and pictures that change.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod small_bitgen;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use support::cli::{assert_fails, succeeds, ternion, text};
use support::small_bitgen::{choices, draw, drawn, model_dir, open, png, write_tokenizer};
use tempfile::TempDir;
use ternion::apps::bitgen::BitGen;
use ternion::apps::picture_index::PictureIndex;
use ternion::apps::picture_index::Update;
use ternion::engine::{DeviceChoice, Progress};
use ternion::files::Image;

/// A model, folders for pictures and for an index.
struct Workplace {
    dir: TempDir,
    model: Arc<BitGen>,
}

impl Workplace {
    fn new(choice: DeviceChoice) -> Self {
        let dir = TempDir::new().expect("a folder");
        let model = Arc::new(open("cnn", choice, &write_tokenizer(dir.path())));
        Workplace { dir, model }
    }

    fn at(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).expect("a folder").join(name)
    }

    fn index(&self) -> PictureIndex {
        PictureIndex::open(self.at("index"), self.model.clone()).expect("an index")
    }

    fn new_index(&self) -> PictureIndex {
        PictureIndex::new(self.at("index"), self.model.clone()).expect("an index")
    }
}

/// Embedded, known, unchanged, removed, skipped.
fn counts(update: &Update) -> [usize; 5] {
    [update.embedded, update.known, update.unchanged, update.removed, update.skipped.len()]
}

fn add(index: &mut PictureIndex, folder: &Path) -> Update {
    index.add(&[folder.to_owned()], Progress::ignore).expect("an update")
}

fn held(index: &PictureIndex) -> BTreeMap<PathBuf, Vec<f32>> {
    index.pictures().map(|(path, features)| (path, features.to_vec())).collect()
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn an_index_has_the_models_features_and_finds_the_nearest_first() {
    for choice in choices() {
        let rig = Workplace::new(choice);
        draw(&rig.at("pictures"), 0..20);
        fs::write(rig.at("pictures/notes.txt"), "no picture").expect("written");
        let update = add(&mut rig.new_index(), &rig.at("pictures"));
        assert_eq!(counts(&update), [20, 0, 0, 0, 0]);
        let index = rig.index();
        let images: Vec<Image> = (0..20).map(drawn).collect();
        let want = rig.model.image_features(&images).expect("features");
        let held: Vec<(PathBuf, &[f32])> = index.pictures().collect();
        for (number, ((path, features), want)) in held.iter().zip(&want).enumerate() {
            assert_eq!(*path, rig.at("pictures").join(format!("p{number:02}.png")));
            assert!(near(features, want), "{}: {number}", rig.model.device());
        }
        let query = rig.model.text_features(&[&[7, 3]]).expect("features").concat();
        let mut order: Vec<(f32, usize)> = want.iter().enumerate().map(|(i, f)| (cosine(&query, f), i)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        for k in [1, 5, 20, 1000] {
            let found = index.by_text("t7 t3", k).expect("pictures");
            assert_eq!(found.len(), k.min(20));
            for (found, (cosine, _)) in found.iter().zip(&order) {
                assert!((found.cosine - cosine).abs() < 1e-5, "{found:?}");
            }
            assert!(found.is_sorted_by(|a, b| a.cosine >= b.cosine));
        }
        let found = index.by_image(&drawn(11), 3).expect("pictures");
        assert!(found[0].path.ends_with("p11.png") && (found[0].cosine - 1.0).abs() < 1e-5, "{found:?}");
        assert!(index.nearest(&[1.0], 1).is_err() && index.nearest(&vec![f32::NAN; query.len()], 1).is_err());
    }
}

#[test]
fn only_what_changed_is_embedded_again() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    let at = |name: &str| rig.at("pictures").join(name);
    draw(&rig.at("pictures"), 0..6);
    draw(&rig.at("pictures/more"), 6..8);
    add(&mut rig.new_index(), &rig.at("pictures"));
    let file = rig.at("index").join(PictureIndex::FILE);
    let written = fs::metadata(&file).and_then(|m| m.modified()).expect("a file");
    assert_eq!(counts(&add(&mut rig.index(), &rig.at("pictures"))), [0, 0, 8, 0, 0]);
    assert_eq!(fs::metadata(&file).and_then(|m| m.modified()).expect("a file"), written, "nothing to write");

    fs::rename(at("p00.png"), at("more/renamed.PNG")).expect("renamed");
    fs::copy(at("p01.png"), at("copy.png")).expect("copied");
    fs::remove_file(at("p02.png")).expect("removed");
    fs::write(at("p03.png"), png(30)).expect("changed");
    let touched = fs::File::options().append(true).open(at("p04.png")).expect("a file");
    touched.set_modified(SystemTime::now() - Duration::from_secs(1000)).expect("touched");
    let twins = [at("p10.png"), at("p11.png")].map(|file| fs::write(file, png(10)));
    assert!(twins.iter().all(Result::is_ok));
    let mut index = rig.index();
    // New: 30 and 10. Known: the renamed one, the copy, the touched one, a twin. Gone: p00 and p02.
    assert_eq!(counts(&index.refresh(Progress::ignore).expect("an update")), [2, 4, 4, 2, 0]);
    let after = held(&index);
    let numbers = [("more/renamed.PNG", 0), ("copy.png", 1), ("p01.png", 1), ("p03.png", 30), ("p04.png", 4)];
    for (name, number) in numbers.into_iter().chain([("p10.png", 10), ("p11.png", 10), ("more/p06.png", 6)]) {
        let want = rig.model.image_features(&[drawn(number)]).expect("features").concat();
        assert!(near(&after[&at(name)], &want), "{name}");
    }
    assert_eq!(after.len(), 10);
    assert_eq!(held(&rig.index()), after, "the file has what the index has");

    // Two that change places are both known.
    fs::rename(at("p05.png"), at("swap")).expect("renamed");
    fs::rename(at("p01.png"), at("p05.png")).expect("renamed");
    fs::rename(at("swap"), at("p01.png")).expect("renamed");
    assert_eq!(counts(&index.refresh(Progress::ignore).expect("an update"))[0], 0);
    assert_eq!(held(&index)[&at("p05.png")], after[&at("p01.png")]);
    assert_eq!(held(&index)[&at("p01.png")], after[&at("p05.png")]);
}

#[test]
fn a_run_that_was_ended_goes_on() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    draw(&rig.at("pictures"), 0..40);
    let (file, half) = (rig.at("index").join(PictureIndex::FILE), rig.at("half"));
    fs::create_dir(&half).expect("made");
    let mut whole = rig.new_index();
    whole.save_every(Duration::ZERO);
    // What is on the disk in the middle of the run is what is there if it is ended then.
    let copy = |done: usize| done == 24 && fs::copy(&file, half.join(PictureIndex::FILE)).is_ok();
    let mut copied = false;
    whole
        .add(&[rig.at("pictures")], |p| {
            copied |= copy(p.done);
            p.ignore()
        })
        .expect("an update");
    assert!(copied);
    let mut index = PictureIndex::open(&half, rig.model.clone()).expect("an index");
    assert_eq!((index.len(), index.folders()[0].complete), (16, false));
    assert_eq!(counts(&add(&mut index, &rig.at("pictures"))), [24, 0, 16, 0, 0]);
    assert!(index.folders()[0].complete);
    for ((path, features), (same, want)) in index.pictures().zip(whole.pictures()) {
        assert!(path == same && near(features, want), "{}", path.display());
    }
    assert_eq!(index.len(), 40);
    let names: Vec<_> = fs::read_dir(rig.at("index")).expect("a folder").map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names, [PictureIndex::FILE], "and nothing else is left behind");
}

#[test]
fn what_cannot_be_read_is_left_out_and_named() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    let at = |name: &str| rig.at("pictures").join(name);
    draw(&rig.at("pictures"), 0..3);
    let whole = png(9);
    fs::write(at("cut.png"), &whole[..whole.len() / 2]).expect("written");
    fs::write(at("empty.jpg"), "").expect("written");
    fs::write(at("text.gif"), "no picture").expect("written");
    fs::write(at(".hidden.png"), &whole).expect("written");
    draw(&at(".git"), 4..5);
    let mut skipped = vec!["cut.png", "empty.jpg", "text.gif"];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(at("nowhere"), at("broken.png")).expect("linked");
        symlink(rig.at("pictures"), at("loop")).expect("linked");
        symlink(at("p00.png"), at("same.png")).expect("linked");
        skipped.insert(0, "broken.png");
    }
    let mut index = rig.new_index();
    let update = add(&mut index, &rig.at("pictures"));
    let links = usize::from(cfg!(unix));
    assert_eq!(counts(&update), [3, links, 0, 0, skipped.len()]);
    let mut named: Vec<_> = update.skipped.iter().map(|s| s.path.clone()).collect();
    named.sort();
    assert_eq!(named, skipped.iter().map(|name| at(name)).collect::<Vec<_>>());
    assert!(update.skipped.iter().all(|s| s.error.to_string().contains(&*s.path.to_string_lossy())));
    // One that could be read before and cannot be any more is no longer found.
    fs::write(at("p01.png"), &whole[..50]).expect("written");
    let update = index.refresh(Progress::ignore).expect("an update");
    assert_eq!((counts(&update)[0], counts(&update)[4]), (0, skipped.len() + 1));
    assert!(index.pictures().all(|(path, _)| path != at("p01.png")));
}

#[test]
fn folders_in_folders_are_there_once_and_folders_can_be_forgotten() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    draw(&rig.at("all"), 0..2);
    draw(&rig.at("all/in/it"), 2..4);
    draw(&rig.at("other"), 5..6);
    let mut index = rig.new_index();
    add(&mut index, &rig.at("all/in"));
    assert_eq!(
        counts(&index.add(&[rig.at("other"), rig.at("all")], Progress::ignore).expect("an update")),
        [3, 0, 2, 0, 0]
    );
    assert_eq!(counts(&add(&mut index, &rig.at("all/in/it"))), [0, 0, 4, 0, 0]);
    let folders = |index: &PictureIndex| index.folders().into_iter().map(|f| (f.path, f.pictures)).collect::<Vec<_>>();
    assert_eq!(folders(&index), [(rig.at("all"), 4), (rig.at("other"), 1)]);
    fs::remove_dir_all(rig.at("other")).expect("removed");
    let error = index.refresh(Progress::ignore).expect_err("it is gone").to_string();
    assert!(error.contains("other"), "{error}");
    index.forget(&rig.at("other")).expect("forgotten");
    assert_eq!(folders(&rig.index()), [(rig.at("all"), 4)]);
    let error = index.forget(&rig.at("other")).expect_err("it is not there").to_string();
    assert!(error.contains("other") && error.contains("all"), "{error}");
    assert!(index.add(&[rig.at("none")], Progress::ignore).is_err());
    let file = rig.at("all/p00.png");
    let error = index.add(std::slice::from_ref(&file), Progress::ignore).expect_err("a file").to_string();
    assert!(error.contains("p00.png") && error.contains("not a folder"), "{error}");
    assert_eq!(counts(&index.refresh(Progress::ignore).expect("it stays usable")), [0, 0, 4, 0, 0]);
}

#[test]
fn an_index_among_its_pictures_moves_with_them() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    draw(&rig.at("album"), 0..2);
    draw(&rig.at("album/sub"), 2..3);
    let mut index = PictureIndex::new(rig.at("album"), rig.model.clone()).expect("an index");
    add(&mut index, &rig.at("album/sub"));
    add(&mut index, &rig.at("album"));
    fs::rename(rig.at("album"), rig.at("moved")).expect("moved");
    let mut index = PictureIndex::open(rig.at("moved"), rig.model.clone()).expect("an index");
    let found = index.by_image(&drawn(2), 1).expect("pictures");
    assert_eq!(found[0].path, rig.at("moved/sub/p02.png"));
    assert_eq!(counts(&index.refresh(Progress::ignore).expect("an update")), [0, 0, 3, 0, 0]);
}

#[test]
fn two_programs_do_not_write_one_index_at_once() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    draw(&rig.at("one"), 0..1);
    draw(&rig.at("two"), 1..2);
    let mut first = rig.new_index();
    add(&mut first, &rig.at("one"));
    let lock = fs::File::create(rig.at("index/picture-index.lock")).expect("a lock");
    lock.lock().expect("locked");
    let error = first.add(&[rig.at("two")], Progress::ignore).expect_err("locked").to_string();
    assert!(error.contains("another program"), "{error}");
    lock.unlock().expect("unlocked");
    // What another one has written is not lost.
    let mut second = rig.index();
    add(&mut second, &rig.at("two"));
    assert_eq!(counts(&first.refresh(Progress::ignore).expect("an update")), [0, 0, 2, 0, 0]);
    assert_eq!(rig.index().len(), 2);
}

#[test]
fn nothing_is_found_in_nothing() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    fs::create_dir(rig.at("empty")).expect("made");
    assert_eq!(counts(&add(&mut rig.new_index(), &rig.at("empty"))), [0; 5]);
    let index = rig.index();
    assert!(index.is_empty() && index.by_text("t1", 3).expect("nothing").is_empty());
}

#[test]
fn another_models_index_is_refused_and_made_again() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    draw(&rig.at("pictures"), 0..3);
    add(&mut rig.new_index(), &rig.at("pictures"));
    let other = Arc::new(open("dino_tiny", DeviceChoice::Cpu, &write_tokenizer(rig.dir.path())));
    let error = PictureIndex::open(rig.at("index"), other.clone()).expect_err("another model").to_string();
    assert!(error.contains("another model") && error.contains("the option `rebuild`"), "{error}");
    assert_eq!(rig.index().len(), 3, "it is as it was");
    let mut index = PictureIndex::rebuilt(rig.at("index"), other.clone()).expect("an index");
    assert!(index.is_empty());
    assert_eq!(counts(&index.refresh(Progress::ignore).expect("an update")), [3, 0, 0, 0, 0]);
    let want = other.image_features(&[drawn(1)]).expect("features").concat();
    assert!(near(&held(&index)[&rig.at("pictures/p01.png")], &want));
    assert!(PictureIndex::open(rig.at("index"), rig.model.clone()).is_err());
}

#[test]
fn the_command_embeds_finds_and_says_what_it_did() {
    let rig = Workplace::new(DeviceChoice::Cpu);
    draw(&rig.at("pictures"), 0..12);
    fs::write(rig.at("pictures/bad.png"), "no picture").expect("written");
    let (model, tokenizer) = (text(model_dir("cnn")), text(rig.at("tokenizer.json")));
    let (index, folder) = (text(rig.at("index")), text(rig.at("pictures")));
    let base = ["search", "-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "--precision", "f32", "--index"];
    let args = |more: &[&'static str]| [&base[..], &[index.as_str()][..], more].concat();
    let fails = |more: &[&'static str], texts: &[&str]| assert_fails(&ternion(&args(more)), &args(more), texts);
    fails(&["t1"], &["holds no index", "--add"]);
    fails(&[], &["query", "--image", "--add"]);
    fails(&["t1", "-k", "0"], &["k", "at least 1"]);
    let first = [&args(&["t7", "--json"])[..], &["--add", &folder]].concat();
    let ran = ternion(&first);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("left out: ") && ran.err.contains("bad.png"), "{}", ran.err);
    assert!(ran.err.contains("12 pictures: 12 embedded, 0 known, 0 unchanged; 0 removed, 1 left out"), "{}", ran.err);
    let json: Value = serde_json::from_str(&ran.out).expect("JSON and nothing else");
    assert_eq!((json["update"]["embedded"].as_u64(), json["query"]["text"].as_str()), (Some(12), Some("t7")));
    let want = rig.index().by_text("t7", 10).expect("pictures");
    let found = json["pictures"].as_array().expect("a list");
    assert_eq!(found.len(), 10);
    for (found, want) in found.iter().zip(&want) {
        assert_eq!(found["path"], text(&want.path));
        assert!((found["cosine"].as_f64().expect("a number") - f64::from(want.cosine)).abs() < 1e-5);
    }
    let out = succeeds(&args(&["t7", "-k", "2"]));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with("1 ") && lines[1].ends_with(&text(&want[0].path)), "{out}");
    let paths: Vec<String> = want[..2].iter().map(|found| text(&found.path)).collect();
    assert_eq!(succeeds(&args(&["t7", "-k", "2", "--paths"])), format!("{}\n{}\n", paths[0], paths[1]));
    assert_eq!(succeeds(&args(&["t7", "-k", "2", "-0"])), format!("{}\0{}\0", paths[0], paths[1]));
    let address = args(&["--image", "https://example.com/a.png"]);
    assert_fails(&ternion(&address), &address, &["is an address", "fetch it first"]);
    let query = text(rig.at("pictures/p03.png"));
    let out = succeeds(&[&args(&["-k", "1", "--image"])[..], &[query.as_str()]].concat());
    assert!(out.contains("1.000") && out.contains("p03.png"), "{out}");
    let bad = text(rig.at("pictures/bad.png"));
    let more = [&args(&["--image"])[..], &[bad.as_str()]].concat();
    assert_fails(&ternion(&more), &more, &["bad.png"]);
    // Another model, then all again with it.
    let dino = text(model_dir("dino_tiny"));
    let other = |more: &[&'static str]| [&["search", "-m", &dino][..], &base[3..], &[index.as_str()], more].concat();
    let refused = other(&["t7"]);
    assert_fails(&ternion(&refused), &refused, &["another model", "--rebuild"]);
    let json: Value = serde_json::from_str(&succeeds(&other(&["--rebuild", "--json"]))).expect("JSON");
    assert_eq!((&json["update"]["embedded"], json.get("pictures")), (&Value::from(12), None));
    assert!(succeeds(&other(&["t7"])).lines().count() == 11);
}

/// The first Ctrl-C ends the run at its next picture, and what was embedded is there for the next one.
#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_embedded() {
    use std::io::{BufRead, BufReader};
    let dir = TempDir::new().expect("a folder");
    let at = |name: &str| text(dir.path().join(name));
    let model = text(model_dir("cnn"));
    let tokenizer = text(write_tokenizer(dir.path()));
    let pictures = 150;
    draw(&dir.path().join("pictures"), 0..pictures);
    let options = ["-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "-v"];
    let (index, folder) = (at("index"), at("pictures"));
    let args = [&["search", "--index", &index, "--add", &folder][..], &options].concat();
    let mut child = support::cli::command(&args).spawn().expect("the command runs");
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    let mut said = String::new();
    while !said.contains("device: ") {
        assert_ne!(err.read_line(&mut said).expect("a line"), 0, "it ended: {said}");
    }
    std::thread::sleep(Duration::from_millis(1500));
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    std::io::Read::read_to_string(&mut err, &mut said).expect("the rest");
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{said}");
    assert!(said.contains("what was embedded so far is kept; --update continues"), "{said}");
    let args = [&["search", "--index", &index, "--update", "--json"][..], &options].concat();
    let found: Value = serde_json::from_str(&succeeds(&args)).expect("JSON");
    let number = |name: &str| found["update"][name].as_u64().expect("a number");
    assert_eq!(number("embedded") + number("known") + number("unchanged"), pictures as u64, "{found}");
    assert!(number("unchanged") > 0 && number("embedded") > 0, "{found}");
}
