//! What an op is: its shapes, its definition on the CPU, its kernel on the GPU.

use std::fmt::Debug;
use std::ops::RangeBounds;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};
use crate::plan::{Caps, Kernel, Variant, Variants};
use crate::quant::int8;
use crate::tensor::{CountedBy, DType, Spec};
use crate::threads::ThreadPool;

/// Where an op has the numbers of what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// In the input of this number.
    Input(usize),
    /// It chooses itself, whatever the stack holds, and writes its choice into the output of this number; run again, it writes
    /// the same outputs.
    Output(usize),
}

/// Which matrices of a stack a step reads, where values choose them: the stack is cut into `all` parts of equally many
/// matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The chosen parts' numbers, U32, in each row in use.
    pub ids: Ids,
    /// How many parts are chosen among: the first ones.
    pub among: usize,
    /// Parts in all; those behind the first `among` are read in every step.
    pub all: usize,
}

/// An operation on slots. Each has one file in `ops/`; this trait is all that backends know of it.
pub trait Op: Debug + Send + Sync {
    /// snake_case name, equal to the op's file and, where it has its own, its shader.
    fn name(&self) -> &'static str;

    /// Shapes of the outputs for these inputs.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for inputs that do not fit, with both sides.
    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>>;

    /// Checks the slots that a node writes, where they exist already.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if they are not what [`Op::infer`] gives; ops that also write states override this.
    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        let specs = self.infer(inputs)?;
        if specs.iter().eq(outputs.iter().copied()) {
            return Ok(());
        }
        let list = |specs: &[&Spec]| specs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Error::shape("its output", list(&specs.iter().collect::<Vec<_>>()), list(outputs)))
    }

    /// Which parts of its stack of matrices a step reads; none: all of it.
    fn chosen(&self) -> Option<Chosen> {
        None
    }

    /// The definition of truth: plain loops on the words of the slots.
    fn cpu(&self, step: &Step, io: &mut Io);

    /// The same with SIMD and threads, for the ops where time goes.
    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        self.cpu(step, io);
    }

    /// Brings the words of a resident weight into the order in which [`Op::cpu_fast`] reads them fastest, where there is one: they
    /// keep their number and say themselves that they are in it. Called again, it changes nothing.
    fn lay_out(&self, _weight: &Spec, _words: &mut [u32], _threads: &ThreadPool) {}

    /// Minimum number of bytes that a step reads from memory, each counted once, given the inputs with their sizes in bytes: by
    /// default the rows in use of every input. Ops that read a part of an input override this.
    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        inputs.iter().map(|(spec, bytes)| step.used(spec, *bytes)).sum()
    }

    /// The kernel for these inputs and outputs on an adapter with these capabilities; of several variants the usual one.
    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel;

    /// The variants that are possible for these inputs and outputs: [`Op::kernel`] alone, unless an op has more.
    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        Variants::usual(Variant::new("usual", caps, self.kernel(caps, inputs, outputs)))
    }
}

/// The numbers that change from step to step. The same words are the uniform at binding 0 of every kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Step {
    /// Rows in use of slots with [`CountedBy::Rows`].
    pub rows: u32,
    /// Rows in use of slots with [`CountedBy::Outputs`].
    pub outputs: u32,
    /// The longest context of any row, in tokens.
    pub context: u32,
    /// Unused; keeps the uniform at 16 bytes.
    pub reserved: u32,
}

impl Step {
    /// Everything in use: for plans without rows, such as an image encoder.
    pub const FULL: Step = Step { rows: u32::MAX, outputs: u32::MAX, context: u32::MAX, reserved: 0 };

    /// A step of this many rows and outputs, the longest context of which has this many tokens.
    pub const fn new(rows: usize, outputs: usize, context: usize) -> Self {
        Step { rows: rows as u32, outputs: outputs as u32, context: context as u32, reserved: 0 }
    }

    /// Of a leading dimension of `max`, the number in use.
    pub fn count(&self, counted_by: CountedBy, max: usize) -> usize {
        match counted_by {
            CountedBy::Fixed => max,
            CountedBy::Rows => max.min(self.rows as usize),
            CountedBy::Outputs => max.min(self.outputs as usize),
        }
    }

    /// Leading rows of a slot in use.
    pub fn rows_in_use(&self, spec: &Spec) -> usize {
        self.count(spec.counted_by, spec.shape.first().copied().unwrap_or(1))
    }

    /// Of a slot's bytes, those of the leading rows in use.
    pub fn used(&self, spec: &Spec, bytes: u64) -> u64 {
        let rows = spec.shape.first().copied().unwrap_or(1).max(1) as u64;
        bytes * self.rows_in_use(spec) as u64 / rows
    }

    /// Of the bytes of a KV cache, those of the contexts of the step's sequences, as if each were as long as the longest.
    /// A sequence has one output in a step, unless it is a part of a prompt, which has none.
    pub fn contexts(&self, cache: &Spec, bytes: u64) -> u64 {
        let rows = cache.shape.first().copied().unwrap_or(1).max(1) as u64;
        let sequences = self.outputs.min(self.rows).max(1);
        bytes / rows * rows.min(u64::from(sequences) * u64::from(self.context))
    }

    /// Rows of the last dimension in use.
    pub fn rows_of(&self, spec: &Spec) -> usize {
        self.rows_in_use(spec) * spec.vectors_per_row()
    }
}

/// The words of a node's slots, for [`Op::cpu`].
#[derive(Debug)]
pub struct Io<'a> {
    /// Inputs, in the order of the node.
    pub inputs: Vec<(&'a Spec, &'a [u32])>,
    /// Outputs, in the order of the node. They hold what was there before the step.
    pub outputs: Vec<(&'a Spec, &'a mut [u32])>,
    /// The threads among which [`Op::cpu_fast`] shares its work.
    pub threads: &'a ThreadPool,
}

impl<'a> Io<'a> {
    /// Shape of input `i`.
    pub fn spec(&self, i: usize) -> &'a Spec {
        self.inputs[i].0
    }

    /// Whether there is an input `i`.
    pub fn has(&self, i: usize) -> bool {
        i < self.inputs.len()
    }

    /// Words of input `i`.
    pub fn u32s(&self, i: usize) -> &'a [u32] {
        self.inputs[i].1
    }

    /// Input `i` of dtype F32.
    pub fn f32s(&self, i: usize) -> &'a [f32] {
        bytemuck::cast_slice(self.inputs[i].1)
    }

    /// Input `i` of dtype Codes: rows of `width` codes padded to a multiple of 32.
    pub fn codes(&self, i: usize) -> &'a [i8] {
        bytemuck::cast_slice(self.inputs[i].1)
    }

    /// Input `i` of dtype F32 or F16, or the integers of one of dtype Int8.
    pub fn floats(&self, i: usize) -> Floats<'a> {
        match self.inputs[i].0.dtype {
            DType::F16 => Floats::F16(bytemuck::cast_slice(self.inputs[i].1)),
            DType::Int8 => Floats::Int8(self.int8(i).0),
            // Every dtype is listed, so that a new one has to be handled here.
            DType::F32 | DType::U32 | DType::Codes | DType::Ternary | DType::Groups { .. } => {
                Floats::F32(bytemuck::cast_slice(self.inputs[i].1))
            }
        }
    }

    /// Integers and rows' scales of input `i` of dtype Int8.
    pub fn int8(&self, i: usize) -> (&'a [i8], &'a [f32]) {
        let (spec, words) = self.inputs[i];
        int8::parts(words, spec.rows(), spec.width())
    }

    /// Shape of output `i`.
    pub fn out_spec(&self, i: usize) -> &'a Spec {
        self.outputs[i].0
    }

    /// Words of output `i`.
    pub fn out_u32s(&mut self, i: usize) -> &mut [u32] {
        self.outputs[i].1
    }

    /// Output `i` of dtype F32.
    pub fn out_f32s(&mut self, i: usize) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.outputs[i].1)
    }

    /// Output `i` of dtype Codes.
    pub fn out_codes(&mut self, i: usize) -> &mut [i8] {
        bytemuck::cast_slice_mut(self.outputs[i].1)
    }
}

/// Elements of a slot that is stored in 32, 16 or 8 bits.
#[derive(Debug, Clone, Copy)]
pub enum Floats<'a> {
    /// 32-bit.
    F32(&'a [f32]),
    /// 16-bit.
    F16(&'a [f16]),
    /// 8-bit integers; their scales are stored separately.
    Int8(&'a [i8]),
}

impl Floats<'_> {
    /// Some of the elements.
    pub fn part(self, range: impl RangeBounds<usize>) -> Self {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        match self {
            Floats::F32(v) => Floats::F32(&v[bounds]),
            Floats::F16(v) => Floats::F16(&v[bounds]),
            Floats::Int8(v) => Floats::Int8(&v[bounds]),
        }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        match self {
            Floats::F32(v) => v.len(),
            Floats::F16(v) => v.len(),
            Floats::Int8(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Element `i` as f32.
    pub fn get(self, i: usize) -> f32 {
        match self {
            Floats::F32(v) => v[i],
            Floats::F16(v) => v[i].to_f32(),
            Floats::Int8(v) => f32::from(v[i]),
        }
    }

    /// All elements as f32; `out` has as many.
    pub fn widen(self, out: &mut [f32]) {
        match self {
            Floats::F32(v) => out.copy_from_slice(v),
            Floats::F16(v) => v.convert_to_f32_slice(out),
            Floats::Int8(v) => out.iter_mut().zip(v).for_each(|(out, &v)| *out = f32::from(v)),
        }
    }
}
