//! Q1_0: one bit per element. A block is `d` and 16 bytes, lowest bit first; a set bit is +d, another −d.

use half::f16;

use crate::quant::Bits;
use crate::quant::formats::{BlockFormat, CodeFormat, Content, half_at};

/// Q1_0.
#[derive(Debug)]
pub(crate) struct Q1_0;

/// Bytes of a block.
const BYTES: usize = 2 + 128 / 8;

impl BlockFormat for Q1_0 {
    fn name(&self) -> &'static str {
        "Q1_0"
    }

    fn type_id(&self) -> u32 {
        41
    }

    fn elements(&self) -> usize {
        128
    }

    fn bytes(&self) -> usize {
        BYTES
    }

    fn content(&self) -> Content<'_> {
        Content::Codes(self)
    }
}

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
