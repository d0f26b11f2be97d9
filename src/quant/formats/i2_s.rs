//! I2_S of Microsoft's BitNet: two bits per element, one scale per tensor. A run of 128 elements is 32 bytes, and its element
//! `32 l + m` is in byte `m`, the first 32 in the top bits. Codes 0, 1 and 2 are −1, 0 and +1. Behind all runs are the
//! scale, which multiplies, and 28 bytes of fill.
//!
//! A quantiser that was built on ARM wrote runs of 64 elements instead. Nothing in a file tells; published files have
//! runs of 128.

use crate::cpu_level::for_each_level;
use crate::quant::Bits;
use crate::quant::formats::tq2_0::interleaved;
use crate::quant::formats::{BlockFormat, CodeFormat, Content};
use half::f16;

/// I2_S.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("I2_S", 36, 128, BYTES, Content::Codes(&I2S)).with_tail(32);

/// How its blocks come apart.
struct I2S;

/// Bytes of a run.
const BYTES: usize = 128 / 4;

impl CodeFormat for I2S {
    fn bits(&self) -> Bits {
        Bits::Two
    }

    fn is_ternary(&self) -> bool {
        true
    }

    fn tensor_scale(&self, tail: &[u8]) -> Option<f32> {
        tail.first_chunk().map(|&bytes| f32::from_le_bytes(bytes))
    }

    fn unpack(&self, blocks: &[u8], codes: &mut [u8], _: &mut [f16]) {
        unpack(blocks, codes);
    }
}

for_each_level! {
    fn unpack(blocks: &[u8], codes: &mut [u8]) {
        for (block, codes) in blocks.as_chunks::<BYTES>().0.iter().zip(codes.as_chunks_mut::<BYTES>().0) {
            *codes = interleaved(block, [6, 4, 2, 0]);
        }
    }
}
