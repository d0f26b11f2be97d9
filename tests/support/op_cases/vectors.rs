//! Rows of the ops between whole vectors: multiply-adds, concatenation, lengths, means, reading a memory.

use ternion::unstable::ops::{Columns, MAX_MEMORY, PoolKind, Window};
use ternion::unstable::tensor::{CountedBy, DType, Pack};

use super::Tol::{Close, Codes, Exact, ScaleAndSum};
use super::elements::hard_rows;
use super::{Cases, step};
use crate::support::numbers::{Noise, bits};

pub fn add(cases: &mut Cases) {
    affine(cases);
    concat(cases);
    l2_norm(cases);
    span_mean(cases);
    pool(cases);
    whole_tensor_codes(cases);
    memory_read(cases);
    store_rows(cases);
    lstm_cell(cases);
}

fn affine(cases: &mut Cases) {
    for bits in 1..8 {
        let [scale, bias, residual] = [1, 2, 4].map(|bit| bits & bit != 0);
        for (shape, used) in [(&[1, 1][..], 1), (&[5, 33], 3), (&[3, 2, 40], 2)] {
            let name = format!("scale {scale}, bias {bias}, residual {residual}, {used} rows of {shape:?}");
            cases.at(step(used, 0), "affine", name, |r| {
                let (mut noise, width) = (Noise(80), shape[shape.len() - 1]);
                let n = shape.iter().product();
                let x = r.f32s("x", shape, CountedBy::Rows, &noise.f32s(n, 3.0));
                let mut vector = |name| r.weight(name, &[width], Pack::F32, &noise.f32s(width, 2.0));
                let (scale, bias) = (scale.then(|| vector("scale")), bias.then(|| vector("bias")));
                let residual = residual.then(|| r.f32s("residual", shape, CountedBy::Rows, &Noise(81).f32s(n, 2.0)));
                vec![(r.p.affine(x, scale, bias, residual), Close(1e-6))]
            });
        }
    }
}

fn concat(cases: &mut Cases) {
    for (rows, used, a, b) in [(1, 1, 1, 1), (6, 4, 17, 33), (3, 3, 64, 4)] {
        cases.at(step(used, 0), "concat", format!("{used} of {rows} rows, widths {a} and {b}"), |r| {
            let mut noise = Noise(82);
            let mut x = |name, width| r.f32s(name, &[rows, width], CountedBy::Rows, &noise.f32s(rows * width, 1.0));
            let (a, b) = (x("a", a), x("b", b));
            vec![(r.p.concat(a, b), Exact)]
        });
    }
}

fn l2_norm(cases: &mut Cases) {
    for (width, rows, used) in [(1, 2, 2), (63, 7, 6), (64, 6, 6), (257, 8, 7)] {
        cases.at(step(0, used), "l2_norm", format!("width {width}, {used} of {rows} rows"), |r| {
            let x = hard_rows(rows, width, &mut Noise(83));
            vec![(r.p.l2_norm(r.f32s("x", &[rows, width], CountedBy::Outputs, &x), 1e-8), Close(2e-6))]
        });
    }
}

fn span_mean(cases: &mut Cases) {
    for (rows, width, spans, used) in
        [(1, 4, &[0, 1][..], 1), (9, 33, &[2, 7, 0, 9, 8, 1, 99, 99], 3), (300, 64, &[1, 256], 1)]
    {
        cases.at(step(rows, used), "span_mean", format!("{used} spans of {rows} rows, width {width}"), |r| {
            let x = r.f32s("x", &[rows, width], CountedBy::Rows, &Noise(84).f32s(rows * width, 2.0));
            let spans = r.u32s("spans", &[spans.len() / 2, 2], CountedBy::Outputs, spans);
            vec![(r.p.span_mean(x, spans), Close(2e-6))]
        });
    }
    cases.at(step(2, 0), "span_mean", "spans of 2 of 3 matrices", |r| {
        let x = r.f32s("x", &[3, 5, 12], CountedBy::Rows, &Noise(84).f32s(180, 2.0));
        let spans = r.u32s("spans", &[3, 2], CountedBy::Rows, &[1, 4, 6, 4, 11, 4]);
        vec![(r.p.span_mean(x, spans), Close(2e-6))]
    });
}

fn pool(cases: &mut Cases) {
    let sizes = [(14, 5, Window::tiles(2)), (7, 33, Window { size: 3, stride: 2, pad: 1 }), (3, 1, Window::tiles(3))];
    for (side, channels, window) in sizes {
        for kind in [PoolKind::Max, PoolKind::Mean] {
            cases.full("pool", format!("{kind:?}, side {side}, {channels} channels, {window:?}"), |r| {
                let x = Noise(85).f32s(side * side * channels, 2.0);
                let x = r.f32s("x", &[side * side, channels], CountedBy::Fixed, &x);
                vec![(r.p.pool(x, window, kind), Close(1e-6))]
            });
            cases.at(step(2, 0), "pool", format!("2 of 3 images, {kind:?}, side {side}, {channels} channels"), |r| {
                let x = Noise(86).f32s(3 * side * side * channels, 2.0);
                let x = r.f32s("x", &[3, side * side, channels], CountedBy::Rows, &x);
                vec![(r.p.pool(x, window, kind), Close(1e-6))]
            });
        }
    }
}

fn whole_tensor_codes(cases: &mut Cases) {
    for (rows, used, d) in [(1, 1, 1), (3, 2, 40), (6, 6, 64), (7, 6, 100), (40, 33, 771)] {
        // What the largest magnitude comes from: an ordinary row, the row of large values, nothing but zeros.
        for scale in [1.0, 0.0, 1e-9] {
            let x = || hard_rows(rows, d, &mut Noise(86)).into_iter().map(|v| v * scale).collect::<Vec<f32>>();
            cases.at(step(used, 0), "absmax", format!("{used} of {rows} rows, d {d}, times {scale}"), |r| {
                vec![(r.p.absmax(r.f32s("x", &[rows, d], CountedBy::Rows, &x())), Exact)]
            });
            cases.at(step(used, 0), "quantise", format!("{used} of {rows} rows, d {d}, times {scale}"), |r| {
                let x = r.f32s("x", &[rows, d], CountedBy::Rows, &x());
                let [codes, scale_and_sum] = r.p.quantise(x, r.p.absmax(x), 1e-8);
                vec![(codes, Codes), (scale_and_sum, ScaleAndSum)]
            });
        }
    }
}

fn memory_read(cases: &mut Cases) {
    for (rows, used, width, slots, k) in
        [(1, 1, 4, 1, 1), (5, 3, 33, 5, 5), (6, 6, 64, 32, 5), (3, 3, 128, 513, 16), (1, 1, 16, MAX_MEMORY, 5)]
    {
        let name = format!("{used} of {rows} rows, width {width}, {k} of {slots} slots");
        cases.at(step(used, 0), "memory_read", name, |r| {
            let mut noise = Noise(87);
            let q = r.f32s("q", &[rows, width], CountedBy::Rows, &noise.f32s(rows * width, 2.0));
            let mut memory = noise.f32s(slots * width, 1.0);
            if slots > 16 {
                // An empty slot, whose cosine with everything is 0.
                memory[..width].fill(0.0);
            }
            let memory = r.f32s("memory", &[slots, width], CountedBy::Fixed, &memory);
            let quality = r.f32s("quality", &[slots], CountedBy::Fixed, &noise.f32s(slots, 1.0));
            let [read, slot_ids, weights] = r.p.memory_read(q, memory, quality, k);
            vec![(read, Close(1e-5)), (slot_ids, Exact), (weights, Close(1e-5))]
        });
    }
    cases.at(step(2, 0), "memory_read", "equal slots and a query of zeros", |r| {
        let mut q = Noise(88).f32s(2 * 8, 1.0);
        q[8..].fill(0.0);
        let q = r.f32s("q", &[2, 8], CountedBy::Rows, &q);
        let memory = r.f32s("memory", &[6, 8], CountedBy::Fixed, &Noise(89).f32s(8, 1.0).repeat(6));
        let quality = r.f32s("quality", &[6], CountedBy::Fixed, &[1.0; 6]);
        let [read, slot_ids, weights] = r.p.memory_read(q, memory, quality, 3);
        vec![(read, Close(1e-5)), (slot_ids, Exact), (weights, Close(1e-5))]
    });
}

fn store_rows(cases: &mut Cases) {
    // The numbers of the rows: in any order, some beyond the state, rows that the step does not use.
    let sizes = [(1, 1, 4, 0, 4, &[0][..]), (5, 3, 33, 0, 33, &[6, u32::MAX, 0, 1, 2]), (3, 3, 96, 32, 64, &[2, 7, 1])];
    for (rows, used, x_width, at, width, which) in sizes {
        let name = format!("{used} of {rows} rows, columns {at}.. of {x_width}, width {width}");
        cases.at(step(used, 0), "store_rows", name, |r| {
            let x = r.f32s("x", &[rows, x_width], CountedBy::Rows, &Noise(90).f32s(rows * x_width, 2.0));
            let which = r.u32s("which", &[rows, 1], CountedBy::Rows, which);
            let state = r.state("state", &[7, width], DType::F32, bits(&Noise(91).f32s(7 * width, 1.0)));
            r.p.store_rows(Columns { slot: x, at }, which, state);
            vec![(state, Exact)]
        });
    }
    cases.at(step(2, 0), "store_rows", "2 of 3 matrices of 2 rows", |r| {
        let x = r.f32s("x", &[3, 2, 5], CountedBy::Rows, &Noise(90).f32s(30, 2.0));
        let which = r.u32s("which", &[6, 1], CountedBy::Fixed, &[4, 7, 0, 2, 1, 3]);
        let state = r.state("state", &[7, 5], DType::F32, bits(&Noise(91).f32s(35, 1.0)));
        r.p.store_rows(Columns { slot: x, at: 0 }, which, state);
        vec![(state, Exact)]
    });
}

fn lstm_cell(cases: &mut Cases) {
    for (rows, used, width, scale) in [(1, 1, 1, 1.0), (6, 4, 33, 3.0), (3, 3, 64, 1.0), (2, 2, 100, 200.0)] {
        cases.at(step(0, used), "lstm_cell", format!("{used} of {rows} rows, width {width}, times {scale}"), |r| {
            let mut noise = Noise(92);
            let gates = r.f32s("gates", &[rows, 4 * width], CountedBy::Outputs, &noise.f32s(rows * 4 * width, scale));
            let c = r.f32s("c", &[rows, width], CountedBy::Outputs, &noise.f32s(rows * width, 2.0));
            let [h, next] = r.p.lstm_cell(gates, c);
            vec![(h, Close(2e-6)), (next, Close(2e-6))]
        });
    }
}
