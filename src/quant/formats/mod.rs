//! Matrices in blocks, as files have them: some elements of a row with their scale, packed together.
//!
//! A format says how its blocks come apart ([`BlockFormat`]): into codes of 1 or 2 bits with a scale per
//! block or one for the tensor ([`CodeFormat`]), or into 8-bit integers with a scale per group ([`IntegerFormat`]). What an element is follows from
//! that ([`Format::decode`]). Nothing is rounded on the way, so what packs these codes or integers loses nothing.
//!
//! A new format is a file here and a line in [`FORMATS`]; if its type was known and not read, its line in `OTHERS` goes, and
//! `tests/block_formats.rs` tests it. Its elements run along the rows of a matrix, and rows are whole
//! blocks.

mod i2_s;
mod ptq1_0;
mod q1_0;
mod q2_0;
mod q4_0;
mod q4_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use half::f16;

use crate::quant::Bits;

/// All formats.
pub static FORMATS: [&BlockFormat; 12] = [
    &q4_0::FORMAT,
    &q8_0::FORMAT,
    &q4_k::FORMAT,
    &q6_k::FORMAT,
    &tq1_0::FORMAT,
    &tq2_0::FORMAT,
    &i2_s::FORMAT,
    &q1_0::FORMAT,
    &q2_0::Q2_0,
    &q2_0::Q2_0_G128,
    &q2_0::PQ2_0,
    &ptq1_0::FORMAT,
];

/// Types of GGUF files that are known and not read: number, name, and why, which may be empty.
const OTHERS: [(u32, &str, &str); 21] = [
    (3, "Q4_1", ""),
    (6, "Q5_0", ""),
    (7, "Q5_1", ""),
    (9, "Q8_1", ""),
    (10, "Q2_K", ""),
    (11, "Q3_K", ""),
    (13, "Q5_K", ""),
    (15, "Q8_K", ""),
    (16, "IQ2_XXS", ""),
    (17, "IQ2_XS", ""),
    (18, "IQ3_XXS", ""),
    (19, "IQ1_S", ""),
    (20, "IQ4_NL", ""),
    (21, "IQ3_S", ""),
    (22, "IQ2_S", ""),
    (23, "IQ4_XS", ""),
    (29, "IQ1_M", ""),
    (37, "I8_S", ""),
    (38, "TL1", "the order of its weights depends on a kernel that was made for one model and one machine"),
    (39, "TL2 or MXFP4", "the order of TL2's weights depends on a kernel that was made for one model and one machine"),
    (40, "NVFP4 or an early Q1_0", "two block layouts have this number, and nothing in the file tells which it is"),
];

/// How the elements of a tensor lie in blocks of bytes.
pub struct BlockFormat {
    name: &'static str,
    type_id: u32,
    elements: usize,
    bytes: usize,
    tail_bytes: usize,
    content: Content,
}

/// How blocks come apart.
#[derive(Clone, Copy)]
pub enum Content {
    /// Into codes of 1 or 2 bits.
    Codes(&'static dyn CodeFormat),
    /// Into 8-bit integers.
    Integers(&'static dyn IntegerFormat),
}

impl BlockFormat {
    /// A format with this name, type number, and elements and bytes of a block.
    const fn new(name: &'static str, type_id: u32, elements: usize, bytes: usize, content: Content) -> Self {
        BlockFormat { name, type_id, elements, bytes, tail_bytes: 0, content }
    }

    /// The same format with bytes behind a tensor's last block.
    const fn with_tail(self, tail_bytes: usize) -> Self {
        BlockFormat { tail_bytes, ..self }
    }

    /// "TQ2_0".
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number of the type in GGUF files. Two formats may have one, and are told apart by their sizes.
    pub fn type_id(&self) -> u32 {
        self.type_id
    }

    /// Elements of a block.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes behind a tensor's last block.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// How blocks come apart.
    pub fn content(&self) -> Content {
        self.content
    }
}

/// Blocks of codes: an element is its code times the block's scale, or times the tensor's.
pub trait CodeFormat: Sync {
    /// [`Bits::One`] for codes −1 and +1, [`Bits::Two`] for −1, 0, +1 and +2.
    fn bits(&self) -> Bits;

    /// Whether 2 bits hold −1, 0 and +1 alone: then a file with +2 is damaged, and readers differ in what they take it for.
    fn is_ternary(&self) -> bool {
        false
    }

    /// The scale of the whole tensor, from the bytes behind its last block; none where each block has its own.
    fn tensor_scale(&self, _tail: &[u8]) -> Option<f32> {
        None
    }

    /// The codes of whole blocks and, unless the tensor has one scale, the scale of each block.
    ///
    /// Codes lie in the order of the elements, the first of a byte in its lowest bits: 2 bits hold code + 1, 1 bit is set
    /// for +1. There is room for the codes of all blocks in `codes`, for a scale per block in `scales`.
    fn unpack(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [f16]);
}

/// Blocks of integers: an element is its integer times its group's scale, plus the group's offset.
pub trait IntegerFormat: Sync {
    /// Elements that share a scale, a divisor of the block's.
    fn group(&self) -> usize;

    /// Whether groups have offsets.
    fn has_offsets(&self) -> bool {
        false
    }

    /// What takes blocks apart into codes of 6 bits, an integer for each 16 of them, and a scale for each block; none of formats
    /// that do not hold these.
    fn six_bits(&self) -> Option<UnpackSixBits> {
        None
    }

    /// The integers of whole blocks, in the order of the elements, and the scale of each group: exact products of what
    /// the block holds. Offsets are written by formats that have them.
    fn unpack(&self, blocks: &[u8], integers: &mut [i8], scales: &mut [f32], offsets: &mut [f32]);
}

/// Writes codes, integers ([`crate::quant::six_bits`]) and scales of whole blocks.
pub type UnpackSixBits = fn(&[u8], &mut [i8], &mut [i8], &mut [f16]);

/// One of [`FORMATS`].
#[derive(Clone, Copy)]
pub struct Format(&'static BlockFormat);

/// Most elements of a block, and most groups in one.
const MAX_ELEMENTS: usize = 256;
const MAX_GROUPS: usize = 16;

impl Format {
    /// The formats with a type number of GGUF files.
    pub fn with_type(id: u32) -> impl Iterator<Item = Format> {
        FORMATS.into_iter().filter(move |format| format.type_id() == id).map(Format)
    }

    /// The elements of whole blocks, which `to` has room for; `tail` are the bytes behind the tensor's last block.
    pub fn decode(self, blocks: &[u8], tail: &[u8], to: &mut [f32]) {
        let pieces = blocks.chunks_exact(self.bytes()).zip(to.chunks_exact_mut(self.elements()));
        match self.content() {
            Content::Codes(format) => {
                let (mut codes, mut scale) = ([0; MAX_ELEMENTS / 4], [f16::ZERO]);
                let whole = format.tensor_scale(tail);
                let codes = &mut codes[..self.elements() * format.bits().count() / 8];
                for (block, to) in pieces {
                    format.unpack(block, codes, &mut scale);
                    scale_codes(format.bits(), codes, whole.unwrap_or(scale[0].to_f32()), to);
                }
            }
            Content::Integers(format) => {
                let (mut integers, mut scales, mut offsets) = ([0; MAX_ELEMENTS], [0.0; MAX_GROUPS], [0.0; MAX_GROUPS]);
                let integers = &mut integers[..self.elements()];
                for (block, to) in pieces {
                    format.unpack(block, integers, &mut scales, &mut offsets);
                    let groups = to.chunks_exact_mut(format.group()).zip(integers.chunks_exact(format.group()));
                    for (i, (to, integers)) in groups.enumerate() {
                        let (scale, offset) = (scales[i], offsets[i]);
                        let with_offset = format.has_offsets();
                        for (to, &q) in to.iter_mut().zip(integers) {
                            // Adding 0 would turn −0 into 0.
                            *to = if with_offset { scale * f32::from(q) + offset } else { scale * f32::from(q) };
                        }
                    }
                }
            }
        }
    }
}

/// What a type number of GGUF files that is not among [`FORMATS`] is called, and why it is not read.
pub fn other_type(id: u32) -> (&'static str, &'static str) {
    OTHERS.iter().find(|(other, _, _)| *other == id).map_or(("unknown", ""), |(_, name, why)| (name, why))
}

/// The magnitude of all integers of a group that are not 0; none if there are several, so that the group is not ternary.
pub fn magnitude(group: &[i8]) -> Option<u8> {
    let max = group.iter().fold(0, |max: u8, q| max.max(q.unsigned_abs()));
    let same = group.iter().fold(true, |same, q| same & (*q == 0 || q.unsigned_abs() == max));
    same.then_some(max)
}

/// The codes −1 to +2 in bytes of packed ones, as [`CodeFormat::unpack`] writes them; `to` has room for all of them.
pub fn codes(bits: Bits, packed: &[u8], to: &mut [i8]) {
    match bits {
        Bits::One => spread(packed, to, &const { one_bit_table([-1, 1]) }),
        Bits::Two => spread(packed, to, &const { two_bit_table([-1, 0, 1, 2]) }),
        Bits::Six | Bits::Eight => to.iter_mut().zip(packed).for_each(|(to, &byte)| *to = (byte ^ 0x80) as i8),
    }
}

/// The elements of packed codes with one scale.
fn scale_codes(bits: Bits, packed: &[u8], scale: f32, to: &mut [f32]) {
    let value = |code: i8| f32::from(code) * scale;
    match bits {
        Bits::One => {
            let values = [value(-1), value(1)];
            let bytes = to.as_chunks_mut::<8>().0.iter_mut().zip(packed);
            bytes.for_each(|(to, byte)| (0..8).for_each(|i| to[i] = values[usize::from(byte >> i & 1)]));
        }
        Bits::Two => {
            let values = [value(-1), value(0), value(1), value(2)];
            let bytes = to.as_chunks_mut::<4>().0.iter_mut().zip(packed);
            bytes.for_each(|(to, byte)| (0..4).for_each(|i| to[i] = values[usize::from(byte >> (2 * i) & 3)]));
        }
        Bits::Six | Bits::Eight => to.iter_mut().zip(packed).for_each(|(to, &byte)| *to = value((byte ^ 0x80) as i8)),
    }
}

/// Writes the `N` codes that a table has for each byte.
fn spread<const N: usize>(packed: &[u8], to: &mut [i8], table: &[[i8; N]; 256]) {
    for (to, &byte) in to.as_chunks_mut::<N>().0.iter_mut().zip(packed) {
        *to = table[usize::from(byte)];
    }
}

const fn one_bit_table(codes: [i8; 2]) -> [[i8; 8]; 256] {
    let mut table = [[0; 8]; 256];
    let mut i = 0;
    while i < 256 * 8 {
        table[i / 8][i % 8] = codes[(i / 8) >> (i % 8) & 1];
        i += 1;
    }
    table
}

const fn two_bit_table(codes: [i8; 4]) -> [[i8; 4]; 256] {
    let mut table = [[0; 4]; 256];
    let mut i = 0;
    while i < 256 * 4 {
        table[i / 4][i % 4] = codes[(i / 4) >> (2 * (i % 4)) & 3];
        i += 1;
    }
    table
}

/// Packs the 2-bit fields in the low bits of each byte four to a byte, the first one lowest.
#[inline(always)]
fn pack_fields(fields: &[u8], to: &mut [u8]) {
    for (to, &four) in to.iter_mut().zip(fields.as_chunks::<4>().0) {
        let x = u32::from_le_bytes(four);
        *to = (x | x >> 6 | x >> 12 | x >> 18) as u8;
    }
}

/// The float in front of or behind a block's codes.
fn half_at<const N: usize>(block: &[u8; N], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

impl Deref for Format {
    type Target = BlockFormat;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Names are unique.
impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl Hash for Format {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialOrd for Format {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Format {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name())
    }
}
