//! Rows of the quantised path: norm_quantise, and the ternary product by stacks and by experts.

use ternion::unstable::ops::{Act, ActQuant, Experts, GateClamp, RmsNorm, StackPiece};
use ternion::unstable::plan::Slot;
use ternion::unstable::quant::Packed;
use ternion::unstable::tensor::{CountedBy, Pack};

use super::Tol::{Close, Codes, Exact, ScaleAndSum};
use super::elements::hard_rows;
use super::{CLAMP, Cases, TIGHT_CLAMP, step};
use crate::support::numbers::Noise;
use crate::support::recording::Recording;

const EMBERNET: ActQuant = ActQuant { max_code: 127.0, bound: 50.0, floor: 1e-4 };
const PLAIN: ActQuant = ActQuant { max_code: 127.0, bound: f32::INFINITY, floor: 1e-5 };
const FOUR_BITS: ActQuant = ActQuant { max_code: 7.0, bound: f32::INFINITY, floor: 1e-5 };

pub fn add(cases: &mut Cases) {
    norm_quantise(cases);
    norm_quantise_of_experts(cases);
    stacks(cases);
    rows_of_stacks(cases);
    experts(cases);
    pieces_of_stacks(cases);
    counts_of_experts(cases);
    groups(cases);
    scaled(cases);
}

fn norm_quantise(cases: &mut Cases) {
    let sizes = [(1, 1, 1, 16), (3, 2, 2, 40), (6, 6, 3, 64), (7, 6, 1, 100), (2, 2, 2, 1), (6, 6, 1, 771)];
    for (rows, used, sets, d) in sizes {
        for (act, clamp) in [(EMBERNET, Some(CLAMP)), (PLAIN, None), (FOUR_BITS, Some(TIGHT_CLAMP))] {
            for own in [false, true] {
                let name = format!("{used} of {rows} rows, {sets} sets, d {d}, own x {own}, {act:?}, {clamp:?}");
                cases.at(step(used, 0), "norm_quantise", name, |r| {
                    let mut noise = Noise(50);
                    let vectors = if own { rows * sets } else { rows };
                    let shape = if own { vec![rows, sets, d] } else { vec![rows, d] };
                    let x = r.f32s("x", &shape, CountedBy::Rows, &hard_rows(vectors, d, &mut noise));
                    let w = r.weight("w", &[sets, d], Pack::F32, &noise.f32s(sets * d, 8.0));
                    let [codes, scale_and_sum] = r.p.norm_quantise(x, w, RmsNorm { eps: 1e-5, clamp }, act);
                    vec![(codes, Codes), (scale_and_sum, ScaleAndSum)]
                });
            }
        }
    }
}

/// Every ordered choice of 2 different experts of `n`.
fn pairs(n: u32) -> Vec<u32> {
    let all = (0..n).flat_map(|a| (0..n).map(move |b| [a, b]));
    all.filter(|[a, b]| a != b).flatten().collect()
}

fn norm_quantise_of_experts(cases: &mut Cases) {
    let experts = Experts { k: 2, n: 4, shared: 1 };
    for (norms, own) in [(2, false), (1, true), (1, false)] {
        cases.at(
            step(11, 0),
            "norm_quantise",
            format!("experts, {norms} norms each, own x {own}, 11 of 12 rows"),
            |r| {
                let (rows, d, sets, mut noise) = (12, 36, 3 * norms, Noise(51));
                let shape = if own { vec![rows, sets, d] } else { vec![rows, d] };
                let x = r.f32s(
                    "x",
                    &shape,
                    CountedBy::Rows,
                    &hard_rows(shape.iter().product::<usize>() / d, d, &mut noise),
                );
                let w = r.weight("w", &[5 * norms, d], Pack::F32, &noise.f32s(5 * norms * d, 3.0));
                let expert_ids = r.u32s("expert_ids", &[rows, 2], CountedBy::Rows, &pairs(4));
                let norm = RmsNorm { eps: 1e-5, clamp: Some(CLAMP) };
                let [codes, scale_and_sum] = r.p.norm_quantise_experts(x, w, expert_ids, experts, norm, EMBERNET);
                vec![(codes, Codes), (scale_and_sum, ScaleAndSum)]
            },
        );
    }
}

/// Codes of all 8 bits, with one row of the extremes.
fn acts(n: usize, d: usize) -> Vec<i8> {
    let mut acts = Noise(52).acts(n * d);
    acts[(n - 1) * d..].iter_mut().enumerate().for_each(|(i, v)| *v = if i % 3 == 0 { 127 } else { -128 });
    acts
}

/// Matrices of `outs` rows, with zeros (2 bits) as `zeros` says in turn, of scale 1.
fn parts(outs: &[usize], d: usize, zeros: &[bool]) -> Vec<Packed<'static>> {
    let part = |(i, &n): (usize, &usize)| Noise(60 + i as u64).packed(n, d, zeros[i % zeros.len()], 1.0);
    outs.iter().enumerate().map(part).collect()
}

/// How the bits of a stack's matrices are mixed.
const BITS: [&[bool]; 3] = [&[true], &[false], &[true, false]];

/// Shapes of stacks: with scale 1 and 1/k = 1 the outputs are the exact integers.
fn stacks(cases: &mut Cases) {
    let shapes: [(&[usize], usize); 8] = [
        (&[1], 16),
        (&[3], 1),
        (&[128], 20),
        (&[130, 2], 40),
        (&[4, 127, 257], 33),
        (&[64, 32, 32], 100),
        (&[5, 5], 512),
        (&[131], 2100),
    ];
    for (outs, d) in shapes {
        for zeros in BITS {
            for rows in [1, 5] {
                for shared in [true, false] {
                    let name = format!("{rows} rows, {d} to {outs:?}, zeros {zeros:?}, one set {shared}");
                    cases.full("ternary_matmul", name, |r| {
                        let sets = if shared { 1 } else { outs.len() };
                        let act = r.codes([rows, sets, d], CountedBy::Rows, &acts(rows * sets, d), 1.0);
                        let w = r.ternary("w", &parts(outs, d, zeros));
                        vec![(r.p.ternary_matmul(act, w, outs, None), Exact)]
                    });
                }
            }
        }
    }
}

/// Counts of rows around both kernels' blocks, some of them unused, with and without a residual.
fn rows_of_stacks(cases: &mut Cases) {
    for (rows, used) in [(1, 1), (2, 2), (3, 3), (4, 4), (4, 2), (5, 5), (6, 6), (6, 1), (8, 8), (9, 7), (16, 13)] {
        for residual in [false, true] {
            cases.at(step(used, 0), "ternary_matmul", format!("{used} of {rows} rows, residual {residual}"), |r| {
                let (outs, d) = ([6, 129], 48);
                let act = r.codes([rows, 2, d], CountedBy::Rows, &acts(rows * 2, d), 1.0);
                let w = r.ternary("w", &parts(&outs, d, &[true, false]));
                // Whole numbers, so that the sum is exact too.
                let whole: Vec<f32> = Noise(53).f32s(rows * 135, 1e3).into_iter().map(f32::round).collect();
                let residual = residual.then(|| r.f32s("residual", &[rows, 135], CountedBy::Rows, &whole));
                vec![(r.p.ternary_matmul(act, w, &outs, residual), Exact)]
            });
        }
    }
}

fn experts(cases: &mut Cases) {
    let experts = Experts { k: 2, n: 4, shared: 1 };
    for outs in [&[33, 33][..], &[130], &[16, 200]] {
        let sizes = [(12, 12, false), (12, 5, false), (1, 1, false), (12, 12, true), (12, 5, true), (1, 1, true)];
        for zeros in BITS {
            for (rows, used, grouped) in sizes {
                let name = format!("experts of {outs:?}, zeros {zeros:?}, {used} of {rows} rows, grouped {grouped}");
                cases.at(step(used, 0), "ternary_matmul", name, |r| {
                    let (d, sets) = (52, 3 * outs.len());
                    let act = r.codes([rows, sets, d], CountedBy::Rows, &acts(rows * sets, d), 1.0);
                    let w = r.ternary("w", &parts(&outs.repeat(5), d, zeros));
                    let mut expert_ids = pairs(4)[..2 * rows].to_vec();
                    expert_ids[2 * used..].fill(u32::MAX);
                    let expert_ids = r.u32s("expert_ids", &[rows, 2], CountedBy::Rows, &expert_ids);
                    let groups = grouped.then(|| r.p.group_rows(expert_ids, experts));
                    vec![(r.p.expert_matmul(act, w, expert_ids, groups, outs, experts), Exact)]
                });
            }
        }
    }
    gated_experts(cases);
    // More rows of one expert than a block holds, and columns beyond what half a word can sum up.
    for zeros in BITS {
        cases.at(step(37, 0), "ternary_matmul", format!("37 of 40 rows, zeros {zeros:?}, grouped, d 1060"), |r| {
            let (d, rows, experts) = (1060, 40, Experts { k: 1, n: 3, shared: 1 });
            let act = r.codes([rows, 2, d], CountedBy::Rows, &acts(2 * rows, d), 1.0);
            let w = r.ternary("w", &parts(&[9; 4], d, zeros));
            let expert_ids: Vec<u32> = (0..rows as u32).map(|r| u32::from(r % 5 == 0) * 2).collect();
            let expert_ids = r.u32s("expert_ids", &[rows, 1], CountedBy::Rows, &expert_ids);
            let groups = Some(r.p.group_rows(expert_ids, experts));
            vec![(r.p.expert_matmul(act, w, expert_ids, groups, &[9], experts), Exact)]
        });
    }
}

/// Gate and up of each expert in one product, with every activation.
fn gated_experts(cases: &mut Cases) {
    let experts = Experts { k: 2, n: 4, shared: 1 };
    let clamp = Some(GateClamp { gate: 40.0, product: 900.0 });
    for act in [Act::SiLu { clamp: None }, Act::SiLu { clamp }, Act::Relu2] {
        for (d_ff, d, zeros) in [(33, 52, &[true, false][..]), (200, 1060, &[false]), (130, 20, &[true])] {
            for (rows, used, grouped) in [(12, 5, false), (1, 1, false), (40, 37, true), (12, 12, true), (1, 1, true)] {
                let name = format!("{act:?} of {d} to {d_ff}, zeros {zeros:?}, {used} of {rows}, grouped {grouped}");
                cases.at(step(used, 0), "ternary_matmul", name, |r| {
                    let act_codes = r.codes([rows, 6, d], CountedBy::Rows, &acts(rows * 6, d), 1e-3);
                    let w = r.ternary("w", &parts(&[d_ff; 10], d, zeros));
                    let expert_ids: Vec<u32> = pairs(4).into_iter().cycle().take(2 * rows).collect();
                    let expert_ids = r.u32s("expert_ids", &[rows, 2], CountedBy::Rows, &expert_ids);
                    let groups = grouped.then(|| r.p.group_rows(expert_ids, experts));
                    vec![(r.p.expert_swiglu(act_codes, w, expert_ids, groups, d_ff, (experts, act)), Close(1e-5))]
                });
            }
        }
    }
}

/// Rows of each expert's matrices in stacks of their own: a whole matrix and a tile of the next, then the rest.
fn pieces_of_stacks(cases: &mut Cases) {
    let (d, outs) = (20, [9, 200]);
    // The first matrix of each piece, and how many rows it has of each.
    let cut = [(0, &[9, 128][..]), (1, &[72])];
    let cut_stacks = |r: &Recording, experts: usize| -> Vec<Slot> {
        let all = parts(&outs.repeat(experts), d, &[true, false, false]);
        let piece = |(first, of): &(usize, &[usize])| -> Vec<Packed<'static>> {
            let rows = |i: usize| if *first == 0 { 0..of[i] } else { 128..200 };
            let of_expert = |e: usize| (0..of.len()).map(move |i| (2 * e + first + i, i));
            (0..experts).flat_map(of_expert).map(|(m, i)| all[m].clone().tiles(rows(i)).expect("tiles")).collect()
        };
        cut.iter().enumerate().map(|(i, at)| r.ternary(&format!("w{i}"), &piece(at))).collect()
    };
    let pieces = move |weights: &[Slot]| -> Vec<StackPiece<'static>> {
        weights.iter().zip(cut).map(|(&weights, (first, outs))| StackPiece { weights, first, outs }).collect()
    };
    for (rows, sets) in [(2, 2), (11, 2), (11, 1)] {
        cases.full("ternary_matmul", format!("{rows} rows, {sets} sets, two pieces"), |r| {
            let act = r.codes([rows, sets, d], CountedBy::Rows, &acts(rows * sets, d), 1.0);
            let whole: Vec<f32> = Noise(53).f32s(rows * 209, 1e3).into_iter().map(f32::round).collect();
            let residual = Some(r.f32s("residual", &[rows, 209], CountedBy::Rows, &whole));
            let weights = cut_stacks(r, 1);
            vec![(r.p.ternary_pieces(act, &pieces(&weights), residual), Exact)]
        });
    }
    let experts = Experts { k: 2, n: 4, shared: 1 };
    for (rows, grouped) in [(3, false), (12, true)] {
        cases.full("ternary_matmul", format!("{rows} rows, experts in two pieces, grouped {grouped}"), |r| {
            let act = r.codes([rows, 6, d], CountedBy::Rows, &acts(rows * 6, d), 1.0);
            let expert_ids = r.u32s("expert_ids", &[rows, 2], CountedBy::Rows, &pairs(4)[..2 * rows]);
            let groups = grouped.then(|| r.p.group_rows(expert_ids, experts));
            let weights = cut_stacks(r, experts.all());
            vec![(r.p.expert_pieces(act, &pieces(&weights), expert_ids, groups, experts), Exact)]
        });
    }
}

/// Few experts and many, with none that all rows share and with several: codes, then products row by row and grouped.
fn counts_of_experts(cases: &mut Cases) {
    for (k, n, shared) in [(1, 1, 0), (2, 3, 2), (4, 40, 1), (8, 256, 0), (8, 512, 4)] {
        let experts = Experts { k, n, shared };
        let choices =
            |rows: usize| -> Vec<u32> { (0..rows * k).map(|i| ((i / k * 7 + i % k * 61) % n) as u32).collect() };
        cases.at(step(5, 0), "norm_quantise", format!("5 of 6 rows, {experts:?}"), |r| {
            let (rows, d, sets, mut noise) = (6, 36, 2 * (k + shared), Noise(56));
            let x = r.f32s("x", &[rows, d], CountedBy::Rows, &hard_rows(rows, d, &mut noise));
            let norms = 2 * (n + shared);
            let w = r.weight("w", &[norms, d], Pack::F32, &noise.f32s(norms * d, 3.0));
            let expert_ids = r.u32s("expert_ids", &[rows, k], CountedBy::Rows, &choices(rows));
            let norm = RmsNorm { eps: 1e-5, clamp: Some(CLAMP) };
            let [codes, scale_and_sum] = r.p.norm_quantise_experts(x, w, expert_ids, experts, norm, EMBERNET);
            assert_eq!(r.p.spec(codes).shape, [rows, sets, d]);
            vec![(codes, Codes), (scale_and_sum, ScaleAndSum)]
        });
        for grouped in [false, true] {
            cases.at(step(10, 0), "ternary_matmul", format!("10 of 11 rows, {experts:?}, grouped {grouped}"), |r| {
                let (rows, d, outs) = (11, 20, [3, 5]);
                let sets = 2 * (k + shared);
                let act = r.codes([rows, sets, d], CountedBy::Rows, &acts(rows * sets, d), 1.0);
                let w = r.ternary("w", &parts(&outs.repeat(n + shared), d, &[true, false, true]));
                let expert_ids = r.u32s("expert_ids", &[rows, k], CountedBy::Rows, &choices(rows));
                let groups = grouped.then(|| r.p.group_rows(expert_ids, experts));
                vec![(r.p.expert_matmul(act, w, expert_ids, groups, &outs, experts), Exact)]
            });
        }
    }
}

/// Places sorted by expert: none of one, more than a block of another, fewer rows than there could be.
fn groups(cases: &mut Cases) {
    let counts =
        [(1, 1, 1), (2, 4, 1), (2, 8, 1), (4, 32, 1), (1, 1, 0), (2, 3, 2), (4, 40, 1), (8, 256, 0), (8, 512, 4)];
    for (k, n, shared) in counts {
        for (rows, used) in [(1, 1), (9, 9), (16, 11), (70, 70), (300, 257)] {
            cases.at(
                step(used, 0),
                "group_rows",
                format!("{used} of {rows} rows, {k} of {n} experts, {shared} shared"),
                |r| {
                    let mut noise = Noise(55);
                    let mut expert_ids: Vec<u32> = Vec::new();
                    for _ in 0..rows {
                        let first = noise.word() % n * (noise.word() % 2);
                        expert_ids.extend((0..k).map(|i| (first + i) % n));
                    }
                    expert_ids[used * k as usize..].fill(u32::MAX);
                    let expert_ids = r.u32s("expert_ids", &[rows, k as usize], CountedBy::Rows, &expert_ids);
                    vec![(r.p.group_rows(expert_ids, Experts { k: k as usize, n: n as usize, shared }), Exact)]
                },
            );
        }
    }
}

/// Real scales: only the last float multiplication and the residual's addition may round differently.
fn scaled(cases: &mut Cases) {
    for rows in [2, 7] {
        for residual in [false, true] {
            cases.full("ternary_matmul", format!("real scales, {rows} rows, residual {residual}"), |r| {
                let (outs, d, mut noise) = ([70, 9], 96, Noise(54));
                let act = r.codes([rows, 1, d], CountedBy::Rows, &acts(rows, d), 0.013);
                let w = r.ternary("w", &[noise.packed(70, d, true, 0.0371), noise.packed(9, d, false, 0.21)]);
                let data = noise.f32s(rows * 79, 1.0);
                let residual = residual.then(|| r.f32s("residual", &[rows, 79], CountedBy::Rows, &data));
                vec![(r.p.ternary_matmul(act, w, &outs, residual), Close(1e-6))]
            });
        }
    }
}
