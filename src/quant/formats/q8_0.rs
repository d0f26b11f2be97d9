//! Q8_0: signed 8-bit integers in groups of 32. A block is `d` and 32 bytes.

use crate::quant::formats::{BlockFormat, Content, IntegerFormat, half_at};

/// Q8_0.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("Q8_0", 8, ELEMENTS, BYTES, Content::Integers(&Q8_0));

/// How its blocks come apart.
struct Q8_0;

/// Elements and bytes of a block.
const ELEMENTS: usize = 32;
const BYTES: usize = 2 + ELEMENTS;

impl IntegerFormat for Q8_0 {
    fn group(&self) -> usize {
        ELEMENTS
    }

    fn unpack(&self, blocks: &[u8], integers: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(integers.as_chunks_mut::<ELEMENTS>().0);
        for ((block, integers), scale) in blocks.zip(scales) {
            *scale = half_at(block, 0).to_f32();
            integers.iter_mut().zip(&block[2..]).for_each(|(q, &byte)| *q = byte as i8);
        }
    }
}
