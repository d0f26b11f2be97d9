//! What the benches share: short samples, and times by a device's own clock.
#![allow(dead_code)] // Each bench uses a part.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use ternion::unstable::plan::{Backend, Plan, ProgramId, Step};

/// Whether everything runs once only (`cargo bench -- --test`).
pub fn quick() -> bool {
    std::env::args().any(|arg| arg == "--test")
}

/// A group of few, short samples.
pub fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    group
}

/// A plan on a backend, ready to run.
pub struct Timed {
    backend: Box<dyn Backend>,
    program: ProgramId,
    plan: Arc<Plan>,
    step: Step,
    clock: bool,
}

impl Timed {
    /// Prepares a plan whose weights are resident; `write` fills its slots.
    pub fn new(
        mut backend: Box<dyn Backend>,
        plan: Arc<Plan>,
        step: Step,
        write: impl FnOnce(&mut dyn Backend, ProgramId),
    ) -> Self {
        let program = backend.prepare(plan.clone(), true).expect("it fits on the device");
        write(backend.as_mut(), program);
        let clock = backend.profile(program, &step).is_ok();
        Timed { backend, program, plan, step, clock }
    }

    /// Time of `n` runs: of their launches where the device tells, else to the end of each run.
    pub fn run(&mut self, n: u64) -> Duration {
        (0..n).map(|_| self.once()).sum()
    }

    fn once(&mut self) -> Duration {
        if self.clock {
            return self.backend.profile(self.program, &self.step).expect("it runs").iter().sum();
        }
        let start = Instant::now();
        self.backend.run(self.program, &self.step, 0..self.plan.nodes.len()).expect("it runs");
        let last = self.plan.nodes.last().expect("a node").outputs[0];
        self.backend.read(self.program, &[(last, 0..1)]).expect("it is read");
        start.elapsed()
    }
}
