//! Rows of attention, of rope with the cache, and of the router.

use ternion::unstable::ops::{AttentionShape, Columns, MASKED, Pairing, QkNorm, RmsNorm, Rotation};
use ternion::unstable::plan::Slot;
use ternion::unstable::tensor::{CountedBy, DType, Pack};

use super::Tol::{Close, Exact};
use super::{Cases, TIGHT_CLAMP, row_words, step};
use crate::support::numbers::{Noise, bits, f16_words};
use crate::support::recording::Recording;

const ATTENTION_TOL: f32 = 1e-5;

pub fn add(cases: &mut Cases) {
    cached(cases);
    among_rows(cases);
    masked(cases);
    uncached(cases);
    any_width(cases);
    any_group(cases);
    endless_row(cases);
    weights(cases);
    rope(cases);
    rotations(cases);
    new_rows(cases);
    router(cases);
}

/// A cache `[capacity, width]` full of noise.
fn cache(r: &Recording, name: &str, shape: [usize; 2], dtype: DType, seed: u64) -> Slot {
    let data = Noise(seed).f32s(shape[0] * shape[1], 2.0);
    r.state(name, &shape, dtype, if dtype == DType::F16 { f16_words(&data) } else { bits(&data) })
}

/// Sequences of a step whose keys and values are rows of the step itself, beside one another in one matrix.
fn among_rows(cases: &mut Cases) {
    for (heads, d) in [(4, 8), (4, 16), (2, 64), (1, 100)] {
        for lengths in [&[1][..], &[3], &[5, 3], &[16, 16], &[40, 1, 29]] {
            for causal in [false, true] {
                let used: u32 = lengths.iter().sum();
                let name = format!("among rows of {lengths:?}, causal {causal}, {heads} heads of {d}");
                let max = used as usize + 1;
                cases.at(step(used as usize, 0), "attention", name, |r| {
                    let width = 3 * heads * d;
                    let qkv = r.f32s("qkv", &[max, width], CountedBy::Rows, &Noise(23).f32s(max * width, 2.0));
                    let mut words = Vec::new();
                    for &n in lengths {
                        let base = words.len() as u32 / 4;
                        words.extend((0..n).flat_map(|pos| [0, pos, base, if causal { pos + 1 } else { n }]));
                    }
                    words.resize(4 * max, u32::MAX);
                    let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &words);
                    let [q, k, v] = [0, 1, 2].map(|i| Columns { slot: qkv, at: i * heads * d });
                    let shape = AttentionShape { heads, kv_heads: heads, d };
                    vec![(r.p.row_attention(q, k, v, rows, shape), Close(ATTENTION_TOL))]
                });
            }
        }
    }
}

/// Keys of a state, some of them hidden, some with a lower score, some behind the mask's last column.
fn masked(cases: &mut Cases) {
    for (heads, d) in [(4, 8), (2, 16), (2, 64), (1, 100)] {
        for (first, keys, lower) in [(0, 1, 0.0), (3, 5, 0.0), (0, 70, -1e4), (10, 130, 0.0)] {
            let (max, used, columns) = (11, 9, keys.min(128));
            let name = format!("masked, {keys} keys from {first} on, {heads} heads of {d}, lower by {lower}");
            cases.at(step(used, 0), "attention", name, |r| {
                let width = heads * d;
                let q = r.f32s("q", &[max, 3 * width], CountedBy::Rows, &Noise(35).f32s(max * 3 * width, 2.0));
                let [k, v] = [("k", 36), ("v", 37)].map(|(name, seed)| cache(r, name, [150, width], DType::F32, seed));
                let words: Vec<u32> = (0..max).flat_map(|r| [0, r as u32, first, keys as u32]).collect();
                let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &words);
                let hidden = |i: usize| !i.is_multiple_of(columns) && (i * 7 + i / columns).is_multiple_of(3);
                let mask: Vec<f32> = (0..max * columns).map(|i| if hidden(i) { MASKED } else { lower }).collect();
                let mask = r.f32s("mask", &[max, columns], CountedBy::Rows, &mask);
                let shape = AttentionShape { heads, kv_heads: heads, d };
                let qkv = [(q, width), (k, 0), (v, 0)].map(|(slot, at)| Columns { slot, at });
                // Beside 10,000 an f32 score has steps of 1e-3.
                let tol = if lower == 0.0 { ATTENTION_TOL } else { 5e-3 };
                vec![(r.p.masked_attention(qkv, rows, mask, shape), Close(tol))]
            });
        }
    }
}

fn cached(cases: &mut Cases) {
    let mut one = |rows: &[(u32, u32, u32)], max: usize, shape: AttentionShape, dtype: DType| {
        let longest = rows.iter().map(|r| r.1 + 1).max().unwrap_or(0);
        let name = format!("{} of {max} rows, context up to {longest}, {shape:?}, {dtype:?}", rows.len());
        cases.at(step(rows.len(), 0), "attention", name, |r| {
            let AttentionShape { heads, kv_heads, d } = shape;
            let q = r.f32s("q", &[max, heads * d], CountedBy::Rows, &Noise(20).f32s(max * heads * d, 2.0));
            let [k, v] = [("k", 21), ("v", 22)].map(|(name, seed)| {
                let capacity = (longest as usize).max(200);
                cache(r, name, [capacity, kv_heads * d], dtype, seed)
            });
            let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &row_words(rows, max));
            vec![(r.p.cached_attention(q, k, v, rows, shape), Close(ATTENTION_TOL))]
        });
    };
    for (i, context) in [1, 2, 63, 64, 65, 130].into_iter().enumerate() {
        for dtype in [DType::F32, DType::F16] {
            let group = i % 3 + 1;
            one(&[(0, context - 1, 7)], 1, AttentionShape { heads: 2 * group, kv_heads: 2, d: 16 }, dtype);
        }
    }
    // More keys than the most pieces of a context hold at their usual size, for small and for usual pieces.
    for (context, d) in [(3100, 16), (8300, 16), (3100, 64)] {
        one(&[(0, context - 1, 0), (0, 5, 0)], 2, AttentionShape { heads: 2, kv_heads: 1, d }, DType::F16);
    }
    // Two decoding sequences, a prefill chunk of a third, and the first again at an earlier place.
    let batch = [(0, 63, 0), (0, 64, 70), (0, 0, 140), (0, 1, 140), (0, 2, 140), (0, 10, 0)];
    for (kv_heads, group, d) in [(1, 1, 4), (2, 3, 16), (2, 2, 64), (1, 2, 100), (1, 1, 256)] {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, d };
        one(&batch, 8, shape, if d == 64 { DType::F16 } else { DType::F32 });
    }
    // A prompt behind an earlier part of it, with a decoding row of another sequence in front.
    let prompt: Vec<(u32, u32, u32)> = (0..37).map(|i| if i == 0 { (0, 40, 150) } else { (0, 24 + i, 3) }).collect();
    for (kv_heads, group, d) in [(1, 2, 64), (2, 3, 72), (1, 1, 16)] {
        for dtype in [DType::F32, DType::F16] {
            one(&prompt, 40, AttentionShape { heads: kv_heads * group, kv_heads, d }, dtype);
        }
    }
}

fn uncached(cases: &mut Cases) {
    for (rows, heads, d) in
        [(1, 1, 16), (49, 4, 16), (65, 3, 20), (35, 1, 32), (257, 2, 64), (33, 2, 80), (97, 1, 96), (64, 1, 128)]
    {
        cases.full("attention", format!("bidirectional, {rows} rows, {heads} heads of {d}, q k v in one slot"), |r| {
            let e = heads * d;
            let slot = r.f32s("qkv", &[rows, 3 * e], CountedBy::Fixed, &Noise(23).f32s(rows * 3 * e, 2.0));
            let [q, k, v] = [0, e, 2 * e].map(|at| Columns { slot, at });
            vec![(r.p.attention(q, k, v, AttentionShape { heads, kv_heads: heads, d }), Close(ATTENTION_TOL))]
        });
    }
    for (used, rows, heads, d) in [(1, 3, 2, 16), (2, 49, 4, 16), (3, 37, 1, 64), (2, 40, 2, 20)] {
        cases.at(
            step(used, 0),
            "attention",
            format!("{used} of 3 matrices of {rows} rows, {heads} heads of {d}"),
            |r| {
                let e = heads * d;
                let slot = r.f32s("qkv", &[3, rows, 3 * e], CountedBy::Rows, &Noise(27).f32s(3 * rows * 3 * e, 2.0));
                let [q, k, v] = [0, e, 2 * e].map(|at| Columns { slot, at });
                vec![(r.p.attention(q, k, v, AttentionShape { heads, kv_heads: heads, d }), Close(ATTENTION_TOL))]
            },
        );
    }
    cases.at(step(2, 0), "attention", "cross, 2 of 3 matrices, 5 queries and 33 keys each", |r| {
        let shape = AttentionShape { heads: 2, kv_heads: 1, d: 16 };
        let q = r.f32s("q", &[3, 5, 32], CountedBy::Rows, &Noise(28).f32s(480, 2.0));
        let kv = r.f32s("kv", &[3, 33, 32], CountedBy::Rows, &Noise(29).f32s(3 * 33 * 32, 2.0));
        let [k, v] = [0, 16].map(|at| Columns { slot: kv, at });
        vec![(r.p.attention(Columns { slot: q, at: 0 }, k, v, shape), Close(ATTENTION_TOL))]
    });
    for pack in [Pack::F32, Pack::F16] {
        cases.full("attention", format!("cross, 5 queries, 66 keys, {pack:?}, offsets"), |r| {
            let shape = AttentionShape { heads: 4, kv_heads: 2, d: 8 };
            let q = r.f32s("q", &[5, 40], CountedBy::Fixed, &Noise(24).f32s(200, 2.0));
            let kv = r.weight("kv", &[66, 40], pack, &Noise(25).f32s(66 * 40, 2.0));
            let [k, v] = [4, 22].map(|at| Columns { slot: kv, at });
            vec![(r.p.attention(Columns { slot: q, at: 3 }, k, v, shape), Close(ATTENTION_TOL))]
        });
    }
    cases.full("attention", "scores that overflow exp without the maximum", |r| {
        let slot = r.f32s("qkv", &[70, 48], CountedBy::Fixed, &Noise(26).f32s(70 * 48, 40.0));
        let [q, k, v] = [0, 16, 32].map(|at| Columns { slot, at });
        vec![(r.p.attention(q, k, v, AttentionShape { heads: 1, kv_heads: 1, d: 16 }), Close(1e-3))]
    });
}

/// Heads of any width: odd ones, wide ones, and such as no special kernel fits; over a cache of both dtypes, for few rows
/// and for many, with and without a mask, and whole.
fn any_width(cases: &mut Cases) {
    let few = [(0, 40, 3), (0, 2, 60)];
    let many: Vec<(u32, u32, u32)> = (0..19).map(|i| if i == 0 { (0, 40, 50) } else { (0, 24 + i, 3) }).collect();
    for d in [1, 2, 6, 7, 10, 20, 72, 80, 257, 512, 1025] {
        let heads = if d < 100 { 3 } else { 1 };
        let shape = AttentionShape { heads, kv_heads: heads, d };
        for rows in [&few[..], &many] {
            for dtype in [DType::F32, DType::F16] {
                let max = rows.len() + 1;
                let name = format!("heads of {d}, {} rows over a cache of {dtype:?}", rows.len());
                cases.at(step(rows.len(), 0), "attention", name, |r| {
                    let q = r.f32s("q", &[max, heads * d], CountedBy::Rows, &Noise(50).f32s(max * heads * d, 2.0));
                    let [k, v] =
                        [("k", 51), ("v", 52)].map(|(name, seed)| cache(r, name, [101, heads * d], dtype, seed));
                    let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &row_words(rows, max));
                    vec![(r.p.cached_attention(q, k, v, rows, shape), Close(ATTENTION_TOL))]
                });
            }
        }
        cases.at(step(5, 0), "attention", format!("heads of {d}, masked"), |r| {
            let q = r.f32s("q", &[6, heads * d], CountedBy::Rows, &Noise(53).f32s(6 * heads * d, 2.0));
            let [k, v] = [("k", 54), ("v", 55)].map(|(name, seed)| cache(r, name, [70, heads * d], DType::F32, seed));
            let words: Vec<u32> = (0..6).flat_map(|r| [0, r, 1, 66 + r % 3]).collect();
            let rows = r.u32s("rows", &[6, 4], CountedBy::Rows, &words);
            let hidden = |i: usize| if i % 3 == 1 { MASKED } else { 0.0 };
            let mask = r.f32s("mask", &[6, 70], CountedBy::Rows, &(0..420).map(hidden).collect::<Vec<_>>());
            let qkv = [q, k, v].map(|slot| Columns { slot, at: 0 });
            vec![(r.p.masked_attention(qkv, rows, mask, shape), Close(ATTENTION_TOL))]
        });
        for n in [3, 37] {
            cases.full(
                "attention",
                format!("heads of {d}, bidirectional, {n} rows, side by side from column 1 on"),
                |r| {
                    let e = heads * d;
                    let slot = r.f32s("qkv", &[n, 3 * e + 1], CountedBy::Fixed, &Noise(56).f32s(n * (3 * e + 1), 2.0));
                    let [q, k, v] = [0, e, 2 * e].map(|at| Columns { slot, at: at + 1 });
                    vec![(r.p.attention(q, k, v, shape), Close(ATTENTION_TOL))]
                },
            );
        }
    }
}

/// Any ratio of query to key heads, at widths of the kernels for few rows and of others.
fn any_group(cases: &mut Cases) {
    for group in [1, 3, 5, 6, 7, 8] {
        for d in [10, 64] {
            for n in [2, 6, 21] {
                let shape = AttentionShape { heads: 2 * group, kv_heads: 2, d };
                let dtype = if group % 2 == 0 { DType::F32 } else { DType::F16 };
                let name = format!("{group} query heads of {d} for each of 2, {n} rows over a cache of {dtype:?}");
                cases.at(step(n, 0), "attention", name, |r| {
                    let width = shape.heads * d;
                    let q = r.f32s("q", &[n + 1, width], CountedBy::Rows, &Noise(57).f32s((n + 1) * width, 2.0));
                    let [k, v] = [("k", 58), ("v", 59)].map(|(name, seed)| cache(r, name, [90, 2 * d], dtype, seed));
                    let rows: Vec<(u32, u32, u32)> = (0..n as u32).map(|i| (0, 60 + i, 2)).collect();
                    let rows = r.u32s("rows", &[n + 1, 4], CountedBy::Rows, &row_words(&rows, n + 1));
                    vec![(r.p.cached_attention(q, k, v, rows, shape), Close(ATTENTION_TOL))]
                });
            }
        }
    }
}

/// Rows that say more keys than the cache has attend to those that there are; no count of keys makes a loop endless.
fn endless_row(cases: &mut Cases) {
    for (heads, kv_heads, d) in [(2, 1, 16), (2, 2, 64), (2, 2, 20)] {
        for n in [2, 12] {
            let shape = AttentionShape { heads, kv_heads, d };
            let rows = |r: &Recording| {
                let words: Vec<u32> = (0..n as u32).flat_map(|r| [0, 0, 20 * (r % 2), u32::MAX - r]).collect();
                r.u32s("rows", &[n, 4], CountedBy::Rows, &words)
            };
            cases.full("attention", format!("{n} rows of more keys than there are, {shape:?}"), |r| {
                let q = r.f32s("q", &[n, heads * d], CountedBy::Rows, &Noise(60).f32s(n * heads * d, 2.0));
                let [k, v] =
                    [("k", 61), ("v", 62)].map(|(name, seed)| cache(r, name, [90, kv_heads * d], DType::F32, seed));
                vec![(r.p.cached_attention(q, k, v, rows(r), shape), Close(ATTENTION_TOL))]
            });
            cases.full("attention_weights", format!("{n} rows of more keys than there are, {shape:?}"), |r| {
                let q = r.f32s("q", &[n, heads * d], CountedBy::Rows, &Noise(60).f32s(n * heads * d, 2.0));
                let k = cache(r, "k", [90, kv_heads * d], DType::F32, 61);
                vec![(r.p.cached_attention_weights(q, k, rows(r), shape), Close(ATTENTION_TOL))]
            });
        }
    }
}

/// Softmax alone; rows of the cache behind a row's own sequence are 0.
fn weights(cases: &mut Cases) {
    let batch = [(0, 63, 0), (0, 64, 70), (0, 0, 140), (0, 1, 140), (0, 129, 70), (0, 10, 0)];
    let shapes =
        [(1, 1, 4), (2, 3, 16), (2, 2, 64), (1, 2, 100), (1, 1, 256), (1, 3, 1), (3, 5, 7), (3, 1, 10), (1, 1, 257)];
    for (kv_heads, group, d) in shapes {
        for dtype in [DType::F32, DType::F16] {
            let shape = AttentionShape { heads: kv_heads * group, kv_heads, d };
            cases.at(step(6, 0), "attention_weights", format!("6 of 8 rows, {shape:?}, {dtype:?}"), |r| {
                let q = r.f32s("q", &[8, shape.heads * d], CountedBy::Rows, &Noise(30).f32s(8 * shape.heads * d, 2.0));
                let k = cache(r, "k", [200, kv_heads * d], dtype, 31);
                let rows = r.u32s("rows", &[8, 4], CountedBy::Rows, &row_words(&batch, 8));
                vec![(r.p.cached_attention_weights(q, k, rows, shape), Close(ATTENTION_TOL))]
            });
        }
    }
    for (pack, keys) in [(Pack::F32, 1), (Pack::F32, 64), (Pack::F16, 66), (Pack::F16, 131)] {
        cases.full("attention_weights", format!("cross, 5 queries, {keys} keys, {pack:?}, offsets"), |r| {
            let shape = AttentionShape { heads: 4, kv_heads: 2, d: 8 };
            let q = r.f32s("q", &[5, 40], CountedBy::Fixed, &Noise(32).f32s(200, 2.0));
            let k = r.weight("k", &[keys, 40], pack, &Noise(33).f32s(keys * 40, 2.0));
            let [q, k] = [(q, 3), (k, 22)].map(|(slot, at)| Columns { slot, at });
            vec![(r.p.attention_weights(q, k, shape), Close(ATTENTION_TOL))]
        });
    }
    for (rows, keys, d, pack) in [(3, 12, 40, Pack::F32), (70, 33, 7, Pack::F16), (9, 1, 64, Pack::F32)] {
        let what = format!("one head over whole matrices, {rows} of more rows, {keys} keys of {d}, {pack:?}");
        cases.at(step(rows, 0), "attention_weights", what, |r| {
            let n = rows + 2;
            let q = r.f32s("q", &[n, d], CountedBy::Rows, &Noise(35).f32s(n * d, 2.0));
            let k = r.weight("k", &[keys, d], pack, &Noise(36).f32s(keys * d, 2.0));
            let [q, k] = [q, k].map(|slot| Columns { slot, at: 0 });
            let shape = AttentionShape { heads: 1, kv_heads: 1, d };
            vec![(r.p.attention_weights(q, k, shape), Close(ATTENTION_TOL))]
        });
    }
    cases.full("attention_weights", "scores that overflow exp without the maximum", |r| {
        let slot = r.f32s("qk", &[70, 32], CountedBy::Fixed, &Noise(34).f32s(70 * 32, 40.0));
        let [q, k] = [0, 16].map(|at| Columns { slot, at });
        vec![(r.p.attention_weights(q, k, AttentionShape { heads: 1, kv_heads: 1, d: 16 }), Close(1e-3))]
    });
}

fn rope(cases: &mut Cases) {
    let late = vec![(0, 4090, 3), (0, 0, 17), (0, 1, 17), (0, 2000, 100), (0, 4095, 0)];
    let many: Vec<(u32, u32, u32)> = (0..41).map(|i| (0, i, 5)).collect();
    let shapes = [
        (&late, (1, 1, 4)),
        (&late, (4, 2, 16)),
        (&late, (3, 1, 8)),
        (&late, (2, 2, 64)),
        (&many, (4, 2, 32)),
        // Widths whose halves are no whole pairs of 16-bit floats, and the least.
        (&late, (3, 3, 2)),
        (&late, (5, 1, 6)),
        (&many, (2, 2, 10)),
        (&late, (1, 1, 514)),
    ];
    // Fewer positions than rows of the cache, which several sequences share.
    let positions = 4096;
    for (batch, (heads, kv_heads, d)) in shapes {
        for dtype in [DType::F32, DType::F16] {
            let (shape, n, max) = (AttentionShape { heads, kv_heads, d }, batch.len(), batch.len() + 2);
            cases.at(step(n, 0), "rope_kv_write", format!("{shape:?}, {dtype:?}, {n} of {max} rows"), |r| {
                let width = (heads + 2 * kv_heads) * d;
                let qkv = r.f32s("qkv", &[max, width], CountedBy::Rows, &Noise(27).f32s(max * width, 3.0));
                let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &row_words(batch, max));
                let [k, v] = ["k", "v"].map(|name| cache(r, name, [4200, kv_heads * d], dtype, 28));
                let q =
                    r.p.rope_kv_write(qkv, rows, (&Rotation::plain(10_000.0, shape.d), positions), None, shape, [k, v]);
                // One step of f16 is 1e-3 of a value.
                let tol = if dtype == DType::F16 { Close(1e-3) } else { Close(1e-6) };
                vec![(q, Close(1e-6)), (k, tol), (v, if dtype == DType::F16 { tol } else { Exact })]
            });
        }
    }
}

/// Norms of heads, both pairings, parts of heads, and frequencies that no base gives.
fn rotations(cases: &mut Cases) {
    let batch = [(0, 4090, 3), (0, 0, 17), (0, 1, 17), (0, 2000, 100)];
    let shapes = [(4, 2, 16, 8), (3, 1, 8, 2), (2, 2, 64, 32), (5, 1, 6, 3), (1, 1, 256, 64), (2, 1, 128, 1)];
    for (i, (heads, kv_heads, d, pairs)) in shapes.into_iter().enumerate() {
        for (pairing, norm) in [
            (Pairing::Interleaved, None),
            (Pairing::HalfSplit, Some(RmsNorm::new(1e-6))),
            (Pairing::Interleaved, Some(RmsNorm { eps: 1e-5, clamp: Some(TIGHT_CLAMP) })),
        ] {
            let dtype = if i % 2 == 0 { DType::F32 } else { DType::F16 };
            let (shape, max) = (AttentionShape { heads, kv_heads, d }, 6);
            let name = format!("{shape:?}, {dtype:?}, {pairs} pairs {pairing:?}, {norm:?}, 4 of 6 rows");
            cases.at(step(4, 0), "rope_kv_write", name, |r| {
                let (width, mut noise) = ((heads + 2 * kv_heads) * d, Noise(95));
                let qkv = r.f32s("qkv", &[max, width], CountedBy::Rows, &noise.f32s(max * width, 3.0));
                let rows = r.u32s("rows", &[max, 4], CountedBy::Rows, &row_words(&batch, max));
                let [k, v] = ["k", "v"].map(|name| cache(r, name, [4200, kv_heads * d], dtype, 28));
                let weights = r.weight("w", &[2, d], Pack::F32, &noise.f32s(2 * d, 2.0));
                let frequencies = (0..pairs).map(|j| 0.7 / (1 + j * j) as f32).collect();
                let rotation = Rotation { frequencies, factor: 1.25, pairing };
                let norm = norm.map(|norm| QkNorm { norm, weights });
                let q = r.p.rope_kv_write(qkv, rows, (&rotation, 4096), norm, shape, [k, v]);
                let tol = if dtype == DType::F16 { Close(1e-3) } else { Close(3e-6) };
                vec![(q, Close(3e-6)), (k, tol), (v, if dtype == DType::F16 { tol } else { Exact })]
            });
        }
    }
}

/// A new row in front of contexts that are one chunk or several, with heads of all kinds.
fn new_rows(cases: &mut Cases) {
    let norms = [None, Some(RmsNorm::new(1e-6)), Some(RmsNorm { eps: 1e-5, clamp: Some(TIGHT_CLAMP) })];
    // Heads, those of keys, their width, how many pairs of them turn; the row's position and its sequence's first row.
    let shapes = [
        (2, 2, 16, 8, 0, 0),
        (4, 2, 64, 32, 63, 7),
        (3, 1, 64, 16, 300, 0),
        (4, 1, 64, 32, 129, 40),
        (2, 1, 128, 64, 128, 3),
        (4, 1, 128, 64, 3090, 0),
        // Cut into the most chunks, the last one of which is empty in some of the forms.
        (2, 1, 16, 8, 3085, 0),
        (4, 2, 256, 128, 20, 5),
        (4, 1, 512, 256, 700, 1),
        (2, 2, 32, 8, 1, 0),
    ];
    for (i, (heads, kv_heads, d, pairs, pos, base)) in shapes.into_iter().enumerate() {
        for (j, norm) in norms.into_iter().enumerate() {
            let pairing = [Pairing::HalfSplit, Pairing::Interleaved][(i + j) / 2 % 2];
            let dtype = [DType::F32, DType::F16][(i + j) % 2];
            let shape = AttentionShape { heads, kv_heads, d };
            let name = format!("{shape:?}, {dtype:?}, {pairs} pairs {pairing:?}, {norm:?}, behind {pos} rows");
            cases.at(step(1, 0), "rope_attention", name, |r| {
                let (width, mut noise) = ((heads + 2 * kv_heads) * d, Noise(95));
                let qkv = r.f32s("qkv", &[1, width], CountedBy::Rows, &noise.f32s(width, 2.0));
                let rows = r.u32s("rows", &[1, 4], CountedBy::Rows, &row_words(&[(0, pos, base)], 1));
                let [k, v] = ["k", "v"].map(|name| cache(r, name, [3110, kv_heads * d], dtype, 28));
                let weights = r.weight("w", &[2, d], Pack::F32, &noise.f32s(2 * d, 2.0));
                let frequencies = (0..pairs).map(|j| 0.7 / (1 + j * j) as f32).collect();
                let rotation = Rotation { frequencies, factor: 1.25, pairing };
                let norm = norm.map(|norm| QkNorm { norm, weights });
                let (y, q) = r.p.rope_attention(qkv, rows, (&rotation, 4096), norm, shape, [k, v]);
                assert_eq!(q, None, "it is one launch");
                // A key may be rounded to the next 16-bit float: 1e-3 of a value.
                let tol = if dtype == DType::F16 { [1e-3; 2] } else { [3e-5, 3e-6] };
                let exact = if dtype == DType::F16 { Close(tol[1]) } else { Exact };
                vec![(y, Close(tol[0])), (k, Close(tol[1])), (v, exact)]
            });
        }
    }
}

fn router(cases: &mut Cases) {
    let rows: Vec<(u32, u32, u32)> = (0..9).map(|i| (0, i, 10 * (i % 3))).collect();
    for (experts, k) in [(8, 2), (1, 1), (5, 5), (32, 4), (3, 1), (40, 4), (256, 8), (512, 8), (33, 33)] {
        cases.at(step(9, 0), "router", format!("{k} of {experts} experts, ties, 9 of 11 rows"), |r| {
            let mut logits = Noise(29).f32s(11 * experts, 4.0);
            let edit = |logits: &mut Vec<f32>, row: usize, f: &dyn Fn(usize) -> f32| {
                (0..experts).for_each(|e| logits[row * experts + e] = f(e));
            };
            edit(&mut logits, 1, &|_| 0.5);
            edit(&mut logits, 2, &|e| if e % 2 == 1 { 1.0 } else { -1.0 });
            edit(&mut logits, 3, &|e| if e == 0 { 300.0 } else { e as f32 });
            edit(&mut logits, 4, &|e| 1.0 + e as f32 * f32::EPSILON);
            edit(&mut logits, 5, &|e| -1e30 * (1.0 + (e % 3) as f32));
            edit(&mut logits, 6, &|e| if e % 2 == 0 { -0.0 } else { 0.0 });
            let logits = r.f32s("logits", &[11, experts], CountedBy::Rows, &logits);
            let rows = r.u32s("rows", &[11, 4], CountedBy::Rows, &row_words(&rows, 11));
            let log = r.state("log", &[40, k], DType::U32, vec![77; 40 * k]);
            let [expert_ids, weights] = r.p.router(logits, rows, log, k);
            vec![(expert_ids, Exact), (weights, Close(1e-6)), (log, Exact)]
        });
    } // Numbers that are none are chosen by their sign, never twice, and nothing beyond the experts is.
    cases.full("router", "not a number", |r| {
        let n = f32::NAN;
        let logits = [[n, 1.0, -n, 2.0, 0.5], [n; 5], [-n; 5], [f32::NEG_INFINITY; 5], [1.0, f32::INFINITY, n, n, -n]];
        let logits = r.f32s("logits", &[5, 5], CountedBy::Rows, &logits.concat());
        let rows = r.u32s("rows", &[5, 4], CountedBy::Rows, &row_words(&rows[..5], 5));
        let log = r.state("log", &[40, 4], DType::U32, vec![77; 160]);
        vec![(r.p.router(logits, rows, log, 4)[0], Exact), (log, Exact)]
    });
}
