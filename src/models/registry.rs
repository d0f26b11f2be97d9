//! The families of models: how their files are recognised, and what opens them.

use crate::error::{Error, Result};
use crate::files::config::ModelConfig;
use crate::files::{ModelFiles, Weights};
use crate::models::bitgen_stage1::file::BITGEN;
use crate::models::causal_lm::bitnet::BITNET;
use crate::models::causal_lm::llama::LLAMA;
use crate::models::causal_lm::qwen3::QWEN3;
use crate::models::embernet::EMBERNET;
use crate::models::load::LoadOptions;
use crate::models::robot::file::ROBOTS;
use crate::models::{ChatModel, Model};

/// All families. A family recognised by its tensors comes before those recognised by `config.json`, which they need not have.
pub static FAMILIES: [&Family; 6] = [&BITGEN, &ROBOTS, &EMBERNET, &QWEN3, &LLAMA, &BITNET];

/// A kind of model.
#[derive(Debug)]
pub struct Family {
    /// "EmberNet".
    pub name: &'static str,
    /// How its files are recognised, for messages.
    pub identified_by: &'static str,
    /// What opens it, for messages.
    pub open_with: &'static str,
    /// Said when a tokenizer does not fit; may be empty.
    pub tokenizer_note: &'static str,
    /// Whether files are of this family.
    pub(crate) recognises: fn(&ModelFiles, &Weights) -> Result<bool>,
    /// Finds every tensor and checks its shape.
    pub(crate) open: fn(&ModelFiles, &Weights, LoadOptions) -> Result<Box<dyn Model>>,
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Family {}

impl Family {
    /// The family of the model whose tensors are `weights`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for none of them, and those of reading `config.json`.
    pub fn recognise(files: &ModelFiles, weights: &Weights) -> Result<&'static Family> {
        for family in FAMILIES {
            if (family.recognises)(files, weights)? {
                return Ok(family);
            }
        }
        let config = ModelConfig::of(files, weights.checkpoint())?;
        let found = config.keys.get("model_type").and_then(|v| v.as_str()).unwrap_or("none");
        let known = FAMILIES.map(|f| format!("{} ({})", f.name, f.identified_by)).join(", ");
        let prefix = weights.checkpoint().common_prefix();
        let wrapped = match prefix {
            "" => String::new(),
            prefix => format!("; all names in {} begin with {prefix:?}", weights.path().display()),
        };
        Err(Error::Unsupported {
            object: format!("{}: model_type {found:?}", config.file),
            problem: format!("the families are {known}{wrapped}"),
        })
    }

    /// Checks that files are of this family.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another one, with what opens it, and those of [`Family::recognise`].
    pub(crate) fn check(&self, files: &ModelFiles, weights: &Weights) -> Result<()> {
        if (self.recognises)(files, weights)? {
            return Ok(());
        }
        Err(Family::recognise(files, weights)?.wrong_family(&format!("a {}", self.name), weights))
    }

    /// The error of opening a model of this family as `wanted`.
    pub(crate) fn wrong_family(&self, wanted: &str, weights: &Weights) -> Error {
        Error::Unsupported {
            object: format!("{} as {wanted}", weights.path().display()),
            problem: format!("it is of the family {}; open it with {}", self.name, self.open_with),
        }
    }
}

/// Opens a model of any family, as far as names and shapes: its configuration is among `files`, its tensors are
/// `weights`.
///
/// # Errors
/// [`Error::Config`] for a broken configuration, [`Error::Unsupported`] for another family,
/// [`Error::MissingTensors`] and [`Error::Shape`] for a checkpoint that does not fit.
pub fn open(files: impl Into<ModelFiles>, weights: &Weights, options: LoadOptions) -> Result<Box<dyn Model>> {
    let files = files.into();
    let model = (Family::recognise(&files, weights)?.open)(&files, weights, options)?;
    let all = weights.checkpoint().tensors().map(|t| t.name.as_str());
    let unread: Vec<&str> = all.filter(|name| !model.reads().contains_key(*name) && !model.ignores(name)).collect();
    if let Some(first) = unread.first() {
        let family = model.family().name;
        log::warn!("{} tensors are not part of {family} and are not read, {first} for one", unread.len());
    }
    Ok(model)
}

/// Opens a chat model.
///
/// # Errors
/// As [`open`]; [`Error::Unsupported`] for one that does not, with what opens it.
pub fn open_chat(files: impl Into<ModelFiles>, weights: &Weights, options: LoadOptions) -> Result<Box<dyn ChatModel>> {
    let model = open(files, weights, options)?;
    let family = model.family();
    model.into_chat().ok_or_else(|| family.wrong_family("a model that chats", weights))
}
