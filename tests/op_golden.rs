//! The ops against the numbers of the original EmberNet and BitGen code, on every backend. The plain CPU is what is proved right
//! here; the others come along.

mod support {
    pub mod device;
    pub mod golden;
    pub mod numbers;
    pub mod recording;
}

use support::device::backends;
use support::golden::Golden;
use support::numbers::{compare, floats, worst};
use support::recording::{Feed, Recording, UNWRITTEN, run};
use ternion::unstable::cpu::Cpu;
use ternion::unstable::ops::{Act, ActQuant, AttentionShape, Experts, GateClamp, NormClamp, RmsNorm, Rotation};
use ternion::unstable::plan::{Backend, Slot, Step};
use ternion::unstable::quant::{Packed, WeightQuant, quantise};
use ternion::unstable::tensor::{CountedBy, DType, Pack};

const TOL: f32 = 1e-5;
const CLAMP: NormClamp = NormClamp { input: 100.0, output: 10.0 };
const GATED: Act = Act::SiLu { clamp: Some(GateClamp { gate: 20.0, product: 1000.0 }) };
const BIT_NORM: RmsNorm = RmsNorm { eps: 1e-5, clamp: Some(CLAMP) };
const ACT: ActQuant = ActQuant { max_code: 127.0, bound: 50.0, floor: 1e-4 };

fn open(name: &str) -> Golden {
    Golden::open(&format!("embernet/ops/ops_{name}.safetensors"))
}

/// Calls `f` with the plain CPU, the fast CPU, and the GPU in all its variants.
fn on_every_backend(mut f: impl FnMut(&str, &mut dyn Backend)) {
    f("plain CPU", &mut Cpu::plain());
    for (variant, mut backend) in backends() {
        f(&variant, backend.as_mut());
    }
}

/// A plan that `record` builds and whose outputs have the golden values, on every backend.
fn expect(what: &str, record: impl Fn(&Recording) -> Vec<(&'static str, Slot, Vec<f32>)>) {
    let rig = Recording::new(what);
    let outs = record(&rig);
    let (plan, feed) = rig.finish();
    let slots: Vec<Slot> = outs.iter().map(|o| o.1).collect();
    on_every_backend(|variant, backend| {
        let found = run(backend, &plan, &feed, Step::FULL, &slots);
        for ((name, slot, want), found) in outs.iter().zip(found) {
            let spec = plan.spec(*slot);
            let found = match spec.dtype {
                DType::U32 => found.iter().map(|&w| w as f32).collect(),
                _ => floats(&found),
            };
            by_range(&found, want, spec.width()).unwrap_or_else(|e| panic!("{what}.{name} on {variant}: {e}"));
        }
    });
}

/// Compares rows relative to their largest magnitude, where that is above 1: a product's error grows with its terms.
fn by_range(found: &[f32], want: &[f32], width: usize) -> Result<(), String> {
    let range = |row: &[f32]| row.iter().fold(1f32, |a, v| a.max(v.abs()));
    let ranges: Vec<f32> = want.chunks(width).flat_map(|row| vec![range(row); row.len()]).collect();
    let scaled = |x: &[f32]| x.iter().zip(&ranges).map(|(v, r)| v / r).collect::<Vec<f32>>();
    compare(&scaled(found), &scaled(want), TOL)
}

fn packed(golden: &Golden, name: &str, times: f32) -> Packed<'static> {
    let w: Vec<f32> = golden.f32s(name).into_iter().map(|v| v * times).collect();
    let shape = golden.shape(name);
    let (codes, scale) = quantise(&w, WeightQuant::SignMean).unwrap();
    Packed::new(shape[0], shape[1], &codes, scale)
}

/// The norm weights of several BitLinears, one after the other.
fn norm_weights(golden: &Golden, names: &[String]) -> Vec<f32> {
    names.iter().flat_map(|n| golden.f32s(&format!("{n}.norm.weight"))).collect()
}

/// BitLinears that share an input: each its own norm and matrix.
fn bit_linears(r: &Recording, golden: &Golden, x: Slot, names: &[String]) -> Slot {
    let d = r.p.spec(x).width();
    let norms = r.weight(&format!("{} norms", names[0]), &[names.len(), d], Pack::F32, &norm_weights(golden, names));
    let matrices: Vec<Packed> = names.iter().map(|n| packed(golden, &format!("{n}.weight"), 1.0)).collect();
    let outs: Vec<usize> = matrices.iter().map(|m| m.rows).collect();
    let act = r.p.norm_quantise(x, norms, BIT_NORM, ACT);
    r.p.ternary_matmul(act, r.ternary(&names[0], &matrices), &outs, None)
}

#[test]
fn weight_codes_and_scales_are_the_originals() {
    let golden = open("quant");
    let names = golden.names();
    let cases: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".sign")).collect();
    assert!(cases.len() >= 6, "{cases:?}");
    for case in cases {
        let (codes, scale) = quantise(&golden.f32s(&format!("{case}.in")), WeightQuant::SignMean).unwrap();
        assert_eq!(codes, golden.i8s(&format!("{case}.sign")), "{case}");
        compare(&[scale / golden.f32s(&format!("{case}.scale"))[0]], &[1.0], 1e-6)
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        let want = golden.f32s(&format!("{case}.out"));
        let shape = golden.shape(&format!("{case}.in"));
        let back = Packed::new(shape[0], shape[1], &codes, scale);
        let found: Vec<f32> = back.codes().iter().map(|&c| f32::from(c) * back.scale).collect();
        compare(&found, &want, 1e-6).unwrap_or_else(|e| panic!("{case}: {e}"));
    }
}

/// Columns that are appended to a row so that its root mean square is a power of two and a norm changes nothing.
const PAD: usize = 1000;

/// A row and a weight under which RMSNorm without eps gives back the row exactly, its largest magnitude unchanged.
fn transparent(row: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let most = row.iter().fold(0f32, |a, v| a.max(v.abs()));
    let mut x = row.to_vec();
    if most == 0.0 {
        x.resize(row.len() + PAD, 0.0);
        return (x.clone(), vec![1.0; x.len()]);
    }
    let rms = f64::from(most / 1.5).log2().floor().exp2();
    let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
    let pad = ((rms * rms * (row.len() + PAD) as f64 - squares) / PAD as f64).sqrt() as f32;
    assert!(pad.is_finite() && pad < most, "{pad} of {most}");
    x.resize(row.len() + PAD, pad);
    (x.clone(), vec![rms as f32; x.len()])
}

#[test]
fn activation_codes_are_the_originals_ties_included() {
    let golden = open("quant");
    let (rows, codes) = (golden.f32s("activation_quant.in"), golden.i8s("activation_quant.int8"));
    let scales = golden.f32s("activation_quant.scale");
    let d = golden.shape("activation_quant.in")[1];
    for (i, (row, codes)) in rows.chunks_exact(d).zip(codes.chunks_exact(d)).enumerate() {
        let (x, w) = transparent(row);
        let rig = Recording::new(&format!("activation row {i}"));
        let w = rig.weight("w", &[1, x.len()], Pack::F32, &w);
        // A row of zeros has no root mean square.
        let eps = if row.iter().all(|&v| v == 0.0) { 1e-5 } else { 0.0 };
        let x = rig.f32s("x", &[1, x.len()], CountedBy::Rows, &x);
        let [act, scale_and_sum] = rig.p.norm_quantise(x, w, RmsNorm::new(eps), ACT);
        let (plan, feed) = rig.finish();
        on_every_backend(|variant, backend| {
            let found = run(backend, &plan, &feed, Step::FULL, &[act, scale_and_sum]);
            let k = 1.0 / f32::from_bits(found[1][0]);
            let scale = compare(&[k / scales[i]], &[1.0], 1e-6);
            scale.unwrap_or_else(|e| panic!("scale of row {i} on {variant}: {e}"));
            let found: &[i8] = &bytemuck::cast_slice(&found[0])[..d];
            for c in 0..d {
                // A GPU may divide less exactly than IEEE asks, which shows on ties only.
                let edge = ((row[c].clamp(-50.0, 50.0) * scales[i]).fract().abs() - 0.5).abs() < 1e-4;
                let slack = i32::from(edge && variant.starts_with("GPU"));
                let diff = (i32::from(found[c]) - i32::from(codes[c])).abs();
                assert!(diff <= slack, "row {i}, column {c}, {variant}: {} not {}", found[c], codes[c]);
            }
        });
    }
}

#[test]
fn rms_norms_are_the_originals() {
    let golden = open("quant");
    for eps in ["1e-5", "1e-6"] {
        let name = |what: &str| format!("rmsnorm.eps{eps}.{what}");
        let shape = golden.shape(&name("in"));
        expect(&format!("rmsnorm {eps}"), |r| {
            let x = r.f32s("x", &shape, CountedBy::Rows, &golden.f32s(&name("in")));
            let w = r.weight("w", &shape[1..], Pack::F32, &golden.f32s(&name("weight")));
            let norm = RmsNorm { eps: eps.parse().expect("a number"), clamp: Some(CLAMP) };
            vec![("out", r.p.rms_norm(x, w, norm), golden.f32s(&name("out")))]
        });
    }
}

#[test]
fn bit_linears_are_the_originals() {
    let golden = open("quant");
    for case in ["nobias", "bias"] {
        let name = |what: &str| format!("bitlinear.{case}.{what}");
        expect(case, |r| {
            let x = r.f32s("x", &[15, 40], CountedBy::Rows, &golden.f32s(&name("in")));
            let norm = golden.f32s(&name("norm_weight"));
            let normed = r.p.rms_norm(x, r.weight("norm", &[40], Pack::F32, &norm), BIT_NORM);
            let act = r.p.norm_quantise(x, r.weight("norms", &[1, 40], Pack::F32, &norm), BIT_NORM, ACT);
            let bias = (case == "bias").then(|| golden.f32s(&name("bias")).repeat(15));
            let bias = bias.map(|b| r.f32s("bias", &[15, 24], CountedBy::Rows, &b));
            let w = r.ternary("w", &[packed(&golden, &name("weight"), 1.0)]);
            let y = r.p.ternary_matmul(act, w, &[24], bias);
            vec![("x_norm", normed, golden.f32s(&name("x_norm"))), ("out", y, golden.f32s(&name("out")))]
        });
    }
}

const HEADS: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, d: 16 };
/// Cache rows of a sequence in these tests.
const CAPACITY: usize = 20;

/// The attention sub-layer for the golden input `name`, `t` tokens of each of two sequences from position `from` on.
fn attention_layer(golden: &Golden, name: &str, from: usize, t: usize) -> (Recording, [Slot; 3]) {
    let r = Recording::new("attention");
    let x = r.f32s("x", &[2 * t, 64], CountedBy::Rows, &golden.f32s(&format!("attn.{name}.in")));
    let row = |s: usize, i: usize| [0, from + i, s * CAPACITY, from + i + 1].map(|v| v as u32);
    let rows: Vec<u32> = (0..2).flat_map(|s| (0..t).flat_map(move |i| row(s, i))).collect();
    let rows = r.u32s("rows", &[2 * t, 4], CountedBy::Rows, &rows);
    let spec = ternion::unstable::tensor::Spec::fixed(&[2 * CAPACITY, 32], DType::F32);
    let [k, v] = ["k", "v"].map(|name| r.p.state(name, spec.clone()));
    let qkv = bit_linears(&r, golden, x, &["q", "k", "v"].map(|n| format!("attn.{n}_proj")));
    let q = r.p.rope_kv_write(qkv, rows, (&Rotation::plain(10_000.0, HEADS.d), CAPACITY), None, HEADS, [k, v]);
    let a = r.p.cached_attention(q, k, v, rows, HEADS);
    let out = bit_linears(&r, golden, a, &["attn.o_proj".to_owned()]);
    (r, [out, k, v])
}

/// A golden cache `[2, kv heads, t, d]` in the order of ours; rows that it lacks are zero.
fn cache_order(golden: &[f32], t: usize) -> Vec<f32> {
    let mut all = vec![0.0; 2 * CAPACITY * 32];
    for (i, &v) in golden.iter().enumerate() {
        let (seq, head, pos, c) = (i / (2 * t * 16), i / (t * 16) % 2, i / 16 % t, i % 16);
        all[(seq * CAPACITY + pos) * 32 + head * 16 + c] = v;
    }
    all
}

#[test]
fn attention_with_its_cache_is_the_originals() {
    let golden = open("attention");
    on_every_backend(|variant, backend| {
        let mut from = 0;
        for (name, t) in [("prefill", 10), ("step", 1), ("chunk", 3)] {
            let (rig, slots) = attention_layer(&golden, name, from, t);
            let (plan, feed) = rig.finish();
            from += t;
            let out = stage(backend, &plan, &feed, &slots);
            let want = [
                golden.f32s(&format!("attn.{name}.out")),
                cache_order(&golden.f32s(&format!("attn.{name}.k")), from),
                cache_order(&golden.f32s(&format!("attn.{name}.v")), from),
            ];
            for ((what, found), want) in ["out", "k", "v"].into_iter().zip(out).zip(want) {
                compare(&found, &want, TOL).unwrap_or_else(|e| panic!("{name}.{what} on {variant}: {e}"));
            }
        }
    });
}

/// Runs a plan without touching its states beforehand.
fn stage(
    backend: &mut dyn Backend,
    plan: &std::sync::Arc<ternion::unstable::plan::Plan>,
    feed: &Feed,
    slots: &[Slot],
) -> Vec<Vec<f32>> {
    for (name, words) in &feed.weights {
        backend.load_weight(name, words.clone()).expect("a weight");
    }
    let program = backend.prepare(plan.clone(), false).expect("a program");
    for (slot, words) in &feed.slots {
        backend.write(program, *slot, 0, words).expect("an input");
    }
    backend.run(program, &Step::FULL, 0..plan.nodes.len()).expect("a run");
    let ranges: Vec<_> = slots.iter().map(|&s| (s, 0..plan.spec(s).words())).collect();
    let words = backend.read(program, &ranges).expect("outputs");
    words.iter().map(|w| floats(w)).collect()
}

#[test]
fn rope_is_the_originals() {
    let golden = open("attention");
    let first = golden.i32s("rope.first_position")[0] as usize;
    let (q_in, k_in) = (golden.f32s("rope.q_in"), golden.f32s("rope.k_in"));
    // From [1, heads, 7, 16] to rows of heads side by side.
    let by_row = |x: &[f32]| -> Vec<Vec<f32>> {
        (0..7).map(|t| x.chunks_exact(7 * 16).flat_map(|h| h[t * 16..][..16].to_vec()).collect()).collect()
    };
    let (q, k) = (by_row(&q_in), by_row(&k_in));
    let rows: Vec<u32> = (0..7).flat_map(|i| [0, (first + i) as u32, 0, (first + i + 1) as u32]).collect();
    let mut k_want = vec![0.0; 20 * 32];
    k_want[first * 32..][..7 * 32].copy_from_slice(&by_row(&golden.f32s("rope.k_out")).concat());
    let v_want = vec![0.5; 7 * 32];
    expect("rope", |r| {
        let qkv: Vec<f32> = (0..7).flat_map(|t| [q[t].clone(), k[t].clone(), vec![0.5; 32]].concat()).collect();
        let qkv = r.f32s("qkv", &[7, 128], CountedBy::Rows, &qkv);
        let rows = r.u32s("rows", &[7, 4], CountedBy::Rows, &rows);
        let [kc, vc] = ["k", "v"].map(|n| r.state(n, &[20, 32], DType::F32, vec![0; 640]));
        let out = r.p.rope_kv_write(qkv, rows, (&Rotation::plain(10_000.0, HEADS.d), CAPACITY), None, HEADS, [kc, vc]);
        let mut v = vec![0.0; 640];
        v[first * 32..][..7 * 32].copy_from_slice(&v_want);
        vec![("q", out, by_row(&golden.f32s("rope.q_out")).concat()), ("k", kc, k_want.clone()), ("v", vc, v)]
    });
}

#[test]
fn an_expert_with_its_clamps_is_the_originals() {
    let golden = open("moe");
    let names = ["gate", "up"].map(|n| format!("expert.{n}_proj"));
    let (gate, up) = (golden.f32s("expert.gate"), golden.f32s("expert.up"));
    let both: Vec<f32> = gate.chunks(96).zip(up.chunks(96)).flat_map(|(g, u)| [g, u].concat()).collect();
    let hidden = golden.f32s("expert.hidden_clamped");
    assert!(gate.iter().any(|g| g.abs() >= 20.0) && hidden.iter().any(|h| h.abs() >= 1000.0), "no clamp is hit");
    expect("expert", |r| {
        let x = r.f32s("x", &[9, 64], CountedBy::Rows, &golden.f32s("expert.in"));
        let gate_up = bit_linears(r, &golden, x, &names);
        let h = r.p.swiglu(gate_up, GATED);
        let out = bit_linears(r, &golden, h, &["expert.down_proj".to_owned()]);
        vec![
            ("gate and up", gate_up, both.clone()),
            ("hidden", h, hidden.clone()),
            ("out", out, golden.f32s("expert.out")),
        ]
    });
}

const MULTIPLIER: &str = "moe.clamp.down_proj_multiplier";

/// The mixture of experts on the golden input, with every down projection times `times`. The file holds them as the
/// clamp case has them: multiplied already.
fn moe(r: &Recording, golden: &Golden, times: f32) -> [Slot; 4] {
    let experts = Experts { k: 2, n: 8, shared: 1 };
    let owners: Vec<String> =
        (0..8).map(|i| format!("moe.experts.{i}")).chain(["moe.shared_expert".to_owned()]).collect();
    let gate_up: Vec<String> = owners.iter().flat_map(|o| [format!("{o}.gate_proj"), format!("{o}.up_proj")]).collect();
    let down: Vec<String> = owners.iter().map(|o| format!("{o}.down_proj")).collect();
    let stack = |name: &str, list: &[String], times: f32| {
        let parts: Vec<Packed> = list.iter().map(|n| packed(golden, &format!("{n}.weight"), times)).collect();
        r.ternary(name, &parts)
    };
    let x = r.f32s("x", &[24, 64], CountedBy::Rows, &golden.f32s("moe.case0.in"));
    let rows = r.u32s("rows", &[24, 4], CountedBy::Rows, &(0..24).flat_map(|i| [0, i, 0, i + 1]).collect::<Vec<u32>>());
    let w = r.weight("router", &[8, 64], Pack::F32, &golden.f32s("moe.router.weight"));
    let b = r.weight("router bias", &[8], Pack::F32, &golden.f32s("moe.router.bias"));
    let logits = r.p.matmul(x, w, Some(b), None);
    let log = r.state("log", &[24, 2], DType::U32, vec![UNWRITTEN; 48]);
    let [expert_ids, weights] = r.p.router(logits, rows, log, 2);
    let norms = r.weight("norms", &[18, 64], Pack::F32, &norm_weights(golden, &gate_up));
    let act = r.p.norm_quantise_experts(x, norms, expert_ids, experts, BIT_NORM, ACT);
    let y = r.p.expert_matmul(act, stack("gate up", &gate_up, 1.0), expert_ids, None, &[96, 96], experts);
    let h = r.p.swiglu(y, GATED);
    let norms = r.weight("down norms", &[9, 96], Pack::F32, &norm_weights(golden, &down));
    let act = r.p.norm_quantise_experts(h, norms, expert_ids, experts, BIT_NORM, ACT);
    let y = r.p.expert_matmul(act, stack("down", &down, times), expert_ids, None, &[64], experts);
    let zero = r.f32s("zero", &[24, 64], CountedBy::Rows, &[0.0; 24 * 64]);
    [logits, expert_ids, weights, r.p.combine(zero, y, weights, 1e4)]
}

#[test]
fn the_mixture_of_experts_is_the_originals() {
    let golden = open("moe");
    let top: Vec<f32> = golden.i32s("moe.case0.topk_indices").iter().map(|&i| i as f32).collect();
    expect("moe", |r| {
        let [logits, ids, weights, out] = moe(r, &golden, 1.0 / golden.f32s(MULTIPLIER)[0]);
        vec![
            ("router_logits", logits, golden.f32s("moe.case0.router_logits")),
            ("topk_indices", ids, top.clone()),
            ("topk_weights", weights, golden.f32s("moe.case0.topk_weights")),
            ("out", out, golden.f32s("moe.case0.out")),
        ]
    });
}

#[test]
fn the_clamp_of_the_mixture_is_the_originals() {
    let golden = open("moe");
    let want = golden.f32s("moe.clamp.out");
    assert!(want.iter().any(|v| v.abs() == 1e4), "the clamp is not hit");
    expect("moe clamp", |r| {
        let [_, _, _, out] = moe(r, &golden, 1.0);
        vec![("out", out, want.clone())]
    });
}

/// Codes and scale of a case's weights by the rule of BitNetLinear.
fn check_weights(golden: &Golden, case: &str) {
    let (codes, scale) = quantise(&golden.f32s(&format!("{case}.weight")), WeightQuant::Absmean).unwrap();
    assert_eq!(codes, golden.i8s(&format!("{case}.q_weight")), "{case}");
    let want = golden.f32s(&format!("{case}.w_scale"))[0];
    compare(&[scale / want], &[1.0], 1e-6).unwrap_or_else(|e| panic!("{case}: {e}"));
}

/// BitGen's BitNetLinear: one scale for all of x, codes 0 below half the mean of the weights.
#[test]
fn bitnet_linears_are_the_originals_ties_included() {
    let golden = Golden::open("bitgen_stage1/ops/ops_bitnet_linear.safetensors");
    check_weights(&golden, "tiny_w");
    for case in ["bias", "nobias", "ties"] {
        let of = |name: &str| format!("{case}.{name}");
        let [out, d] = golden.shape(&of("q_weight"))[..] else { panic!("{case}: no matrix") };
        let (codes, scale) = (golden.i8s(&of("q_weight")), golden.f32s(&of("w_scale"))[0]);
        if case != "ties" {
            // The file's `ties.weight` is not what its codes were made of; the tie is in the rule's own test.
            check_weights(&golden, case);
        }
        let matrix = Packed::new(out, d, &codes, scale);
        let bias = (case == "bias").then(|| golden.f32s("bias.bias"));
        let inputs = [("x", "out"), ("single_token_x", "single_token_out")];
        for (x, y) in inputs.map(|(x, y)| (of(x), of(y))).into_iter().filter(|(x, _)| golden.names().contains(x)) {
            let (data, want) = (golden.f32s(&x), golden.f32s(&y));
            expect(&x, |r| {
                let input = r.f32s("x", &[data.len() / d, d], CountedBy::Rows, &data);
                let act = r.p.quantise(input, r.p.absmax(input), 1e-8);
                let y = r.p.ternary_matmul(act, r.ternary("w", std::slice::from_ref(&matrix)), &[out], None);
                let bias = bias.as_ref().map(|b| r.weight("bias", &[out], Pack::F32, b));
                vec![("out", r.p.affine(y, None, bias, None), want.clone())]
            });
        }
        let rig = Recording::new(case);
        let data = golden.f32s(&of("x"));
        let input = rig.f32s("x", &[data.len() / d, d], CountedBy::Rows, &data);
        let [act, _] = rig.p.quantise(input, rig.p.absmax(input), 1e-8);
        let (plan, feed) = rig.finish();
        let found = run(&mut Cpu::plain(), &plan, &feed, Step::FULL, &[act]).remove(0);
        let rows = bytemuck::cast_slice::<u32, i8>(&found).chunks_exact(d.next_multiple_of(32));
        let found: Vec<i8> = rows.flat_map(|row| row[..d].to_vec()).collect();
        assert_eq!(found, golden.i8s(&of("q_x")), "{case}");
    }
}

#[test]
fn a_wrong_golden_value_is_found() {
    let golden = open("moe");
    let mut wrong = golden.f32s("expert.out");
    wrong[100] += 1e-3;
    let (diff, at) = worst(&golden.f32s("expert.out"), &wrong);
    assert!(diff > TOL && at == 100, "{diff} at {at}");
}
