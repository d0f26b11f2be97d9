//! Tokens that a device draws against those of the host's sampler, over thousands of draws.

mod support {
    pub mod device;
    pub mod numbers;
}

use std::sync::Arc;

use support::device::backends;
use support::numbers::{Noise, bits};
use ternion::engine::sampler::Sampler;
use ternion::unstable::cpu::Cpu;
use ternion::unstable::ops::{SAMPLE_PARAM_WORDS, SampleParams, Sampled, Sampling, adjustment_words, adjustments};
use ternion::unstable::plan::{Backend, Plan, PlanBuilder, Slot, Step};
use ternion::unstable::tensor::{CountedBy, DType, Spec};

const OUTPUTS: usize = 48;
const VOCAB: usize = 1500;
const STEPS: usize = 100;

/// The slots of a plan that draws from the same logits again and again.
struct Slots {
    logits: Slot,
    outputs: Slot,
    params: Slot,
    rows: Slot,
    to: Sampled,
}

fn plan() -> (Arc<Plan>, Slots) {
    let p = PlanBuilder::new();
    let input =
        |name: &str, width, dtype, counted_by| p.input(name, Spec::counted(&[OUTPUTS, width], dtype, counted_by));
    let state = |name: &str, shape: [usize; 2]| p.state(name, Spec::fixed(&shape, DType::U32));
    let slots = Slots {
        logits: input("logits", VOCAB, DType::F32, CountedBy::Outputs),
        outputs: input("outputs", 1, DType::U32, CountedBy::Outputs),
        params: input("params", SAMPLE_PARAM_WORDS, DType::U32, CountedBy::Outputs),
        rows: input("rows", 4, DType::U32, CountedBy::Rows),
        to: Sampled {
            sampled: state("sampled", [OUTPUTS * STEPS, 1]),
            adjustments: state("adjustments", [OUTPUTS, adjustment_words(VOCAB)]),
        },
    };
    p.sample(slots.logits, slots.outputs, slots.params, slots.rows, slots.to);
    (Arc::new(p.finish().unwrap()), slots)
}

/// `STEPS` tokens of each output, drawn one after the other without the host.
fn tokens(backend: &mut dyn Backend, logits: &[f32], samplings: &[Sampling]) -> Vec<u32> {
    let (plan, slots) = plan();
    let nodes = 0..plan.nodes.len();
    let id = backend.prepare(plan, false).unwrap();
    let rows: Vec<u32> = (0..OUTPUTS as u32).flat_map(|o| [0, 0, o * STEPS as u32, 1]).collect();
    backend.write(id, slots.logits, 0, &bits(logits)).unwrap();
    backend.write(id, slots.outputs, 0, &(0..OUTPUTS as u32).collect::<Vec<u32>>()).unwrap();
    for (o, sampling) in samplings.iter().enumerate() {
        let params = SampleParams::new(sampling, 0, o as u32).unwrap();
        backend.write(id, slots.params, o * SAMPLE_PARAM_WORDS, bytemuck::cast_slice(&[params])).unwrap();
        let row = adjustments(sampling, VOCAB, &prompt(o));
        backend.write(id, slots.to.adjustments, o * adjustment_words(VOCAB), &row).unwrap();
    }
    backend.write(id, slots.rows, 0, &rows).unwrap();
    let step = Step::new(OUTPUTS, OUTPUTS, 1);
    for _ in 0..STEPS / 10 {
        backend.repeat(id, &step, nodes.clone(), 10).unwrap();
    }
    let mut read = backend.read(id, &[(slots.to.sampled, 0..OUTPUTS * STEPS), (slots.rows, 0..4)]).unwrap();
    assert_eq!(read.pop().unwrap()[1..], [STEPS as u32, 0, 1 + STEPS as u32], "the row goes on");
    read.remove(0)
}

fn sampling(o: usize) -> Sampling {
    Sampling {
        temperature: [0.0, 0.7, 1.0, 2.5][o % 4],
        top_k: [1 + o, 50, 64][o % 3],
        top_p: [1.0, 0.9, 0.5, 0.99, 0.75][o % 5],
        min_p: [0.0, 0.05, 0.0, 0.3, 0.0, 0.01, 0.0, 0.0, 0.9, 0.0, 0.0][o % 11],
        repetition_penalty: [1.0, 1.2, 1.0, 0.8, 1.0, 1.0, 1.6][o % 7],
        presence_penalty: [0.0, 0.0, 0.7, 0.0, -0.4][o % 5],
        frequency_penalty: [0.0, 0.3, 0.0, 0.0, 0.05, -0.02, 0.0, 0.0][o % 8],
        logit_bias: (0..[0, 0, 1, 0, 256, 7][o % 6]).map(|i| (i * 5 % VOCAB as u32, bias(i))).collect(),
        seed: 0x1234_5678_9ABC_DEF0 ^ (o as u64) << 33,
    }
}

fn bias(i: u32) -> f32 {
    [f32::NEG_INFINITY, 3.5, -100.0, 0.125, -2.25][i as usize % 5]
}

/// What was said in a sequence before its first draw.
fn prompt(o: usize) -> Vec<u32> {
    (0..o % 9 * 40).map(|i| (i * i % 83) as u32).collect()
}

#[test]
fn devices_draw_what_the_host_draws() {
    let logits = Noise(5).f32s(OUTPUTS * VOCAB, 6.0);
    let samplings: Vec<Sampling> = (0..OUTPUTS).map(sampling).collect();
    let host: Vec<u32> = (0..OUTPUTS)
        .flat_map(|o| {
            let (mut sampler, mut history) = (Sampler::new(sampling(o)).unwrap(), prompt(o));
            for _ in 0..STEPS {
                let mut logits = logits[o * VOCAB..(o + 1) * VOCAB].to_vec();
                let token = sampler.next(&mut logits, &history).unwrap();
                history.push(token);
            }
            history.split_off(prompt(o).len())
        })
        .collect();
    assert_eq!(tokens(&mut Cpu::plain(), &logits, &samplings), host, "the definition is the host's sampler");
    for (name, mut backend) in backends() {
        let found = tokens(backend.as_mut(), &logits, &samplings);
        let different = found.iter().zip(&host).filter(|(f, h)| f != h).count();
        println!("{name}: {different} of {} draws differ", host.len());
        // 32-bit sums move the borders between tokens by less than 1e-5 of all probability, so that one draw in
        // thousands may fall on the other side; with a penalty, the draws behind it may differ too.
        assert!(different <= STEPS, "{name}: {different} of {}", host.len());
    }
}

#[test]
fn samplings_without_room_on_the_device_have_no_params() {
    let with = |temperature, top_k| Sampling { temperature, top_k, ..Sampling::greedy() };
    for (sampling, fits) in [(with(0.0, 0), true), (with(1.0, 64), true), (with(1.0, 0), false), (with(1.0, 65), false)]
    {
        assert_eq!(SampleParams::new(&sampling, 0, 0).is_some(), fits, "{sampling:?}");
    }
}
