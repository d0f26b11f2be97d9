//! BitGenModel, the full robot model: text and images fused, an episodic memory, attention with a cache of keys, steps of
//! reasoning, and the choice of robots for a task. All projections but the LSTM's are BitNetLinears.
//!
//! In reading order: this file (the forward pass, and the memory), `fusion` (of text and images), `reasoning` (its steps,
//! and the choice of robots), `config` (sizes), `file` (the family, and what the tools around files ask). The text decoder
//! is in [`bitgen`](crate::models::bitgen).

pub(crate) mod config;
pub(crate) mod file;
pub(crate) mod fusion;
pub(crate) mod reasoning;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::files::{ModelFiles, Weights};
use crate::models::bitgen::config::IMAGE_SIZE;
use crate::models::bitgen::decoder::{BitNet, EPS, Embedding, TextDecoder, rows};
use crate::models::layers::LayerNorm;
use crate::models::load::{ComputedTensor, LoadOptions, Reads, Tensor, TensorScope, load_model};
use crate::models::robot::config::RobotSizes;
use crate::models::robot::file::ROBOTS;
use crate::models::robot::fusion::{Fusion, whole};
use crate::models::robot::reasoning::{Reasoning, Selector};
use crate::models::vision::dinov2::{IMAGENET_MEAN, IMAGENET_STD};
use crate::models::{ImageInfo, slots};
use crate::ops::{AttentionShape, Columns};
use crate::plan::{Plan, PlanBuilder, Slot};
use crate::quant::WeightQuant;
use crate::tensor::{CountedBy, DType, Spec};

/// Names of the slots of BitGenModel's plans, beside [`slots::ROWS`], [`slots::OUTPUTS`], [`slots::PIXELS`] and
/// [`slots::LOGITS`].
pub mod robot_slots {
    /// Input `[rows, 1]`: to which place of the keys' states each row's keys go, or a place of an image's patches; numbers
    /// behind the last place store nothing.
    pub const PLACES: &str = "places";
    /// Input `[rows, 1]`: the sample of each row.
    pub const OF_SAMPLE: &str = "of_sample";
    /// Input `[samples, 2]`: first row and rows of each sample.
    pub const SPANS: &str = "spans";
    /// Input `[samples, 1]`: the first row of each sample.
    pub const FIRST: &str = "first";
    /// Input `[rows, 4]`: [`crate::ops::Row`]s that span the patches of their sample's image.
    pub const PATCH_ROWS: &str = "patch_rows";
    /// Input `[rows, keys]` of a masked plan: what is added to the score of each of a row's keys.
    pub const MASK: &str = "mask";
    /// Input `[samples, 2]`: which of [`STATES`] count, the first and how many.
    pub const COUNTED: &str = "counted";
    /// Output `[samples, d]`: of an image plan the images' features, of a plan with images the texts'.
    pub const FEATURES: &str = "features";
    /// State `[samples · steps, h]`: the output of each step of reasoning, a sample's steps in order.
    pub const STATES: &str = "reasoning.states";
    /// State `[samples · steps, 2]`: logits of each step's confidence and of its gate. The node that writes it last ends the
    /// first part of a plan.
    pub const SIGNS: &str = "reasoning.signs";
    /// State `[samples · robots, 1]`: each robot's score. The node that writes it last ends the second part of a plan;
    /// behind it the logits of those rows are computed that [`crate::models::slots::OUTPUTS`] names.
    pub const SCORES: &str = "robot.scores";
    /// Output `[rows, d]`: text behind the last norm.
    pub const EMBEDDINGS: &str = "embeddings";
    /// Output `[samples, d]` of a forward plan: the mean of each sample's embeddings. Input `[rows, d]` of a decoder plan:
    /// that of each row's sample.
    pub const CONTEXT: &str = crate::models::bitgen::decoder::CONTEXT;

    /// States `[samples · keys, inner]`: keys and values of attention layer `i`, its heads side by side, a sample's keys
    /// behind one another.
    pub fn keys(i: usize) -> [String; 2] {
        [format!("robot.{i}.k"), format!("robot.{i}.v")]
    }
}

/// Bounds of a forward step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardShape {
    /// Maximum number of samples.
    pub samples: usize,
    /// Maximum number of rows of all samples together.
    pub rows: usize,
    /// Maximum number of keys of a sample.
    pub keys: usize,
    /// Maximum number of rows whose logits are wanted at once.
    pub outputs: usize,
    /// Whether text is fused with images.
    pub images: bool,
    /// Whether there is a mask; without one each row attends to its span of keys.
    pub masked: bool,
}

/// The model, as far as names and shapes.
#[derive(Debug)]
pub struct BitGenModel {
    sizes: RobotSizes,
    pub(crate) config: Map<String, Value>,
    pub(crate) reads: Reads,
    embedding: Embedding,
    fusion: Fusion,
    memory: Memory,
    layers: Vec<Layer>,
    reasoning: Reasoning,
    norm: LayerNorm,
    output: BitNet,
    selector: Selector,
    decoder: TextDecoder,
}

/// The episodic memory: attention over keys and values that were learned. Keys may be of another width than text and
/// values.
#[derive(Debug)]
struct Memory {
    key: BitNet,
    /// `[slots, d_memory]`.
    keys: Tensor,
    /// `[d, slots]`: a column for each slot, as a product with the slots' weights reads them.
    values: ComputedTensor,
    output: BitNet,
}

/// An attention layer, without residual and without norm.
#[derive(Debug)]
struct Layer {
    qkv: BitNet,
    out: BitNet,
}

impl BitGenModel {
    /// Opens the model whose `config.json` is among `files` and whose tensors are `weights`.
    ///
    /// # Errors
    /// As [`crate::models::open`]; [`crate::Error::Unsupported`] for another family.
    pub fn open(files: impl Into<ModelFiles>, weights: &Weights, options: LoadOptions) -> Result<Self> {
        let files = files.into();
        ROBOTS.check(&files, weights)?;
        let (sizes, config) = RobotSizes::read(&files, weights)?;
        let (model, reads) = load_model(weights, options, WeightQuant::Absmean, |w| Self::load(w, sizes, config))?;
        Ok(Self { reads, ..model })
    }

    fn load(w: &TensorScope, c: RobotSizes, config: Map<String, Value>) -> Self {
        let (d, inner) = (c.d, c.kv_width());
        let layer = |w: &TensorScope| Layer {
            qkv: BitNet::load(w, &["q_proj", "k_proj", "v_proj"], inner, d),
            out: BitNet::load(w, &["out_proj"], d, inner),
        };
        BitGenModel {
            embedding: Embedding::load(w, c.vocab, c.positions, d),
            fusion: Fusion::load(&w.at("cross_modal_fusion"), &c),
            memory: Memory::load(&w.at("episodic_memory"), &c),
            layers: (0..c.layers).map(|i| layer(&w.at("attention_layers").at(i))).collect(),
            reasoning: Reasoning::load(&w.at("reasoning_module"), &c),
            norm: LayerNorm::load(&w.at("layer_norm"), d, EPS),
            output: BitNet::load(w, &["output_projection"], c.vocab, d),
            selector: Selector::load(&w.at("robot_selector"), &c),
            decoder: TextDecoder::load(&w.at("text_decoder"), &c.decoder()),
            sizes: c,
            config,
            reads: Reads::new(),
        }
    }

    /// The model's sizes.
    pub fn sizes(&self) -> &RobotSizes {
        &self.sizes
    }

    /// How the model reads images.
    pub fn image_info(&self) -> ImageInfo {
        let (size, tokens) = (IMAGE_SIZE, self.sizes.patches());
        ImageInfo { size, tokens, width: self.sizes.d_vision, mean: IMAGENET_MEAN, std: IMAGENET_STD }
    }

    /// Records the encoding of one of at most `samples` images, up to its patches.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_patches(&self, samples: usize) -> Result<Plan> {
        let p = PlanBuilder::new();
        let pixels = p.input(slots::PIXELS, Spec::fixed(&[1, 3, IMAGE_SIZE, IMAGE_SIZE], DType::F32));
        self.fusion.record_patches(&p, pixels, &self.sizes, samples);
        p.finish()
    }

    /// Records what the patches of the images become that text is fused with. Rows are patches, outputs are images.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_images(&self, samples: usize) -> Result<Plan> {
        let p = PlanBuilder::new();
        self.fusion.record_images(&p, &self.sizes, samples);
        p.finish()
    }

    /// Records a forward step, in three parts: up to the last step of reasoning, after which the caller decides how many
    /// count; up to the robots' scores; and the logits, which may run several times. Outputs are samples in the first two
    /// parts, and rows in the last.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_forward(&self, shape: &ForwardShape) -> Result<Plan> {
        let (p, c) = (PlanBuilder::new(), &self.sizes);
        let rows = rows(&p, shape.rows);
        let of_sample = p.input(robot_slots::OF_SAMPLE, Spec::counted(&[shape.rows, 1], DType::U32, CountedBy::Rows));
        let spans = p.input(robot_slots::SPANS, Spec::counted(&[shape.samples, 2], DType::U32, CountedBy::Outputs));
        let mut x = self.embedding.record(&p, rows); // [rows, d]
        if shape.images {
            let _scope = p.scope("fusion");
            x = self.fusion.apply(&p, x, of_sample, c, shape.samples);
        }
        x = self.read_memory(&p, p.tag("fused", x));
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("attention.{i}"));
            x = p.tag(format!("attn.{i}.out"), layer.record(&p, x, rows, i, c.heads(), shape));
        }
        let reasoned = self.reasoning.record(&p, p.span_mean(x, spans), c, shape.samples);
        x = p.affine(x, None, None, Some(p.select_rows(reasoned, of_sample)));
        x = self.norm.apply(&p, p.tag("reasoning.out", x));
        p.output(robot_slots::EMBEDDINGS, p.tag("final_ln.out", x));
        let means = p.span_mean(x, spans);
        p.output(robot_slots::CONTEXT, means);
        self.selector.record(&p, means, c, shape.samples);
        let outputs = p.input(slots::OUTPUTS, Spec::counted(&[shape.outputs, 1], DType::U32, CountedBy::Outputs));
        p.output(slots::LOGITS, self.output.apply_to(&p, x, outputs)); // [outputs, vocab]
        p.finish()
    }

    /// Records a step of the decoder over all tokens so far.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_decoder(&self, max_rows: usize, max_outputs: usize) -> Result<Plan> {
        self.decoder.plan(&self.embedding, max_rows, max_outputs)
    }

    /// x `[rows, d]` with what the memory returns.
    fn read_memory(&self, p: &PlanBuilder, x: Slot) -> Slot {
        let _scope = p.scope("memory");
        let one_head = AttentionShape { heads: 1, kv_heads: 1, d: self.sizes.memory[1] };
        let q = self.memory.key.apply(p, x, None); // [rows, d_memory]
        let weights = p.attention_weights(whole(q), whole(self.memory.keys.slot(p)), one_head); // [rows, slots]
        let x = p.matmul(weights, self.memory.values.slot(p), None, Some(x)); // [rows, d]
        p.tag("memory.out", self.memory.output.apply(p, x, None))
    }
}

impl Memory {
    fn load(w: &TensorScope, c: &RobotSizes) -> Self {
        let (d, [slots, width]) = (c.d, c.memory);
        let values = w.values("memory_values", &[slots, d]);
        let columns = (0..d).flat_map(|i| values.iter().copied().skip(i).step_by(d)).collect();
        Memory {
            key: BitNet::load(w, &["key_proj"], width, d),
            keys: w.dense("memory_keys", &[slots, width]),
            values: ComputedTensor::new("memory values", &[d, slots], columns),
            output: BitNet::load(w, &["output_proj"], d, d),
        }
    }
}

impl Layer {
    fn record(
        &self,
        p: &PlanBuilder,
        x: Slot,
        rows: Slot,
        i: usize,
        heads: AttentionShape,
        shape: &ForwardShape,
    ) -> Slot {
        let inner = heads.heads * heads.d;
        let places = p.input(robot_slots::PLACES, Spec::counted(&[shape.rows, 1], DType::U32, CountedBy::Rows));
        let qkv = self.qkv.apply(p, x, None); // [rows, 3·inner]
        let state = |name: &String| p.state(name, Spec::fixed(&[shape.samples * shape.keys, inner], DType::F32));
        let [k, v] = robot_slots::keys(i).each_ref().map(state);
        p.store_rows(Columns { slot: qkv, at: inner }, places, k);
        p.store_rows(Columns { slot: qkv, at: 2 * inner }, places, v);
        let [q, k, v] = [qkv, k, v].map(whole);
        let a = if shape.masked {
            let mask = Spec::counted(&[shape.rows, shape.keys], DType::F32, CountedBy::Rows);
            p.masked_attention([q, k, v], rows, p.input(robot_slots::MASK, mask), heads)
        } else {
            p.row_attention(q, k, v, rows, heads)
        };
        self.out.apply(p, a, None)
    }
}
