//! Rows of the op that chooses tokens.

use ternion::unstable::ops::{SAMPLE_PARAM_WORDS, SampleParams, Sampled, Sampling, adjustment_words, adjustments};
use ternion::unstable::plan::Slot;
use ternion::unstable::tensor::{CountedBy, DType};

use super::Tol::{self, Exact};
use super::{Cases, row_words, step};
use crate::support::numbers::Noise;
use crate::support::recording::Recording;

/// Position of the first draw, and of the row that draws.
const FIRST: u32 = 3;
const POS: u32 = 7;

/// Outputs in the rows 1, 0, 3, 2, …, each of its own sequence, with `params[o]`; every third token occurred, one to four
/// times, and every fifth has a bias, of the first 1280.
fn sampled(r: &Recording, logits: &[f32], vocab: usize, params: &[SampleParams]) -> Vec<(Slot, Tol)> {
    let occurred: Vec<u32> = (0..vocab as u32).step_by(3).flat_map(|t| vec![t; t as usize % 4 + 1]).collect();
    let biases = [1.5, f32::NEG_INFINITY, -0.75, 1e38, 0.0];
    let logit_bias = (0..256).map(|i| (5 * i + 1, biases[i as usize % if vocab < 300 { 5 } else { 3 }])).collect();
    let row = adjustments(&Sampling { logit_bias, ..Sampling::greedy() }, vocab, &occurred);
    adjusted(r, logits, vocab, params, &row)
}

/// As [`sampled`], with the row of adjustments that all sequences have.
fn adjusted(r: &Recording, logits: &[f32], vocab: usize, params: &[SampleParams], row: &[u32]) -> Vec<(Slot, Tol)> {
    let n = params.len();
    let rows: Vec<(u32, u32, u32)> = (0..n as u32 + 1).map(|i| (i, POS, 10 * i)).collect();
    let outputs: Vec<u32> = (0..n as u32).map(|i| if i + 1 < n as u32 || i % 2 == 1 { i ^ 1 } else { i }).collect();
    let logits = r.f32s("logits", &[n, vocab], CountedBy::Outputs, logits);
    let outputs = r.u32s("outputs", &[n, 1], CountedBy::Outputs, &outputs);
    let params = r.u32s("params", &[n, SAMPLE_PARAM_WORDS], CountedBy::Outputs, bytemuck::cast_slice(params));
    let rows = r.u32s("rows", &[n + 1, 4], CountedBy::Rows, &row_words(&rows, n + 1));
    let sampled = r.state("sampled", &[10 * n + 10, 1], DType::U32, vec![77; 10 * n + 10]);
    let adjustments = r.state("adjustments", &[n, adjustment_words(vocab)], DType::U32, row.repeat(n));
    r.p.sample(logits, outputs, params, rows, Sampled { sampled, adjustments });
    vec![(rows, Exact), (sampled, Exact), (adjustments, Exact)]
}

fn params(sampling: &Sampling, row: usize) -> SampleParams {
    SampleParams::new(sampling, FIRST, row as u32).expect("a sampling that the op draws")
}

pub fn add(cases: &mut Cases) {
    greedy(cases);
    drawn(cases);
    crowded(cases);
}

fn greedy(cases: &mut Cases) {
    for vocab in [1, 2, 255, 256, 257, 1000] {
        cases.full("sample", format!("greedy, vocabulary {vocab}"), |r| {
            sampled(r, &Noise(1).f32s(3 * vocab, 5.0), vocab, &[SampleParams::default(); 3])
        });
        let penalised = Sampling { repetition_penalty: 1.7, ..Sampling::greedy() };
        cases.full("sample", format!("greedy with a penalty, vocabulary {vocab}"), |r| {
            sampled(r, &Noise(2).f32s(3 * vocab, 5.0), vocab, &[0, 2, 1].map(|s| params(&penalised, s)))
        });
        let by_count = Sampling { presence_penalty: 0.3, frequency_penalty: 0.6, ..Sampling::greedy() };
        cases.full("sample", format!("greedy with penalties by count, vocabulary {vocab}"), |r| {
            sampled(r, &Noise(4).f32s(3 * vocab, 5.0), vocab, &[2, 0, 1].map(|s| params(&by_count, s)))
        });
        let biased = Sampling { logit_bias: [(0, 0.0)].into(), ..Sampling::greedy() };
        cases.full("sample", format!("greedy with a bias, vocabulary {vocab}"), |r| {
            sampled(r, &Noise(5).f32s(3 * vocab, 5.0), vocab, &[1, 0, 2].map(|s| params(&biased, s)))
        });
    }
    let rewarded = Sampling { frequency_penalty: -1e-6, ..Sampling::greedy() };
    cases.full("sample", "a count at its end stays", |r| {
        let mut row = vec![0; adjustment_words(3)];
        (row[1], row[2], row[3]) = (0x7f_fffe, 1 << 23 | 0x7f_ffff, 1.0f32.to_bits());
        adjusted(r, &[0.0, 2.0, -3.0, 0.0, 0.0, 0.0], 3, &[0, 1].map(|s| params(&rewarded, s)), &row)
    });
    let [all, none] = [f32::MAX, f32::MIN].map(|v| Sampling { presence_penalty: v, ..Sampling::greedy() });
    cases.full("sample", "logits that the adjustments would take out of range", |r| {
        let x = [vec![-2.0; 40], vec![f32::MIN; 40], vec![f32::MAX; 40], Noise(6).f32s(40, 1e38)].concat();
        let large = Sampling { frequency_penalty: -3e38, repetition_penalty: 0.01, ..all.clone() };
        sampled(r, &x, 40, &[params(&all, 0), params(&all, 1), params(&none, 2), params(&large, 3)])
    });
    cases.at(step(9, 7), "sample", "ties, NaN, infinity, 7 of 8 outputs", |r| {
        let mut x = Noise(2).f32s(8 * 300, 1.0);
        let marks = [(0, 299, 2.0), (0, 40, 2.0), (0, 257, 2.0), (1, 299, f32::NAN), (2, 0, f32::INFINITY)];
        let more = [(3, 256, f32::NEG_INFINITY), (6, 1, -f32::NAN)];
        for (row, i, v) in marks.into_iter().chain(more) {
            x[row * 300 + i] = v;
        }
        x[4 * 300..5 * 300].fill(-3.0);
        x[5 * 300..6 * 300].iter_mut().enumerate().for_each(|(i, v)| *v = if i % 2 == 0 { -0.0 } else { 0.0 });
        sampled(r, &x, 300, &[SampleParams::default(); 8])
    });
}

fn drawn(cases: &mut Cases) {
    for vocab in [1, 10, 63, 64, 65, 300, 2048] {
        for (top_k, top_p) in [(1, 1.0), (5, 0.3), (50, 0.9), (64, 1.0)] {
            let name = format!("vocabulary {vocab}, top k {top_k}, top p {top_p}");
            let seed = |i: u64| 0x8765_4321_0FED_CBA9u64.wrapping_mul(i + 1) ^ (vocab * top_k) as u64;
            let one = |i: usize| {
                let (temperature, repetition_penalty) = ([0.4, 1.0, 3.0][i % 3], [1.0, 1.3][i % 2]);
                let frequency_penalty = [0.0, 0.0, 0.0, 0.2, -0.1][i % 5];
                let min_p = [0.0, 0.0, 0.04, 0.5, 0.0, 1.0, 0.002][i % 7];
                let drawn = Sampling { temperature, top_k, top_p, min_p, seed: seed(i as u64), ..Sampling::greedy() };
                params(&Sampling { repetition_penalty, frequency_penalty, ..drawn }, 11 - i)
            };
            let all: Vec<SampleParams> = (0..12).map(one).collect();
            cases.at(step(13, 11), "sample", name, |r| sampled(r, &Noise(3).f32s(12 * vocab, 4.0), vocab, &all));
        }
    }
}

/// More equal values than the kernel ranks at once, and NaN among what is drawn from.
fn crowded(cases: &mut Cases) {
    for (name, values) in [("all equal", &[1.5f32][..]), ("two values", &[2.0, 1.0]), ("zeros", &[0.0, -0.0, -1.0])] {
        for (top_p, min_p) in [(1.0, 0.0), (0.5, 0.0), (1.0, 0.4), (0.9, 0.1)] {
            let sampling = Sampling { temperature: 0.9, top_k: 40, top_p, min_p, ..Sampling::greedy() };
            let all: Vec<SampleParams> =
                (0..16).map(|seed| params(&Sampling { seed, ..sampling.clone() }, 0)).collect();
            cases.full("sample", format!("{name}, top p {top_p}, min p {min_p}"), |r| {
                let one = |o: usize, i: usize| if i % 97 == o { 3.0 } else { values[i % values.len()] };
                let mut x: Vec<f32> = (0..16 * 3001).map(|i| one(i / 3001, i % 3001)).collect();
                x[5 * 3001 + 2000] = f32::NAN;
                sampled(r, &x, 3001, &all)
            });
        }
    }
}
