//! Rows of the layers of few rows in one launch, against the composition of their parts.

use ternion::unstable::ops::{ActQuant, BitInput, Experts, NormClamp, RmsNorm};
use ternion::unstable::plan::Slot;
use ternion::unstable::quant::Packed;
use ternion::unstable::tensor::{CountedBy, DType, Pack};

use super::Tol::{Close, Exact};
use super::{ACT, ACTS, CLAMP, Cases, TIGHT_CLAMP, row_words, step};
use crate::support::numbers::Noise;
use crate::support::recording::Recording;

const NORM: RmsNorm = RmsNorm { eps: 1e-5, clamp: Some(CLAMP) };
const PRE: RmsNorm = RmsNorm { eps: 1e-6, clamp: Some(CLAMP) };
const QUANT: ActQuant = ActQuant { max_code: 127.0, bound: 50.0, floor: 1e-4 };
/// What a matrix's code stands for.
const SCALE: f32 = 0.1;
/// A code on the edge may round the other way: 1/127 of the largest activation, times [`SCALE`].
const FLIP: f32 = 1e-2;

pub fn add(cases: &mut Cases) {
    clamps(cases);
    plain(cases);
    swiglu(cases);
    combine(cases);
    counts_of_experts(cases);
    route(cases);
    route_swiglu(cases);
}

/// Norms and matrices of `outs` rows; bits are mixed.
fn stack(r: &Recording, outs: &[usize], d: usize) -> [Slot; 2] {
    let packed = |(i, &n): (usize, &usize)| Noise(90 + i as u64).packed(n, d, i % 2 == 0, SCALE);
    let parts: Vec<Packed> = outs.iter().enumerate().map(packed).collect();
    let norms = Noise(91).f32s(outs.len() * d, 1.0);
    [r.weight("norms", &[outs.len(), d], Pack::F32, &norms), r.ternary("w", &parts)]
}

fn input(r: &Recording, pre: bool, d: usize) -> BitInput {
    let slot = || r.weight("pre", &[d], Pack::F32, &Noise(92).f32s(d, 2.0));
    BitInput { pre_norm: pre.then(|| (PRE, slot())), norm: NORM, act: QUANT }
}

/// Bounds of the norms that are EmberNet's, none, and others.
fn clamps(cases: &mut Cases) {
    let all: [Option<NormClamp>; 3] = [Some(CLAMP), None, Some(TIGHT_CLAMP)];
    for (i, own) in all.into_iter().enumerate() {
        let pre = all[(i + 1) % 3];
        for (rows, used) in [(1, 1), (4, 3)] {
            let name = format!("{used} of {rows} rows, norm {own:?} behind {pre:?}");
            cases.at(step(used, 0), "bit_linear", name, |r| {
                let x = r.f32s("x", &[rows, 52], CountedBy::Rows, &Noise(93).f32s(rows * 52, 2.0));
                let front = r.weight("pre", &[52], Pack::F32, &Noise(92).f32s(52, 2.0));
                let norm = |clamp| RmsNorm { eps: 1e-5, clamp };
                let input = BitInput { pre_norm: Some((norm(pre), front)), norm: norm(own), act: QUANT };
                vec![(r.p.bit_linear(x, input, stack(r, &[70], 52), &[70], None), Close(FLIP))]
            });
        }
    }
}

fn plain(cases: &mut Cases) {
    let (three, many): (&[usize], &[usize]) = (&[64, 32, 32], &[700, 300, 300]);
    let shapes: [(&[usize], usize); 7] =
        [(&[1], 4), (&[130, 2], 40), (three, 100), (&[600], 64), (many, 768), (&[5], 2048), (&[3, 1], 10236)];
    for (i, (outs, d)) in shapes.into_iter().enumerate() {
        for (rows, used) in [(1, 1), (4, 3), (8, 8)] {
            let (pre, residual) = ((i + rows) % 2 == 0, (i + used) % 3 == 0);
            let name = format!("{used} of {rows} rows, {d} to {outs:?}, norm in front {pre}, residual {residual}");
            cases.at(step(used, 0), "bit_linear", name, |r| {
                let out = outs.iter().sum::<usize>();
                let x = r.f32s("x", &[rows, d], CountedBy::Rows, &Noise(93).f32s(rows * d, 2.0));
                let res = Noise(94).f32s(rows * out, 1.0);
                let res = residual.then(|| r.f32s("residual", &[rows, out], CountedBy::Rows, &res));
                let input = input(r, pre, d);
                vec![(r.p.bit_linear(x, input, stack(r, outs, d), outs, res), Close(FLIP))]
            });
        }
    }
}

const EXPERTS: Experts = Experts { k: 2, n: 4, shared: 1 };

/// Two different experts a row.
fn expert_ids(r: &Recording, rows: usize, used: usize) -> Slot {
    let mut expert_ids: Vec<u32> = (0..rows as u32).flat_map(|i| [i % 4, (i + 1 + i / 4) % 4]).collect();
    expert_ids[2 * used..].fill(u32::MAX);
    r.u32s("expert_ids", &[rows, 2], CountedBy::Rows, &expert_ids)
}

fn swiglu(cases: &mut Cases) {
    for (i, (d, d_ff)) in [(16, 5), (52, 130), (100, 1100)].into_iter().enumerate() {
        for (rows, used) in [(1, 1), (7, 5)] {
            let (pre, act) = ((i + rows) % 2 == 0, ACTS[(i + rows) % 4]);
            let name = format!("swiglu, {used} of {rows} rows, {d} to {d_ff}, norm in front {pre}, {act:?}");
            cases.at(step(used, 0), "bit_linear", name, |r| {
                let x = r.f32s("x", &[rows, d], CountedBy::Rows, &Noise(95).f32s(rows * d, 2.0));
                let (input, stack) = (input(r, pre, d), stack(r, &[d_ff; 10], d));
                let y = r.p.bit_swiglu(x, input, stack, d_ff, expert_ids(r, rows, used), (EXPERTS, act));
                vec![(y, Close(3.0 * FLIP))]
            });
        }
    }
}

fn combine(cases: &mut Cases) {
    for (d, out, bound) in [(16, 3, 1e4), (260, 140, 1e4), (52, 600, 0.5)] {
        for (rows, used) in [(1, 1), (6, 4)] {
            let name = format!("combine, {used} of {rows} rows, {d} to {out}, bound {bound}");
            cases.at(step(used, 0), "bit_linear", name, |r| {
                let h = r.f32s("h", &[rows, 3, d], CountedBy::Rows, &Noise(96).f32s(rows * 3 * d, 4.0));
                let res = r.f32s("residual", &[rows, out], CountedBy::Rows, &Noise(97).f32s(rows * out, 1.0));
                let weights = r.f32s("weights", &[rows, 2], CountedBy::Rows, &Noise(98).f32s(rows * 2, 1.0));
                let choice = [expert_ids(r, rows, used), weights];
                let (input, stack) = (input(r, false, d), stack(r, &[out; 5], d));
                vec![(r.p.bit_combine(h, input, stack, choice, EXPERTS, (res, bound)), Close(2.0 * FLIP))]
            });
        }
    }
}

/// Few experts and many, with none that all rows share and with several.
fn counts_of_experts(cases: &mut Cases) {
    for (k, n, shared) in [(1, 1, 0), (2, 3, 2), (4, 40, 1), (8, 256, 0), (8, 512, 4)] {
        let experts = Experts { k, n, shared };
        for (rows, used) in [(1, 1), (5, 4)] {
            let choices: Vec<u32> = (0..rows * k).map(|i| ((i / k * 7 + i % k * 61) % n) as u32).collect();
            let expert_ids = |r: &Recording| r.u32s("expert_ids", &[rows, k], CountedBy::Rows, &choices);
            cases.at(step(used, 0), "bit_linear", format!("swiglu, {used} of {rows} rows, {experts:?}"), |r| {
                let (d, d_ff) = (16, 5);
                let x = r.f32s("x", &[rows, d], CountedBy::Rows, &Noise(95).f32s(rows * d, 2.0));
                let (input, stack) = (input(r, true, d), stack(r, &[d_ff].repeat(2 * (n + shared)), d));
                vec![(r.p.bit_swiglu(x, input, stack, d_ff, expert_ids(r), (experts, ACT)), Close(3.0 * FLIP))]
            });
            cases.at(step(used, 0), "bit_linear", format!("combine, {used} of {rows} rows, {experts:?}"), |r| {
                let (d, out, slots) = (20, 7, k + shared);
                let h = r.f32s("h", &[rows, slots, d], CountedBy::Rows, &Noise(96).f32s(rows * slots * d, 4.0));
                let res = r.f32s("residual", &[rows, out], CountedBy::Rows, &Noise(97).f32s(rows * out, 1.0));
                let weights = r.f32s("weights", &[rows, k], CountedBy::Rows, &Noise(98).f32s(rows * k, 1.0));
                let (input, stack) = (input(r, false, d), stack(r, &[out].repeat(n + shared), d));
                let y = r.p.bit_combine(h, input, stack, [expert_ids(r), weights], experts, (res, 1e4));
                vec![(y, Close(6.0 * FLIP))]
            });
        }
    }
}

fn route(cases: &mut Cases) {
    let rows: Vec<(u32, u32, u32)> = (0..5).map(|i| (0, i, 10 * (i % 3))).collect();
    for (experts, k, d) in [
        (8, 2, 768),
        (1, 1, 4),
        (5, 5, 20),
        (32, 4, 100),
        (3, 1, 36),
        (40, 4, 68),
        (256, 8, 20),
        (512, 8, 132),
        (33, 33, 16),
    ] {
        cases.at(step(5, 0), "route", format!("{k} of {experts} experts, d {d}, 5 of 6 rows"), |r| {
            let x = r.f32s("x", &[6, d], CountedBy::Rows, &Noise(99).f32s(6 * d, 3.0));
            let weights = [
                r.weight("norm", &[d], Pack::F32, &Noise(100).f32s(d, 2.0)),
                r.weight("router", &[experts, d], Pack::F32, &Noise(101).f32s(experts * d, 0.2)),
                r.weight("bias", &[experts], Pack::F32, &Noise(102).f32s(experts, 1.0)),
            ];
            let rows = r.u32s("rows", &[6, 4], CountedBy::Rows, &row_words(&rows, 6));
            let log = r.state("log", &[40, k], DType::U32, vec![77; 40 * k]);
            let [expert_ids, chosen] = r.p.route(x, PRE, weights, rows, log, k);
            vec![(expert_ids, Exact), (chosen, Close(1e-5)), (log, Exact)]
        });
    }
}

/// Few experts and many, and rows in the middle of a sequence.
fn route_swiglu(cases: &mut Cases) {
    for (i, (k, n, shared, d, d_ff)) in
        [(2, 8, 1, 768, 300), (1, 4, 0, 4, 5), (4, 4, 2, 52, 130), (8, 64, 1, 20, 7)].into_iter().enumerate()
    {
        let (experts, act) = (Experts { k, n, shared }, ACTS[i]);
        cases.full("route_swiglu", format!("{experts:?}, {d} to {d_ff}, {act:?}"), |r| {
            let x = r.f32s("x", &[1, d], CountedBy::Rows, &Noise(103).f32s(d, 3.0));
            let parts = [
                Noise(91).f32s(2 * experts.all() * d, 1.0),
                Noise(100).f32s(d, 2.0),
                Noise(101).f32s(n * d, 0.2),
                Noise(102).f32s(n, 1.0),
            ];
            let front = parts.concat();
            let front = r.weight("front", &[front.len()], Pack::F32, &front);
            let weights = stack(r, &[d_ff].repeat(2 * experts.all()), d)[1];
            let rows = r.u32s("rows", &[1, 4], CountedBy::Rows, &row_words(&[(0, 7, 20)], 1));
            let log = r.state("log", &[40, k], DType::U32, vec![77; 40 * k]);
            let input = (PRE, input(r, false, d));
            let [h, ids, chosen] = r.p.route_swiglu(x, input, [front, weights], d_ff, [rows, log], (experts, act));
            vec![(h, Close(3.0 * FLIP)), (ids, Exact), (chosen, Close(1e-5)), (log, Exact)]
        });
    }
}
