//! TQ1_0: five ternary digits per byte. A block is 48 bytes of five digits, 4 bytes of four, and `d`. Digits 0, 1 and 2 are
//! −d, 0 and +d.
//!
//! A byte holds the number `v` of its digits, the first one most significant, as the fraction `ceil(256 v / 243)` of 256:
//! digit `n` is the whole part of 3 times the fractional part of `byte · 3ⁿ / 256`. Four digits are stored as if a fifth,
//! 0, followed. Digit `n` of byte `m` of a run of `M` bytes is element `M n + m` of the run; the runs are 32, 16 and 4
//! bytes.

use crate::cpu_level::for_each_level;
use crate::quant::Bits;
use crate::quant::formats::{BlockFormat, CodeFormat, Content, MAX_ELEMENTS, half_at, pack_fields};
use half::f16;

/// TQ1_0.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("TQ1_0", 34, 256, BYTES, Content::Codes(&TQ1_0));

/// How its blocks come apart.
struct TQ1_0;

/// Bytes of the runs, and of a block.
const LONG: usize = 32;
const SHORT: usize = 16;
const LAST: usize = 4;
const BYTES: usize = LONG + SHORT + LAST + 2;

impl CodeFormat for TQ1_0 {
    fn bits(&self) -> Bits {
        Bits::Two
    }

    fn unpack(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        unpack(blocks, codes, scales);
    }
}

for_each_level! {
    fn unpack(blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        unpack_runs::<BYTES, LONG, SHORT, LAST>(blocks, codes, scales);
    }
}

/// The codes and scales of blocks of `BYTES` bytes: runs of `LONG` and `SHORT` bytes of five digits and of `LAST` bytes of
/// four, and `d`.
#[inline(always)]
pub(super) fn unpack_runs<const BYTES: usize, const LONG: usize, const SHORT: usize, const LAST: usize>(
    blocks: &[u8],
    codes: &mut [u8],
    scales: &mut [f16],
) {
    let (second, third) = (5 * LONG, 5 * (LONG + SHORT));
    let elements = third + 4 * LAST;
    let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(codes.chunks_exact_mut(elements / 4));
    for ((block, codes), scale) in blocks.zip(scales) {
        *scale = half_at(block, BYTES - 2);
        let mut fields = [0; MAX_ELEMENTS];
        digits::<LONG>(&block[..LONG], &mut fields[..second]);
        digits::<SHORT>(&block[LONG..LONG + SHORT], &mut fields[second..third]);
        digits::<LAST>(&block[LONG + SHORT..BYTES - 2], &mut fields[third..elements]);
        pack_fields(&fields[..elements], codes);
    }
}

/// The digits of a run of `M` bytes, a byte each: as many for every byte as `to` has room for.
#[inline(always)]
fn digits<const M: usize>(bytes: &[u8], to: &mut [u8]) {
    let mut power = 1u8;
    for to in to.as_chunks_mut::<M>().0 {
        for (to, &byte) in to.iter_mut().zip(bytes) {
            *to = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
        }
        power = power.wrapping_mul(3);
    }
}
