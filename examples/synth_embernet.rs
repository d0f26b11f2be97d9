//! Writes a checkpoint with EmberNet's full sizes and random weights, in the files and formats of the original:
//! `pytorch_model.bin` (a torch zip archive, 3.4 GB), `config.json`, and a small `tokenizer.json`.
//!
//! `cargo run --release --example synth_embernet -- DIR [--layers N] [--vision-layers N]`
//!
//! For measuring load time, memory and speed: what such a model says is noise. The same seed writes the same file.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ternion::tools::synthetic::about_normal;
use ternion::unstable::threads;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

#[derive(Parser)]
#[command(about = "Writes a full-size EmberNet checkpoint with random weights")]
struct Args {
    /// Directory to write to.
    dir: PathBuf,
    /// Decoder layers.
    #[arg(long, default_value_t = 16)]
    layers: usize,
    /// Layers of the image encoder.
    #[arg(long, default_value_t = 12)]
    vision_layers: usize,
    /// Seed of the random weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const D: usize = 768;
const KV: usize = 384;
const FFN: usize = 2048;
const MLP: usize = 3072;
const VOCAB: usize = 32002;
const POSITIONS: usize = 4096;
const HEAD: usize = 64;
const EXPERTS: usize = 8;
const IMAGE_TOKENS: usize = 64;
/// Ids of the small tokenizer that are text.
const SPELLED: std::ops::Range<usize> = 4..512;

/// What a tensor is filled with.
#[derive(Clone, Copy)]
enum Fill {
    /// `mean + std · (about normal)`.
    Normal { mean: f32, std: f32 },
    /// The embedding, which is the head too. Rows that the small tokenizer can spell are larger, so that they win there
    /// and the model's noise can be read.
    Embedding,
    /// A table or a counter that the original saves beside the weights: element `i` of it.
    Buffer(fn(usize) -> f32),
    /// The storage of an earlier tensor.
    Same(usize),
}

impl Fill {
    fn element(self, seed: u64, i: usize) -> f32 {
        match self {
            Fill::Normal { mean, std } => mean + std * about_normal(seed, i as u64),
            Fill::Embedding if SPELLED.contains(&(i / D)) => 0.05 * about_normal(seed, i as u64),
            Fill::Embedding => 0.02 * about_normal(seed, i as u64),
            Fill::Buffer(value) => value(i),
            // Never asked for: what shares a storage is not written.
            Fill::Same(_) => 0.0,
        }
    }
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_parameter(&self) -> bool {
        matches!(self.fill, Fill::Normal { .. } | Fill::Embedding)
    }
}

/// The state dict, in the order in which the original's modules list it.
#[derive(Default)]
struct StateDict(Vec<Tensor>);

impl StateDict {
    fn add(&mut self, name: String, shape: &[usize], fill: Fill) {
        self.0.push(Tensor { name, shape: shape.to_vec(), fill });
    }

    fn weight(&mut self, name: &str, shape: &[usize]) {
        self.add(name.into(), shape, Fill::Normal { mean: 0.0, std: 0.02 });
    }

    fn norm(&mut self, name: &str, d: usize) {
        self.add(format!("{name}.weight"), &[d], Fill::Normal { mean: 1.0, std: 0.1 });
    }

    fn layer_norm(&mut self, name: &str) {
        self.norm(name, D);
        self.weight(&format!("{name}.bias"), &[D]);
    }

    fn linear(&mut self, name: &str, out: usize, inp: usize) {
        self.weight(&format!("{name}.weight"), &[out, inp]);
        self.weight(&format!("{name}.bias"), &[out]);
    }

    fn bit_linear(&mut self, name: &str, out: usize, inp: usize) {
        self.weight(&format!("{name}.weight"), &[out, inp]);
        self.norm(&format!("{name}.norm"), inp);
    }

    fn multihead(&mut self, name: &str) {
        self.weight(&format!("{name}.in_proj_weight"), &[3 * D, D]);
        self.weight(&format!("{name}.in_proj_bias"), &[3 * D]);
        self.linear(&format!("{name}.out_proj"), D, D);
    }

    fn expert(&mut self, name: &str) {
        self.bit_linear(&format!("{name}.gate_proj"), FFN, D);
        self.bit_linear(&format!("{name}.up_proj"), FFN, D);
        self.bit_linear(&format!("{name}.down_proj"), D, FFN);
    }

    fn siglip(&mut self, layers: usize) {
        let at = "vision_encoder.encoder.vision_model";
        self.weight(&format!("{at}.embeddings.patch_embedding.weight"), &[D, 3, 16, 16]);
        self.weight(&format!("{at}.embeddings.patch_embedding.bias"), &[D]);
        self.weight(&format!("{at}.embeddings.position_embedding.weight"), &[196, D]);
        for i in 0..layers {
            let layer = format!("{at}.encoder.layers.{i}");
            self.layer_norm(&format!("{layer}.layer_norm1"));
            for projection in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                self.linear(&format!("{layer}.self_attn.{projection}"), D, D);
            }
            self.layer_norm(&format!("{layer}.layer_norm2"));
            self.linear(&format!("{layer}.mlp.fc1"), MLP, D);
            self.linear(&format!("{layer}.mlp.fc2"), D, MLP);
        }
        self.layer_norm(&format!("{at}.post_layernorm"));
        // The pooling head: saved by the original, never used.
        self.weight(&format!("{at}.head.probe"), &[1, 1, D]);
        self.multihead(&format!("{at}.head.attention"));
        self.layer_norm(&format!("{at}.head.layernorm"));
        self.linear(&format!("{at}.head.mlp.fc1"), MLP, D);
        self.linear(&format!("{at}.head.mlp.fc2"), D, MLP);
    }

    fn bridge(&mut self) {
        let at = "vision_encoder";
        self.norm(&format!("{at}.compressor.pre_norm"), 4 * D);
        self.linear(&format!("{at}.compressor.proj"), D, 4 * D);
        self.norm(&format!("{at}.compressor.post_norm"), D);
        self.weight(&format!("{at}.pooler.queries"), &[1, IMAGE_TOKENS, D]);
        self.multihead(&format!("{at}.pooler.attn"));
        self.norm(&format!("{at}.pooler.norm"), D);
        self.weight(&format!("{at}.projector.query_tokens"), &[1, IMAGE_TOKENS, D]);
        self.bit_linear(&format!("{at}.projector.vision_proj"), D, D);
        for i in 0..2 {
            self.multihead(&format!("{at}.projector.cross_attn_layers.{i}"));
        }
        self.bit_linear(&format!("{at}.projector.ffn.0"), 4 * D, D);
        self.bit_linear(&format!("{at}.projector.ffn.2"), D, 4 * D);
        self.norm(&format!("{at}.projector.ln_q"), D);
        self.norm(&format!("{at}.projector.ln_ff"), D);
    }

    fn decoder(&mut self, layers: usize) {
        let embedding = self.0.len();
        self.add("decoder.embed_tokens.weight".into(), &[VOCAB, D], Fill::Embedding);
        for i in 0..layers {
            let layer = format!("decoder.layers.{i}");
            self.norm(&format!("{layer}.input_layernorm"), D);
            for (projection, out) in [("q_proj", D), ("k_proj", KV), ("v_proj", KV), ("o_proj", D)] {
                self.bit_linear(&format!("{layer}.attention.{projection}"), out, D);
            }
            let rope = format!("{layer}.attention.rotary_emb");
            self.add(format!("{rope}.inv_freq"), &[HEAD / 2], Fill::Buffer(inv_freq));
            self.add(format!("{rope}.cos_cache"), &[POSITIONS, HEAD], Fill::Buffer(|i| angle(i).cos()));
            self.add(format!("{rope}.sin_cache"), &[POSITIONS, HEAD], Fill::Buffer(|i| angle(i).sin()));
            self.norm(&format!("{layer}.post_attention_layernorm"), D);
            self.add(format!("{layer}.moe.expert_usage"), &[EXPERTS], Fill::Buffer(|_| 0.0));
            self.linear(&format!("{layer}.moe.router"), EXPERTS, D);
            for e in 0..EXPERTS {
                self.expert(&format!("{layer}.moe.experts.{e}"));
            }
            self.expert(&format!("{layer}.moe.shared_expert"));
        }
        self.norm("decoder.norm", D);
        self.add("decoder.lm_head.weight".into(), &[VOCAB, D], Fill::Same(embedding));
    }

    /// Parameters (not buffers, not tied ones) whose names begin with one of `prefixes`.
    fn count(&self, prefixes: &[&str]) -> usize {
        let named = |t: &&Tensor| prefixes.iter().any(|p| t.name.starts_with(p));
        self.0.iter().filter(|t| t.is_parameter()).filter(named).map(Tensor::len).sum()
    }

    /// Parameters whose names contain `part`.
    fn count_with(&self, part: &str) -> usize {
        self.0.iter().filter(|t| t.is_parameter() && t.name.contains(part)).map(Tensor::len).sum()
    }
}

fn inv_freq(i: usize) -> f32 {
    1.0 / 10000f32.powf((2 * i) as f32 / HEAD as f32)
}

fn angle(i: usize) -> f32 {
    (i / HEAD) as f32 * inv_freq(i % HEAD % (HEAD / 2))
}

/// The state dict as torch pickles it (protocol 2), inside the trainer's dict.
fn pickle(tensors: &[Tensor]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, s: &str) {
        out.push(b'X');
        out.extend((s.len() as u32).to_le_bytes());
        out.extend(s.as_bytes());
    }
    fn int(out: &mut Vec<u8>, n: usize) {
        out.push(b'J');
        out.extend(i32::try_from(n).expect("every size of this model is small").to_le_bytes());
    }
    fn tuple(out: &mut Vec<u8>, items: &[usize]) {
        out.push(b'(');
        items.iter().for_each(|&n| int(out, n));
        out.push(b't');
    }
    const EMPTY_ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02}(".to_vec();
    text(&mut out, "model_state_dict");
    out.extend(EMPTY_ORDERED_DICT);
    out.push(b'(');
    for (i, t) in tensors.iter().enumerate() {
        text(&mut out, &t.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        let key = if let Fill::Same(first) = t.fill { first } else { i };
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        int(&mut out, t.len());
        out.extend(b"tQ");
        int(&mut out, 0);
        tuple(&mut out, &t.shape);
        let stride = |d: usize| t.shape[d + 1..].iter().product();
        tuple(&mut out, &(0..t.shape.len()).map(stride).collect::<Vec<_>>());
        out.push(0x89); // False: no gradient
        out.extend(EMPTY_ORDERED_DICT);
        out.extend(b"tR");
    }
    out.push(b'u');
    for (key, value) in [("global_step", 1), ("stage", 2), ("epoch", 0)] {
        text(&mut out, key);
        int(&mut out, value);
    }
    text(&mut out, "avg_loss");
    out.push(b'G');
    out.extend(0.5f64.to_be_bytes());
    out.extend(b"u.");
    out
}

/// Writes a tensor's elements, a block at a time.
fn write_elements(out: &mut impl Write, tensor: &Tensor, seed: u64, bar: &ProgressBar) -> std::io::Result<()> {
    const BLOCK: usize = 1 << 20;
    const PIECE: usize = 1 << 14;
    let mut bytes = vec![0u8; 4 * BLOCK.min(tensor.len())];
    for start in (0..tensor.len()).step_by(BLOCK) {
        let block = &mut bytes[..4 * BLOCK.min(tensor.len() - start)];
        threads::shared().map(block.chunks_mut(4 * PIECE).enumerate(), |(p, piece)| {
            for (i, element) in piece.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let at = start + p * PIECE + i;
                *element = tensor.fill.element(seed, at).to_le_bytes();
            }
        });
        out.write_all(block)?;
        bar.inc(block.len() as u64);
    }
    Ok(())
}

fn write_checkpoint(path: &Path, tensors: &[Tensor], seed: u64) -> Result<(), Box<dyn Error>> {
    let stored: Vec<_> = tensors.iter().enumerate().filter(|(_, t)| !matches!(t.fill, Fill::Same(_))).collect();
    let bar = ProgressBar::new(stored.iter().map(|(_, t)| 4 * t.len() as u64).sum());
    bar.set_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?);
    // Plain entries at multiples of 64 bytes, as torch writes them, so that the file can be mapped.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    let options = options.with_alignment(64);
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    zip.start_file("archive/data.pkl", options)?;
    zip.write_all(&pickle(tensors))?;
    for (i, tensor) in stored {
        zip.start_file(format!("archive/data/{i}"), options)?;
        write_elements(&mut zip, tensor, seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ (i as u64) << 40, &bar)?;
    }
    zip.start_file("archive/version", options)?;
    zip.write_all(b"3\n")?;
    zip.finish()?.flush()?;
    bar.finish();
    Ok(())
}

/// The `parameter_counts` of the pushed `config.json`; that the attention has none is the original's own mistake.
fn parameter_counts(state: &StateDict) -> String {
    let part = |name: &str| state.count(&[&format!("vision_encoder.{name}.")]);
    let (encoder, compressor, pooler, projector) =
        (part("encoder"), part("compressor"), part("pooler"), part("projector"));
    let vision = encoder + compressor + pooler + projector;
    let decoder = state.count(&["decoder."]);
    let embeddings = state.count(&["decoder.embed_tokens."]);
    let (router, shared) = (state.count_with(".moe.router."), state.count_with(".moe.shared_expert."));
    let experts = state.count_with(".moe.experts.");
    format!(
        r#"{{
    "vision_encoder": {vision},
    "vision_encoder_breakdown": {{
      "encoder": {encoder},
      "compressor": {compressor},
      "pooler": {pooler},
      "projector": {projector}
    }},
    "decoder_total": {decoder},
    "decoder_embeddings": {embeddings},
    "decoder_attention": 0,
    "decoder_router": {router},
    "decoder_shared_expert": {shared},
    "decoder_domain_experts": {experts},
    "num_domain_experts": {EXPERTS}
  }}"#
    )
}

/// `config.json` as the original's code pushes it; `activation_bits` and `torch_dtype` are wrong there too.
fn config(state: &StateDict, layers: usize) -> String {
    format!(
        r#"{{
  "model_type": "embernet_vlm",
  "architecture": "BitNet b1.58 MoE VLM",
  "vision_encoder": {{
    "model_name": "google/siglip-base-patch16-224",
    "num_image_tokens": {IMAGE_TOKENS},
    "freeze_vision": true
  }},
  "language_decoder": {{
    "vocab_size": {VOCAB},
    "hidden_size": {D},
    "intermediate_size": {FFN},
    "num_layers": {layers},
    "num_attention_heads": {heads},
    "num_kv_heads": {kv_heads},
    "max_position_embeddings": {POSITIONS},
    "num_experts": {EXPERTS},
    "num_experts_per_tok": 2,
    "use_shared_expert": true,
    "expert_domains": [
      "vision_ocr",
      "vision_diagram",
      "code_math_chart",
      "code_math_formula",
      "spatial_scene",
      "spatial_reasoning",
      "agentic_knowledge",
      "agentic_reasoning"
    ],
    "quantisation": "BitNet b1.58 (ternary)",
    "activation_bits": 4
  }},
  "torch_dtype": "bfloat16",
  "transformers_version": ">=4.36.0",
  "parameter_counts": {counts}
}}
"#,
        heads = D / HEAD,
        kv_heads = KV / HEAD,
        counts = parameter_counts(state),
    )
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    fs::create_dir_all(&args.dir)?;
    let mut state = StateDict::default();
    state.weight("image_newline", &[D]);
    state.siglip(args.vision_layers);
    state.bridge();
    state.decoder(args.layers);
    fs::write(args.dir.join("config.json"), config(&state, args.layers))?;
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer.json");
    fs::copy(tokenizer, args.dir.join("tokenizer.json"))?;
    let file = args.dir.join("pytorch_model.bin");
    write_checkpoint(&file, &state.0, args.seed)?;
    println!("{}: {} tensors, {} parameters", file.display(), state.0.len(), state.count(&[""]));
    Ok(())
}
