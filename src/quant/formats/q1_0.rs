//! Q1_0: one bit per element. A block is `d` and 16 bytes, lowest bit first; a set bit is +d, another −d.

use half::f16;

use crate::quant::Bits;
use crate::quant::formats::{BlockFormat, CodeFormat, Content, half_at};

/// Q1_0.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("Q1_0", 41, 128, BYTES, Content::Codes(&Q1_0));

/// How its blocks come apart.
struct Q1_0;

/// Bytes of a block.
const BYTES: usize = 2 + 128 / 8;

impl CodeFormat for Q1_0 {
    fn bits(&self) -> Bits {
        Bits::One
    }

    fn unpack(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(codes.as_chunks_mut::<{ BYTES - 2 }>().0);
        for ((block, codes), scale) in blocks.zip(scales) {
            *scale = half_at(block, 0);
            codes.copy_from_slice(&block[2..]);
        }
    }
}
