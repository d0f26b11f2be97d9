//! Rows of the dense product.

use ternion::unstable::tensor::{CountedBy, Pack};

use super::Tol::Close;
use super::{Cases, step};
use crate::support::numbers::Noise;

const TOL: f32 = 1e-5;

/// Rows, those in use, columns and outputs.
const SIZES: &[(usize, usize, usize, usize)] = &[
    (1, 1, 4, 1),
    (1, 1, 16, 3),
    (2, 2, 20, 5),
    (3, 2, 100, 33),
    (4, 4, 260, 64),
    (5, 5, 16, 1),
    (6, 3, 68, 31),
    (9, 9, 64, 100),
    (33, 33, 36, 34),
    (70, 65, 128, 300),
    (17, 17, 72, 130),
    (8, 1, 104, 129),
    (1, 1, 768, 130),
    (20, 20, 48, 37),
    // Rows that are no whole vectors, nor whole words.
    (1, 1, 1, 3),
    (2, 1, 7, 5),
    (9, 9, 131, 70),
    (40, 37, 66, 9),
    // Columns in several pieces, and tiles of every height.
    (29, 29, 2056, 130),
    (13, 13, 1040, 5),
    (16, 15, 1024, 258),
];

pub fn add(cases: &mut Cases) {
    for (i, (rows, used, d_in, d_out)) in SIZES.iter().copied().enumerate() {
        for (p, pack) in [Pack::F32, Pack::F16, Pack::Int8].into_iter().enumerate() {
            let (bias, residual) = ((i + p).is_multiple_of(2), i % 4 < 2);
            let name = format!("{used} of {rows} rows, {d_in} to {d_out}, {pack:?}, bias {bias}, residual {residual}");
            cases.at(step(used, 0), "matmul", name, |r| {
                let mut noise = Noise(40);
                // Long sums are of small numbers, so that they are of size 1 as the others.
                let size = if d_in > 1000 { 0.1 } else { 1.0 };
                let x = r.f32s("x", &[rows, d_in], CountedBy::Rows, &noise.f32s(rows * d_in, size));
                let w = r.weight("w", &[d_out, d_in], pack, &noise.f32s(d_in * d_out, 1.0));
                let (b, y) = (noise.f32s(d_out, 3.0), noise.f32s(rows * d_out, 3.0));
                let bias = bias.then(|| r.weight("b", &[d_out], Pack::F32, &b));
                let residual = residual.then(|| r.f32s("residual", &[rows, d_out], CountedBy::Rows, &y));
                vec![(r.p.matmul(x, w, bias, residual), Close(TOL))]
            });
        }
    }
    for (rows, pack) in
        [(2, Pack::F32), (6, Pack::F32), (3, Pack::F16), (40, Pack::F16), (2, Pack::Int8), (9, Pack::Int8)]
    {
        cases.at(step(rows - 1, 0), "matmul", format!("shards of 3, 37 and 1 outputs, {rows} rows, {pack:?}"), |r| {
            let x = r.f32s("x", &[rows, 24], CountedBy::Rows, &Noise(41).f32s(rows * 24, 1.0));
            let shards =
                [3, 37, 1].map(|n| r.weight(&format!("w {n}"), &[n, 24], pack, &Noise(n as u64).f32s(n * 24, 1.0)));
            vec![(r.p.matmul_sharded(x, &shards), Close(TOL))]
        });
    }
    for rows in [2, 5] {
        cases.at(step(rows - 1, 0), "matmul", format!("3 vectors per row, {} of {rows} rows", rows - 1), |r| {
            let x = r.f32s("x", &[rows, 3, 20], CountedBy::Rows, &Noise(42).f32s(rows * 60, 1.0));
            let w = r.weight("w", &[7, 20], Pack::F32, &Noise(43).f32s(140, 1.0));
            vec![(r.p.matmul(x, w, None, None), Close(TOL))]
        });
    }
}
