//! Q4_K: integers of 4 bits, 0 to 15, in groups of 32 with a scale and an offset each. A block is `d`, `dmin`, 12 bytes of
//! scales and minima of 6 bits, and 128 bytes of integers; an element is `d · scale · q − dmin · min`.

use crate::quant::formats::{BlockFormat, Content, IntegerFormat, half_at};

/// Q4_K.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("Q4_K", 12, ELEMENTS, BYTES, Content::Integers(&Q4K));

/// How its blocks come apart.
struct Q4K;

/// Elements of a block, and of a group.
const ELEMENTS: usize = 256;
const GROUP: usize = 32;
/// Where a block's scales and its integers begin, and its bytes.
const SCALES: usize = 4;
const INTEGERS: usize = 16;
const BYTES: usize = INTEGERS + ELEMENTS / 2;

impl IntegerFormat for Q4K {
    fn group(&self) -> usize {
        GROUP
    }

    fn has_offsets(&self) -> bool {
        true
    }

    fn unpack(&self, blocks: &[u8], integers: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(integers.as_chunks_mut::<ELEMENTS>().0);
        let groups = scales.as_chunks_mut::<8>().0.iter_mut().zip(offsets.as_chunks_mut::<8>().0);
        for ((block, integers), (scales, offsets)) in blocks.zip(groups) {
            let (d, d_min) = (half_at(block, 0).to_f32(), half_at(block, 2).to_f32());
            for (i, (scale, offset)) in scales.iter_mut().zip(offsets).enumerate() {
                let (s, m) = scale_and_min(block, i);
                (*scale, *offset) = (d * f32::from(s), -(d_min * f32::from(m)));
            }
            let pairs = integers.as_chunks_mut::<{ 2 * GROUP }>().0.iter_mut();
            for (pair, bytes) in pairs.zip(block[INTEGERS..].as_chunks::<GROUP>().0) {
                let (low, high) = pair.split_at_mut(GROUP);
                for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
                    (*low, *high) = ((byte & 15) as i8, (byte >> 4) as i8);
                }
            }
        }
    }
}

/// The scale and the minimum of group `i`, which is below 8: the later four are split between two bytes.
fn scale_and_min(block: &[u8; BYTES], i: usize) -> (u8, u8) {
    let s = &block[SCALES..INTEGERS];
    if i < 4 {
        (s[i] & 63, s[i + 4] & 63)
    } else {
        ((s[i + 4] & 15) | s[i - 4] >> 6 << 4, s[i + 4] >> 4 | s[i] >> 6 << 4)
    }
}
