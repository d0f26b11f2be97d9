//! The next token of each output, and the row that reads it in the next step.

use crate::error::Result;
use crate::ops::embed::{ROW_WORDS, Row};
use crate::ops::sampling::{MAX_LOGIT_BIASES, Sampling, biased, check_logits};
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};
use crate::threads::ThreadPool;

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
    /// [`Sampling::min_p`].
    pub min_p: f32,
    /// temperature · ln(min p): what is added to the largest logit to give the smallest that min p keeps.
    pub min_p_margin: f32,
    /// [`Sampling::repetition_penalty`], where `adjustment_row` is not 0, as the other penalties.
    pub repetition_penalty: f32,
    /// Its reciprocal.
    pub reciprocal: f32,
    /// [`Sampling::presence_penalty`].
    pub presence_penalty: f32,
    /// [`Sampling::frequency_penalty`].
    pub frequency_penalty: f32,
    /// [`Sampling::seed`], the low word first.
    pub seed: [u32; 2],
    /// Position of the row that makes draw 0; the row at position p makes draw p − `first`.
    pub first: u32,
    /// 1 + the sequence's row of the adjustments; 0: the logits are as they come, without bias and penalties.
    pub adjustment_row: u32,
}

impl SampleParams {
    /// The words for a generation that begins with the row at position `first` of the sequence that has this row of the
    /// adjustments ([`adjustments`]); none for samplings that the op has no room for: above temperature 0, top k is from 1 to
    /// [`MAX_CANDIDATES`].
    pub fn new(sampling: &Sampling, first: u32, row: u32) -> Option<Self> {
        let greedy = sampling.temperature == 0.0;
        if !greedy && !(1..=MAX_CANDIDATES).contains(&sampling.top_k) {
            return None;
        }
        let adjusts = sampling.penalises() || !sampling.logit_bias.is_empty();
        Some(SampleParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k.min(MAX_CANDIDATES) as u32,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            min_p_margin: sampling.min_p_margin(),
            repetition_penalty: sampling.repetition_penalty,
            reciprocal: 1.0 / sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: [sampling.seed as u32, (sampling.seed >> 32) as u32],
            first,
            adjustment_row: if adjusts { row + 1 } else { 0 },
        })
    }

    /// All but the biases, which are in the row of adjustments.
    fn sampling(&self) -> Sampling {
        let [low, high] = self.seed.map(u64::from);
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: high << 32 | low,
            ..Sampling::greedy()
        }
    }
}

/// Bits of a token's word of adjustments that count how often it occurred; those above hold 1 + the number of its bias.
const COUNT_BITS: u32 = 23;
/// The largest count, where it stays.
const MAX_COUNT: u32 = (1 << COUNT_BITS) - 1;

/// Words of a sequence's row of adjustments: one per token, then the biases.
pub fn adjustment_words(vocab: usize) -> usize {
    vocab + MAX_LOGIT_BIASES
}

/// The row of adjustments of a sequence in which `tokens` occurred: what its bias and penalties need. Tokens beyond the
/// vocabulary are passed over.
pub fn adjustments(sampling: &Sampling, vocab: usize, tokens: &[u32]) -> Vec<u32> {
    let mut row = vec![0; adjustment_words(vocab)];
    let (words, biases) = row.split_at_mut(vocab);
    for &token in tokens {
        if let Some(word) = words.get_mut(token as usize) {
            *word = counted(*word);
        }
    }
    for (number, ((&token, &bias), place)) in (1u32..).zip(sampling.logit_bias.iter().zip(biases)) {
        if let Some(word) = words.get_mut(token as usize) {
            *word |= number << COUNT_BITS;
            // Devices need not know infinities.
            *place = bias.max(f32::MIN).to_bits();
        }
    }
    row
}

/// A token's word of adjustments after it occurred once more.
fn counted(word: u32) -> u32 {
    word + u32::from(word & MAX_COUNT != MAX_COUNT)
}

/// For output o of row r at position p of its sequence: t = the token that `Sampling` of `params[o]` chooses from
/// `logits[o]`, or `u32::MAX` if any of them is NaN or infinite.
///
/// logits `[o, vocab]` F32, outputs `[o, 1]` U32 (r of each), params `[o, 13]` U32 ([`SampleParams`]) → rows `[n, 4]` U32: row r
/// becomes t at p + 1, so that the same step can run again; sampled `[capacity, 1]` U32: t at the row's place in the KV
/// cache; adjustments `[sequences, vocab + 256]` U32 ([`adjustments`]): the count of t grows by 1 in the row that `params`
/// names. Host and device choose alike but for draws that fall within the rounding of a 32-bit sum of probabilities.
#[derive(Debug)]
struct Sample;

params!(SampleUniform { vocab: u32 });

/// The states that [`PlanBuilder::sample`] writes.
#[derive(Debug, Clone, Copy)]
pub struct Sampled {
    /// `[capacity, 1]`.
    pub sampled: Slot,
    /// `[sequences, vocab + 256]`: of each sequence, how often tokens occurred, and their biases ([`adjustments`]).
    pub adjustments: Slot,
}

impl PlanBuilder {
    /// Chooses the next token of every output and makes its row read it.
    #[track_caller]
    pub fn sample(&self, logits: Slot, outputs: Slot, params: Slot, rows: Slot, to: Sampled) {
        self.push_into(Sample, &[logits, outputs, params], &[rows, to.sampled, to.adjustments]);
    }
}

/// The token that `params` choose for the row at position `pos` with its sequence's row of adjustments.
fn choose(logits: &[f32], params: &SampleParams, pos: u32, row: &[u32]) -> u32 {
    if check_logits(logits).is_err() {
        return u32::MAX;
    }
    let (index, sampling) = (u64::from(pos.wrapping_sub(params.first)), params.sampling());
    if params.adjustment_row == 0 {
        return sampling.draw(logits, index);
    }
    let (words, biases) = row.split_at(logits.len());
    let value = |(&logit, &word): (&f32, &u32)| {
        let (count, number) = (word & MAX_COUNT, word >> COUNT_BITS);
        let logit = if number == 0 { logit } else { biased(logit, f32::from_bits(biases[number as usize - 1])) };
        if count == 0 { logit } else { sampling.penalised(logit, count) }
    };
    sampling.draw(&logits.iter().zip(words).map(value).collect::<Vec<f32>>(), index)
}

/// The most likely token of each row that `is_known` picks, the lowest of equal ones; `u32::MAX` where a logit is not finite.
fn most_likely(
    logits: &[f32],
    vocab: usize,
    is_known: impl Fn(usize) -> bool + Sync,
    threads: &ThreadPool,
) -> Vec<Option<u32>> {
    let rows: Vec<&[f32]> = logits.chunks(vocab.max(1)).collect();
    // A thread takes about those logits of a row alone that it has just computed.
    let pieces = threads.count().div_ceil(rows.len().max(1));
    let mut found = vec![None; rows.len() * pieces];
    let shared = simd::Shared::new(&mut found);
    threads.run(rows.len() * pieces, |i| {
        let (row, piece) = (i / pieces, i % pieces);
        let piece = vocab * piece / pieces..vocab * (piece + 1) / pieces;
        if is_known(row) && !piece.is_empty() {
            // SAFETY: each element belongs to one task.
            let place = unsafe { shared.slice(i, 1) };
            place[0] = Some(simd::argmax(&rows[row][piece.clone()]).map(|token| piece.start + token));
        }
    });
    let of_row = |(found, logits): (&[Option<Option<usize>>], &&[f32])| {
        let larger = |a: usize, b: usize| if logits[b] > logits[a] { b } else { a };
        let token = found.iter().copied().flatten().reduce(|a, b| Some(larger(a?, b?)));
        token.map(|token| token.map_or(u32::MAX, |token| token as u32))
    };
    found.chunks(pieces).zip(&rows).map(of_row).collect()
}

/// Chooses a token for each output, where it is not known, and writes what follows from it.
fn choose_all(io: &mut Io, known: &[Option<u32>]) {
    let (logits, vocab, outputs) = (io.f32s(0), io.spec(0).width(), io.u32s(1));
    let params: &[SampleParams] = bytemuck::cast_slice(io.u32s(2));
    let words = adjustment_words(vocab);
    for (o, known) in known.iter().enumerate() {
        let (r, params) = (outputs[o] as usize, &params[o]);
        let Row { pos, seq_base, seq_len, .. } = bytemuck::cast_slice(io.out_u32s(0))[r];
        let at = params.adjustment_row.saturating_sub(1) as usize * words;
        let row = &mut io.out_u32s(2)[at..at + words];
        let token = known.unwrap_or_else(|| choose(&logits[o * vocab..][..vocab], params, pos, row));
        if params.adjustment_row != 0 && token != u32::MAX {
            row[token as usize] = counted(row[token as usize]);
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
        let (rows, sampled, adjustments) = (outputs[0], outputs[1], outputs[2]);
        expect("rows", rows, &[rows.shape[0], ROW_WORDS], &[DType::U32])?;
        expect("sampled", sampled, &[sampled.shape[0], 1], &[DType::U32])?;
        let words = adjustment_words(inputs[0].width());
        expect("adjustments", adjustments, &[adjustments.shape[0], words], &[DType::U32])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let most_likely = vec![None; step.rows_in_use(io.spec(0))];
        choose_all(io, &most_likely);
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (logits, vocab, n) = (io.f32s(0), io.spec(0).width(), step.rows_in_use(io.spec(0)));
        let params: &[SampleParams] = bytemuck::cast_slice(io.u32s(2));
        let is_known = |o: usize| params[o].temperature == 0.0 && params[o].adjustment_row == 0;
        let known = most_likely(&logits[..n * vocab], vocab, is_known, io.threads);
        choose_all(io, &known);
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let params = SampleUniform { vocab: inputs[0].width() as u32 };
        let grid = Grid::x(Extent::rows(inputs[0], 1, 1));
        Kernel { source: shader!("sample/sample"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_row_give_its_most_likely_token() {
        let found = |logits: &[f32], vocab: usize, threads: usize| {
            most_likely(logits, vocab, |row| row != 1, &ThreadPool::new(threads))
        };
        for threads in [1, 2, 3, 8] {
            for at in 0..5 {
                let mut row = [-1.0; 5];
                row[at..].fill(2.0);
                assert_eq!(found(&row, 5, threads), [Some(at as u32)], "{threads} threads");
                let rows = [row, [3.0; 5], row].concat();
                assert_eq!(found(&rows, 5, threads), [Some(at as u32), None, Some(at as u32)], "{threads} threads");
                row[at] = f32::NAN;
                assert_eq!(found(&row, 5, threads), [Some(u32::MAX)], "{threads} threads");
            }
            assert_eq!(found(&[7.0], 1, threads), [Some(0)]);
            assert!(found(&[], 5, threads).is_empty());
        }
    }
}
