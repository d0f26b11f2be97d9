//! BitGens in parts, to be broken.
#![allow(dead_code)] // Each test uses a part.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::golden::golden_root;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;
use ternion::files::Weights;
use ternion::unstable::models::LoadOptions;
use ternion::unstable::tensor::Pack;
use ternion::{Error, Result};

pub const LOAD: LoadOptions = LoadOptions::anywhere(Pack::F16);

/// A model in parts, to be broken and written.
#[derive(Clone)]
pub struct Parts {
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    pub config: Value,
    pub dino: Option<Value>,
}

impl Parts {
    /// Of a folder below the golden data.
    pub fn of(dir: &str) -> Self {
        let dir = golden_root().join(dir);
        let weights = Weights::open(&dir).unwrap();
        let floats = weights.checkpoint().tensors().filter(|t| t.stored.reads_as_f32());
        let tensor = |name: &str| weights.checkpoint().bytes(name).unwrap().into_owned();
        let json = |name: &str| fs::read(dir.join(name)).ok().map(|text| serde_json::from_slice(&text).unwrap());
        Parts {
            tensors: floats.map(|t| (t.name.clone(), (t.shape.clone(), tensor(&t.name)))).collect(),
            config: json("config.json").unwrap(),
            dino: json("dinov2_config.json"),
        }
    }

    /// With zeros of another shape.
    pub fn reshaped(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(name.into(), (shape.to_vec(), bytes));
        self
    }

    /// With another value of config.json.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// With another dinov2_config.json.
    pub fn dino(mut self, json: Value) -> Self {
        self.dino = Some(json);
        self
    }

    /// In a folder of its own.
    pub fn write(&self) -> TempDir {
        let dir = TempDir::new().unwrap();
        self.write_tensors(dir.path());
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        if let Some(dino) = &self.dino {
            fs::write(dir.path().join("dinov2_config.json"), dino.to_string()).unwrap();
        }
        dir
    }

    fn write_tensors(&self, dir: &Path) {
        let views = self
            .tensors
            .iter()
            .map(|(name, (shape, bytes))| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

#[track_caller]
pub fn assert_says<T>(result: Result<T>, texts: &[&str]) -> Error {
    let Err(error) = result else { panic!("it opens, and should not say {texts:?}") };
    for text in texts {
        assert!(error.to_string().contains(text), "{text:?} is not in: {error}");
    }
    error
}

/// Takes each tensor that a model reads away, changes its shape, and its numbers: `load` sees the first two, `open` the last.
pub fn break_each_tensor(
    good: &Parts,
    reads: &[String],
    load: impl Fn(&Path) -> Option<Error>,
    open: impl Fn(&Path) -> Option<Error>,
    other: impl Fn(&str, &Error) -> bool,
) {
    for (i, name) in reads.iter().enumerate() {
        let mut gone = good.clone();
        gone.tensors.remove(name);
        let error = load(gone.write().path()).unwrap_or_else(|| panic!("it opens without {name}"));
        match &error {
            Error::MissingTensors { names, .. } => {
                assert!(names.contains(name) || other(name, &error), "{name}: {error}");
            }
            Error::Unsupported { .. } => assert!(error.to_string().contains(name.as_str()), "{name}: {error}"),
            _ => panic!("{name}: {error}"),
        }
        let mut wider = good.clone();
        wider.tensors.get_mut(name).expect("a tensor").0.push(1);
        let error = load(wider.write().path()).unwrap_or_else(|| panic!("it opens with another shape of {name}"));
        assert!(matches!(&error, Error::Shape { .. }), "{name}: {error}");
        let mut broken = good.clone();
        let bytes = &mut broken.tensors.get_mut(name).expect("a tensor").1;
        let (value, at) = (if i % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY }, bytes.len() - 4);
        bytes[at..].copy_from_slice(&value.to_le_bytes());
        let error = open(broken.write().path()).unwrap_or_else(|| panic!("it opens with {value} in {name}"));
        let named = error.to_string().contains(name.as_str()) && error.to_string().contains("finite");
        assert!(matches!(error, Error::Format { .. }) && named, "{name}: {error}");
    }
}
