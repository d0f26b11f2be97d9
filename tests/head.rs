//! The matrix that gives the logits in 8 bits: how far its logits are from those of full precision.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use support::model_stages::{LoadedModel, PreparedPlan, devices, embernets, rms};
use support::numbers::floats;
use ternion::unstable::models::slots;
use ternion::unstable::ops::Row;
use ternion::unstable::plan::{Plan, Slot, SlotKind};
use ternion::unstable::quant::int8;
use ternion::unstable::tensor::{DType, Pack};

const WHOLE: u64 = u64::MAX;
/// What other orders of a sum change, as a share of a bound.
const SLACK: f32 = 1e-3;

/// The weights whose products are the logits of a text plan.
fn head(plan: &Plan) -> Vec<Slot> {
    let logits = plan.outputs[slots::LOGITS];
    let products = plan.nodes.iter().filter(|n| n.op.name() == "matmul" && n.outputs.contains(&logits));
    products.map(|n| n.inputs[1]).collect()
}

/// The rows of a sequence of many tokens.
fn rows(rig: &LoadedModel) -> Vec<Row> {
    let vocab = rig.model.info().vocab as i32;
    let ids: Vec<i32> = (0..24).map(|i| (i * 7919 + 3) % vocab).collect();
    rig.rows(0, &ids, 0)
}

/// What the head reads, `[rows, d]`.
fn normed(rig: &mut LoadedModel, program: &PreparedPlan, n: usize) -> Vec<f32> {
    let slot = program.plan.tags["final_norm.out"];
    let width = program.plan.spec(slot).width();
    rig.read(program, slot, n * width)
}

#[test]
fn logits_are_off_by_half_a_scale_for_each_element_at_most() {
    for dir in embernets() {
        for ((device, full), (_, eight)) in devices().into_iter().zip(devices()) {
            let mut rigs = [(Pack::F32, full), (Pack::Int8, eight)]
                .map(|(pack, backend)| LoadedModel::open_with_head(&dir, backend, pack, WHOLE));
            let mut logits = Vec::new();
            let mut bounds = Vec::new();
            for rig in &mut rigs {
                let (rows, program) = (rows(rig), rig.text(24, 24));
                logits.push(rig.logits(&program, &rows, &[]));
                let SlotKind::Weight(weight) = &program.plan.slot(head(&program.plan)[0]).kind else {
                    panic!("the head is not a weight");
                };
                if weight.pack == Pack::Int8 {
                    let vocab = rig.model.info().vocab;
                    let words = rig.weights.load(weight).expect("it loads");
                    let scales = int8::parts(&words, vocab, weight.parts[0].cols).1;
                    let x = normed(rig, &program, rows.len());
                    for x in x.chunks_exact(x.len() / rows.len()) {
                        let sum: f32 = x.iter().map(|v| v.abs()).sum();
                        bounds.extend(scales.iter().map(|scale| 0.5 * scale * sum));
                    }
                }
            }
            let off = |i: usize| (logits[1][i] - logits[0][i]).abs() / bounds[i];
            let worst = (0..bounds.len()).map(off).fold(0.0, f32::max);
            println!(
                "{}, {device}: worst {worst:.3} of the bound, rms {:.1e}",
                dir.display(),
                rms(&logits[1], &logits[0])
            );
            assert_eq!(bounds.len(), logits[0].len());
            assert!(worst <= 1.0 + SLACK, "{} on {device}: {worst} of the bound", dir.display());
            assert!(worst > 0.01, "{} on {device}: the head is not in 8 bits", dir.display());
            assert!(rms(&logits[1], &logits[0]) < 0.02, "{} on {device}", dir.display());
        }
    }
}

#[test]
fn a_head_above_the_binding_limit_is_cut_without_a_difference() {
    const LIMIT: u64 = 4100;
    for dir in embernets() {
        for ((device, whole), (_, cut)) in devices().into_iter().zip(devices()) {
            let mut rigs = [(whole, WHOLE), (cut, LIMIT)]
                .map(|(backend, most)| LoadedModel::open_with_head(&dir, backend, Pack::Int8, most));
            let logits = rigs.each_mut().map(|rig| {
                let (rows, program) = (rows(rig), rig.text(24, 24));
                let sizes = head(&program.plan).into_iter().map(|s| 4 * program.plan.spec(s).words() as u64);
                (rig.logits(&program, &rows, &[]), sizes.collect::<Vec<u64>>())
            });
            let [(whole, one), (cut, many)] = &logits;
            assert!(one.len() == 1 && many.len() > 1, "{one:?}, {many:?}");
            assert!(many.iter().all(|&bytes| bytes <= LIMIT), "{many:?}");
            assert!(many[..many.len() - 1].iter().all(|&bytes| bytes + 200 > LIMIT), "{many:?}");
            let off = rms(cut, whole);
            assert!(off < 1e-6, "{} on {device}: a head in pieces is off by {off}", dir.display());
        }
    }
}

#[test]
fn embeddings_stay_as_they_are() {
    for dir in embernets() {
        for ((device, full), (_, eight)) in devices().into_iter().zip(devices()) {
            let x = [(Pack::F32, full), (Pack::Int8, eight)].map(|(pack, backend)| {
                let mut rig = LoadedModel::open_with_head(&dir, backend, pack, WHOLE);
                let (rows, program) = (rows(&rig), rig.text(24, 24));
                rig.logits(&program, &rows, &[]);
                let embedded = program.plan.tags["merged_embeds"];
                let dtype = program.plan.spec(head(&program.plan)[0]).dtype;
                let n = rows.len() * program.plan.spec(embedded).width();
                let words = [rig.read_words(&program, embedded, n), normed_words(&mut rig, &program, rows.len())];
                (dtype, words)
            });
            assert_eq!([x[0].0, x[1].0], [DType::F32, DType::Int8]);
            assert!(x[0].1 == x[1].1, "{} on {device}: what the head reads differs", dir.display());
            assert!(floats(&x[0].1[0]).iter().any(|v| *v != 0.0));
        }
    }
}

fn normed_words(rig: &mut LoadedModel, program: &PreparedPlan, n: usize) -> Vec<u32> {
    normed(rig, program, n).into_iter().map(f32::to_bits).collect()
}
