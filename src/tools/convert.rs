//! Writing a model in its packed form: quantised once, opened without quantisation.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::engine::open::{Progress, open_tokenizer, proceed};
use crate::engine::options::{NamedValues, Precision};
use crate::error::{Error, Result};
use crate::files::atomic::{Replacement, TEMPORARY};
use crate::files::chat_template::source::{JINJA, TemplateSource};
use crate::files::tokenizer::special::GENERATION_CONFIG;
use crate::files::weights::{PACKED_KEY, PackedInfo};
use crate::files::{
    Checkpoint, ModelFiles, NewTensor, SamplingDefaults, SpecialTokens, StorageDType, Tokenizer, Weights,
    write_tensors_into,
};
use crate::models;
use crate::models::{FamilyPrompt, HiddenAct, LoadOptions, Model, Reads};
use crate::quant::groups::GroupShape;
use crate::tensor::{Pack, WeightPart, WeightRef};
use crate::threads;

const MODEL_FILE: &str = ModelFiles::CHECKPOINT;
const CONFIG_FILE: &str = "config.json";
/// What is written beside weights and configuration, where there is any.
const BESIDE: [&str; 3] = ["tokenizer.json", GENERATION_CONFIG, JINJA];
/// Maximum share of the file for tensors that running the model does not need.
const EXTRAS_SHARE: u64 = 10;

/// How a model is written. A [`Precision`] is one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConvertOptions {
    /// How full-precision weights are written.
    pub precision: Precision,
    /// The activation of feed-forward parts; none: the one that the model's files tell. The new configuration says it.
    pub hidden_act: Option<HiddenAct>,
}

impl From<Precision> for ConvertOptions {
    fn from(precision: Precision) -> Self {
        ConvertOptions { precision, hidden_act: None }
    }
}

/// What a conversion wrote.
#[derive(Debug, Clone)]
pub struct ConvertReport {
    /// The packed checkpoint.
    pub file: PathBuf,
    /// Tensors written.
    pub tensors: usize,
    /// Ternary ones and those of 1 or 2 bits with scales by group among them.
    pub ternary: usize,
    /// Tensors of the input that the model does not read.
    pub left_out: usize,
    /// Tensors among these that evaluation would use, and that would be more than a tenth of the file.
    pub left_out_extras: Vec<&'static str>,
    /// Whether a tokenizer was copied.
    pub tokenizer: bool,
    /// Bytes of the input's tensors.
    pub input_bytes: u64,
    /// Bytes of the packed checkpoint.
    pub output_bytes: u64,
    /// Time that it took.
    pub time: Duration,
}

/// Writes the model `input` into the directory `out_dir` in the packed form: `model.safetensors`, `config.json`, and
/// the tokenizer given or beside the input. Of a model whose conversations have a chat template, that is written too
/// (`chat_template.jinja`), and the tokens that begin and end texts and how its publisher recommends to sample
/// (`generation_config.json`).
///
/// Files are written under other names and renamed when they are complete. The packed model is held in memory, besides the
/// few tensors that are being quantised.
///
/// # Errors
/// As [`crate::engine::Engine::open`] for the input; [`Error::Argument`] for an output directory that holds the input or
/// anything but an earlier conversion; [`Error::Io`] for what cannot be written.
pub fn convert(
    input: impl Into<ModelFiles>,
    out_dir: &Path,
    tokenizer: Option<&Path>,
    options: impl Into<ConvertOptions>,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<ConvertReport> {
    let (start, input) = (Instant::now(), input.into());
    let ConvertOptions { precision, hidden_act } = options.into();
    let weights = Weights::open(&input)?;
    let load = LoadOptions { hidden_act, ..LoadOptions::anywhere(precision.pack()) };
    let model = models::open(&input, &weights, load)?;
    let tokenizer = open_tokenizer(&input, tokenizer, model.vocab(), model.family())?;
    check_target(&input, &weights, model.reads(), out_dir)?;
    let (mut packed, table) = pack_all(&weights, model.reads(), &mut progress)?;
    let extras = pack_extras(&weights, model.extras(), precision)?;
    let bytes = |all: &BTreeMap<String, OwnedTensor>| all.values().map(|t| t.bytes as u64).sum::<u64>();
    let left_out_extras = match bytes(&extras) * EXTRAS_SHARE > bytes(&packed) + bytes(&extras) {
        true => model.extras().to_vec(),
        false => {
            packed.extend(extras);
            Vec::new()
        }
    };

    let ternary = table.values().filter(|info| info.bits <= 2).count();
    let mut config = model.config();
    if let Some(act) = hidden_act {
        config["hidden_act"] = act.name().into();
    }
    let [generation, template] = conversation(&input, model, tokenizer.as_ref())?;
    let new = Conversion {
        config: format!("{config:#}\n"),
        beside: [tokenizer.as_ref().map(|tokenizer| tokenizer.json().to_vec()), generation, template],
        packed: &packed,
        table: serde_json::to_string(&table).map_err(|e| Error::format(out_dir.display(), e))?,
    };
    let file = new.put(out_dir)?;
    let all = weights.checkpoint().tensors();
    Ok(ConvertReport {
        tensors: packed.len(),
        ternary,
        left_out_extras,
        left_out: weights.checkpoint().tensors().count().saturating_sub(packed.len()),
        tokenizer: tokenizer.is_some(),
        input_bytes: all.map(|t| t.bytes() as u64).sum(),
        output_bytes: fs::metadata(&file).map_err(Error::io(&file))?.len(),
        file,
        time: start.elapsed(),
    })
}

/// A whole tensor as a matrix of its first dimension's rows, and its shape where it is packed so.
pub(crate) fn whole(weights: &Weights, name: &str, pack: Option<Pack>) -> Result<(WeightPart, Vec<usize>)> {
    let missing = || Error::MissingTensors { file: weights.path().display().to_string(), names: vec![name.to_owned()] };
    let shape = match pack {
        Some(Pack::Groups { codes, .. }) => weights.matrix_shape(name, codes),
        _ => weights.shape(name),
    };
    let shape = shape.ok_or_else(missing)?;
    let rows = shape.first().copied().unwrap_or(1);
    let cols = shape.iter().skip(1).product();
    Ok((WeightPart { name: name.to_owned(), rows: 0..rows, cols }, shape))
}

/// `generation_config.json` and the template of a model whose conversations have one; with neither where a family has a form
/// of its own, and without a tokenizer.
fn conversation(
    input: &ModelFiles,
    model: Box<dyn Model>,
    tokenizer: Option<&Tokenizer>,
) -> Result<[Option<Vec<u8>>; 2]> {
    let prompt = model.into_chat().map(|model| model.prompt());
    let (Some(prompt), Some(tokenizer)) = (prompt, tokenizer) else { return Ok([None, None]) };
    let template = match prompt {
        FamilyPrompt::Own(_) => return Ok([None, None]),
        FamilyPrompt::Template(_) => TemplateSource::of(input, None)?.map(|template| template.source),
        FamilyPrompt::Builtin(builtin) => Some(builtin.source.to_owned()),
    };
    let special = SpecialTokens::of(input, tokenizer)?;
    let ends = special.eos.into_iter().chain(special.stop.into_iter().filter(|id| Some(*id) != special.eos));
    let mut config = SamplingDefaults::of(input)?.to_config();
    if let Some(bos) = special.bos {
        config.insert("bos_token_id".into(), bos.into());
    }
    config.insert("eos_token_id".into(), ends.collect::<Vec<u32>>().into());
    let config = format!("{:#}\n", serde_json::Value::Object(config));
    Ok([Some(config.into_bytes()), template.map(String::into_bytes)])
}

/// What a conversion writes.
struct Conversion<'a> {
    config: String,
    /// The files [`BESIDE`].
    beside: [Option<Vec<u8>>; 3],
    packed: &'a BTreeMap<String, OwnedTensor>,
    /// The packed table, as JSON.
    table: String,
}

impl Conversion<'_> {
    /// Writes all files into a directory, and returns the weights' one. All are whole before one takes its place, and the
    /// old weights go first and the new ones come last: whatever stops this leaves the old model, the new one, or none, and
    /// never one's weights with the other's configuration.
    fn put(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let [config, weights] = [CONFIG_FILE, MODEL_FILE].map(|name| dir.join(name));
        let written = |file: &Path, text: &[u8]| -> Result<Replacement> {
            let new = Replacement::of(file)?;
            fs::write(new.path(), text).map_err(Error::io(file))?;
            Ok(new)
        };
        let new_config = written(&config, self.config.as_bytes())?;
        let mut beside = Vec::new();
        for (file, text) in BESIDE.map(|name| dir.join(name)).into_iter().zip(&self.beside) {
            let new = text.as_ref().map(|text| written(&file, text)).transpose()?;
            beside.push((file, new));
        }
        let new_weights = Replacement::of(&weights)?;
        let tensors = self.packed.iter().map(|(name, tensor)| (name.as_str(), tensor.view()));
        write_tensors_into(&new_weights, tensors, &[(PACKED_KEY, self.table.clone())])?;
        let gone = |file: &Path| match fs::remove_file(file) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(file)(e)),
            _ => Ok(()),
        };
        gone(&weights)?;
        new_config.put()?;
        for (file, new) in beside {
            match new {
                Some(new) => new.put()?,
                None => gone(&file)?,
            }
        }
        new_weights.put()?;
        Ok(weights)
    }
}

/// A tensor as it is written.
struct OwnedTensor {
    stored: StorageDType,
    shape: Vec<usize>,
    words: Vec<u32>,
    /// Bytes of `words` that are elements: an odd number of 16-bit ones leaves two behind.
    bytes: usize,
}

impl OwnedTensor {
    /// Packed words.
    fn words(words: Vec<u32>) -> Self {
        let n = words.len();
        OwnedTensor { stored: StorageDType::U32, shape: vec![n], words, bytes: 4 * n }
    }

    /// The tensor, to write it.
    fn view(&self) -> NewTensor<'_> {
        let bytes = bytemuck::cast_slice(&self.words).get(..self.bytes).unwrap_or_default();
        NewTensor { stored: self.stored, shape: &self.shape, bytes }
    }
}

type Table = BTreeMap<String, PackedInfo>;

/// Packs every tensor that is read: as many at once as there are threads.
fn pack_all(
    weights: &Weights,
    reads: &Reads,
    progress: &mut impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(BTreeMap<String, OwnedTensor>, Table)> {
    let (mut packed, mut table) = (BTreeMap::new(), Table::new());
    let names: Vec<(&String, Pack)> = reads.iter().map(|(name, &pack)| (name, pack)).collect();
    for group in names.chunks(threads::shared().count()) {
        let what = group.first().map_or(String::new(), |(name, _)| (*name).clone());
        proceed(progress(Progress { done: packed.len(), total: names.len(), what }))?;
        let done = threads::shared().map(group, |&(name, pack)| pack_one(weights, name, pack));
        let done: Result<Vec<_>> = done.into_iter().collect();
        for ((name, _), (stored, info)) in group.iter().zip(done?) {
            packed.insert((*name).clone(), stored);
            table.extend(info.map(|info| ((*name).clone(), info)));
        }
    }
    proceed(progress(Progress { done: names.len(), total: names.len(), what: String::new() }))?;
    Ok((packed, table))
}

/// Those of the tensors that are there, as other matrices are written.
fn pack_extras(weights: &Weights, names: &[&str], precision: Precision) -> Result<BTreeMap<String, OwnedTensor>> {
    let there = names.iter().filter(|name| weights.shape(name).is_some());
    there.map(|&name| Ok((name.to_owned(), pack_one(weights, name, precision.pack())?.0))).collect()
}

fn pack_one(weights: &Weights, name: &str, pack: Pack) -> Result<(OwnedTensor, Option<PackedInfo>)> {
    let (part, shape) = whole(weights, name, Some(pack))?;
    let elements: usize = shape.iter().product();
    let dense = |stored: StorageDType| -> Result<OwnedTensor> {
        let size = stored.size();
        let words = weights.load(&WeightRef { parts: vec![part.clone()], pack })?;
        if 4 * words.len() < size * elements {
            let object = format!("{}: tensor {name}", weights.path().display());
            return Err(Error::format(object, format!("{} words of its {elements} elements", words.len())));
        }
        Ok(OwnedTensor { stored, shape: shape.clone(), words, bytes: size * elements })
    };
    match pack {
        Pack::F32 => Ok((dense(StorageDType::F32)?, None)),
        Pack::F16 => Ok((dense(StorageDType::F16)?, None)),
        // Made when a model is opened: a file keeps what it is made from.
        Pack::Int8 => pack_one(weights, name, Pack::F32),
        Pack::Groups { group, codes } => {
            let matrix = weights.groups(&part, group as usize, codes)?;
            let (GroupShape { rows, cols, bits, group }, scale_bits) = (matrix.shape, matrix.factor.to_bits());
            let info = PackedInfo { rows, cols, bits: bits.count(), scale_bits, group: Some(group) };
            let mut words = matrix.words.into_owned();
            words.try_reserve_exact(matrix.scales.len()).map_err(|_| Error::memory(name, 4 * matrix.scales.len()))?;
            words.extend_from_slice(&matrix.scales);
            weights.release(&part);
            Ok((OwnedTensor::words(words), Some(info)))
        }
        Pack::Ternary(rule) => {
            let matrix = weights.ternary(&part, rule)?;
            let (bits, scale_bits) = (matrix.bits.count(), matrix.scale.to_bits());
            let info = PackedInfo { rows: matrix.rows, cols: matrix.cols, bits, scale_bits, group: None };
            let words = matrix.words.into_owned();
            weights.release(&part);
            Ok((OwnedTensor::words(words), Some(info)))
        }
    }
}

/// Refuses a directory with the input, or with files that would be taken for a part of the packed model.
fn check_target(input: &ModelFiles, weights: &Weights, reads: &Reads, out_dir: &Path) -> Result<()> {
    let refused = |problem: String| Err(Error::argument(out_dir.display(), problem));
    if !out_dir.exists() {
        return Ok(());
    }
    if !out_dir.is_dir() {
        return refused("is not a directory; give the directory to write the packed model into".into());
    }
    let input_dir = weights.path().parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = |path: &Path| fs::canonicalize(path).map_err(Error::io(path));
    if matches!(input, ModelFiles::Disk(_)) {
        // The weights may lie elsewhere, behind a link.
        let own = [real(input_dir)?, real(weights.path())?.parent().map(Path::to_owned).unwrap_or_default()];
        // A folder may be mounted in two places.
        if own.iter().any(|dir| same_file::is_same_file(dir, out_dir).unwrap_or(false)) {
            return refused("holds the input, which would be overwritten; give another directory".into());
        }
    }
    check_replaced(&out_dir.join(MODEL_FILE), reads)?;
    for entry in fs::read_dir(out_dir).map_err(Error::io(out_dir))? {
        let name = entry.map_err(Error::io(out_dir))?.file_name();
        let name = name.to_string_lossy();
        // A conversion that is killed leaves such files behind.
        let own = [MODEL_FILE, CONFIG_FILE].contains(&name.as_ref()) || BESIDE.contains(&name.as_ref());
        if !own && !name.starts_with(TEMPORARY) {
            return refused(format!("holds {name:?}, which is not part of a packed model; give an empty directory"));
        }
    }
    Ok(())
}

/// Refuses to replace weights that no conversion of a model that reads the same tensors has written: a model of somebody's,
/// one of another kind, and what a link leads to.
fn check_replaced(weights: &Path, reads: &Reads) -> Result<()> {
    if fs::symlink_metadata(weights).is_err() {
        return Ok(());
    }
    let refused = |problem: &str| Err(Error::argument(weights.display(), format!("{problem}; give another directory")));
    if fs::symlink_metadata(weights).is_ok_and(|m| !m.is_file()) {
        return refused("is a link, and the file that it leads to would be replaced");
    }
    match Checkpoint::open(weights) {
        Ok(old) if old.metadata().contains_key(PACKED_KEY) => match reads.keys().all(|name| old.get(name).is_some()) {
            true => Ok(()),
            false => refused("is a conversion of another model and would be replaced"),
        },
        _ => refused("is not a packed model of an earlier conversion, and would be replaced"),
    }
}
