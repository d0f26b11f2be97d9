//! Devices that fail: lost, too small, given a broken kernel. Every failure is a typed error, and nothing panics.

mod support {
    pub mod device;
    pub mod numbers;
    pub mod recording;
}

use std::sync::Arc;

use support::device::gpu;
use support::recording::{Recording, run};
use ternion::Error;
use ternion::unstable::plan::{
    Backend, Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, Plan, PlanBuilder, ResizedState, Source, Step,
};
use ternion::unstable::tensor::{CountedBy, DType, Spec};

fn small_plan() -> (Arc<Plan>, support::recording::Feed) {
    let rig = Recording::new("devices");
    let x = rig.f32s("x", &[2, 8], CountedBy::Fixed, &[1.0; 16]);
    let y = rig.p.unary(x, ternion::unstable::ops::UnaryKind::Scale(2.0));
    rig.p.output("y", y);
    rig.finish()
}

#[test]
fn a_lost_device_is_an_error_from_then_on() {
    let Some(mut gpu) = gpu(|caps| caps) else { return };
    let (plan, feed) = small_plan();
    let y = plan.outputs["y"];
    assert_eq!(run(&mut gpu, &plan, &feed, Step::FULL, &[y])[0], vec![2.0f32.to_bits(); 16]);
    let program = gpu.prepare(plan.clone(), true).unwrap();
    gpu.destroy();
    for _ in 0..2 {
        let ran = gpu.run(program, &Step::FULL, 0..1).and_then(|()| gpu.read(program, &[(y, 0..16)]).map(|_| ()));
        let error = ran.expect_err("the device is gone");
        assert!(
            matches!(&error, Error::DeviceLost { .. }) && error.to_string().contains("open the engine again"),
            "{error}"
        );
    }
    assert!(gpu.load_weight("w", vec![0; 16]).is_err());
}

#[test]
fn a_buffer_above_the_limit_is_refused_by_name() {
    let Some(mut gpu) = gpu(|caps| Caps { max_binding: 1 << 16, ..caps }) else { return };
    let error = gpu.load_weight("decoder.big", vec![0; 1 << 15]).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { what, .. } if what.contains("decoder.big")), "{error}");
    gpu.load_weight("decoder.small", vec![0; 16]).expect("the backend stays usable");
}

#[test]
fn words_outside_a_slot_are_refused() {
    let Some(mut gpu) = gpu(|caps| caps) else { return };
    let (plan, _) = small_plan();
    let (x, y) = (plan.input("x").unwrap(), plan.outputs["y"]);
    let program = gpu.prepare(plan, true).unwrap();
    assert!(matches!(gpu.write(program, x, 15, &[0, 0]), Err(Error::Argument { .. })));
    assert!(matches!(gpu.read(program, &[(y, 0..1 << 20)]), Err(Error::Argument { .. })));
}

/// An op whose kernel does not compile.
#[derive(Debug)]
struct Broken;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NoParams {
    unused: u32,
}

impl ParamStruct for NoParams {
    const FIELDS: &'static [&'static str] = &["unused"];
}

impl Op for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn infer(&self, inputs: &[&Spec]) -> ternion::Result<Vec<Spec>> {
        Ok(vec![inputs[0].clone()])
    }

    fn cpu(&self, _: &Step, _: &mut Io) {}

    fn kernel(&self, _: &Caps, _: &[&Spec], _: &[&Spec]) -> Kernel {
        let text = "#import step\n\n@compute @workgroup_size(1)\nfn main() { nonsense(); }\n";
        Kernel {
            source: Source::new("broken", text),
            defines: vec![],
            overrides: vec![],
            params: NoParams { unused: 0 }.params(),
            grid: Grid::x(Extent::Fixed(1)),
        }
    }
}

#[test]
fn a_broken_kernel_is_named_with_its_own_line() {
    let Some(mut gpu) = gpu(|caps| caps) else { return };
    let p = PlanBuilder::new();
    let x = p.input("x", Spec::fixed(&[4], DType::F32));
    p.push(Broken, &[x]);
    let error = gpu.prepare(Arc::new(p.finish().unwrap()), false).unwrap_err().to_string();
    assert!(error.contains("shaders/broken.wgsl:4"), "{error}");
    let (plan, feed) = small_plan();
    let y = plan.outputs["y"];
    run(&mut gpu, &plan, &feed, Step::FULL, &[y]);
}

#[test]
fn a_misfit_is_reported_where_it_was_recorded() {
    let p = PlanBuilder::new();
    let x = p.input("x", Spec::fixed(&[2, 8], DType::F32));
    let w = p.input("w", Spec::fixed(&[5], DType::F32));
    p.layer_norm(x, w, w, 1e-5);
    p.rms_norm(x, w, ternion::unstable::ops::RmsNorm::new(1e-5));
    let error = p.finish().unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    for part in ["layer_norm", "devices.rs:", "[5]", "[8]"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_state_of_two_sizes_is_refused() {
    let plan = |n| {
        let p = PlanBuilder::new();
        let x = p.state("devices.shared", Spec::fixed(&[n, 8], DType::F32));
        p.output("y", p.unary(x, ternion::unstable::ops::UnaryKind::Scale(2.0)));
        Arc::new(p.finish().unwrap())
    };
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(ternion::unstable::cpu::Cpu::new())];
    if let Some(gpu) = gpu(|caps| caps) {
        backends.push(Box::new(gpu));
    }
    for mut backend in backends {
        backend.prepare(plan(4), false).unwrap();
        backend.prepare(plan(4), false).unwrap();
        let error = backend.prepare(plan(5), false).unwrap_err();
        assert!(matches!(&error, Error::Shape { object, .. } if object.contains("devices.shared")), "{error}");
    }
}

#[test]
fn a_state_of_another_size_keeps_what_moves_and_releases_its_programs() {
    let plan = |rows, dtype| {
        let p = PlanBuilder::new();
        let x = p.state("devices.rows", Spec::fixed(&[rows, 2, 4], dtype));
        p.output("x", x);
        Arc::new(p.finish().unwrap())
    };
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(ternion::unstable::cpu::Cpu::new())];
    backends.extend(gpu(|caps| Caps { max_binding: 1 << 16, ..caps }).map(|gpu| Box::new(gpu) as Box<dyn Backend>));
    for mut backend in backends {
        let other = backend.prepare(small_plan().0, false).unwrap();
        let (old, new) = (plan(3, DType::Int8), plan(5, DType::Int8));
        let (slot, program) = (old.state("devices.rows").unwrap(), backend.prepare(old.clone(), false).unwrap());
        // Two words of integers a row, then two scales a row.
        backend.write(program, slot, 0, &(1..=12).collect::<Vec<u32>>()).unwrap();
        let specs = [&old, &new].map(|plan| plan.spec(slot));
        let memory = backend.memory();
        let refused = |backend: &mut dyn Backend, state: ResizedState| {
            let error = backend.resize_states(&[state]).unwrap_err();
            assert_eq!(backend.memory(), memory);
            assert_eq!(backend.read(program, &[(slot, 0..12)]).unwrap()[0], (1..=12).collect::<Vec<u32>>());
            error
        };
        let state = ResizedState::of_rows("devices.rows", specs, &[(0..1, 0), (2..3, 3)]);
        let error = refused(backend.as_mut(), ResizedState { words: 1 << 60, ..state.clone() });
        assert!(matches!(&error, Error::OutOfMemory { what, .. } if what.contains("devices.rows")), "{error}");
        for moves in [vec![(0..99, 0)], vec![(0..2, 19)]] {
            let error = refused(backend.as_mut(), ResizedState { moves, ..state.clone() });
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        let error = refused(backend.as_mut(), ResizedState { name: "unknown".into(), ..state.clone() });
        assert!(matches!(error, Error::Argument { .. }), "{error}");

        backend.resize_states(&[state]).unwrap();
        assert_eq!(backend.memory(), memory + 32, "{}", backend.describe());
        assert!(backend.plan(program).slots.is_empty() && !backend.plan(other).nodes.is_empty());
        let program = backend.prepare(new, false).unwrap();
        let want = [1, 2, 0, 0, 0, 0, 5, 6, 0, 0, 7, 8, 0, 0, 0, 0, 11, 12, 0, 0];
        assert_eq!(backend.read(program, &[(slot, 0..20)]).unwrap()[0], want);
    }
}

#[test]
fn a_program_that_is_given_back_leaves_its_memory_and_others_alone() {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(ternion::unstable::cpu::Cpu::new())];
    if let Some(gpu) = gpu(|caps| caps) {
        backends.push(Box::new(gpu));
    }
    for mut backend in backends {
        let (plan, feed) = small_plan();
        let (x, y) = (plan.input("x").unwrap(), plan.outputs["y"]);
        let kept = backend.prepare(plan.clone(), false).unwrap();
        let memory = backend.memory();
        for _ in 0..3 {
            let program = backend.prepare(plan.clone(), true).unwrap();
            assert!(backend.memory() > memory);
            backend.release(program);
            assert_eq!(backend.memory(), memory, "{}", backend.describe());
            assert!(backend.plan(program).nodes.is_empty());
            assert!(matches!(backend.write(program, x, 0, &[0]), Err(Error::Argument { .. })));
            assert!(matches!(backend.run(program, &Step::FULL, 0..1), Err(Error::Argument { .. })));
            assert!(matches!(backend.read(program, &[(y, 0..1)]), Err(Error::Argument { .. })));
        }
        for (slot, words) in &feed.slots {
            backend.write(kept, *slot, 0, words).unwrap();
        }
        backend.run(kept, &Step::FULL, 0..1).unwrap();
        assert_eq!(backend.read(kept, &[(y, 0..16)]).unwrap()[0], [2.0f32.to_bits(); 16]);
    }
}

/// An op that panics where the word it reads is not zero.
#[derive(Debug)]
struct Panics;

impl Op for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn infer(&self, inputs: &[&Spec]) -> ternion::Result<Vec<Spec>> {
        Ok(vec![inputs[0].clone()])
    }

    fn check_outputs(&self, _: &[&Spec], _: &[&Spec]) -> ternion::Result<()> {
        Ok(())
    }

    fn cpu(&self, _: &Step, io: &mut Io) {
        assert_eq!(io.u32s(0)[0], 0, "an op's mistake");
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        Broken.kernel(caps, inputs, outputs)
    }
}

#[test]
fn after_an_op_panics_the_cpu_says_that_it_must_be_opened_again() {
    let mut cpu = ternion::unstable::cpu::Cpu::with_threads(1);
    let p = PlanBuilder::new();
    let x = p.input("x", Spec::fixed(&[4], DType::F32));
    let y = p.push(Panics, &[x]);
    p.output("y", y);
    let program = cpu.prepare(Arc::new(p.finish().unwrap()), false).unwrap();
    cpu.run(program, &Step::FULL, 0..1).unwrap();
    assert_eq!(cpu.describe(), format!("CPU, 1 thread, {} kernels", ternion::unstable::cpu_level::level()));
    cpu.write(program, x, 0, &[1]).unwrap();
    let run = std::panic::AssertUnwindSafe(|| cpu.run(program, &Step::FULL, 0..1));
    assert!(std::panic::catch_unwind(run).is_err());
    let errors = [cpu.run(program, &Step::FULL, 0..1).unwrap_err(), cpu.read(program, &[(y, 0..4)]).unwrap_err()];
    for error in errors {
        assert!(matches!(&error, ternion::Error::DeviceLost { .. }), "{error}");
    }
}

#[test]
fn no_op_writes_what_it_reads_or_one_slot_twice() {
    for (inputs, outputs, found) in [([0, 1], [2, 0], "also reads"), ([0, 1], [2, 2], "writes elsewhere")] {
        let p = PlanBuilder::new();
        let slots = [0, 1, 2].map(|i| p.state(&format!("s{i}"), Spec::fixed(&[4], DType::F32)));
        p.push_into(Panics, &inputs.map(|i| slots[i]), &outputs.map(|i| slots[i]));
        let error = p.finish().unwrap_err();
        let ternion::Error::Plan { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains(found), "{source}");
    }
}

/// 200 nodes of a fraction of a millisecond each, on a device that seems 20 times slower than it is.
#[test]
fn no_submission_is_long_on_a_slow_device() {
    let Some(mut gpu) = gpu(|caps| caps) else { return };
    gpu.pretend_slower(20);
    let p = PlanBuilder::new();
    let mut x = p.input("x", Spec::fixed(&[64, 1024], DType::F32));
    for i in 0..200 {
        x = p.unary(x, ternion::unstable::ops::UnaryKind::Scale(if i % 2 == 0 { 2.0 } else { 0.5 }));
    }
    p.output("y", x);
    let plan = Arc::new(p.finish().unwrap());
    let program = gpu.prepare(plan.clone(), false).unwrap();
    gpu.write(program, plan.input("x").unwrap(), 0, &vec![3.0f32.to_bits(); 64 * 1024]).unwrap();
    // The median of some runs: other programs may take the processor in one of them.
    let mut longest = Vec::new();
    for times in [1, 2, 1, 1, 1] {
        gpu.repeat(program, &Step::FULL, 0..plan.nodes.len(), times).unwrap();
        let read = gpu.read(program, &[(plan.outputs["y"], 0..64 * 1024)]).unwrap();
        assert!(read[0].iter().all(|&word| word == 3.0f32.to_bits()));
        longest.push(gpu.longest_submission(program));
    }
    longest.sort_unstable();
    assert!(longest[2] <= std::time::Duration::from_millis(200), "{longest:?}");
    assert!(longest[2] > std::time::Duration::ZERO, "nothing was measured");
}
