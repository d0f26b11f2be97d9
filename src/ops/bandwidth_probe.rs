//! Reads a large buffer as fast as a device can: the bandwidth to which other ops are compared.

use crate::cpu_level::for_each_level;
use crate::error::Result;
use crate::ops::require;
use crate::ops::simd::Shared;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{CountedBy, DType, Spec};

/// Words of a chunk's result, and pieces of that many words in a chunk.
const WIDTH: usize = 1024;
const PIECES: usize = 32;
/// Words of a chunk: 128 KiB.
pub const PROBE_CHUNK: usize = PIECES * WIDTH;

/// `y[c, i] = Σ_p x[c, p, i]` modulo 2^32: every word counts, so none can be left unread.
///
/// x `[chunks, 32, 1024]` U32 → y `[chunks, 1024]` U32. Exact.
#[derive(Debug)]
struct BandwidthProbe;

params!(BandwidthProbeParams { chunks: u32 });

impl PlanBuilder {
    /// Sums over the 32 pieces of each chunk of x.
    #[track_caller]
    pub fn bandwidth_probe(&self, x: Slot) -> Slot {
        self.push(BandwidthProbe, &[x])
    }
}

for_each_level! {
    /// Sums of one chunk.
    fn sum(chunk: &[u32], y: &mut [u32]) {
        y.fill(0);
        // Four pieces at a time, so that what is written is little beside what is read.
        for pieces in chunk.chunks_exact(4 * WIDTH) {
            let [a, b, c, d] = std::array::from_fn(|i| &pieces[i * WIDTH..][..WIDTH]);
            for (i, y) in y[..WIDTH].iter_mut().enumerate() {
                *y = y.wrapping_add(a[i]).wrapping_add(b[i]).wrapping_add(c[i]).wrapping_add(d[i]);
            }
        }
    }
}

impl Op for BandwidthProbe {
    fn name(&self) -> &'static str {
        "bandwidth_probe"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        let chunks = x.dtype == DType::U32 && x.counted_by == CountedBy::Fixed && x.shape[1..] == [PIECES, WIDTH];
        require("x", x, chunks, "[chunks, 32, 1024] U32")?;
        Ok(vec![Spec::fixed(&[x.shape[0], WIDTH], DType::U32)])
    }

    fn cpu(&self, _: &Step, io: &mut Io) {
        let x = io.u32s(0);
        let y = io.out_u32s(0).chunks_exact_mut(WIDTH);
        y.zip(x.chunks_exact(PROBE_CHUNK)).for_each(|(y, chunk)| sum(chunk, y));
    }

    fn cpu_fast(&self, _: &Step, io: &mut Io) {
        let x = io.u32s(0);
        let threads = io.threads;
        let y = Shared::new(io.out_u32s(0));
        threads.run(x.len() / PROBE_CHUNK, |c| {
            // SAFETY: each chunk has its own part of y.
            let y = unsafe { y.slice(c * WIDTH, WIDTH) };
            sum(&x[c * PROBE_CHUNK..][..PROBE_CHUNK], y);
        });
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let chunks = inputs[0].shape[0];
        let params = BandwidthProbeParams { chunks: chunks as u32 };
        let grid = Grid::x(Extent::Fixed(chunks));
        Kernel {
            source: shader!("probe/bandwidth_probe"),
            defines: vec![],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
