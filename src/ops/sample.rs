//! The next token of each output, and the row that reads it in the next step.

use crate::error::Result;
use crate::ops::embed::{ROW_WORDS, Row};
use crate::ops::sampling::{Sampling, check_logits, penalised};
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// Largest top k that the op draws from.
pub const MAX_CANDIDATES: usize = 64;
/// Words of [`SampleParams`].
pub const SAMPLE_PARAM_WORDS: usize = size_of::<SampleParams>() / 4;

/// How the token of one output is chosen, as the words of the `params` input. Zeros are greedy.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SampleParams {
    /// [`Sampling::temperature`]; 0 means greedy.
    pub temperature: f32,
    /// [`Sampling::top_k`], from 1 to [`MAX_CANDIDATES`].
    pub top_k: u32,
    /// [`Sampling::top_p`].
    pub top_p: f32,
    /// [`Sampling::repetition_penalty`], where `occurrence_row` is not 0.
    pub penalty: f32,
    /// Its reciprocal.
    pub reciprocal: f32,
    /// [`Sampling::seed`], the low word first.
    pub seed: [u32; 2],
    /// Position of the row that makes draw 0; the row at position p makes draw p − `first`.
    pub first: u32,
    /// 1 + the row of the occurrence bits that has the sequence's tokens; 0: none are penalised.
    pub occurrence_row: u32,
}

impl SampleParams {
    /// The words for a generation that begins with the row at position `first` of the sequence that has this row of the
    /// occurrence bits; none for samplings that the op has no room for: above temperature 0, top k is from 1 to
    /// [`MAX_CANDIDATES`].
    pub fn new(sampling: &Sampling, first: u32, row: u32) -> Option<Self> {
        let greedy = sampling.temperature == 0.0;
        if !greedy && !(1..=MAX_CANDIDATES).contains(&sampling.top_k) {
            return None;
        }
        let penalty = sampling.repetition_penalty;
        Some(SampleParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k.min(MAX_CANDIDATES) as u32,
            top_p: sampling.top_p,
            penalty,
            reciprocal: 1.0 / penalty,
            seed: [sampling.seed as u32, (sampling.seed >> 32) as u32],
            first,
            occurrence_row: if penalty == 1.0 { 0 } else { row + 1 },
        })
    }

    fn sampling(&self) -> Sampling {
        let [low, high] = self.seed.map(u64::from);
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            repetition_penalty: self.penalty,
            seed: high << 32 | low,
        }
    }
}

/// Words of a row of occurrence bits, one bit per token.
pub fn occurrence_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// For output o of row r at position p of its sequence: t = the token that `Sampling` of `params[o]` chooses from
/// `logits[o]`, or `u32::MAX` if any of them is NaN or infinite.
///
/// logits `[o, vocab]` F32, outputs `[o, 1]` U32 (r of each), params `[o, 9]` U32 ([`SampleParams`]) → rows `[n, 4]` U32: row r
/// becomes t at p + 1, so that the same step can run again; sampled `[capacity, 1]` U32: t at the row's place in the KV
/// cache; occurrence_bits `[sequences, ceil(vocab / 32)]` U32: the bit of t is set where `params` asks for a penalty. Host and
/// device choose alike but for draws that fall within the rounding of a 32-bit sum of probabilities.
#[derive(Debug)]
struct Sample;

params!(SampleUniform { vocab: u32 });

/// The states that [`PlanBuilder::sample`] writes.
#[derive(Debug, Clone, Copy)]
pub struct Sampled {
    /// `[capacity, 1]`.
    pub sampled: Slot,
    /// `[sequences, ceil(vocab / 32)]`.
    pub occurrence_bits: Slot,
}

impl PlanBuilder {
    /// Chooses the next token of every output and makes its row read it.
    #[track_caller]
    pub fn sample(&self, logits: Slot, outputs: Slot, params: Slot, rows: Slot, to: Sampled) {
        self.push_into(Sample, &[logits, outputs, params], &[rows, to.sampled, to.occurrence_bits]);
    }
}

/// The token that `params` choose for the row at position `pos`.
fn choose(logits: &[f32], params: &SampleParams, pos: u32, occurrence_bits: &[u32]) -> u32 {
    if check_logits(logits).is_err() {
        return u32::MAX;
    }
    let index = u64::from(pos.wrapping_sub(params.first));
    if params.occurrence_row == 0 {
        return params.sampling().draw(logits, index);
    }
    let occurred = |id: usize| occurrence_bits[id / 32] >> (id % 32) & 1 == 1;
    let value = |(id, &l): (usize, &f32)| if occurred(id) { penalised(l, params.penalty) } else { l };
    params.sampling().draw(&logits.iter().enumerate().map(value).collect::<Vec<f32>>(), index)
}

/// Chooses a token for each output, where it is not known, and writes what follows from it.
fn choose_all(io: &mut Io, known: &[Option<u32>]) {
    let (logits, vocab, outputs) = (io.f32s(0), io.spec(0).width(), io.u32s(1));
    let params: &[SampleParams] = bytemuck::cast_slice(io.u32s(2));
    let words = occurrence_words(vocab);
    for (o, known) in known.iter().enumerate() {
        let (r, params) = (outputs[o] as usize, &params[o]);
        let Row { pos, seq_base, seq_len, .. } = bytemuck::cast_slice(io.out_u32s(0))[r];
        let at = params.occurrence_row.saturating_sub(1) as usize * words;
        let occurrence_bits = &mut io.out_u32s(2)[at..at + words];
        let token = known.unwrap_or_else(|| choose(&logits[o * vocab..][..vocab], params, pos, occurrence_bits));
        if params.occurrence_row != 0 && token != u32::MAX {
            occurrence_bits[token as usize / 32] |= 1 << (token % 32);
        }
        io.out_u32s(1)[(seq_base + pos) as usize] = token;
        let next = Row { token, pos: pos + 1, seq_base, seq_len: seq_len + 1 };
        bytemuck::cast_slice_mut(io.out_u32s(0))[r] = next;
    }
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (logits, outputs, params) = (inputs[0], inputs[1], inputs[2]);
        let n = logits.shape[0];
        require("logits", logits, logits.dtype == DType::F32 && logits.shape.len() == 2, "[n, vocab] F32")?;
        expect("outputs", outputs, &[n, 1], &[DType::U32])?;
        expect("params", params, &[n, SAMPLE_PARAM_WORDS], &[DType::U32])?;
        Ok(Vec::new())
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        self.infer(inputs)?;
        let (rows, sampled, bits) = (outputs[0], outputs[1], outputs[2]);
        expect("rows", rows, &[rows.shape[0], ROW_WORDS], &[DType::U32])?;
        expect("sampled", sampled, &[sampled.shape[0], 1], &[DType::U32])?;
        expect("occurrence_bits", bits, &[bits.shape[0], occurrence_words(inputs[0].width())], &[DType::U32])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let most_likely = vec![None; step.rows_in_use(io.spec(0))];
        choose_all(io, &most_likely);
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (logits, vocab, n) = (io.f32s(0), io.spec(0).width(), step.rows_in_use(io.spec(0)));
        let params: &[SampleParams] = bytemuck::cast_slice(io.u32s(2));
        let mut most_likely = vec![None; n];
        let shared = simd::Shared::new(&mut most_likely);
        io.threads.run(n, |o| {
            if params[o].temperature == 0.0 && params[o].occurrence_row == 0 {
                let token = simd::argmax(&logits[o * vocab..][..vocab]).map_or(u32::MAX, |t| t as u32);
                // SAFETY: each element belongs to one task.
                let place = unsafe { shared.slice(o, 1) };
                place[0] = Some(token);
            }
        });
        choose_all(io, &most_likely);
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let params = SampleUniform { vocab: inputs[0].width() as u32 };
        let grid = Grid::x(Extent::rows(inputs[0], 1, 1));
        Kernel { source: shader!("sample/sample"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
