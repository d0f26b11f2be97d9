//! Rows of the ops that work on elements or whole vectors of floats.

use std::f32::consts::SQRT_2;

use ternion::unstable::ops::{PROBE_CHUNK, Pixels, RmsNorm, TOKEN_CLAMP, TOKEN_IMAGE, UnaryKind, Window};
use ternion::unstable::quant::Bits;
use ternion::unstable::tensor::{CountedBy, Pack};

use super::Tol::{Close, Exact};
use super::groups::matrix as group_matrix;
use super::{ACTS, CLAMP, Cases, TIGHT_CLAMP, row_words, step};
use crate::support::numbers::Noise;

pub fn add(cases: &mut Cases) {
    combine(cases);
    embed(cases);
    embed_groups(cases);
    positions(cases);
    norms(cases);
    bandwidth_probe(cases);
    rearrangements(cases);
    swiglu(cases);
    unary(cases);
}

fn combine(cases: &mut Cases) {
    let few = [(1, 1, 16, 2, 1, 1e4), (5, 3, 17, 1, 1, 0.5), (4, 4, 130, 4, 1, 1.0)];
    let others = [(3, 2, 20, 1, 0, 1e4), (5, 4, 33, 8, 4, 2.0), (2, 2, 16, 8, 0, 1e4), (9, 9, 70, 2, 2, 1.0)];
    for (rows, used, width, k, shared, bound) in few.into_iter().chain(others) {
        cases.at(
            step(used, 0),
            "combine",
            format!("{used} of {rows} rows, width {width}, k {k}, {shared} shared"),
            |r| {
                let mut noise = Noise(3);
                let x = r.f32s("x", &[rows, width], CountedBy::Rows, &noise.f32s(rows * width, 3.0));
                let y = r.f32s(
                    "y",
                    &[rows, k + shared, width],
                    CountedBy::Rows,
                    &noise.f32s(rows * (k + shared) * width, 2.0),
                );
                let weights = r.f32s("weights", &[rows, k], CountedBy::Rows, &noise.f32s(rows * k, 1.0));
                vec![(r.p.combine(x, y, weights, bound), Close(1e-6))]
            },
        );
    }
}

fn bandwidth_probe(cases: &mut Cases) {
    for chunks in [1, 3] {
        cases.full("bandwidth_probe", format!("{chunks} chunks"), |r| {
            let mut noise = Noise(5);
            let words: Vec<u32> = (0..chunks * PROBE_CHUNK).map(|_| noise.word()).collect();
            let x = r.u32s("x", &[chunks, 32, PROBE_CHUNK / 32], CountedBy::Fixed, &words);
            vec![(r.p.bandwidth_probe(x), Exact)]
        });
    }
}

/// Tables of low-bit codes, cut at any row.
fn embed_groups(cases: &mut Cases) {
    let tokens = [0, 131, 300, 299 | TOKEN_CLAMP, TOKEN_IMAGE | 12, 0x3FFF_FFFF];
    let rows: Vec<(u32, u32, u32)> = tokens.map(|t| (t, 0, 0)).to_vec();
    let forms =
        [(Bits::One, 128), (Bits::Two, 64), (Bits::Six, 64), (Bits::Six, 256), (Bits::Eight, 32), (Bits::Two, 320)];
    for (bits, group) in forms {
        for shards in [&[300][..], &[128, 172], &[129, 171]] {
            cases.at(step(6, 0), "embed", format!("{bits:?} by {group}, shards {shards:?}, 6 of 7 rows"), |r| {
                let mut noise = Noise(6);
                let rows = r.u32s("rows", &[7, 4], CountedBy::Rows, &row_words(&rows, 7));
                let tables: Vec<_> = (shards.iter())
                    .map(|&n| r.groups(&format!("table {n}"), &[group_matrix(&mut noise, n, 300, bits, group)]))
                    .collect();
                let image = r.f32s("image", &[7, 300], CountedBy::Rows, &noise.f32s(7 * 300, 3.0));
                vec![(r.p.embed(rows, &tables, Some(image), 0.01), Exact)]
            });
        }
    }
}

fn embed(cases: &mut Cases) {
    let tokens = [0, 6, 13 | TOKEN_CLAMP, TOKEN_IMAGE | 3, 12, 14, 0x3FFF_FFFF, 5 | TOKEN_CLAMP];
    let rows: Vec<(u32, u32, u32)> = tokens.iter().map(|&t| (t, 0, 0)).collect();
    for pack in [Pack::F32, Pack::F16] {
        for (image, shards) in [(false, &[14][..]), (true, &[14]), (true, &[1, 6, 7])] {
            cases.at(step(8, 0), "embed", format!("{pack:?}, image {image}, shards {shards:?}, 8 of 9 rows"), |r| {
                let (width, mut noise) = (if image { 70 } else { 71 }, Noise(4));
                let rows = r.u32s("rows", &[9, 4], CountedBy::Rows, &row_words(&rows, 9));
                let shard = |(i, n): (usize, &usize)| {
                    r.weight(&format!("table {i}"), &[*n, width], pack, &Noise(5 + i as u64).f32s(n * width, 2.0))
                };
                let tables: Vec<_> = shards.iter().enumerate().map(shard).collect();
                let vectors = noise.f32s(9 * width, 3.0);
                let image = image.then(|| r.f32s("image", &[9, width], CountedBy::Rows, &vectors));
                vec![(r.p.embed(rows, &tables, image, 1.25), Exact)]
            });
        }
    }
}

fn positions(cases: &mut Cases) {
    for pack in [Pack::F32, Pack::F16] {
        cases.at(step(4, 0), "embed", format!("positions, {pack:?}, 4 of 5 rows"), |r| {
            let rows = [(9, 0, 0), (1 | TOKEN_IMAGE, 6, 0), (0, 3, 1), (2, 7, 2)];
            let rows = r.u32s("rows", &[5, 4], CountedBy::Rows, &row_words(&rows, 5));
            let table = r.weight("table", &[7, 66], pack, &Noise(15).f32s(7 * 66, 2.0));
            vec![(r.p.embed_positions(rows, table), Exact)]
        });
    }
}

/// Rows that a norm may stumble over: plain, beyond ±100, zero, tiny, constant, one large element.
pub fn hard_rows(rows: usize, width: usize, noise: &mut Noise) -> Vec<f32> {
    let mut x = noise.f32s(rows * width, 2.0);
    for (i, row) in x.chunks_exact_mut(width).enumerate() {
        match i % 6 {
            1 => row.iter_mut().for_each(|v| *v *= 150.0),
            2 => row.fill(0.0),
            3 => row.iter_mut().for_each(|v| *v *= 1e-6),
            4 => row.fill(-0.75),
            5 => row[width / 2] = 90.0,
            _ => {}
        }
    }
    x
}

fn norms(cases: &mut Cases) {
    for (width, rows, used) in [(16, 1, 1), (1, 2, 2), (63, 7, 6), (64, 6, 6), (65, 6, 6), (257, 8, 7)] {
        let name = |what: &str| format!("{what}width {width}, {used} of {rows} rows");
        for (clamp, eps) in [(None, 1e-5), (Some(CLAMP), 1e-6), (Some(TIGHT_CLAMP), 1e-6)] {
            cases.at(step(used, 0), "rms_norm", name(&format!("{clamp:?}, ")), |r| {
                let mut noise = Noise(6);
                let x = r.f32s("x", &[rows, width], CountedBy::Rows, &hard_rows(rows, width, &mut noise));
                let w = r.weight("w", &[width], Pack::F32, &noise.f32s(width, 1.5));
                vec![(r.p.rms_norm(x, w, RmsNorm { eps, clamp }), Close(2e-6))]
            });
        }
        cases.at(step(used, 0), "layer_norm", name(""), |r| {
            let mut noise = Noise(7);
            let x = r.f32s("x", &[rows, width], CountedBy::Rows, &hard_rows(rows, width, &mut noise));
            let w = r.weight("w", &[width], Pack::F32, &noise.f32s(width, 1.5));
            let b = r.weight("b", &[width], Pack::F32, &noise.f32s(width, 1.0));
            vec![(r.p.layer_norm(x, w, b, 1e-6), Close(1e-5))]
        });
    }
    cases.at(step(2, 0), "rms_norm", "3 vectors per row, 2 of 3 rows", |r| {
        let mut noise = Noise(8);
        let x = r.f32s("x", &[3, 3, 40], CountedBy::Rows, &hard_rows(9, 40, &mut noise));
        let w = r.weight("w", &[40], Pack::F32, &noise.f32s(40, 1.5));
        vec![(r.p.rms_norm(x, w, RmsNorm { eps: 1e-6, clamp: Some(CLAMP) }), Close(2e-6))]
    });
}

fn rearrangements(cases: &mut Cases) {
    for (channels, side, patch) in [(3, 8, 4), (1, 10, 3), (3, 14, 14), (2, 5, 1)] {
        cases.full("patches", format!("{channels} channels, side {side}, patch {patch}"), |r| {
            let x = Noise(9).f32s(channels * side * side, 1.0);
            let x = r.f32s("x", &[channels, side, side], CountedBy::Fixed, &x);
            let width = channels * patch * patch;
            vec![(r.p.patches(x, Pixels::Planes, Window::tiles(patch), 0, width), Exact)]
        });
    }
    for (side, size, stride, pad, front) in [(9, 3, 2, 1, 0), (8, 7, 2, 3, 1), (5, 5, 1, 2, 2), (6, 2, 3, 0, 3)] {
        let window = Window { size, stride, pad };
        for (shape, pixels) in [(vec![3, side, side], Pixels::Planes), (vec![side * side, 3], Pixels::Rows)] {
            cases.full("patches", format!("{pixels:?}, side {side}, {window:?}, {front} in front"), |r| {
                let x = r.f32s("x", &shape, CountedBy::Fixed, &Noise(14).f32s(3 * side * side, 1.0));
                vec![(r.p.patches(x, pixels, window, front, (3 * size * size).next_multiple_of(4)), Exact)]
            });
            cases.at(step(2, 0), "patches", format!("2 of 3 images, {pixels:?}, side {side}, {window:?}"), |r| {
                let several = [&[3], &shape[..]].concat();
                let x = r.f32s("x", &several, CountedBy::Rows, &Noise(15).f32s(9 * side * side, 1.0));
                vec![(r.p.patches(x, pixels, window, front, (3 * size * size).next_multiple_of(4)), Exact)]
            });
        }
    }
    for (grid, factor, width) in [(4, 2, 16), (7, 2, 17), (5, 3, 70), (1, 2, 3), (3, 1, 8)] {
        cases.full("pixel_shuffle", format!("grid {grid}, factor {factor}, width {width}"), |r| {
            let x = Noise(10).f32s(grid * grid * width, 1.0);
            vec![(r.p.pixel_shuffle(r.f32s("x", &[grid * grid, width], CountedBy::Fixed, &x), factor), Exact)]
        });
    }
    for (rows, outputs, used, width) in [(1, 1, 1, 16), (6, 4, 3, 33), (2, 5, 5, 64)] {
        let name = format!("{used} of {outputs} outputs from {rows} rows, width {width}");
        cases.at(step(rows, used), "select_rows", name, |r| {
            let x = r.f32s("x", &[rows, width], CountedBy::Rows, &Noise(11).f32s(rows * width, 1.0));
            let mut which: Vec<u32> = (0..used).map(|i| ((i * 5 + 1) % rows) as u32).collect();
            which.resize(outputs, u32::MAX);
            let which = r.u32s("which", &[outputs, 1], CountedBy::Outputs, &which);
            vec![(r.p.select_rows(x, which), Exact)]
        });
    }
    cases.at(step(4, 2), "select_rows", "4 of 5 rows, each its sample's vector", |r| {
        let x = r.f32s("x", &[3, 40], CountedBy::Outputs, &Noise(15).f32s(120, 1.0));
        let which = r.u32s("which", &[5, 1], CountedBy::Rows, &[0, 0, 1, 1, u32::MAX]);
        vec![(r.p.select_rows(x, which), Exact)]
    });
}

fn swiglu(cases: &mut Cases) {
    for (shape, used) in [(&[1, 32][..], 1), (&[5, 2 * 33], 3), (&[4, 3, 2 * 96], 3)] {
        for act in ACTS {
            cases.at(step(used, 0), "swiglu", format!("{shape:?}, {used} rows, {act:?}"), |r| {
                let mut x = Noise(12).f32s(shape.iter().product(), 60.0);
                x[..4].copy_from_slice(&[0.0, -100.0, 100.0, 19.0]);
                vec![(r.p.swiglu(r.f32s("x", shape, CountedBy::Rows, &x), act), Close(1e-6))]
            });
        }
    }
}

fn unary(cases: &mut Cases) {
    use UnaryKind::{GeluErf, GeluTanh, Relu, Scale, Tanh};
    for kind in [GeluErf, GeluTanh, Relu, Tanh, Scale(0.1)] {
        for (shape, used) in [(&[1, 1][..], 1), (&[3, 1001], 2), (&[2, 3, 50], 1), (&[3, 4099], 3)] {
            cases.at(step(used, 0), "unary", format!("{kind:?}, {shape:?}, {used} rows"), |r| {
                let mut x = Noise(13).f32s(shape.iter().product(), 10.0);
                if let Some(x) = x.get_mut(..8) {
                    x.copy_from_slice(&[0.0, 100.0, -100.0, SQRT_2, 1.415, -1.0, 1e-7, -1e4]);
                }
                vec![(r.p.unary(r.f32s("x", shape, CountedBy::Rows, &x), kind), Close(1e-6))]
            });
        }
    }
}
