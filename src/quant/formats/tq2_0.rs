//! TQ2_0: two bits per element. A block is 64 bytes of codes and `d`: a half of the block is 32 bytes, and its element
//! `32 l + m` is in byte `m` at bit `2 l`. Codes 0 to 3 are −d, 0, +d and +2d.

use crate::cpu_level::for_each_level;
use crate::quant::Bits;
use crate::quant::formats::{BlockFormat, CodeFormat, Content, half_at};
use half::f16;

/// TQ2_0.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("TQ2_0", 35, 256, BYTES, Content::Codes(&TQ2_0));

/// How its blocks come apart.
struct TQ2_0;

/// Bytes of codes, and bytes of a block.
const CODES: usize = 256 / 4;
const BYTES: usize = CODES + 2;

impl CodeFormat for TQ2_0 {
    fn bits(&self) -> Bits {
        Bits::Two
    }

    fn unpack(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        unpack(blocks, codes, scales);
    }
}

for_each_level! {
    fn unpack(blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(codes.as_chunks_mut::<CODES>().0);
        for ((block, codes), scale) in blocks.zip(scales) {
            *scale = half_at(block, CODES);
            for (half, codes) in block[..CODES].as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
                *codes = interleaved(half, [0, 2, 4, 6]);
            }
        }
    }
}

/// The codes of 128 elements in their order, of which element `32 l + m` is in byte `m` at bit `bits[l]`.
#[inline(always)]
pub(crate) fn interleaved(bytes: &[u8; 32], bits: [u32; 4]) -> [u8; 32] {
    let mut codes = [0; 32];
    for (codes, bit) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bits) {
        for (code, &four) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
            let x = u32::from_le_bytes(four) >> bit & 0x0303_0303;
            *code = (x | x >> 6 | x >> 12 | x >> 18) as u8;
        }
    }
    codes
}
