//! Sessions that fork, and that are kept in files: they go on as the session that they came from, and no file is trusted.

mod support {
    pub mod device;
}

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use support::device::device;
use tempfile::TempDir;
use ternion::Error;
use ternion::engine::{DeviceChoice, Engine, GenerateOptions, KvPrecision, Options, Precision, Session, StopReason};
use ternion::files::{Image, ModelFiles};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn options(device: DeviceChoice, kv: KvPrecision) -> Options {
    let tokenizer = Some(golden().join("tokenizer.json"));
    let precision = Precision::F32;
    Options { device, kv, precision, tokenizer, sessions: 3, reserve: Some(64), ..Options::default() }
}

fn open(device: DeviceChoice, kv: KvPrecision) -> Engine {
    Engine::open(golden().join("embernet/tiny"), options(device, kv)).unwrap()
}

/// The CPU, and a GPU if there is one.
fn devices() -> Vec<DeviceChoice> {
    [DeviceChoice::Cpu].into_iter().chain(device().map(|_| DeviceChoice::Gpu)).collect()
}

/// Generates tokens.
fn generate(session: &mut Session, n: usize) -> Vec<u32> {
    let options = GenerateOptions { max_tokens: Some(n), eos: Some(u32::MAX), ..GenerateOptions::default() };
    let mut stream = session.generate(options).unwrap();
    let tokens: Vec<u32> = stream.by_ref().map(|token| token.unwrap().id).collect();
    assert_eq!(stream.stop_reason(), Some(StopReason::Length));
    tokens
}

/// A session about a picture, with a question and an answer.
fn talk(engine: &Engine) -> Session {
    let mut session = engine.session().unwrap();
    session.push_image(&Image::open(golden().join("embernet/tiny/image_97x61.png")).unwrap()).unwrap();
    session.push_question("What is it?").unwrap();
    generate(&mut session, 5);
    session
}

/// Goes on with another question: the tokens of the answer, and of the whole text.
fn go_on(session: &mut Session) -> (Vec<u32>, Vec<u32>) {
    session.push_question("And now?").unwrap();
    (generate(session, 9), session.tokens().to_vec())
}

#[test]
fn a_session_that_is_forked_or_saved_goes_on_as_the_one_it_came_from() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("talk");
    for (device, kv) in devices().into_iter().flat_map(|d| [(d.clone(), KvPrecision::Dense), (d, KvPrecision::Int8)]) {
        let engine = open(device.clone(), kv);
        let mut first = talk(&engine);
        let mut forked = first.fork().unwrap();
        assert!(matches!((engine.session(), first.fork()), (Ok(_), Err(Error::SessionsFull { open: 3, max: 3 }))));
        first.save(&file).unwrap();
        first.save(&file).unwrap();
        let routing = first.expert_shares().unwrap();
        let mut loaded = engine.session().unwrap();
        loaded.push_tokens(&[3, 4, 5]).unwrap();
        generate(&mut loaded, 2);
        loaded.load(&file).unwrap();
        assert_eq!([&forked, &loaded].map(|s| s.expert_shares().unwrap()), [routing.clone(), routing]);
        assert_eq!([&forked, &loaded].map(|s| (s.len(), s.images())), [(first.len(), 1); 2]);
        let want = go_on(&mut first);
        assert_eq!(go_on(&mut forked), want, "forked, {device:?} {kv:?}");
        assert_eq!(go_on(&mut loaded), want, "loaded, {device:?} {kv:?}");
        // The rows of each are its own.
        assert!(first.undo_answer() && !first.undo_answer());
        assert_eq!(generate(&mut first, 9), want.0);
        assert!(first.undo().unwrap() && first.undo().unwrap() && !first.undo().unwrap());
        first.push_question("What is it?").unwrap();
        generate(&mut first, 5);
        assert_eq!(go_on(&mut first), want, "after all was taken back");
        drop(forked);
        // Another program, and a cache of another form, where all runs again.
        let mut other = open(device.clone(), kv).session().unwrap();
        other.load(&file).unwrap();
        assert_eq!(go_on(&mut other), want, "{device:?} {kv:?}");
        // What the file holds of the cache is what is read: nothing runs again, but in a cache of another form.
        let mut emptied = File::open(&file);
        let states = emptied.tensors.iter_mut().filter(|(name, _)| name.starts_with("state.kv."));
        states.for_each(|(_, (_, _, data))| data.fill(0));
        emptied.write(&file);
        other.load(&file).unwrap();
        assert_ne!(go_on(&mut other).0, want.0, "{device:?} {kv:?}");
        let form = if kv == KvPrecision::Int8 { KvPrecision::Dense } else { KvPrecision::Int8 };
        let mut other = open(device.clone(), form).session().unwrap();
        other.load(&file).unwrap();
        let again = go_on(&mut other);
        first.save(&file).unwrap();
        assert!(first.undo().unwrap());
        first.save(&file).unwrap();
        other.load(&file).unwrap();
        assert_eq!((go_on(&mut other), again.1.len()), (again, want.1.len()), "{device:?} {kv:?}");
    }
}

#[test]
fn a_session_without_a_token_and_one_that_shifted_come_back() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("talk");
    let engine = open(DeviceChoice::Cpu, KvPrecision::Dense);
    let mut empty = engine.session().unwrap();
    empty.save(&file).unwrap();
    let mut other = talk(&engine);
    other.load(&file).unwrap();
    assert!(other.is_empty() && empty.fork().unwrap().is_empty());
    assert_eq!(go_on(&mut other), go_on(&mut empty));

    let small = Options { context: Some(60), reserve: None, ..options(DeviceChoice::Cpu, KvPrecision::Dense) };
    let engine = Engine::open(golden().join("embernet/tiny"), small).unwrap();
    let mut shifted = engine.session().unwrap();
    shifted.shift_context(Some(Default::default()));
    shifted.push_question("What is it?").unwrap();
    generate(&mut shifted, 70);
    assert!(shifted.forgotten() > 0);
    shifted.save(&file).unwrap();
    let mut loaded = engine.session().unwrap();
    loaded.shift_context(Some(Default::default()));
    loaded.load(&file).unwrap();
    assert_eq!(loaded.forgotten(), shifted.forgotten());
    let mut forked = shifted.fork().unwrap();
    let want = go_on(&mut shifted);
    assert_eq!([go_on(&mut loaded), go_on(&mut forked)], [want.clone(), want]);
}

/// The tensors of a file, its JSON apart.
struct File {
    json: Value,
    tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    version: String,
}

impl File {
    fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let owned = |(name, t): (String, TensorView)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        let mut tensors: HashMap<_, _> = all.tensors().into_iter().map(owned).collect();
        let json = serde_json::from_slice(&tensors.remove("session").unwrap().2).unwrap();
        File { json, tensors, version: "1".into() }
    }

    fn write(&self, path: &Path) {
        let json = serde_json::to_vec(&self.json).unwrap();
        let session = ("session".to_owned(), (Dtype::U8, vec![json.len()], json));
        let all: Vec<_> = self.tensors.clone().into_iter().chain([session]).collect();
        let views = all
            .iter()
            .map(|(name, (dtype, shape, data))| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        let metadata = HashMap::from([("ternion.session".to_owned(), self.version.clone())]);
        std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    }
}

type Change = fn(&mut File);

/// What is wrong, the change, and what the error says.
fn changes() -> Vec<(Change, &'static str)> {
    vec![
        (|f| f.version = "2".into(), "version"),
        (|f| f.json["model"] = json!("other"), "another model"),
        (|f| f.json["tokens"][0] = json!(u32::MAX), "vocabulary"),
        (|f| f.json["row_tokens"][1] = json!(1 << 20), "tokens of rows"),
        (|f| f.json["forgotten"] = json!([1 << 20]), "vocabulary"),
        (|f| f.json["row_tokens"] = json!([]), "tokens of rows"),
        (|f| f.json["tokens"] = json!(-1), "session is wrong"),
        (|f| f.json["cached"] = json!(100_000), "in the cache"),
        (|f| f.json["cached"] = json!(3), "state"),
        (|f| f.json["pictures"] = json!(2), "pictures"),
        (|f| f.json["pictures"] = json!(u64::MAX), "context"),
        (|f| f.json["forgotten_at"] = json!(u64::MAX), "what has left"),
        (|f| f.json["answer_at"] = json!(1000), "place of the answer"),
        (|f| f.json["conversation"]["opening"] = json!(u64::MAX), "a message"),
        (|f| f.json["conversation"]["messages"][0]["end"] = json!(1u64 << 40), "a message"),
        (|f| f.json["more"] = json!(1), "session is wrong"),
        (|f| f.json["tokens"] = json!(vec![1; 1 << 20]), "tokens of rows"),
        (
            |f| {
                f.json["tokens"] = json!(vec![1; 1 << 20]);
                f.json["row_tokens"] = json!(vec![1; 1 << 20]);
            },
            "context",
        ),
        (|f| drop(f.tensors.remove("pictures")), "pictures"),
        (|f| drop(f.tensors.remove("image")), "pictures"),
        (|f| drop(f.tensors.remove("state.kv.0.k")), "states"),
        (
            |f| {
                let (_, shape, data) = f.tensors.get_mut("state.kv.1.v").unwrap();
                shape[0] -= 1;
                data.truncate(4 * shape[0]);
            },
            "state kv.1.v",
        ),
        (|f| f.tensors.get_mut("state.kv.0.v").unwrap().0 = Dtype::F32, "u32"),
        (|f| f.tensors.get_mut("image").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes()), "finite"),
        (|f| f.tensors.get_mut("pictures").unwrap().0 = Dtype::I8, "u8"),
    ]
}

#[test]
fn a_file_that_does_not_fit_is_an_error_and_the_session_goes_on() {
    let folder = TempDir::new().unwrap();
    let [file, other] = ["talk", "other"].map(|name| folder.path().join(name));
    let engine = open(DeviceChoice::Cpu, KvPrecision::Dense);
    let mut session = talk(&engine);
    session.save(&file).unwrap();
    let want = go_on(&mut session.fork().unwrap());
    let refused = |session: &mut Session, says: &str| {
        let error = session.load(&other).unwrap_err();
        let typed = matches!(error, Error::Format { .. } | Error::Unsupported { .. } | Error::ContextFull { .. });
        assert!(typed && error.to_string().contains(says), "{says}: {error}");
        assert_eq!(go_on(&mut session.fork().unwrap()), want, "{says}");
    };
    for (change, says) in changes() {
        let mut changed = File::open(&file);
        change(&mut changed);
        changed.write(&other);
        refused(&mut session, says);
    }
    let whole = std::fs::read(&file).unwrap();
    for cut in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&other, &whole[..cut]).unwrap();
        refused(&mut session, "other");
    }
    std::fs::copy(golden().join("embernet/tiny/golden_prefill.safetensors"), &other).unwrap();
    refused(&mut session, "is not a saved session");
    assert!(matches!(session.load(folder.path().join("none")), Err(Error::Io { .. })));
    assert!(matches!(session.save(&other), Err(Error::Argument { .. })), "what is no session is not replaced");
    let demo = Engine::open(ModelFiles::demo().unwrap(), Options { device: DeviceChoice::Cpu, ..Options::default() });
    let error = demo.unwrap().session().unwrap().load(&file).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
}
