//! Rows of rope and attention over a cache of 8-bit integers.

use ternion::unstable::ops::{AttentionShape, Columns, MASKED, Pairing, QkNorm, RmsNorm, Rotation, cache_spec};
use ternion::unstable::plan::Slot;
use ternion::unstable::quant::int8;
use ternion::unstable::tensor::{CountedBy, DType, Pack};

use super::Tol::{Close, Int8};
use super::{Cases, row_words, step};
use crate::support::numbers::Noise;
use crate::support::recording::Recording;

const ATTENTION_TOL: f32 = 1e-5;

pub fn add(cases: &mut Cases) {
    contexts(cases);
    widths(cases);
    masked(cases);
    endless_row(cases);
    weights(cases);
    writes(cases);
}

/// A cache `[rows, kv_heads, d]` full of noise, each head with a scale of its own.
fn cache(r: &Recording, name: &str, rows: usize, shape: AttentionShape, seed: u64) -> Slot {
    let (heads, d) = (rows * shape.kv_heads, shape.d);
    let (mut noise, size) = (Noise(seed), |head: usize| 0.5 + (head % 7) as f32 / 4.0);
    let data: Vec<f32> = (0..heads).flat_map(|head| noise.f32s(d, size(head))).collect();
    r.state(name, &cache_spec(rows, [shape.kv_heads, d], DType::Int8).shape, DType::Int8, int8::pack(&data, d).unwrap())
}

/// Attention of rows `(token, pos, seq_base)`.
fn attention(cases: &mut Cases, rows: &[(u32, u32, u32)], max: usize, capacity: usize, shape: AttentionShape) {
    let longest = rows.iter().map(|r| r.1 + 1).max().unwrap_or(0);
    let name = format!("{} of {max} rows, context up to {longest}, {shape:?}, integers", rows.len());
    cases.at(step(rows.len(), 0), "attention", name, |r| {
        let width = shape.heads * shape.d;
        let q = r.f32s("q", &[max, width], CountedBy::Rows, &Noise(20).f32s(max * width, 2.0));
        let [k, v] = [("k", 21), ("v", 22)].map(|(name, seed)| cache(r, name, capacity, shape, seed));
        let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &row_words(rows, max));
        vec![(r.p.cached_attention(q, k, v, rows, shape), Close(ATTENTION_TOL))]
    });
}

fn contexts(cases: &mut Cases) {
    for (i, context) in [1, 2, 63, 64, 65, 130, 300].into_iter().enumerate() {
        let group = i % 3 + 1;
        let shape = AttentionShape { heads: 2 * group, kv_heads: 2, d: 16 };
        attention(cases, &[(0, context - 1, 7)], 1, 310, shape);
    }
    // More keys than the most pieces of a context hold at their usual size.
    for d in [16, 64] {
        let shape = AttentionShape { heads: 2, kv_heads: 1, d };
        attention(cases, &[(0, 3099, 0), (0, 5, 0)], 2, 3100, shape);
    }
}

/// Widths and ratios of published models and odd ones, for few rows of several sequences, and for a prompt behind an earlier
/// part of it with another sequence in front.
fn widths(cases: &mut Cases) {
    let few = [(0, 63, 0), (0, 64, 70), (0, 0, 140), (0, 1, 140), (0, 10, 0)];
    let many: Vec<(u32, u32, u32)> = (0..37).map(|i| if i == 0 { (0, 40, 150) } else { (0, 24 + i, 3) }).collect();
    for d in [4, 20, 64, 80, 100, 128, 256, 260, 512] {
        for group in if d < 64 { 1..=3 } else { 4..=6 } {
            let kv_heads = if d < 256 { 3 } else { 1 };
            let shape = AttentionShape { heads: kv_heads * group, kv_heads, d };
            attention(cases, &few, 6, 200, shape);
            attention(cases, &many, 40, 200, shape);
        }
    }
    for (kv_heads, group) in [(1, 1), (2, 2), (5, 3), (3, 7)] {
        for d in [64, 128] {
            let shape = AttentionShape { heads: kv_heads * group, kv_heads, d };
            attention(cases, &few[..1], 1, 200, shape);
            attention(cases, &few, 5, 200, shape);
        }
    }
}

fn masked(cases: &mut Cases) {
    for d in [8, 64, 260] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, d };
        cases.at(step(5, 0), "attention", format!("masked, heads of {d}, integers"), |r| {
            let q = r.f32s("q", &[6, 4 * d], CountedBy::Rows, &Noise(53).f32s(24 * d, 2.0));
            let [k, v] = [("k", 54), ("v", 55)].map(|(name, seed)| cache(r, name, 70, shape, seed));
            let words: Vec<u32> = (0..6).flat_map(|r| [0, r, 1, 66 + r % 3]).collect();
            let rows = r.u32s("rows", &[6, 4], CountedBy::Rows, &words);
            let hidden = |i: usize| if i % 3 == 1 { MASKED } else { 0.0 };
            let mask = r.f32s("mask", &[6, 70], CountedBy::Rows, &(0..420).map(hidden).collect::<Vec<_>>());
            let qkv = [q, k, v].map(|slot| Columns { slot, at: 0 });
            vec![(r.p.masked_attention(qkv, rows, mask, shape), Close(ATTENTION_TOL))]
        });
    }
}

/// Rows that say more keys than the cache has attend to those that there are.
fn endless_row(cases: &mut Cases) {
    for (heads, kv_heads, d) in [(2, 1, 16), (2, 2, 64), (2, 2, 20)] {
        for n in [2, 12] {
            let shape = AttentionShape { heads, kv_heads, d };
            cases.full("attention", format!("{n} rows of more keys than there are, {shape:?}, integers"), |r| {
                let q = r.f32s("q", &[n, heads * d], CountedBy::Rows, &Noise(60).f32s(n * heads * d, 2.0));
                let [k, v] = [("k", 61), ("v", 62)].map(|(name, seed)| cache(r, name, 90, shape, seed));
                let words: Vec<u32> = (0..n as u32).flat_map(|r| [0, 0, 20 * (r % 2), u32::MAX - r]).collect();
                let rows = r.u32s("rows", &[n, 4], CountedBy::Rows, &words);
                vec![(r.p.cached_attention(q, k, v, rows, shape), Close(ATTENTION_TOL))]
            });
        }
    }
}

fn weights(cases: &mut Cases) {
    let batch = [(0, 63, 0), (0, 64, 70), (0, 0, 140), (0, 1, 140), (0, 129, 70), (0, 10, 0)];
    for (kv_heads, group, d) in [(1, 1, 4), (2, 3, 16), (2, 2, 64), (1, 2, 100), (3, 5, 80), (1, 1, 260)] {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, d };
        cases.at(step(6, 0), "attention_weights", format!("6 of 8 rows, {shape:?}, integers"), |r| {
            let q = r.f32s("q", &[8, shape.heads * d], CountedBy::Rows, &Noise(30).f32s(8 * shape.heads * d, 2.0));
            let k = cache(r, "k", 200, shape, 31);
            let rows = r.u32s("rows", &[8, 4], CountedBy::Rows, &row_words(&batch, 8));
            vec![(r.p.cached_attention_weights(q, k, rows, shape), Close(ATTENTION_TOL))]
        });
    }
}

fn writes(cases: &mut Cases) {
    let few = [(0, 90, 3), (0, 0, 17), (0, 1, 17), (0, 60, 100)];
    let many: Vec<(u32, u32, u32)> = (0..41).map(|i| (0, i, 5)).collect();
    let shapes = [
        (&few[..], [1, 1, 4, 2]),
        (&few, [5, 3, 20, 10]),
        (&many, [4, 2, 64, 32]),
        (&many, [6, 2, 80, 20]),
        (&few, [2, 1, 128, 64]),
        (&few, [2, 2, 256, 64]),
        (&few, [1, 1, 516, 258]),
    ];
    let norms = [
        (Pairing::HalfSplit, None),
        (Pairing::Interleaved, None),
        (Pairing::HalfSplit, Some(RmsNorm::new(1e-6))),
        (Pairing::Interleaved, Some(RmsNorm { eps: 1e-5, clamp: Some(super::TIGHT_CLAMP) })),
    ];
    for (batch, [heads, kv_heads, d, pairs]) in shapes {
        for (pairing, norm) in norms {
            let (shape, n) = (AttentionShape { heads, kv_heads, d }, batch.len());
            let name = format!("{shape:?}, integers, {pairs} pairs {pairing:?}, {norm:?}, {n} rows");
            cases.at(step(n, 0), "rope_kv_write", name, |r| {
                let (width, max, mut noise) = ((heads + 2 * kv_heads) * d, n + 2, Noise(95));
                let mut qkv = noise.f32s(max * width, 3.0);
                // A key and a value of zeros.
                qkv[heads * d..(heads + 1) * d].fill(0.0);
                qkv[(heads + kv_heads) * d..(heads + kv_heads + 1) * d].fill(0.0);
                let qkv = r.f32s("qkv", &[max, width], CountedBy::Rows, &qkv);
                let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &row_words(batch, max));
                let kv = ["k", "v"].map(|name| cache(r, name, 170, shape, 28));
                let weights = r.weight("w", &[2, d], Pack::F32, &noise.f32s(2 * d, 2.0));
                let frequencies = (0..pairs).map(|j| 0.7 / (1 + j * j) as f32).collect();
                let rotation = Rotation { frequencies, factor: 1.25, pairing };
                let norm = norm.map(|norm| QkNorm { norm, weights });
                let q = r.p.rope_kv_write(qkv, rows, (&rotation, 100), norm, shape, kv);
                vec![(q, Close(3e-6)), (kv[0], Int8), (kv[1], Int8)]
            });
        }
    }
}
