//! Q4_0: integers of 4 bits, −8 to 7, in groups of 32. A block is `d` and 16 bytes; the low half of byte `j` is element
//! `j`, the high half element `j + 16`, each with 8 added.

use crate::quant::formats::{BlockFormat, Content, IntegerFormat, half_at};

/// Q4_0.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("Q4_0", 2, ELEMENTS, BYTES, Content::Integers(&Q4_0));

/// How its blocks come apart.
struct Q4_0;

/// Elements and bytes of a block.
const ELEMENTS: usize = 32;
const BYTES: usize = 2 + ELEMENTS / 2;

impl IntegerFormat for Q4_0 {
    fn group(&self) -> usize {
        ELEMENTS
    }

    fn unpack(&self, blocks: &[u8], integers: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(integers.as_chunks_mut::<ELEMENTS>().0);
        for ((block, integers), scale) in blocks.zip(scales) {
            *scale = half_at(block, 0).to_f32();
            let (low, high) = integers.split_at_mut(ELEMENTS / 2);
            for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
                (*low, *high) = ((byte & 15) as i8 - 8, (byte >> 4) as i8 - 8);
            }
        }
    }
}
