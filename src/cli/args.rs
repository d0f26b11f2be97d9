//! Options that several commands share, and reading the prompt.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Read, stdin};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use ternion::apps::bitgen::{BitGen, BitGenOptions, EpisodicMemory, MemoryNoise};
use ternion::engine::{
    Activations, CpuLevel, DeviceChoice, DeviceOptions, Engine, HiddenAct, KvPrecision, LmHead, ModelOptions,
    NamedValues, Options, Precision, user_cache,
};
use ternion::files::tokenizer::MAX_TEXT_BYTES;
use ternion::files::{Image, Lock, ModelFiles, Weights, text};
use ternion::unstable::models::Family;
use ternion::unstable::threads::size_pool;
use ternion::{Error, Result};

use crate::cli::messages::{is_verbose, say, say_setup};
use crate::cli::output::Bar;
use crate::cli::repositories::elsewhere;

/// Which model, and where and how it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The model: a directory, a safetensors file or index, or a torch checkpoint, with config.json beside it; default:
    /// the demo model, which is built in and knows drawn scenes only.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true, env = "TERNION_MODEL")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// The tokenizer.json, or a folder with it or with vocab.json and merges.txt; default: those beside the model.
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub tokenizer: Option<PathBuf>,
    /// Maximum number of tokens of a conversation, pictures included; default: the maximum of the model, at most 2048.
    #[arg(short, long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Tokens that the KV cache has room for from the beginning; it grows up to --context. Default: 512 on a GPU; on the CPU
    /// all, since there memory is taken as it is written.
    #[arg(long, value_name = "TOKENS")]
    pub reserve: Option<usize>,
    /// Memory that the model may hold of the device's, as 800MiB or 2GiB: of one that needs more, experts and layers move
    /// through it as they are needed, which takes longer; one that does not run so is refused before it is loaded.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub max_memory: Option<u64>,
}

/// With how many threads a command computes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct ThreadArgs {
    /// Threads of the CPU; default: one for each physical core, of those with most performance where the system tells which
    /// they are.
    #[arg(long, value_name = "N", value_parser = thread_counts())]
    pub threads: Option<usize>,
}

/// A number of bytes, with a unit or without.
pub fn byte_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let bytes = digits.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
    bytes.ok_or_else(|| "expected a whole number with B, KiB, MiB or GiB behind it, as 800MiB".into())
}

fn thread_counts() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=DeviceOptions::MAX_THREADS as u64)
}

impl ThreadArgs {
    /// From here on the command has these threads.
    pub fn size_pool(&self) {
        size_pool(self.threads);
    }
}

/// Where and how precisely a model runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// auto (the best GPU, else the CPU), cpu, gpu (software adapters too), a number from `ternion devices`, or a part
    /// of an adapter's name.
    #[arg(long, value_name = "DEVICE", allow_hyphen_values = true, default_value = "auto", env = "TERNION_DEVICE")]
    pub device: DeviceChoice,
    /// How full-precision weights are kept, and the KV cache unless --kv says otherwise.
    #[arg(long, default_value = "f16", value_parser = one_of::<Precision>())]
    pub precision: Precision,
    /// How keys and values are kept in the cache: like full-precision weights, or in 8 bits.
    #[arg(long, default_value = "f16", value_parser = one_of::<KvPrecision>())]
    pub kv: KvPrecision,
    /// How the matrix that gives the logits is kept: like other full-precision weights, or in 8 bits.
    #[arg(long, default_value = "f16", value_parser = one_of::<LmHead>())]
    pub head: LmHead,
    /// What low-bit matrices read, in models that were trained with activations of floats.
    #[arg(long, default_value = "int8", value_parser = one_of::<Activations>())]
    pub activations: Activations,
    /// The activation of feed-forward parts, for a bitnet whose file does not tell which of the two it was trained with.
    #[arg(long, value_parser = one_of::<HiddenAct>())]
    pub hidden_act: Option<HiddenAct>,
    /// Compute each token on a GPU as if it were one of many, so that its last bits do not depend on what else runs nor on how
    /// the prompt came in: slower. On the CPU they never do.
    #[arg(long)]
    pub batch_invariant: bool,
    /// Do not time a GPU's kernel variants when its adapter is used for the first time (the fastest are kept in the user's
    /// folder for caches, or in the one that TERNION_CACHE names), but take those that suit its kind: equal on each
    /// machine of a kind.
    #[arg(long)]
    pub no_autotune: bool,
    #[command(flatten)]
    pub threads: ThreadArgs,
    /// Vector instructions of the CPU, at most: portable, avx2, avxvnni or avx512, on aarch64 portable, neon, neondot
    /// or neoni8mm; default: what the environment variable TERNION_CPU names, or the best that the processor has.
    #[arg(long, value_name = "LEVEL")]
    pub cpu_level: Option<CpuLevel>,
}

impl DeviceArgs {
    /// How the model's numbers are kept and computed.
    pub fn model_options(&self) -> ModelOptions {
        let DeviceArgs { precision, kv, head, activations, hidden_act, batch_invariant, .. } = *self;
        ModelOptions { precision, kv, head, activations, hidden_act, batch_invariant }
    }

    /// Refuses the options that are for chat models alone.
    ///
    /// # Errors
    /// [`Error::Argument`] with the option.
    pub fn reject_for(&self, model: &str) -> Result<()> {
        let given = [
            ("kv", self.kv != KvPrecision::Dense),
            ("activations", self.activations != Activations::Int8),
            ("hidden-act", self.hidden_act.is_some()),
            ("batch-invariant", self.batch_invariant),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                Err(Error::argument(option, format!("is not for {model}, which leaves no choice of it")))
            }
            None => Ok(()),
        }
    }

    /// The device, and how it is set up; from here on the command has the threads that it may use.
    pub fn options(&self) -> DeviceOptions {
        self.threads.size_pool();
        let DeviceArgs { device, threads: ThreadArgs { threads }, cpu_level, .. } = self;
        let cache = tuning_cache(self.no_autotune);
        let autotune = cache.is_some();
        DeviceOptions { device: device.clone(), autotune, cache, threads: *threads, cpu_level: *cpu_level }
    }
}

/// The folder where chosen kernel variants are kept. Where nothing can be kept, nothing is timed.
pub fn tuning_cache(no_autotune: bool) -> Option<PathBuf> {
    if no_autotune { None } else { user_cache() }
}

/// A parser of the names of an option's values, which `--help` lists.
pub fn one_of<T: NamedValues + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let values = T::VALUES.iter().map(|&(name, _, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(values).try_map(|name| T::named(&name))
}

impl ModelArgs {
    /// Opens a model whose files are known for one conversation, with a progress bar on a terminal, and says where it runs.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_chat(&self, files: ModelFiles) -> Result<Engine> {
        self.open_with(files, self.options())
    }

    /// The options for one conversation.
    pub fn options(&self) -> Options {
        let DeviceOptions { device, autotune, cache, threads, cpu_level } = self.device.options();
        Options {
            device,
            autotune,
            cache,
            threads,
            cpu_level,
            precision: self.device.precision,
            kv: self.device.kv,
            head: self.device.head,
            activations: self.device.activations,
            hidden_act: self.device.hidden_act,
            batch_invariant: self.device.batch_invariant,
            context: self.context,
            reserve: self.reserve,
            max_memory: self.max_memory,
            sessions: 1,
            tokenizer: self.tokenizer.clone(),
            needs_tokenizer: true,
            ..Options::default()
        }
    }

    /// [`ModelArgs::open_chat`] with other options.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(&self, files: ModelFiles, options: Options) -> Result<Engine> {
        let (bar, model) = (Bar::new("loading"), files.to_string());
        let engine = Engine::open_with(files, options, |p| bar.show(&p))?;
        bar.end();
        let report = engine.report();
        say_setup(&model, &report.device, &report.why);
        Ok(engine)
    }

    /// Opens a BitGen, with a progress bar on a terminal, and says where it runs.
    ///
    /// # Errors
    /// As [`BitGen::open`]; [`Error::Argument`] for options that do not apply to it.
    pub fn open_bitgen(&self, files: ModelFiles) -> Result<BitGen> {
        let given = [
            ("context", self.context.is_some()),
            ("reserve", self.reserve.is_some()),
            ("max-memory", self.max_memory.is_some()),
        ];
        if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
            let problem = "is for a model that chats; a BitGen has as many positions as it was trained with";
            return Err(Error::argument(*option, problem));
        }
        open_bitgen(files, &self.device, self.tokenizer.as_deref())
    }
}

/// The family of a model, by its files.
///
/// # Errors
/// As [`Family::recognise`], and those of opening the checkpoint.
pub fn family(files: &ModelFiles) -> Result<&'static Family> {
    Family::recognise(files, &Weights::open(files)?)
}

/// How a BitGen's episodic memory is used.
#[derive(Debug, Args)]
#[command(next_help_heading = "Memory of a BitGen")]
pub struct MemoryArgs {
    /// With a BitGen: read its memory with noise of this seed, as the original does with another one in each pass;
    /// without it equal inputs give equal results.
    #[arg(long, value_name = "SEED")]
    pub memory_noise: Option<u64>,
    /// With a BitGen: begin with the memory of this file, if there is one, and write it back at the end, with what was
    /// read counted; a safetensors file, or one of the original's save_memory to begin with.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub memory: Option<PathBuf>,
}

impl MemoryArgs {
    /// The noise.
    pub fn noise(&self) -> MemoryNoise {
        self.memory_noise.map_or(MemoryNoise::None, MemoryNoise::Seed)
    }

    /// Gives the model the memory that it is to begin with. What is returned keeps the file from other programs until it
    /// is dropped, which is to come after [`MemoryArgs::save`].
    ///
    /// # Errors
    /// Those of [`BitGen::open_memory`] and of [`Lock::of`], and [`Error::Io`] for a file that cannot be written later.
    pub fn open(&self, model: &BitGen) -> Result<Option<Lock>> {
        let Some(file) = &self.memory else { return Ok(None) };
        let lock = Lock::of(file)?;
        if file.exists() {
            model.open_memory(file)?;
        }
        EpisodicMemory::check_target(file)?;
        Ok(Some(lock))
    }

    /// Writes the model's memory back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, model: &BitGen) -> Result<()> {
        self.memory.as_ref().map_or(Ok(()), |file| model.save_memory(file))
    }

    /// Refuses the options with a model that does not have a memory.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn reject(&self) -> Result<()> {
        let given = [("memory-noise", self.memory_noise.is_some()), ("memory", self.memory.is_some())];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::argument(option, "is for a BitGen; this model has no episodic memory")),
            None => Ok(()),
        }
    }
}

/// The files of the model at `path`; without one those of the demo model, with a note on stderr where reasons are wanted.
///
/// # Errors
/// Those of [`ModelFiles::demo`]; [`Error::Argument`] for the name of a repository, which is not fetched.
pub fn model_files(path: Option<&Path>) -> Result<ModelFiles> {
    if let Some(path) = path {
        return elsewhere(path).map_or_else(|| Ok(path.into()), Err);
    }
    let demo = ModelFiles::demo()?;
    if is_verbose() {
        say!(
            "model: {demo}, since none is given; it knows drawn scenes only: words and numbers, boxes and arrows, bar \
             charts, sums, colours and shapes, positions and counts, gauges and clocks, robots and terrain"
        );
    }
    Ok(demo)
}

/// Decodes a picture.
///
/// # Errors
/// As [`Image::open`]; [`Error::Argument`] for an address, which names no file.
pub fn open_image(file: &Path) -> Result<Image> {
    if ["http://", "https://"].iter().any(|scheme| file.to_string_lossy().starts_with(scheme)) {
        let problem = format!("{} is an address; pictures are read from files: fetch it first", file.display());
        return Err(Error::argument("image", problem));
    }
    Image::open(file)
}

/// Decodes pictures.
///
/// # Errors
/// As [`open_image`].
pub fn open_images(files: &[PathBuf]) -> Result<Vec<Image>> {
    files.iter().map(|file| open_image(file)).collect()
}

/// The question that was given, or where none was and stdin is no terminal, what it holds.
///
/// # Errors
/// Those of [`read_prompt`]; [`Error::Argument`] where there is none.
pub fn question(given: Option<String>) -> Result<String> {
    match given {
        Some(prompt) => Ok(prompt),
        None if !stdin().is_terminal() => read_prompt("-").map_err(|error| match error {
            Error::Argument { .. } => Error::argument("prompt", "is missing; ask with -p, or on stdin"),
            other => other,
        }),
        None => Err(Error::argument("prompt", "is missing; ask with -p, or on stdin")),
    }
}

/// The text that `-p` stands for: itself, `-` for stdin, `@FILE` for a file. One line break at the end is dropped.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] with the offset of the first byte that is not UTF-8, [`Error::Limit`] for too much,
/// [`Error::Argument`] for nothing.
pub fn read_prompt(prompt: &str) -> Result<String> {
    let text = match prompt.strip_prefix('@') {
        _ if prompt == "-" => read_text("stdin", stdin().lock())?,
        Some(path) => read_text(path, File::open(path).map_err(Error::io(path))?)?,
        None => prompt.to_owned(),
    };
    let text = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    if text.trim().is_empty() {
        return Err(Error::argument("prompt", "is empty"));
    }
    Ok(text.to_owned())
}

/// The text of a file.
///
/// # Errors
/// Those of [`read_prompt`], but for nothing.
pub fn text_file(path: &Path) -> Result<String> {
    read_text(&path.display().to_string(), File::open(path).map_err(Error::io(path))?)
}

fn read_text(name: &str, source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that an endless source is told from one that just fits.
    source.take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Error::io(name))?;
    utf8(name, bytes)
}

/// Bytes as text.
///
/// # Errors
/// [`Error::Limit`] above [`MAX_TEXT_BYTES`], [`Error::Format`] with the offset of what is not UTF-8.
pub fn utf8(name: &str, bytes: Vec<u8>) -> Result<String> {
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(Error::Limit {
            what: format!("{name}: the prompt"),
            wanted: format!("more than {MAX_TEXT_BYTES} bytes"),
            available: format!("{MAX_TEXT_BYTES} bytes are"),
            advice: "no model has a context that long, shorten it".into(),
        });
    }
    text::decode(name, &bytes).map(str::to_owned)
}

/// Which model, and where and how it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct BitGenArgs {
    /// The model, a BitGen: a directory, a safetensors file or a torch checkpoint, with config.json beside it.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// The tokenizer.json; default: the one beside the model.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    tokenizer: Option<PathBuf>,
}

impl BitGenArgs {
    /// Opens the model, with a progress bar on a terminal, and says where it runs.
    ///
    /// # Errors
    /// As [`open_bitgen`].
    pub fn open(&self) -> Result<BitGen> {
        open_bitgen(self.model.as_path().into(), &self.device, self.tokenizer.as_deref())
    }
}

/// Opens a BitGen, with a progress bar on a terminal, and says where it runs.
///
/// # Errors
/// As [`BitGen::open`]; [`Error::Argument`] for `--head`: a BitGen's LM head is ternary.
pub fn open_bitgen(files: ModelFiles, device: &DeviceArgs, tokenizer: Option<&Path>) -> Result<BitGen> {
    if matches!(device.head, LmHead::Int8) {
        return Err(Error::argument("head", "is for a model that chats; a BitGen's is ternary"));
    }
    device.reject_for("a BitGen")?;
    let (tokenizer, precision) = (tokenizer.map(Path::to_owned), device.precision);
    let options = BitGenOptions { device: device.options(), precision, tokenizer };
    let (bar, name) = (Bar::new("loading"), files.to_string());
    let model = BitGen::open_with(files, options, |p| bar.show(&p))?;
    bar.end();
    let report = model.report();
    say_setup(&name, &report.device, &report.why);
    Ok(model)
}

/// The next line of `name`, none at its end; an error inside for one that is not text or is too long, which is skipped.
///
/// # Errors
/// [`Error::Io`].
pub fn bounded_line(input: &mut impl BufRead, name: &str) -> Result<Option<Result<String>>> {
    let (mut bytes, max) = (Vec::new(), MAX_TEXT_BYTES as u64 + 1);
    input.by_ref().take(max).read_until(b'\n', &mut bytes).map_err(Error::io(name))?;
    if bytes.len() as u64 == max && !bytes.ends_with(b"\n") {
        input.skip_until(b'\n').map_err(Error::io(name))?;
    }
    Ok((!bytes.is_empty()).then(|| utf8(name, bytes)))
}

/// The texts that `--text` stands for: itself, or one per line of stdin (`-`) or of a file (`@FILE`). Empty lines are
/// passed over.
///
/// # Errors
/// As [`read_prompt`].
pub fn read_texts(given: &[String]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for text in given {
        let read = read_prompt(text)?;
        if text == "-" || text.starts_with('@') {
            texts.extend(read.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        } else {
            texts.push(read);
        }
    }
    Ok(texts)
}

/// The tokens of texts, each checked.
///
/// # Errors
/// Those of [`BitGen::tokens`], and [`Error::Argument`] for a text with too many tokens, or none.
pub fn tokens(model: &BitGen, texts: &[String]) -> Result<Vec<Vec<u32>>> {
    let max = model.sizes().positions;
    let of = |text: &String| {
        let tokens = model.tokens(text)?;
        let n = tokens.len();
        let refused = || Error::argument(format!("text {text:?}"), format!("has {n} tokens, expected 1..={max}"));
        if (1..=max).contains(&n) { Ok(tokens) } else { Err(refused()) }
    };
    texts.iter().map(of).collect()
}
