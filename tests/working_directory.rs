//! What was opened by a relative path is found when the application changes its working directory.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ternion::apps::bitgen::{BitGen, BitGenOptions};
use ternion::apps::picture_index::PictureIndex;
use ternion::engine::{DeviceChoice, Progress};
use ternion::tools::eval::CaptionSet;

#[test]
fn what_is_open_outlives_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes");
    let at = |name: &str| dir.path().join(name);
    for name in ["pictures", "elsewhere"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::copy(root.join("samples/spatial_scene_100001.png"), at("pictures/a.png")).unwrap();
    fs::write(at("pictures/captions.json"), r#"[{"image": "a.png", "caption": "a circle"}]"#).unwrap();
    for entry in fs::read_dir(root.join("bitgen/model")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    env::set_current_dir(dir.path()).unwrap();
    let options = BitGenOptions { device: DeviceChoice::Cpu.into(), ..BitGenOptions::default() };
    let model = Arc::new(BitGen::open(".", options).unwrap());
    let mut index = PictureIndex::new("index", model.clone()).unwrap();
    index.add(&["pictures".into()], Progress::ignore).unwrap();
    let captions = CaptionSet::open("pictures").unwrap();

    env::set_current_dir(at("elsewhere")).unwrap();
    assert!(model.fingerprint().is_ok());
    assert_eq!(index.refresh(Progress::ignore).unwrap().unchanged, 1);
    assert!(index.pictures().all(|(path, _)| path.is_file()));
    assert!(at("index").join(PictureIndex::FILE).is_file());
    assert!(captions.pairs()[0].image.is_file());
    assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0);
}
