//! Q6_K: integers of 6 bits, −32 to 31, in groups of 16. A block is 128 bytes of lower halves, 64 bytes of upper bits,
//! 16 signed scales and `d`; an element is `d · scale · q`.
//!
//! A half of the block is 64 lower bytes, 32 upper ones and 8 scales. With `l` in 0..32, its elements `l`, `l + 32`,
//! `l + 64` and `l + 96` have their lower 4 bits in the low half of lower bytes `l` and `l + 32` and then in the high
//! half of both, and their upper 2 bits in upper byte `l`, from the lowest.

use half::f16;

use crate::quant::formats::{BlockFormat, Content, IntegerFormat, UnpackSixBits, half_at};

/// Q6_K.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("Q6_K", 14, ELEMENTS, BYTES, Content::Integers(&Q6K));

/// How its blocks come apart.
struct Q6K;

/// Elements of a block, and of a group.
const ELEMENTS: usize = 256;
const GROUP: usize = 16;
const GROUPS: usize = ELEMENTS / GROUP;
/// Where a block's upper bits, its scales and `d` begin, and its bytes.
const UPPER: usize = ELEMENTS / 2;
const SCALES: usize = UPPER + ELEMENTS / 4;
const D: usize = SCALES + GROUPS;
const BYTES: usize = D + 2;

impl IntegerFormat for Q6K {
    fn group(&self) -> usize {
        GROUP
    }

    fn six_bits(&self) -> Option<UnpackSixBits> {
        Some(unpack)
    }

    fn unpack(&self, blocks: &[u8], integers: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
        let blocks = blocks.chunks_exact(BYTES).zip(integers.chunks_exact_mut(ELEMENTS));
        for ((block, integers), scales) in blocks.zip(scales.chunks_exact_mut(GROUPS)) {
            let (mut of_groups, mut d) = ([0; GROUPS], [f16::ZERO]);
            unpack(block, integers, &mut of_groups, &mut d);
            scales.iter_mut().zip(of_groups).for_each(|(scale, of_group)| *scale = d[0].to_f32() * f32::from(of_group));
        }
    }
}

/// The integers of whole blocks, the scale of each group of them, and `d` of each block.
fn unpack(blocks: &[u8], integers: &mut [i8], scales: &mut [i8], d: &mut [f16]) {
    let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(integers.as_chunks_mut::<ELEMENTS>().0);
    for (((block, integers), scales), d) in blocks.zip(scales.as_chunks_mut::<GROUPS>().0).zip(d) {
        *d = half_at(block, D);
        scales.iter_mut().zip(&block[SCALES..D]).for_each(|(scale, &byte)| *scale = byte as i8);
        let lower = block[..UPPER].as_chunks::<64>().0.iter();
        let halves = lower.zip(block[UPPER..SCALES].as_chunks::<32>().0);
        for (integers, (lower, upper)) in integers.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            half(lower, upper, integers);
        }
    }
}

/// The integers of a half.
fn half(lower: &[u8; 64], upper: &[u8; 32], integers: &mut [i8; 128]) {
    for (l, &bits) in upper.iter().enumerate() {
        let (a, b) = (lower[l], lower[l + 32]);
        let with = |low: u8, shift: u8| ((low & 15) | (bits >> shift & 3) << 4) as i8 - 32;
        integers[l] = with(a, 0);
        integers[l + 32] = with(b, 2);
        integers[l + 64] = with(a >> 4, 4);
        integers[l + 96] = with(b >> 4, 6);
    }
}
