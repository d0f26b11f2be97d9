//! BitGen, stage 1: an image encoder and token embeddings that share a space, their fusion, an episodic memory, a text
//! encoder, and a ternary decoder that writes captions.
//!
//! In reading order: this file (the forward pass), `config` (sizes and settings), `file` (the family, and what the tools
//! around files ask). The decoder is in [`bitgen`](crate::models::bitgen).

pub(crate) mod config;
pub(crate) mod file;

use std::collections::BTreeSet;

use crate::error::Result;
use crate::files::{ModelFiles, Weights};
use crate::models::bitgen::config::{DINO, IMAGE_SIZE};
use crate::models::bitgen::decoder::{EPS, Embedding, TextDecoder, rows};
use crate::models::bitgen_stage1::config::{BitGenConfig, BitGenSizes, BitGenVision, CNN, READS};
use crate::models::bitgen_stage1::file::{BITGEN, MEMORY_BUFFERS};
use crate::models::layers::{EncoderLayer, LayerNorm, Linear};
use crate::models::load::{LoadOptions, Reads, TensorScope, load_model};
use crate::models::vision::cnn::{CNN_TOKENS, Cnn};
use crate::models::vision::dinov2::{DinoV2, IMAGENET_MEAN, IMAGENET_STD};
use crate::models::{ImageInfo, slots};
use crate::ops::UnaryKind;
use crate::plan::{Plan, PlanBuilder, Slot};
use crate::quant::WeightQuant;
use crate::tensor::{CountedBy, DType, Spec};

/// Minimum of the length that a feature is divided by.
const FEATURE_FLOOR: f32 = 1e-8;
/// Factor of what the memory returns before it is added to the query.
const READ_SCALE: f32 = 0.5;

/// Names of the slots of BitGen's plans, beside [`slots::ROWS`], [`slots::OUTPUTS`], [`slots::PIXELS`] and
/// [`slots::LOGITS`].
pub mod bitgen_slots {
    /// Output `[max_images, d]` of an image plan, `[max_rows, d]` of a feature plan: vectors of length 1 to compare by their
    /// product.
    pub const FEATURES: &str = "features";
    /// Output `[max_images, d]` of an image plan, input `[max_rows, d]` of an encoder plan with images: what each row's text is
    /// fused with.
    pub const IMAGE: &str = "image";
    /// Input `[samples, 2]`: first row and rows of each sample.
    pub const SPANS: &str = "spans";
    /// Input `[slots, d_memory]`: the memory, with noise or without.
    pub const MEMORY: &str = "memory";
    /// Input `[slots]`: what each slot's cosine is multiplied by.
    pub const QUALITY: &str = "quality";
    /// Output `[max_rows, d_memory]`: the memory query of each row, which is also what a write stores.
    pub const QUERY: &str = "query";
    /// Output `[max_rows, 5]`: the slots that each row has read.
    pub const READ: &str = "read";
    /// Output `[max_rows, d]`: the encoded text.
    pub const EMBEDDINGS: &str = "embeddings";
    /// Output `[samples, d]` of an encoder plan: the mean of each sample's embeddings. Input `[max_rows, d]` of a decoder
    /// plan: that of each row's sample.
    pub const CONTEXT: &str = crate::models::bitgen::decoder::CONTEXT;
}

/// Bounds of an encoder step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderShape {
    /// Maximum number of rows.
    pub max_rows: usize,
    /// Maximum number of samples.
    pub max_samples: usize,
    /// Whether text is fused with images.
    pub images: bool,
}

/// The model, as far as names and shapes.
#[derive(Debug)]
pub struct BitGenStage1 {
    sizes: BitGenSizes,
    config: BitGenConfig,
    pub(crate) reads: Reads,
    temperature: f32,
    embedding: Embedding,
    vision: Vision,
    to_embed: Linear,
    text: Modality,
    image: Modality,
    fusion: [Linear; 2],
    memory: MemoryLayers,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    decoder: TextDecoder,
}

#[derive(Debug)]
enum Vision {
    Dino(Box<DinoV2>),
    Cnn(Cnn),
}

/// The projections of one modality into the space of fusion and into that of features.
#[derive(Debug)]
struct Modality {
    transform: Linear,
    transform_itc: Linear,
    pooler_itc: Linear,
}

#[derive(Debug)]
struct MemoryLayers {
    input: Linear,
    output: Linear,
    norm: LayerNorm,
}

impl BitGenStage1 {
    /// Opens the model whose `config.json` is among `files` and whose tensors are `weights`.
    ///
    /// # Errors
    /// As [`crate::models::open`]; [`crate::Error::Unsupported`] for another family, [`crate::Error::Format`] for a number that
    /// is not finite and is used at loading.
    pub fn open(files: impl Into<ModelFiles>, weights: &Weights, options: LoadOptions) -> Result<Self> {
        let files = files.into();
        BITGEN.check(&files, weights)?;
        let (sizes, config) = BitGenConfig::read(&files, weights)?;
        let (model, reads) = load_model(weights, options, WeightQuant::Absmean, |w| Self::load(w, sizes, config))?;
        Ok(Self { reads, ..model })
    }

    fn load(w: &TensorScope, c: BitGenSizes, config: BitGenConfig) -> Self {
        let (d, [d_image, d_vision], fusion) = (c.d, c.image, w.at("cross_modal_fusion"));
        let memory = w.at("episodic_memory");
        let linear = |w: &TensorScope, name: &str, d_out, d_in| Linear::load(&w.at(name), d_out, d_in);
        let modality = |side: &str, d_in| Modality {
            transform: linear(&fusion, &format!("cross_modal_{side}_transform"), d, d_in),
            transform_itc: linear(&fusion, &format!("cross_modal_{side}_transform_itc"), d, d_in),
            pooler_itc: linear(&fusion, &format!("cross_modal_{side}_pooler_itc.0"), d, d),
        };
        let (gpm, [n, d_memory]) = (memory.at("gpm"), c.memory);
        gpm.values("memory_mean", &[n, d_memory]);
        gpm.values("memory_logvar", &[1]);
        MEMORY_BUFFERS.iter().for_each(|name| drop(gpm.values(name, &[n])));
        BitGenStage1 {
            sizes: c,
            config,
            reads: Reads::new(),
            temperature: fusion.values("temperature", &[]).first().copied().unwrap_or(1.0),
            embedding: Embedding::load(w, c.vocab, c.positions, d),
            vision: match c.vision {
                BitGenVision::Dino(dino) => Vision::Dino(Box::new(DinoV2::load(&w.at(DINO), dino, IMAGE_SIZE))),
                BitGenVision::Cnn(channels) => Vision::Cnn(Cnn::load(&w.at(CNN), channels)),
            },
            to_embed: linear(&fusion, "vision_to_embed", d_vision, d_image),
            text: modality("text", d),
            image: modality("image", d_vision),
            fusion: [
                linear(&fusion, "fusion_mlp.0", c.fusion_ff, 2 * d),
                linear(&fusion, "fusion_mlp.3", d, c.fusion_ff),
            ],
            memory: MemoryLayers {
                input: linear(&memory, "input_proj", d_memory, d),
                output: linear(&memory, "output_proj", d, d_memory),
                norm: LayerNorm::load(&memory.at("layer_norm"), d, EPS),
            },
            layers: (0..c.layers).map(|i| encoder_layer(&w.at("attention_layers").at(i), &c)).collect(),
            norm: LayerNorm::load(&w.at("layer_norm"), d, EPS),
            decoder: TextDecoder::load(&w.at("text_decoder"), &c.decoder()),
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &BitGenConfig {
        &self.config
    }

    /// The model's sizes.
    pub fn sizes(&self) -> &BitGenSizes {
        &self.sizes
    }

    /// The tensors that features of images and texts are made of, and what else lies beside them.
    pub fn feature_tensors(&self) -> BTreeSet<String> {
        let places = ["cross_modal_fusion.", "token_embedding.", "pos_embedding."];
        self.reads.keys().filter(|name| places.iter().any(|place| name.starts_with(place))).cloned().collect()
    }

    /// What similarities are divided by, as it was trained.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// How the model reads images.
    pub fn image_info(&self) -> ImageInfo {
        let (mean, std) = (IMAGENET_MEAN, IMAGENET_STD);
        ImageInfo { size: IMAGE_SIZE, tokens: self.image_tokens()[1], width: self.sizes.d, mean, std }
    }

    /// Rows of the image encoder's result that are not patches, and those that are.
    fn image_tokens(&self) -> [usize; 2] {
        match self.sizes.vision {
            BitGenVision::Dino(dino) => [1, (IMAGE_SIZE / dino.patch).pow(2)],
            BitGenVision::Cnn(_) => [0, CNN_TOKENS],
        }
    }

    /// Records the encoding of images, a leading row each: their features, and what text is fused with.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_image(&self, max_images: usize) -> Result<Plan> {
        let p = PlanBuilder::new();
        let pixels = Spec::counted(&[max_images, 3, IMAGE_SIZE, IMAGE_SIZE], DType::F32, CountedBy::Rows);
        let pixels = p.input(slots::PIXELS, pixels);
        let x = match &self.vision {
            Vision::Dino(dino) => dino.record(&p, pixels),
            Vision::Cnn(cnn) => cnn.record(&p, pixels),
        };
        let v = p.tag("vision_features", self.to_embed.apply(&p, x, None)); // [images, front + n, d_vision]
        let [front, n] = self.image_tokens();
        let spans = move || (0..max_images).flat_map(|i| [i * (front + n) + front, n].map(|v| v as u32)).collect();
        let spec = Spec::counted(&[max_images, 2], DType::U32, CountedBy::Rows);
        let patches = p.constant(&format!("patches of {max_images}"), spec, spans);
        let common = p.tag("image_common", self.image.transform.apply(&p, v, None)); // [images, front + n, d]
        p.output(bitgen_slots::IMAGE, p.span_mean(common, patches)); // [images, d]
        let x = p.span_mean(self.image.transform_itc.apply(&p, v, None), patches);
        p.output(bitgen_slots::FEATURES, self.image.features(&p, x));
        p.finish()
    }

    /// Records the features of texts, a row each: a text's first token is all that they depend on.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_features(&self, max_rows: usize) -> Result<Plan> {
        let p = PlanBuilder::new();
        let rows = rows(&p, max_rows);
        let x = self.embedding.record(&p, rows);
        let x = self.text.transform_itc.apply(&p, x, None);
        p.output(bitgen_slots::FEATURES, self.text.features(&p, x));
        p.finish()
    }

    /// Records the encoding of texts, beside images or not: fusion, memory, encoder.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_encoder(&self, shape: &EncoderShape) -> Result<Plan> {
        let p = PlanBuilder::new();
        let rows = rows(&p, shape.max_rows);
        let spans =
            p.input(bitgen_slots::SPANS, Spec::counted(&[shape.max_samples, 2], DType::U32, CountedBy::Outputs));
        let mut x = self.embedding.record(&p, rows); // [rows, d]
        if shape.images {
            let image = Spec::counted(&[shape.max_rows, self.sizes.d], DType::F32, CountedBy::Rows);
            let t = p.tag("text_common", self.text.transform.apply(&p, x, None));
            let both = p.concat(t, p.input(bitgen_slots::IMAGE, image)); // [rows, 2·d]
            let h = p.unary(self.fusion[0].apply(&p, both, None), UnaryKind::Relu);
            x = p.tag("fused", self.fusion[1].apply(&p, h, None));
        }
        p.tag("memory.in", x);
        x = self.read_memory(&p, x);
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("encoder.{i}"));
            x = p.tag(format!("encoder.{i}.out"), layer.record(&p, x, Some(rows)));
        }
        let x = p.tag(bitgen_slots::EMBEDDINGS, self.norm.apply(&p, x));
        p.output(bitgen_slots::EMBEDDINGS, x);
        p.output(bitgen_slots::CONTEXT, p.span_mean(x, spans));
        p.finish()
    }

    /// Records a step of the decoder over all tokens so far: its activations have one scale over all rows, so that logits
    /// depend on which rows there are.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn record_decoder(&self, max_rows: usize, max_outputs: usize) -> Result<Plan> {
        self.decoder.plan(&self.embedding, max_rows, max_outputs)
    }

    /// x `[rows, d]` with what the memory returns.
    fn read_memory(&self, p: &PlanBuilder, x: Slot) -> Slot {
        let [n, d_memory] = self.sizes.memory;
        let memory = p.input(bitgen_slots::MEMORY, Spec::fixed(&[n, d_memory], DType::F32));
        let quality = p.input(bitgen_slots::QUALITY, Spec::fixed(&[n], DType::F32));
        let q = p.tag("memory.x_proj", self.memory.input.apply(p, x, None)); // [rows, d_memory]
        let [read, slots, weights] = p.memory_read(q, memory, quality, READS);
        p.tag("memory.retrieved", read);
        p.tag("memory.topk_indices", slots);
        p.tag("memory.weights", weights);
        p.output(bitgen_slots::QUERY, q);
        p.output(bitgen_slots::READ, slots);
        let g = p.affine(p.unary(read, UnaryKind::Scale(READ_SCALE)), None, None, Some(q));
        let g = p.tag("memory.gpm_out", g);
        p.tag("memory.out", self.memory.norm.apply(p, self.memory.output.apply(p, g, Some(x))))
    }
}

impl Modality {
    /// Features `[n, d]` of what `transform_itc` has made.
    fn features(&self, p: &PlanBuilder, x: Slot) -> Slot {
        let x = p.unary(self.pooler_itc.apply(p, x, None), UnaryKind::Tanh);
        p.l2_norm(x, FEATURE_FLOOR)
    }
}

/// PyTorch's `TransformerEncoderLayer`, its norms behind the residuals.
fn encoder_layer(w: &TensorScope, c: &BitGenSizes) -> EncoderLayer {
    let (d, attention) = (c.d, w.at("self_attn"));
    EncoderLayer {
        heads: c.heads(),
        qkv: Linear::in_proj(&attention, d),
        out: Linear::load(&attention.at("out_proj"), d, d),
        ff: [Linear::load(&w.at("linear1"), c.ff, d), Linear::load(&w.at("linear2"), d, c.ff)],
        activation: UnaryKind::Relu,
        norms: ["norm1", "norm2"].map(|name| LayerNorm::load(&w.at(name), d, EPS)),
        norm_first: false,
        scales: None,
    }
}
