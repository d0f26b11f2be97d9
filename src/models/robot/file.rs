//! The family of BitGenModels, and what the tools around files ask of one.

use crate::error::Result;
use crate::models::bitgen::unread::{is_buffer, is_unread};
use crate::models::check_steps::{CheckStep, test_token};
use crate::models::load::Reads;
use crate::models::robot::config::RobotSizes;
use crate::models::robot::{BitGenModel, ForwardShape, robot_slots};
use crate::models::{Component, Family, Model, slots};
use crate::ops::Row;
use crate::plan::Step;
use crate::tensor::DType;

/// BitGenModel checkpoints are recognised by their tensor names.
pub static ROBOTS: Family = Family {
    name: "BitGenModel",
    identified_by: "the tensors reasoning_module.reasoning_encoder.weight and robot_selector.robot_embeddings",
    open_with: "RobotModel::open",
    tokenizer_note: "",
    recognises: |_, weights| Ok(RobotSizes::recognises(weights)),
    open: |files, weights, options| {
        options.check_fixed(ROBOTS.name)?;
        Ok(Box::new(BitGenModel::open(files, weights, options)?))
    },
};

/// Tokens of the task, and of the decoder's text.
const TOKENS: usize = 5;

impl Model for BitGenModel {
    fn family(&self) -> &'static Family {
        &ROBOTS
    }

    fn vocab(&self) -> usize {
        self.sizes().vocab
    }

    fn reads(&self) -> &Reads {
        &self.reads
    }

    fn components(&self) -> Vec<Component> {
        vec![
            ("embeddings", "token_embedding."),
            ("embeddings", "pos_embedding."),
            ("image encoder", "cross_modal_fusion.dinov2_model."),
            ("fusion and features", "cross_modal_fusion."),
            ("episodic memory", "episodic_memory."),
            ("attention", "attention_layers."),
            ("reasoning", "reasoning_module."),
            ("robots", "robot_selector."),
            ("output", "layer_norm."),
            ("output", "output_projection."),
            ("text decoder", "text_decoder."),
        ]
    }

    fn ignores(&self, name: &str) -> bool {
        // The memory is written in training only.
        let training =
            ["episodic_memory.value_proj.", "episodic_memory.update_gate.", "cross_modal_fusion.temperature"];
        is_unread(name) || training.iter().any(|part| name.contains(part))
    }

    fn counts(&self, name: &str) -> bool {
        !is_buffer(name)
    }

    fn config(&self) -> serde_json::Value {
        serde_json::Value::Object(self.config.clone())
    }

    /// An image's patches, what text is fused with, a forward step without image and mask and one with both, and a step of the
    /// decoder.
    fn check_steps(&self, _: DType) -> Result<Vec<CheckStep>> {
        let (c, n) = (self.sizes(), TOKENS.min(self.sizes().positions));
        let patches = c.patches();
        // The class token comes first, and is not stored.
        let places = [u32::MAX].into_iter().chain(0..patches as u32).collect();
        let mut all = vec![
            CheckStep {
                name: "image",
                plan: self.record_patches(1)?,
                step: Step::FULL,
                inputs: vec![(robot_slots::PLACES, places)],
            },
            CheckStep {
                name: "image for text",
                plan: self.record_images(1)?,
                step: Step::new(patches, 1, patches),
                inputs: Vec::new(),
            },
        ];
        for (name, images) in [("forward", false), ("forward with an image", true)] {
            let shape = ForwardShape { samples: 1, rows: n, keys: n, outputs: 1, images, masked: images };
            let step = Step::new(n, 1, if images { n.max(patches) } else { n });
            all.push(CheckStep { name, plan: self.record_forward(&shape)?, step, inputs: self.task(n, images) });
        }
        all.push(CheckStep {
            name: "decoder",
            plan: self.record_decoder(n, 1)?,
            step: Step::new(n, 1, n),
            inputs: vec![(slots::ROWS, self.text(n)), (slots::OUTPUTS, vec![n as u32 - 1])],
        });
        Ok(all)
    }
}

impl BitGenModel {
    /// Rows of a text of `n` tokens, each of which sees those up to its own.
    fn text(&self, n: usize) -> Vec<u32> {
        let row = |i: usize| Row {
            token: test_token(self.sizes().vocab, i),
            pos: i as u32,
            seq_base: 0,
            seq_len: i as u32 + 1,
        };
        bytemuck::cast_slice(&(0..n).map(row).collect::<Vec<Row>>()).to_vec()
    }

    /// What a forward step reads of a task of `n` tokens.
    fn task(&self, n: usize, image: bool) -> Vec<(&'static str, Vec<u32>)> {
        let (patches, steps) = (self.sizes().patches() as u32, self.sizes().reasoning_steps as u32);
        let mut inputs = vec![
            (slots::ROWS, self.text(n)),
            (slots::OUTPUTS, vec![n as u32 - 1]),
            (robot_slots::OF_SAMPLE, vec![0; n]),
            (robot_slots::SPANS, vec![0, n as u32]),
            (robot_slots::PLACES, (0..n as u32).collect()),
            (robot_slots::COUNTED, vec![0, steps]),
        ];
        if image {
            let whole = vec![Row { token: 0, pos: 0, seq_base: 0, seq_len: patches }; n];
            inputs.push((robot_slots::PATCH_ROWS, bytemuck::cast_slice(&whole).to_vec()));
            inputs.push((robot_slots::FIRST, vec![0]));
        }
        inputs
    }
}
