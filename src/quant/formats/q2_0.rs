//! Two bits per element, in the order of the elements: a block is `d` and a quarter of a byte for each. Codes 0 to 3 are
//! −d, 0, +d and +2d; quantisers write no 3, as they take the largest magnitude for `d`.
//!
//! * Q2_0: groups of 64.
//! * The same type number stood for groups of 128 before, in files of the Prism fork.
//! * PQ2_0: those groups of 128 under a number of their own.

use half::f16;

use crate::quant::Bits;
use crate::quant::formats::{BlockFormat, CodeFormat, Content, half_at};

/// Q2_0, groups of 64.
pub(super) static Q2_0: BlockFormat = TwoBits::<18>::format("Q2_0", 42);
/// The older form, groups of 128.
pub(super) static Q2_0_G128: BlockFormat = TwoBits::<34>::format("Q2_0_g128", 42);
/// PQ2_0.
pub(super) static PQ2_0: BlockFormat = TwoBits::<34>::format("PQ2_0", 142);

/// How blocks of `BYTES` bytes come apart.
struct TwoBits<const BYTES: usize>;

impl<const BYTES: usize> TwoBits<BYTES> {
    const fn format(name: &'static str, type_id: u32) -> BlockFormat {
        BlockFormat::new(name, type_id, 4 * (BYTES - 2), BYTES, Content::Codes(&TwoBits::<BYTES>))
    }
}

impl<const BYTES: usize> CodeFormat for TwoBits<BYTES> {
    fn bits(&self) -> Bits {
        Bits::Two
    }

    fn unpack(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(codes.chunks_exact_mut(BYTES - 2));
        for ((block, codes), scale) in blocks.zip(scales) {
            *scale = half_at(block, 0);
            codes.copy_from_slice(&block[2..]);
        }
    }
}
