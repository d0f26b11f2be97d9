//! PTQ1_0 of the Prism fork: the ternary digits of TQ1_0 in groups of 128. A block is 24 bytes of five digits, 2 bytes of
//! four, and `d`; the runs are 16, 8 and 2 bytes.

use crate::cpu_level::for_each_level;
use crate::quant::Bits;
use crate::quant::formats::tq1_0::unpack_runs;
use crate::quant::formats::{BlockFormat, CodeFormat, Content};
use half::f16;

/// PTQ1_0.
pub(super) static FORMAT: BlockFormat = BlockFormat::new("PTQ1_0", 143, 128, BYTES, Content::Codes(&PTQ1_0));

/// How its blocks come apart.
struct PTQ1_0;

/// Bytes of the runs, and of a block.
const LONG: usize = 16;
const SHORT: usize = 8;
const LAST: usize = 2;
const BYTES: usize = LONG + SHORT + LAST + 2;

impl CodeFormat for PTQ1_0 {
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
