//! An op of your own: its shapes, its definition on the CPU, its kernel, recorded in a plan and run on both backends.
//!
//! `cargo run --release --example custom_op` (without an adapter it runs on the CPU alone)

use std::sync::Arc;

use ternion::gpu::{Adapters, Gpu};
use ternion::unstable::cpu::Cpu;
use ternion::unstable::plan::{Backend, Caps, Extent, Grid, Io, Kernel, Op, Params, PlanBuilder, Slot, Source, Step};
use ternion::unstable::tensor::{CountedBy, DType, Spec};
use ternion::{Error, Result};

/// `y = x² · sign(x)`, element by element.   x `[rows, d]` F32 → y `[rows, d]` F32
#[derive(Debug)]
struct SignedSquare;

/// `#import step` gives `counted`, `#bind` numbers the buffers: inputs first, outputs last.
const SHADER: &str = "
#import step
struct Params {
    counted_by: u32,
    rows: u32,
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width]
#bind var<storage, read_write> y: array<f32>; // [rows, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= counted(params.counted_by, params.rows) * params.width { return; }
    y[id.x] = x[id.x] * abs(x[id.x]);
}
";

/// A method on the builder, so that it records like any other op.
trait SignedSquareExt {
    fn signed_square(&self, x: Slot) -> Slot;
}

impl SignedSquareExt for PlanBuilder {
    #[track_caller]
    fn signed_square(&self, x: Slot) -> Slot {
        self.push(SignedSquare, &[x])
    }
}

impl Op for SignedSquare {
    fn name(&self) -> &'static str {
        "signed_square"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        if x.dtype != DType::F32 || x.shape.len() != 2 {
            return Err(Error::shape("x", "[rows, d] F32", x));
        }
        Ok(vec![x.clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        // Only the rows that this step uses: a slot holds as many as the largest step.
        let (x, n) = (io.f32s(0), step.rows_of(io.spec(0)) * io.spec(0).width());
        io.out_f32s(0).iter_mut().zip(x).take(n).for_each(|(y, &x)| *y = x * x.abs());
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let words = [x.counted_by as u32, x.rows() as u32, x.width() as u32];
        Kernel {
            source: Source::new("signed_square", SHADER),
            defines: vec![],
            overrides: vec![],
            params: Params {
                bytes: words.iter().flat_map(|w| w.to_ne_bytes()).collect(),
                fields: &["counted_by", "rows", "width"],
            },
            grid: Grid::x(Extent::rows(x, x.width(), 64)),
        }
    }
}

/// Records the plan, prepares it, writes three rows, runs a step of two, reads them.
fn run(backend: &mut dyn Backend) -> Result<Vec<f32>> {
    let p = PlanBuilder::new();
    let x = p.input("x", Spec::counted(&[8, 4], DType::F32, CountedBy::Rows));
    let y = p.unary(p.signed_square(x), ternion::unstable::ops::UnaryKind::Scale(10.0));
    p.output("y", y);
    let plan = Arc::new(p.finish()?);
    print!("{}\n{plan}", backend.describe());

    let program = backend.prepare(plan.clone(), false)?;
    let rows: Vec<u32> = (0..12).map(|i| (i as f32 - 4.0).to_bits()).collect();
    backend.write(program, x, 0, &rows)?;
    backend.run(program, &Step::new(2, 0, 0), 0..plan.nodes.len())?;
    let words = backend.read(program, &[(y, 0..8)])?;
    Ok(words.into_iter().flatten().map(f32::from_bits).collect())
}

fn main() -> Result<()> {
    let cpu = run(&mut Cpu::plain())?;
    println!("{cpu:?}");
    let adapters = Adapters::find();
    let Some(best) = adapters.best(true) else {
        println!("no adapter");
        return Ok(());
    };
    let device = adapters.open(best)?;
    let caps = device.caps;
    let gpu = run(&mut Gpu::new(device, caps)?)?;
    println!("{gpu:?}");
    assert_eq!(cpu, gpu, "the kernel computes what the definition says");
    Ok(())
}
