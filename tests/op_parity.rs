//! Every op on every backend against its plain definition. See `cases` for the table.

mod support {
    pub mod device;
    pub mod numbers;
    pub mod op_cases;
    pub mod recording;
}

use support::device::{backends, choices, gpu};
use support::numbers::{compare, floats};
use support::op_cases::{Case, Tol};
use support::recording::{Feed, UNWRITTEN, run};
use ternion::unstable::cpu::Cpu;
use ternion::unstable::cpu_level::{self, CpuLevel};
use ternion::unstable::ops::NAMES;
use ternion::unstable::plan::{Backend, Choices, Slot, Step};
use ternion::unstable::quant::int8;
use ternion::unstable::tensor::{DType, Spec, code_words};

/// Words of one output as numbers to compare: F16 words hold two.
fn numbers(spec: &Spec, words: &[u32]) -> Vec<f32> {
    match spec.dtype {
        DType::F16 => bytemuck::cast_slice::<u32, half::f16>(words).iter().map(|v| v.to_f32()).collect(),
        DType::Int8 => {
            let (integers, scales) = int8::parts(words, spec.rows(), spec.width());
            let scaled = |(i, &q): (usize, &i8)| f32::from(q) * scales[i / spec.width()];
            integers.iter().enumerate().map(scaled).collect()
        }
        _ => floats(words),
    }
}

fn codes(words: &[u32]) -> Vec<i8> {
    bytemuck::cast_slice(words).to_vec()
}

/// Says what is wrong with one output, if anything. `before` is the output before it, found and expected.
fn check(spec: &Spec, tol: Tol, found: &[u32], want: &[u32], before: Option<[&Vec<u32>; 2]>) -> Result<(), String> {
    match tol {
        Tol::Exact => match found.iter().zip(want).position(|(f, w)| f != w) {
            None => Ok(()),
            Some(i) => {
                let (f, w) = (found[i], want[i]);
                let (ff, wf) = (f32::from_bits(f), f32::from_bits(w));
                Err(format!("word {i}: found {f:#x} ({ff}), expected {w:#x} ({wf})"))
            }
        },
        Tol::Close(tol) => compare(&numbers(spec, found), &numbers(spec, want), tol),
        Tol::Codes => check_codes(&codes(found), &codes(want)),
        Tol::Int8 => {
            let [found, want] = [found, want].map(|words| int8::parts(words, spec.rows(), spec.width()));
            let scaled = |scales: &[f32]| scales.iter().map(|scale| 127.0 * scale).collect::<Vec<f32>>();
            check_codes(found.0, want.0)?;
            compare(&scaled(found.1), &scaled(want.1), 3e-6).map_err(|e| format!("127 · scale: {e}"))
        }
        Tol::ScaleAndSum => {
            let codes = before.expect("the codes").map(|words| codes(words));
            let set = codes[0].len() / (want.len() / 2);
            let sets = codes[0].chunks_exact(set).zip(codes[1].chunks_exact(set));
            check_scale_and_sum(&floats(found), &floats(want), sets, SCALE)
        }
        Tol::GroupScaleAndSum { width, group, fitted } => {
            let codes = before.expect("the codes").map(|words| codes(words));
            let [found_sets, want_sets] = codes.each_ref().map(|codes| {
                let rows = codes.chunks_exact(4 * code_words(width));
                rows.flat_map(|row| row[..width].chunks(group))
            });
            let tol = if fitted { FITTED_SCALE } else { SCALE };
            check_scale_and_sum(&floats(found), &floats(want), found_sets.zip(want_sets), tol)
        }
    }
}

/// How near a factor of codes must come, and one that is fitted to codes of which one differs by 1.
const SCALE: f32 = 1e-5;
const FITTED_SCALE: f32 = 1e-2;

fn check_codes(found: &[i8], want: &[i8]) -> Result<(), String> {
    let diff = |i: usize| (i32::from(found[i]) - i32::from(want[i])).abs();
    let worst = (0..want.len()).max_by_key(|&i| diff(i)).unwrap_or(0);
    let flips = (0..want.len()).filter(|&i| diff(i) > 0).count();
    if diff(worst) <= 1 && 100 * flips <= want.len() {
        return Ok(());
    }
    let (f, w) = (found[worst], want[worst]);
    Err(format!("{flips} of {} codes differ, at {worst}: found {f}, expected {w}", want.len()))
}

/// `sets` are the codes of each entry, found and expected; `tol` is for a factor of codes that differ.
fn check_scale_and_sum<'a>(
    found: &[f32],
    want: &[f32],
    sets: impl Iterator<Item = (&'a [i8], &'a [i8])>,
    tol: f32,
) -> Result<(), String> {
    for (set, (codes, want_codes)) in sets.enumerate() {
        let [found, want] = [found, want].map(|all| &all[2 * set..][..2]);
        let tol = if codes == want_codes { SCALE } else { tol };
        compare(&[127.0 * found[0]], &[127.0 * want[0]], tol).map_err(|e| format!("set {set}, 127 · factor: {e}"))?;
        let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
        let unwritten = found[0].to_bits() == UNWRITTEN;
        if !unwritten && found[1] != sum as f32 {
            return Err(format!("set {set}: the sum is {}, the codes add up to {sum}", found[1]));
        }
    }
    Ok(())
}

/// Rows that the step does not use hold what they held before.
fn check_unwritten(case: &Case, slot: Slot, words: &[u32]) -> Result<(), String> {
    let spec = case.plan.spec(slot);
    let used = case.step.rows_in_use(spec) * (words.len() / spec.shape[0]);
    if fed(&case.feed, slot) {
        return Ok(());
    }
    match words[used..].iter().position(|&w| w != UNWRITTEN) {
        Some(i) => Err(format!("word {} behind the used rows was written", used + i)),
        None => Ok(()),
    }
}

fn fed(feed: &Feed, slot: Slot) -> bool {
    feed.slots.iter().any(|(s, _)| *s == slot)
}

/// Runs rows on a backend; returns what is wrong as `row, variant: problem`.
fn failures(cases: &[Case], truth: &[Vec<Vec<u32>>], variant: &str, backend: &mut dyn Backend) -> Vec<String> {
    let mut all = Vec::new();
    let mut runs = Vec::new();
    for (case, truth) in cases.iter().zip(truth) {
        runs.extend(choices(backend, &case.plan).into_iter().map(|choices| (case, truth, choices)));
    }
    for (case, truth, choices) in runs {
        let slots: Vec<Slot> = case.outs.iter().map(|o| o.0).collect();
        let named: Vec<String> = choices.iter().map(|choice| choice[2].to_owned()).collect();
        backend.choose(choices);
        let found = run(backend, &case.plan, &case.feed, case.step, &slots);
        for (i, &(slot, tol)) in case.outs.iter().enumerate() {
            let before = i.checked_sub(1).map(|b| [&found[b], &truth[b]]);
            let result = check_unwritten(case, slot, &found[i])
                .and_then(|()| check(case.plan.spec(slot), tol, &found[i], &truth[i], before));
            if let Err(problem) = result {
                all.push(format!("{}, {}, output {i}, {variant} {named:?}: {problem}", case.op, case.name));
            }
        }
    }
    all
}

fn truth(cases: &[Case]) -> Vec<Vec<Vec<u32>>> {
    let mut plain = Cpu::plain();
    let one = |case: &Case| {
        let slots: Vec<Slot> = case.outs.iter().map(|o| o.0).collect();
        run(&mut plain, &case.plan, &case.feed, case.step, &slots)
    };
    cases.iter().map(one).collect()
}

fn assert_parity(cases: &[Case]) {
    let another = std::env::var("OP").is_ok_and(|op| NAMES.contains(&op.as_str()));
    assert!(!cases.is_empty() || another, "no rows, and no op whose rows another test runs");
    let truth = truth(cases);
    let mut all = failures(cases, &truth, "plain CPU", &mut Cpu::plain());
    for (variant, mut backend) in backends() {
        all.extend(failures(cases, &truth, &variant, backend.as_mut()));
    }
    assert!(all.is_empty(), "{} failures in {} rows:\n{}", all.len(), cases.len(), all.join("\n"));
}

/// The rows, or those of the op that the environment names in `OP` alone, for a quick look while it changes.
fn rows() -> Vec<Case> {
    let only = std::env::var("OP").ok();
    support::op_cases::all().into_iter().filter(|c| only.as_deref().is_none_or(|op| c.op == op)).collect()
}

#[test]
fn every_op_has_parity_rows() {
    let cases = support::op_cases::all();
    for name in NAMES {
        assert!(cases.iter().any(|c| c.op == *name), "{name} has no row in tests/support/op_cases");
    }
    for case in &cases {
        assert!(NAMES.contains(&case.op), "{} is not in ops::NAMES", case.op);
    }
}

#[test]
fn ternary_matmul_matches_reference_bit_for_bit() {
    let exact = |c: &Case| c.op == "ternary_matmul" && c.outs.iter().all(|o| o.1 == Tol::Exact);
    assert_parity(&rows().into_iter().filter(exact).collect::<Vec<_>>());
}

#[test]
fn float_ops_match_reference() {
    let exact = |c: &Case| c.op == "ternary_matmul" && c.outs.iter().all(|o| o.1 == Tol::Exact);
    assert_parity(&rows().into_iter().filter(|c| !exact(c)).collect::<Vec<_>>());
}

/// The other tests may run at one of these levels meanwhile, which changes nothing of what they expect. The environment may name
/// one that must be among them, in `REQUIRE_CPU_LEVEL`.
#[test]
fn every_level_of_the_cpu_matches_reference() {
    let required = std::env::var("REQUIRE_CPU_LEVEL").ok().map(|name| name.parse().unwrap());
    assert!(
        required.is_none_or(|level| CpuLevel::of_this_processor().any(|l| l == level)),
        "{required:?} is not there"
    );
    let cases = rows();
    let truth = truth(&cases);
    let mut all = Vec::new();
    for level in CpuLevel::of_this_processor() {
        cpu_level::limit(level).unwrap();
        all.extend(failures(&cases, &truth, &format!("CPU at level {level}"), &mut Cpu::new()));
    }
    assert!(all.is_empty(), "{} failures in {} rows:\n{}", all.len(), cases.len(), all.join("\n"));
}

/// Ops that read no floats, or whose floats make choices only.
const OF_INTEGERS: &[&str] = &["group_rows", "bandwidth_probe", "sample"];

/// A row with the first elements of one F32 input or state replaced, for each of them.
fn spoilt(case: &Case, value: f32) -> Vec<Case> {
    let mut all = Vec::new();
    for (i, (slot, words)) in case.feed.slots.iter().enumerate() {
        if case.plan.spec(*slot).dtype == DType::F32 {
            let mut feed = Feed { weights: case.feed.weights.clone(), slots: case.feed.slots.clone() };
            let width = words.len() / case.plan.spec(*slot).shape[0];
            feed.slots[i].1.iter_mut().step_by(width).for_each(|word| *word = value.to_bits());
            let name = format!("{}, {value} in {:?}", case.name, case.plan.slot(*slot).kind);
            all.push(Case { name, feed, plan: case.plan.clone(), outs: case.outs.clone(), ..*case });
        }
    }
    all
}

/// Elements of a case's outputs of floats, each whether it is not finite.
fn odd(case: &Case, words: &[Vec<u32>]) -> Vec<Vec<bool>> {
    let outs = case
        .outs
        .iter()
        .zip(words)
        .filter(|(o, _)| matches!(case.plan.spec(o.0).dtype, DType::F32 | DType::F16 | DType::Int8));
    outs.map(|(o, words)| numbers(case.plan.spec(o.0), words).iter().map(|v| !v.is_finite()).collect()).collect()
}

/// An element that is finite on a backend, and not in the definition.
fn lost(backend: &mut dyn Backend, case: &Case, truth: &[Vec<bool>]) -> Option<usize> {
    let slots: Vec<Slot> = case.outs.iter().map(|o| o.0).collect();
    let found = odd(case, &run(backend, &case.plan, &case.feed, case.step, &slots));
    let lost = |(found, truth): (&Vec<bool>, &Vec<bool>)| truth.iter().zip(found).position(|(t, f)| *t && !f);
    found.iter().zip(truth).find_map(lost)
}

/// Where the definition's output is not finite, that of every backend is not either; and for some input it is.
#[test]
fn a_number_that_is_not_finite_comes_through_every_op() {
    let (all, mut cases) = (rows(), Vec::new());
    for name in NAMES {
        let own: Vec<&Case> = all.iter().filter(|c| c.op == *name).collect();
        let few: std::collections::BTreeSet<usize> = [0, own.len() / 2, own.len().saturating_sub(1)].into();
        let few = few.into_iter().filter_map(|i| own.get(i));
        cases.extend(few.flat_map(|c| [f32::NAN, f32::INFINITY].into_iter().flat_map(|v| spoilt(c, v))));
    }
    let truth: Vec<_> = cases.iter().zip(truth(&cases)).map(|(case, words)| odd(case, &words)).collect();
    let any = |odd: &Vec<Vec<bool>>| odd.iter().flatten().any(|&o| o);
    let mut problems = Vec::new();
    for name in NAMES.iter().filter(|n| !OF_INTEGERS.contains(n) && all.iter().any(|c| c.op == **n)) {
        if !cases.iter().zip(&truth).any(|(c, t)| c.op == *name && any(t)) {
            problems.push(format!("the definition of {name} lets nothing through"));
        }
    }
    for (variant, mut backend) in backends() {
        for (case, truth) in cases.iter().zip(&truth) {
            for choices in choices(backend.as_ref(), &case.plan) {
                backend.choose(choices);
                if let Some(at) = lost(backend.as_mut(), case, truth) {
                    problems.push(format!("{}, {}, {variant}: element {at} is finite", case.op, case.name));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_variant_that_is_chosen_runs() {
    let Some(mut gpu) = gpu(|caps| caps) else { return };
    let caps = gpu.caps();
    let of = |case: &Case| case.plan.variants(&case.plan.nodes[0], &caps);
    let is_cut = |case: &Case| of(case).1.all().any(|v| v.name == "parts-128");
    let case = support::op_cases::all().into_iter().find(is_cut).expect("a row that attends to chunks of its context");
    let (bucket, variants) = of(&case);
    let mut launches = |variant: &str| {
        let mut choices = Choices::default();
        choices.set("attention", &bucket, variant);
        gpu.choose(choices);
        let program = gpu.prepare(case.plan.clone(), false).expect("it is prepared");
        gpu.launches(program, &Step { context: 200, ..case.step })
    };
    let usual = variants.take(None).name;
    assert_eq!([launches("parts-128"), launches("keys-512")], [2, 1], "200 keys are two chunks of 128");
    assert_eq!(launches("of an earlier version"), launches(&usual));
}

#[test]
fn a_wrong_number_is_found() {
    let spec = Spec::fixed(&[2], DType::F32);
    let want = [1f32.to_bits(), 2f32.to_bits()];
    for wrong in [2.001f32, f32::NAN, f32::INFINITY] {
        let found = [want[0], wrong.to_bits()];
        assert!(check(&spec, Tol::Exact, &found, &want, None).is_err());
        let problem = check(&spec, Tol::Close(1e-5), &found, &want, None).unwrap_err();
        assert!(problem.contains("at 1 of 2"), "{problem}");
    }
    let integers = Spec::fixed(&[1, 4], DType::Int8);
    let right = [0x0101_0101, 1f32.to_bits(), 0, 0];
    assert!(check(&integers, Tol::Int8, &right, &right, None).is_ok());
    assert!(check(&integers, Tol::Int8, &[0x0301_0101, right[1], 0, 0], &right, None).is_err());
    assert!(check(&integers, Tol::Int8, &[right[0], 1.001f32.to_bits(), 0, 0], &right, None).is_err());
    assert!(check(&spec, Tol::Codes, &[0x0202_0202], &[0], None).is_err());
    assert!(check(&spec, Tol::Codes, &[0x0000_0001], &[0], None).is_err());
}
