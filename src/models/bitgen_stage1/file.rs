//! The family of BitGens of stage 1, and what the tools around files ask of one.

use crate::error::Result;
use crate::models::bitgen::unread::{is_buffer, is_unread};
use crate::models::bitgen_stage1::config::BitGenSizes;
use crate::models::bitgen_stage1::{BitGenStage1, EncoderShape, bitgen_slots};
use crate::models::check_steps::{CheckStep, test_token};
use crate::models::load::Reads;
use crate::models::{Component, Family, Model, slots};
use crate::ops::Row;
use crate::plan::Step;
use crate::tensor::DType;

/// BitGen checkpoints are recognised by their tensor names.
pub static BITGEN: Family = Family {
    name: "BitGen (stage 1)",
    identified_by: "the tensors episodic_memory.gpm.memory_mean and cross_modal_fusion.vision_to_embed.weight",
    open_with: "BitGen::open",
    tokenizer_note: "",
    recognises: |_, weights| Ok(BitGenSizes::recognises(weights)),
    open: |files, weights, options| {
        options.check_fixed(BITGEN.name)?;
        Ok(Box::new(BitGenStage1::open(files, weights, options)?))
    },
};

/// Vectors of the memory beside its slots and the logarithm of their variance, one element per slot.
pub const MEMORY_BUFFERS: [&str; 4] = ["memory_quality", "memory_read_count", "memory_write_count", "memory_age"];
/// Features of the last images and texts of training, `[d, queue]`, to which the contrastive loss compares.
const QUEUES: [&str; 2] = ["cross_modal_fusion.image_queue", "cross_modal_fusion.text_queue"];
/// Tokens of the two texts that the encoders and the decoder read.
const TEXTS: [usize; 2] = [7, 5];

impl Model for BitGenStage1 {
    fn family(&self) -> &'static Family {
        &BITGEN
    }

    fn vocab(&self) -> usize {
        self.sizes().vocab
    }

    fn reads(&self) -> &Reads {
        &self.reads
    }

    fn extras(&self) -> &'static [&'static str] {
        &QUEUES
    }

    fn components(&self) -> Vec<Component> {
        vec![
            ("embeddings", "token_embedding."),
            ("embeddings", "pos_embedding."),
            ("image encoder", "cross_modal_fusion.dinov2_model."),
            ("image encoder", "cross_modal_fusion.vision_encoder."),
            ("fusion and features", "cross_modal_fusion."),
            ("episodic memory", "episodic_memory."),
            ("text encoder", "attention_layers."),
            ("text encoder", "layer_norm."),
            ("text decoder", "text_decoder."),
        ]
    }

    fn ignores(&self, name: &str) -> bool {
        is_unread(name)
    }

    fn counts(&self, name: &str) -> bool {
        let memory = |buffer: &&str| name == format!("episodic_memory.gpm.{buffer}");
        !is_buffer(name) && !MEMORY_BUFFERS.iter().any(memory)
    }

    fn config(&self) -> serde_json::Value {
        serde_json::Value::Object(BitGenStage1::config(self).json.clone())
    }

    /// Two images, features of texts, both encoders with two texts, and a decoder's step of them.
    fn check_steps(&self, _: DType) -> Result<Vec<CheckStep>> {
        let [first, second] = TEXTS.map(|n| n.min(self.sizes().positions));
        let n = first + second;
        let rows = |causal: bool| -> Vec<u32> {
            let row = |base: usize, length: usize, pos: usize| Row {
                token: test_token(self.sizes().vocab, base + pos),
                pos: pos as u32,
                seq_base: base as u32,
                seq_len: if causal { pos + 1 } else { length } as u32,
            };
            let text = |base, length| (0..length).map(move |pos| row(base, length, pos));
            bytemuck::cast_slice(&text(0, first).chain(text(first, second)).collect::<Vec<Row>>()).to_vec()
        };
        let alone: Vec<Row> = (0..n)
            .map(|i| Row { token: test_token(self.sizes().vocab, i), pos: 0, seq_base: i as u32, seq_len: 1 })
            .collect();
        let spans: Vec<u32> = [0, first, first, second].map(|v| v as u32).to_vec();
        let quality = vec![1f32.to_bits(); self.sizes().memory[0]];
        let encoder = |name, images| -> Result<CheckStep> {
            let shape = EncoderShape { max_rows: n, max_samples: 2, images };
            let inputs = vec![
                (slots::ROWS, rows(false)),
                (bitgen_slots::SPANS, spans.clone()),
                (bitgen_slots::QUALITY, quality.clone()),
            ];
            Ok(CheckStep { name, plan: self.record_encoder(&shape)?, step: Step::new(n, 2, first), inputs })
        };
        let ends = vec![first as u32 - 1, n as u32 - 1];
        Ok(vec![
            CheckStep {
                name: "image",
                plan: self.record_image(2)?,
                step: Step::new(2, 2, self.image_info().tokens),
                inputs: Vec::new(),
            },
            CheckStep {
                name: "features",
                plan: self.record_features(n)?,
                step: Step::new(n, n, 1),
                inputs: vec![(slots::ROWS, bytemuck::cast_slice(&alone).to_vec())],
            },
            encoder("text", false)?,
            encoder("text and image", true)?,
            CheckStep {
                name: "decoder",
                plan: self.record_decoder(n, 2)?,
                step: Step::new(n, 2, first),
                inputs: vec![(slots::ROWS, rows(true)), (slots::OUTPUTS, ends)],
            },
        ])
    }
}
