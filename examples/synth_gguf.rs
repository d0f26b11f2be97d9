//! Writes a GGUF file with the sizes of a published Qwen3 model and random weights: every matrix in blocks of 128 codes,
//! Q1_0 or Q2_0 in its older form with groups of 128, with a made-up vocabulary.
//!
//! `cargo run --release --example synth_gguf -- FILE [--shape NAME] [--layers N]`
//!
//! For measuring load time, memory and speed: what such a model says is noise. The same seed writes the same file.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ternion::tools::synthetic::{DenseForm, DenseModel, PublishedModel, about_normal};
use ternion::unstable::ops::split_mix;
use ternion::unstable::threads;

#[derive(Parser)]
#[command(about = "Writes a GGUF file of a published Qwen3 model's sizes with random weights")]
struct Args {
    /// File to write.
    file: PathBuf,
    /// The model: a Bonsai of the names that `ternion help bench` lists.
    #[arg(long, default_value = "ternary-bonsai-8b")]
    shape: PublishedModel,
    /// Layers; default: those of the model.
    #[arg(long)]
    layers: Option<usize>,
    /// Seed of the random weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the data of a tensor begins at multiples of.
const ALIGNMENT: usize = 32;
/// Codes of a block.
const BLOCK: usize = 128;
/// Types by their numbers in the format.
const F32: u32 = 0;
const Q1_0: u32 = 41;
const Q2_0: u32 = 42;
/// The upper bits of 2-bit codes.
const UPPER: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// Names outside of layers: in Hugging Face's checkpoints, and here.
const WHOLE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];
/// Names in a layer.
const LAYER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

struct Tensor {
    name: String,
    /// Rows and columns; a norm has no rows.
    rows: Option<usize>,
    cols: usize,
    type_id: u32,
}

impl Tensor {
    /// Bytes of what is made as one: a number, or a block.
    fn unit(&self) -> usize {
        match self.type_id {
            F32 => 4,
            Q1_0 => 2 + BLOCK / 8,
            _ => 2 + BLOCK / 4,
        }
    }

    fn units(&self) -> usize {
        self.rows.unwrap_or(1) * self.cols / if self.type_id == F32 { 1 } else { BLOCK }
    }

    fn bytes(&self) -> usize {
        self.unit() * self.units()
    }

    /// Writes number or block `i`: a block's scale is between a power of two near `1 / sqrt(cols)` and twice that.
    fn write_unit(&self, seed: u64, i: u64, to: &mut [u8]) {
        if self.type_id == F32 {
            to.copy_from_slice(&(1.0 + 0.1 * about_normal(seed, i)).to_le_bytes());
            return;
        }
        let power = (-0.5 * (self.cols as f64).log2()).floor() as i32;
        let (scale, codes) = to.split_at_mut(2);
        let n = codes.len() as u64 / 8 + 1;
        let mantissa = split_mix(seed, i * n) as u16 & 0x03ff;
        scale.copy_from_slice(&(((power + 15) as u16) << 10 | mantissa).to_le_bytes());
        for (codes, k) in codes.as_chunks_mut::<8>().0.iter_mut().zip(i * n + 1..) {
            let bits = split_mix(seed, k);
            // No code is 3.
            let bits = if self.type_id == Q1_0 { bits } else { bits & !(bits & bits << 1 & UPPER) };
            *codes = bits.to_le_bytes();
        }
    }
}

fn gguf_name(name: &str) -> Option<String> {
    let of = |table: &[(&str, &'static str)], name: &str| table.iter().find(|(n, _)| *n == name).map(|(_, g)| *g);
    match name.strip_prefix("model.layers.") {
        None => of(&WHOLE, name).map(str::to_owned),
        Some(rest) => {
            let (layer, name) = rest.split_once('.')?;
            of(&LAYER, name.strip_suffix(".weight")?).map(|name| format!("blk.{layer}.{name}.weight"))
        }
    }
}

/// The tensors in the order of the file. A norm behind the first table tells a reader how long its blocks are.
fn tensors(model: &DenseModel, type_id: u32) -> Result<Vec<Tensor>, Box<dyn Error>> {
    let norm = |(name, cols): (String, usize)| (name, None, cols, F32);
    let matrix = |(name, [rows, cols]): (String, [usize; 2])| (name, Some(rows), cols, type_id);
    let (mut tables, norms) = (model.tables().into_iter().map(matrix), model.norms().into_iter().map(norm));
    let first: Vec<_> = tables.next().into_iter().collect();
    let all = first.into_iter().chain(norms).chain(model.matrices().into_iter().map(matrix)).chain(tables);
    let named = |(name, rows, cols, type_id): (String, _, _, _)| {
        let name = gguf_name(&name).ok_or_else(|| format!("{name} has no name in these files"))?;
        Ok(Tensor { name, rows, cols, type_id })
    };
    all.map(named).collect()
}

/// Keys and values, each behind the number of its type.
#[derive(Default)]
struct Keys {
    count: u64,
    bytes: Vec<u8>,
}

impl Keys {
    fn put(&mut self, key: &str, type_id: u32, value: &[u8]) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(type_id.to_le_bytes());
        self.bytes.extend(value);
    }

    fn number(&mut self, key: &str, n: usize) -> Result<(), Box<dyn Error>> {
        self.put(key, 4, &u32::try_from(n)?.to_le_bytes());
        Ok(())
    }

    fn float(&mut self, key: &str, x: f64) {
        self.put(key, 6, &(x as f32).to_le_bytes());
    }

    fn text(&mut self, key: &str, text: &str) {
        let mut value = Vec::new();
        put_text(&mut value, text);
        self.put(key, 8, &value);
    }

    fn texts(&mut self, key: &str, texts: &[String]) {
        let mut value = array(8, texts.len());
        texts.iter().for_each(|text| put_text(&mut value, text));
        self.put(key, 9, &value);
    }

    fn integers(&mut self, key: &str, all: &[i32]) {
        let mut value = array(5, all.len());
        all.iter().for_each(|n| value.extend(n.to_le_bytes()));
        self.put(key, 9, &value);
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The beginning of an array.
fn array(type_id: u32, len: usize) -> Vec<u8> {
    [&type_id.to_le_bytes()[..], &(len as u64).to_le_bytes()].concat()
}

/// The keys of a model, with a vocabulary of all bytes, of numbers with a space in front, and of the end of a text.
fn keys(model: &DenseModel) -> Result<Keys, Box<dyn Error>> {
    let (sizes, mut keys) = (&model.sizes, Keys::default());
    keys.text("general.architecture", "qwen3");
    for (key, n) in [
        ("block_count", sizes.layers),
        ("context_length", sizes.max_positions),
        ("embedding_length", sizes.hidden),
        ("feed_forward_length", sizes.ffn),
        ("attention.head_count", sizes.heads),
        ("attention.head_count_kv", sizes.kv_heads),
        ("attention.key_length", sizes.head_dim),
        ("attention.value_length", sizes.head_dim),
    ] {
        keys.number(&format!("qwen3.{key}"), n)?;
    }
    keys.float("qwen3.attention.layer_norm_rms_epsilon", sizes.rms_norm_eps);
    keys.float("qwen3.rope.freq_base", sizes.rope_theta);
    if let Some((factor, original)) = sizes.yarn {
        keys.text("qwen3.rope.scaling.type", "yarn");
        keys.float("qwen3.rope.scaling.factor", factor);
        keys.number("qwen3.rope.scaling.original_context_length", original)?;
    }
    let eos = sizes.eos as usize;
    let token = |id: usize| match u8::try_from(id) {
        Ok(byte) => byte_char(byte).to_string(),
        Err(_) if id == eos => "<|im_end|>".to_owned(),
        Err(_) => format!("\u{120}{id}"),
    };
    keys.text("tokenizer.ggml.model", "gpt2");
    keys.text("tokenizer.ggml.pre", "qwen2");
    keys.texts("tokenizer.ggml.tokens", &(0..sizes.vocab).map(token).collect::<Vec<_>>());
    keys.integers(
        "tokenizer.ggml.token_type",
        &(0..sizes.vocab).map(|id| if id == eos { 3 } else { 1 }).collect::<Vec<_>>(),
    );
    keys.texts("tokenizer.ggml.merges", &[]);
    keys.number("tokenizer.ggml.eos_token_id", eos)?;
    Ok(keys)
}

/// The character that stands for a byte in a byte-level vocabulary: itself where it prints, else one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let prints = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let rank = (0..byte).filter(|byte| !prints(byte)).count() as u32;
    if prints(&byte) { char::from(byte) } else { char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER) }
}

/// What is in front of the tensors' data.
fn header(keys: &Keys, tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(keys.count.to_le_bytes());
    out.extend(&keys.bytes);
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        // The contiguous dimension comes first.
        let dims: Vec<usize> = [Some(tensor.cols), tensor.rows].into_iter().flatten().collect();
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(tensor.type_id.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// Writes a tensor's data, a few megabytes at a time.
fn write_data(out: &mut impl Write, tensor: &Tensor, seed: u64, bar: &ProgressBar) -> std::io::Result<()> {
    const UNITS: usize = 1 << 17;
    const PIECE: usize = 1 << 11;
    let (unit, all) = (tensor.unit(), tensor.units());
    let mut bytes = vec![0u8; unit * UNITS.min(all)];
    for start in (0..all).step_by(UNITS) {
        let block = &mut bytes[..unit * UNITS.min(all - start)];
        threads::shared().map(block.chunks_mut(unit * PIECE).enumerate(), |(piece, bytes)| {
            let first = start + piece * PIECE;
            for (i, bytes) in bytes.chunks_exact_mut(unit).enumerate() {
                tensor.write_unit(seed, (first + i) as u64, bytes);
            }
        });
        out.write_all(block)?;
        bar.inc(block.len() as u64);
    }
    let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
    out.write_all(&[0; ALIGNMENT][..padding])
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let PublishedModel::Dense(mut model) = args.shape else {
        return Err("this model is no Qwen3; give a Bonsai".into());
    };
    let type_id = match model.form {
        DenseForm::Qwen3 { bits: 1 } => Q1_0,
        DenseForm::Qwen3 { .. } => Q2_0,
        DenseForm::BitNet | DenseForm::Llama => return Err("this model is no Qwen3; give a Bonsai".into()),
    };
    model.sizes.layers = args.layers.unwrap_or(model.sizes.layers);
    let tensors = tensors(&model, type_id)?;
    let bar = ProgressBar::new(tensors.iter().map(|t| t.bytes() as u64).sum());
    bar.set_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&args.file)?);
    out.write_all(&header(&keys(&model)?, &tensors))?;
    for (i, tensor) in tensors.iter().enumerate() {
        write_data(&mut out, tensor, args.seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ (i as u64) << 40, &bar)?;
    }
    out.into_inner()?.sync_all()?;
    bar.finish();
    println!("{}: {} tensors, {} bytes of data", args.file.display(), tensors.len(), bar.length().unwrap_or(0));
    Ok(())
}
