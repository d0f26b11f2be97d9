//! Steps of a model with made-up inputs, which two devices can run side by side.

use crate::error::Result;
use crate::models::{ChatModel, TextShape, slots};
use crate::ops::{Row, TOKEN_IMAGE, uniform};
use crate::plan::{Plan, Step};
use crate::tensor::DType;

/// A plan and what goes into a step of it.
#[derive(Debug)]
pub struct CheckStep {
    /// What the step does, for people.
    pub name: &'static str,
    /// The plan, with what it has for looking at attention.
    pub plan: Plan,
    /// The step's bounds.
    pub step: Step,
    /// Words of inputs by name. All others, and states, may hold any floats.
    pub inputs: Vec<(&'static str, Vec<u32>)>,
}

/// Rows of the KV cache that each of the two sequences of [`chat_steps`] has.
const CONTEXT: usize = 160;
/// Maximum number of rows of the prefill, a few more than it uses.
const PREFILL_ROWS: usize = 16;
/// Maximum number of rows of the decode step, and of outputs of both.
const DECODE_ROWS: usize = 4;

/// A pseudo-random token of a vocabulary, equal in every run.
pub fn test_token(vocab: usize, i: usize) -> u32 {
    (uniform(1, i as u64) * vocab as f32) as u32
}

/// An image, a prefill with image and text rows of two sequences, and a decode step of both.
pub fn chat_steps(model: &dyn ChatModel, kv_dtype: DType) -> Result<Vec<CheckStep>> {
    let images = model.info().image.is_some();
    let mut all = Vec::new();
    if images {
        all.push(CheckStep { name: "image", plan: model.trace_image()?.plan, step: Step::FULL, inputs: Vec::new() });
    }
    let text = |name, max_rows, images, rows: Vec<Row>| -> Result<CheckStep> {
        let (kv_rows, context) = (2 * CONTEXT, CONTEXT);
        let shape = TextShape { max_rows, max_outputs: DECODE_ROWS, kv_rows, context, sessions: 2, kv_dtype, images };
        let context = rows.iter().map(|r| r.seq_len).max().unwrap_or(0);
        let step = Step::new(rows.len(), 2, context as usize);
        let last = |base: usize| rows.iter().rposition(|r| r.seq_base == base as u32).map(|i| i as u32);
        let outputs = [0, CONTEXT].into_iter().filter_map(last).collect();
        let inputs = vec![(slots::ROWS, bytemuck::cast_slice(&rows).to_vec()), (slots::OUTPUTS, outputs)];
        Ok(CheckStep { name, plan: model.trace_text(&shape)?, step, inputs })
    };
    let vocab = model.info().vocab;
    let row = |sequence: usize, pos: usize, token: u32| Row {
        token,
        pos: pos as u32,
        seq_base: (sequence * CONTEXT) as u32,
        seq_len: pos as u32 + 1,
    };
    // The first sequence begins with an image, the second continues in the middle of a text.
    let first = (0..7).map(|i| match i {
        0..3 if images => row(0, i, TOKEN_IMAGE),
        _ => row(0, i, model.prompt_token(test_token(vocab, i), images)),
    });
    let second = (0..5).map(|i| row(1, 120 + i, test_token(vocab, 100 + i)));
    all.push(text("prefill", PREFILL_ROWS, images, first.chain(second).collect())?);
    all.push(text(
        "decode",
        DECODE_ROWS,
        false,
        vec![row(0, 7, test_token(vocab, 7)), row(1, 125, test_token(vocab, 105))],
    )?);
    Ok(all)
}
