//! Reading an episodic memory by content.

use crate::bounds::at_least;
use crate::error::Result;
use crate::ops::l2_norm::length;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// The `k` slots whose cosine with the query, times their quality, is largest: their sum, weighted by the softmax of those
/// scores. Source: Das et al. 2024 (Larimar), as BitGen reads its memory.
///
/// q `[rows, d]`, memory `[slots, d]`, quality `[slots]`, all F32 → read `[rows, d]` F32, slot_ids `[rows, k]` U32 in order of
/// falling scores (equal ones: the lower slot first), weights `[rows, k]` F32. A vector shorter than 1e-12 is taken for
/// one of that length. Error: ≤ 1e-5; slots whose scores are equal up to rounding may change places.
#[derive(Debug)]
struct MemoryRead {
    k: usize,
}

/// Minimum length of a vector in a cosine.
const FLOOR: f32 = 1e-12;
/// Maximum number of slots: their scores lie in workgroup memory (the shader's `MAX_SLOTS`).
pub const MAX_MEMORY: usize = 2048;
/// Maximum number of slots that are read (the shader's `MAX_K`).
const MAX_K: usize = 16;

params!(MemoryReadParams { width: u32, slots: u32, k: u32, floor: f32 });

impl PlanBuilder {
    /// `[read, slot_ids, weights]` of the `k` slots of `memory` that answer the queries q best.
    #[track_caller]
    pub fn memory_read(&self, q: Slot, memory: Slot, quality: Slot, k: usize) -> [Slot; 3] {
        self.push_all(MemoryRead { k }, &[q, memory, quality])
    }
}

impl Op for MemoryRead {
    fn name(&self) -> &'static str {
        "memory_read"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (q, memory) = (inputs[0], inputs[1]);
        require("q", q, q.dtype == DType::F32 && q.shape.len() == 2, "[rows, d] F32")?;
        let slots = memory.shape[0];
        expect("memory", memory, &[slots, q.width()], &[DType::F32])?;
        expect("quality", inputs[2], &[slots], &[DType::F32])?;
        let fits = (1..=MAX_K).contains(&self.k) && (self.k..=MAX_MEMORY).contains(&slots);
        require("memory", memory, fits, "as many slots as are read, at most 16, and 2048 at most")?;
        let spec = |width, dtype| Spec::counted(&[q.shape[0], width], dtype, q.counted_by);
        Ok(vec![spec(q.width(), DType::F32), spec(self.k, DType::U32), spec(self.k, DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (q, memory, quality) = (io.f32s(0), io.f32s(1), io.f32s(2));
        let (width, rows) = (io.spec(0).width(), step.rows_in_use(io.spec(0)));
        let size = |x: &[f32]| at_least(length(x), f64::from(FLOOR));
        for (r, q) in q.chunks_exact(width).enumerate().take(rows) {
            let score = |(m, &quality): (&[f32], &f32)| -> f64 {
                let dot: f64 = q.iter().zip(m).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                dot / (size(q) * size(m)) * f64::from(quality)
            };
            let scores: Vec<f64> = memory.chunks_exact(width).zip(quality).map(score).collect();
            let mut slot_ids: Vec<usize> = (0..scores.len()).collect();
            // NaN of either sign first.
            let key = |s: usize| if scores[s].is_nan() { f64::NAN } else { scores[s] };
            slot_ids.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
            slot_ids.truncate(self.k);
            let weights: Vec<f64> = slot_ids.iter().map(|&s| (scores[s] - scores[slot_ids[0]]).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..width {
                let value = |(&s, w): (&usize, &f64)| f64::from(memory[s * width + i]) * w / total;
                io.out_f32s(0)[r * width + i] = slot_ids.iter().zip(&weights).map(value).sum::<f64>() as f32;
            }
            for (j, (&s, w)) in slot_ids.iter().zip(&weights).enumerate() {
                io.out_u32s(1)[r * self.k + j] = s as u32;
                io.out_f32s(2)[r * self.k + j] = (w / total) as f32;
            }
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let (q, memory) = (inputs[0], inputs[1]);
        let params =
            MemoryReadParams { width: q.width() as u32, slots: memory.shape[0] as u32, k: self.k as u32, floor: FLOOR };
        let grid = Grid::x(Extent::rows(q, 1, 1));
        Kernel {
            source: shader!("memory/memory_read"),
            defines: vec![],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
