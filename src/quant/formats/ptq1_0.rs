//! PTQ1_0 of the Prism fork: the ternary digits of TQ1_0 in groups of 128. A block is 24 bytes of five digits, 2 bytes of
//! four, and `d`; the runs are 16, 8 and 2 bytes.

use half::f16;
use multiversion::multiversion;

use crate::quant::Bits;
use crate::quant::formats::tq1_0::digits;
use crate::quant::formats::{BlockFormat, CodeFormat, Content, half_at, pack_fields};

/// PTQ1_0.
#[derive(Debug)]
pub(crate) struct PTQ1_0;

/// Bytes of the runs, and of a block.
const LONG: usize = 16;
const SHORT: usize = 8;
const LAST: usize = 2;
const BYTES: usize = LONG + SHORT + LAST + 2;
/// Elements in front of the second and the third run.
const SECOND: usize = 5 * LONG;
const THIRD: usize = SECOND + 5 * SHORT;

impl BlockFormat for PTQ1_0 {
    fn name(&self) -> &'static str {
        "PTQ1_0"
    }

    fn type_id(&self) -> u32 {
        143
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

impl CodeFormat for PTQ1_0 {
    fn bits(&self) -> Bits {
        Bits::Two
    }

    fn unpack(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
        unpack(blocks, codes, scales);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn unpack(blocks: &[u8], codes: &mut [u8], scales: &mut [f16]) {
    let blocks = blocks.as_chunks::<BYTES>().0.iter().zip(codes.as_chunks_mut::<32>().0);
    for ((block, codes), scale) in blocks.zip(scales) {
        *scale = half_at(block, BYTES - 2);
        let mut fields = [0; 128];
        digits::<LONG>(&block[..LONG], &mut fields[..SECOND]);
        digits::<SHORT>(&block[LONG..LONG + SHORT], &mut fields[SECOND..THIRD]);
        digits::<LAST>(&block[LONG + SHORT..LONG + SHORT + LAST], &mut fields[THIRD..]);
        pack_fields(&fields, codes);
    }
}
