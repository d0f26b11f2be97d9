//! Rows of the products with scales by group, and of the codes that they read.

use half::f16;
use ternion::unstable::ops::{ActQuant, CodeScale, GroupFactor, GroupInput, GroupQuant, RmsNorm, StackPiece};
use ternion::unstable::quant::groups::{GroupPacked, GroupShape, whole_row};
use ternion::unstable::quant::{Bits, six_bits};
use ternion::unstable::tensor::{CountedBy, Pack};

use super::Tol::{Close, Codes, GroupScaleAndSum};
use super::elements::hard_rows;
use super::{ACTS, CLAMP, Cases, TIGHT_CLAMP, step};
use crate::support::numbers::Noise;
use crate::support::recording::Recording;

const ACT: ActQuant = ActQuant { max_code: 127.0, bound: f32::INFINITY, floor: 1e-5 };
const BOUNDED: ActQuant = ActQuant { max_code: 7.0, bound: 1.5, floor: 1e-4 };
/// Of results of size 1.
const TOL: f32 = 1e-5;

pub fn add(cases: &mut Cases) {
    codes(cases);
    gated_codes(cases);
    shapes(cases);
    rows(cases);
    pieces(cases);
    extremes(cases);
    linear(cases);
}

fn codes(cases: &mut Cases) {
    let sizes = [(1, 1, 32, 32), (3, 2, 100, 64), (2, 2, 260, 256), (6, 6, 1024, 128), (2, 2, 4, 32), (2, 1, 772, 32)];
    let whole = [(3, 3, 300, whole_row(300)), (2, 2, 36, whole_row(36)), (2, 2, 1028, whole_row(1028))];
    for (rows, used, d, group) in sizes.into_iter().chain(whole) {
        for (norm, act, scale) in [
            (None, ACT, CodeScale::Group),
            (Some(RmsNorm::new(1e-5)), ACT, CodeScale::Row),
            (Some(RmsNorm { eps: 1e-5, clamp: Some(CLAMP) }), BOUNDED, CodeScale::Group),
            (None, BOUNDED, CodeScale::Row),
        ] {
            let name = format!("{used} of {rows} rows, {d} by {group}, {norm:?}, {act:?}, {scale:?}");
            cases.at(step(used, 0), "quantise_groups", name, |r| {
                let mut noise = Noise(90);
                let x = r.f32s("x", &[rows, d], CountedBy::Rows, &hard_rows(rows, d, &mut noise));
                let norm = norm.map(|norm| (norm, r.weight("w", &[d], Pack::F32, &noise.f32s(d, 8.0))));
                let [codes, meta] = r.p.quantise_groups(x, None, norm, GroupQuant { act, group, scale });
                let fitted = scale == CodeScale::Group;
                let group = if fitted { 32 } else { group };
                vec![(codes, Codes), (meta, GroupScaleAndSum { width: d, group, fitted })]
            });
        }
    }
}

/// Codes of `act(gate) · up`, in one op and in two; rows of many columns are cut among threads.
fn gated_codes(cases: &mut Cases) {
    let rules = [
        (None, ACT, CodeScale::Group),
        (None, BOUNDED, CodeScale::Group),
        (Some(RmsNorm::new(1e-5)), ACT, CodeScale::Group),
        (None, ACT, CodeScale::Row),
    ];
    for (rows, used, d) in [(1, 1, 32), (3, 2, 100), (2, 2, 772), (1, 1, 6148), (12, 11, 260)] {
        let group = whole_row(d);
        for (gate, (norm, act, scale)) in ACTS.into_iter().flat_map(|gate| rules.map(|rule| (gate, rule))) {
            let name = format!("{used} of {rows} rows, {d} behind {gate:?}, {norm:?}, {act:?}, {scale:?}");
            cases.at(step(used, 0), "quantise_groups", name, |r| {
                let mut noise = Noise(95);
                let x = r.f32s("x", &[rows, 2 * d], CountedBy::Rows, &hard_rows(rows, 2 * d, &mut noise));
                let norm = norm.map(|norm| (norm, r.weight("w", &[d], Pack::F32, &noise.f32s(d, 8.0))));
                let [codes, meta] = r.p.quantise_groups(x, Some(gate), norm, GroupQuant { act, group, scale });
                let fitted = scale == CodeScale::Group;
                vec![
                    (codes, Codes),
                    (meta, GroupScaleAndSum { width: d, group: if fitted { 32 } else { group }, fitted }),
                ]
            });
        }
    }
}

/// A matrix of all codes that its bits hold, with scales of both signs, tiny and zero ones too, that give results of size 1.
pub fn matrix(noise: &mut Noise, rows: usize, cols: usize, bits: Bits, group: usize) -> GroupPacked<'static> {
    let shape = GroupShape { rows, cols, bits, group };
    let most = match bits {
        Bits::One => 1.0,
        Bits::Two => 2.0,
        Bits::Six => 4096.0,
        Bits::Eight => 128.0,
    };
    let code = |w: u32| match bits {
        Bits::One => (w % 2) as i8 * 2 - 1,
        Bits::Two => (w % 4) as i8 - 1,
        Bits::Six => (w % 64) as i8 - 32,
        Bits::Eight => w as i8,
    };
    let codes: Vec<i8> = (0..rows * cols).map(|_| code(noise.word())).collect();
    let integers: Vec<i8> = (0..rows * cols.div_ceil(six_bits::GROUP)).map(|_| noise.word() as i8).collect();
    let scales = noise.f32s(rows * shape.groups(), 1.0 / (most * (cols as f32).sqrt()));
    let scales: Vec<f16> = scales
        .into_iter()
        .enumerate()
        .map(|(i, s)| match i % 7 {
            5 => f16::from_bits(1 + (i % 900) as u16),
            6 => f16::ZERO,
            _ => f16::from_f32(s),
        })
        .collect();
    let packed = pack(shape, |row, to, to_integers, to_scales| {
        to.copy_from_slice(&codes[row * cols..][..cols]);
        to_integers.copy_from_slice(&integers[row * to_integers.len()..][..to_integers.len()]);
        to_scales.copy_from_slice(&scales[row * shape.groups()..][..shape.groups()]);
    });
    GroupPacked { factor: if rows.is_multiple_of(2) { 1.0 } else { 0.625 }, ..packed }
}

/// Packs the codes, integers and scales of rows as `fill` writes them; only codes of 6 bits have integers.
fn pack(shape: GroupShape, fill: impl Fn(usize, &mut [i8], &mut [i8], &mut [f16]) + Sync) -> GroupPacked<'static> {
    let integers = || vec![0; shape.cols.div_ceil(six_bits::GROUP)];
    let packed = match shape.bits {
        Bits::Six => GroupPacked::from_words(shape, |row, words, scales| {
            let (mut codes, mut integers) = (vec![0; shape.cols], integers());
            fill(row, &mut codes, &mut integers, scales);
            six_bits::pack(&codes, &integers, words);
            Ok(())
        }),
        Bits::One | Bits::Two | Bits::Eight => GroupPacked::from_codes(shape, |row, codes, scales| {
            fill(row, codes, &mut integers(), scales);
            Ok(())
        }),
    };
    packed.unwrap()
}

/// Codes of rows with values in ±1, by a scale's rule, or without one those values.
fn factor(r: &Recording, rows: usize, d: usize, group: usize, scale: Option<CodeScale>) -> GroupFactor {
    // Rounded alike by every backend: the maximum of each 32 columns is 127 times a power of two, by turns of three.
    let mut x = Noise(91).f32s(rows * d, 0.992_187_5);
    for (i, columns) in x.chunks_mut(d).flat_map(|row| row.chunks_mut(32).enumerate()) {
        columns[0] = 0.992_187_5;
        columns.iter_mut().for_each(|v| *v /= [1.0, 2.0, 4.0][i % 3]);
    }
    let x = r.f32s("x", &[rows, d], CountedBy::Rows, &x);
    let Some(scale) = scale else { return GroupFactor::Floats(x) };
    GroupFactor::Codes(r.p.quantise_groups(x, None, None, GroupQuant { act: ACT, group, scale }))
}

/// Codes by each rule, and floats.
const FACTORS: [Option<CodeScale>; 3] = [Some(CodeScale::Group), Some(CodeScale::Row), None];

/// Bits of a stack's matrices, by turns.
const BITS: [&[Bits]; 6] = [
    &[Bits::One],
    &[Bits::Two],
    &[Bits::Eight],
    &[Bits::Two, Bits::Eight, Bits::One],
    &[Bits::Six],
    &[Bits::Six, Bits::One, Bits::Six],
];

/// Whether there are matrices of each of these bits with such groups.
fn are(bits: &[Bits], cols: usize, group: usize) -> bool {
    bits.iter().all(|&bits| GroupShape { rows: 1, cols, bits, group }.check().is_ok())
}

/// Stacks: rows of their matrices, columns, and columns of a group.
fn stacks() -> [(&'static [usize], usize, usize); 7] {
    [
        (&[1], 4, 32),
        (&[128], 32, 32),
        (&[130, 2], 100, 64),
        (&[4, 127, 257], 260, 128),
        (&[64, 5], 512, 256),
        (&[33], 1028, 128),
        (&[131], 1000, whole_row(1000)),
    ]
}

fn shapes(cases: &mut Cases) {
    for (outs, d, group) in stacks() {
        for bits in BITS.into_iter().filter(|bits| are(bits, d, group)) {
            for (rows, scale) in [1, 11].into_iter().flat_map(|rows| FACTORS.map(|scale| (rows, scale))) {
                let name = format!("{rows} rows, {d} by {group} to {outs:?}, {bits:?}, {scale:?}");
                cases.full("group_matmul", name, |r| {
                    let mut noise = Noise(92);
                    let parts = outs.iter().enumerate();
                    let parts: Vec<_> =
                        parts.map(|(i, &n)| matrix(&mut noise, n, d, bits[i % bits.len()], group)).collect();
                    let weights = r.groups("w", &parts);
                    let factor = factor(r, rows, d, group, scale);
                    vec![(r.p.group_matmul(factor, &[StackPiece { weights, first: 0, outs }], None), Close(TOL))]
                });
            }
        }
    }
}

/// Counts of rows around the kernels' blocks, some of them unused, with and without a residual.
fn rows(cases: &mut Cases) {
    for (rows, used) in [(2, 2), (3, 1), (4, 4), (5, 5), (8, 7), (9, 9), (16, 13), (26, 25)] {
        for (residual, scale) in
            [(false, None), (false, Some(CodeScale::Row)), (true, Some(CodeScale::Group)), (true, None)]
        {
            let name = format!("{used} of {rows} rows, residual {residual}, {scale:?}");
            cases.at(step(used, 0), "group_matmul", name, |r| {
                let (d, outs, mut noise) = (256, [70, 130, 5], Noise(93));
                let parts = [Bits::One, Bits::Two, Bits::Six].iter().zip(outs);
                let parts: Vec<_> = parts.map(|(&bits, n)| matrix(&mut noise, n, d, bits, 64)).collect();
                let weights = r.groups("w", &parts);
                let y = noise.f32s(rows * 205, 1.0);
                let residual = residual.then(|| r.f32s("residual", &[rows, 205], CountedBy::Rows, &y));
                let factor = factor(r, rows, d, 64, scale);
                let piece = StackPiece { weights, first: 0, outs: &outs };
                vec![(r.p.group_matmul(factor, &[piece], residual), Close(TOL))]
            });
        }
    }
}

/// A stack that is cut for devices that bind little.
fn pieces(cases: &mut Cases) {
    for rows in [1, 12] {
        cases.full("group_matmul", format!("pieces of 128, 3 and 130 rows, {rows} rows"), |r| {
            let (d, mut noise) = (96, Noise(94));
            let outs = [128, 3, 130];
            let weights: Vec<_> = (outs.iter())
                .map(|&n| r.groups(&format!("w {n}"), &[matrix(&mut noise, n, d, Bits::Two, 32)]))
                .collect();
            let pieces: Vec<StackPiece> = (weights.iter().zip(&outs))
                .map(|(&weights, out)| StackPiece { weights, first: 0, outs: std::slice::from_ref(out) })
                .collect();
            vec![(r.p.group_matmul(factor(r, rows, d, 32, Some(CodeScale::Group)), &pieces, None), Close(TOL))]
        });
    }
}

/// The largest codes of weights times the largest of activations, of either sign, in every column: what kernels add up in 16 bits
/// is at its bounds.
fn extremes(cases: &mut Cases) {
    let all = [
        (Bits::One, -1),
        (Bits::One, 1),
        (Bits::Two, 2),
        (Bits::Six, -32),
        (Bits::Six, 31),
        (Bits::Eight, -128),
        (Bits::Eight, 127),
    ];
    let places = [1, 4, 12].into_iter().flat_map(|rows| [-1.0, 1.0].map(|sign| (rows, sign)));
    for ((rows, sign), (bits, code)) in places.flat_map(|place| all.map(|codes| (place, codes))) {
        cases.full("group_matmul", format!("{rows} rows of {sign}, all codes {code} of {bits:?}"), |r| {
            let (d, out) = (256, 130);
            let shape = GroupShape { rows: out, cols: d, bits, group: 128 };
            let integer: i8 = if bits == Bits::Six { -128 } else { 1 };
            let scale = f16::from_f32(1.0 / (f32::from(integer) * f32::from(code) * d as f32));
            let packed = pack(shape, |_, to, to_integers, to_scales| {
                to.fill(code);
                to_integers.fill(integer);
                to_scales.fill(scale);
            });
            let weights = r.groups("w", &[packed]);
            let x = r.f32s("x", &[rows, d], CountedBy::Rows, &vec![sign; rows * d]);
            let quant = GroupQuant { act: ACT, group: 128, scale: CodeScale::Row };
            let codes = GroupFactor::Codes(r.p.quantise_groups(x, None, None, quant));
            vec![(r.p.group_matmul(codes, &[StackPiece { weights, first: 0, outs: &[out] }], None), Close(TOL))]
        });
    }
}

/// A code on the edge may round the other way: a step of the largest activations, times a weight.
const FLIP: f32 = 2e-2;

/// Activation, norm, codes and product in one launch, against their composition: every activation, norms with bounds and without,
/// codes by both rules, of 8 bits and of 4, all bits of weights and groups of them, with and without a residual.
fn linear(cases: &mut Cases) {
    let widest: (&[usize], usize, usize) = (&[3], 12288, 128);
    let norms = [None, Some(RmsNorm::new(1e-5)), Some(RmsNorm { eps: 1e-5, clamp: Some(TIGHT_CLAMP) })];
    for (i, (outs, d, group)) in stacks().into_iter().chain([widest]).enumerate() {
        for turn in 0..2 {
            let at = 2 * i + turn;
            let (bits, scale) = (BITS[at % 6], [CodeScale::Group, CodeScale::Row][at / 4 % 2]);
            let bits = if are(bits, d, group) { bits } else { BITS[at % 4] };
            let act = (at % 5).checked_sub(1).map(|i| ACTS[i]);
            let (norm, quant, residual) = (norms[(i + turn) % 3], [ACT, ACT, BOUNDED][at % 7 % 3], at % 3 == 0);
            let of = format!("{act:?}, {norm:?}, {scale:?} of {} codes", quant.max_code);
            let name = format!("{d} by {group} to {outs:?}, {bits:?}, {of}, residual {residual}");
            cases.full("group_linear", name, |r| {
                let mut noise = Noise(95);
                let parts = outs.iter().enumerate();
                let parts: Vec<_> =
                    parts.map(|(i, &n)| matrix(&mut noise, n, d, bits[i % bits.len()], group)).collect();
                let weights = r.groups("w", &parts);
                let width = if act.is_some() { 2 * d } else { d };
                let x = r.f32s("x", &[1, width], CountedBy::Rows, &noise.f32s(width, 1.0));
                let w = |norm| (norm, r.weight("norm", &[d], Pack::F32, &noise.f32s(d, 1.0)));
                let input = GroupInput { act, norm: norm.map(w), quant: GroupQuant { act: quant, group, scale } };
                let n = outs.iter().sum::<usize>();
                let residual = residual.then(|| r.f32s("residual", &[1, n], CountedBy::Rows, &Noise(96).f32s(n, 1.0)));
                let piece = StackPiece { weights, first: 0, outs };
                vec![(r.p.group_linear(x, input, &[piece], residual), Close(FLIP))]
            });
        }
    }
}
