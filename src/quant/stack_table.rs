//! The table in front of a stack, for a stack whose matrices lie elsewhere than behind it.

use std::ops::Range;

use crate::quant::stack::{HEADER_WORDS, PART_WORDS};
use crate::tensor::DType;

/// What [`crate::quant::stack`] or [`crate::quant::groups::stack`] writes in front of matrices.
#[derive(Debug, Clone)]
pub(crate) struct StackTable {
    /// All words in front of the first matrix.
    words: Vec<u32>,
    /// Whether entries also say where scales are.
    has_scales: bool,
    /// Words of the whole stack.
    len: usize,
}

impl StackTable {
    /// The table of a stack; none for words of another dtype, and for a stack of nothing.
    pub fn of(words: &[u32], dtype: DType) -> Option<Self> {
        let has_scales = match dtype {
            DType::Ternary => false,
            DType::Groups { .. } => true,
            DType::F32 | DType::F16 | DType::U32 | DType::Codes | DType::Int8 => return None,
        };
        let first = 4 * *words.get(HEADER_WORDS)? as usize;
        Some(StackTable { words: words.get(..first)?.to_vec(), has_scales, len: words.len() })
    }

    /// Its words, for matrices right behind it.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Number of matrices.
    pub fn parts(&self) -> usize {
        self.words[0] as usize
    }

    /// Words of the stack, the table included.
    pub fn stack_words(&self) -> usize {
        self.len
    }

    /// Where the words of matrices lie in the stack, with their scales.
    pub fn body(&self, parts: Range<usize>) -> Range<usize> {
        self.first_word(parts.start)..self.first_word(parts.end)
    }

    fn first_word(&self, part: usize) -> usize {
        if part < self.parts() { 4 * self.entry(part)[0] as usize } else { self.len }
    }

    fn entry(&self, part: usize) -> &[u32] {
        &self.words[HEADER_WORDS + part * PART_WORDS..][..PART_WORDS]
    }

    /// Where the entries of matrices lie in the table, and those entries for matrices whose words begin at word `at` in place of
    /// where [`StackTable::body`] says; both are multiples of 4.
    pub fn moved(&self, parts: Range<usize>, at: usize) -> (usize, Vec<u32>) {
        let by = (at as u32 / 4).wrapping_sub(self.first_word(parts.start) as u32 / 4);
        let places = if self.has_scales { &[0, 5][..] } else { &[0] };
        let mut entries = self.words[HEADER_WORDS + parts.start * PART_WORDS..][..parts.len() * PART_WORDS].to_vec();
        for entry in entries.chunks_exact_mut(PART_WORDS) {
            places.iter().for_each(|&i| entry[i] = entry[i].wrapping_add(by));
        }
        (HEADER_WORDS + parts.start * PART_WORDS, entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::groups::{self, GroupPacked, GroupShape, GroupStack};
    use crate::quant::{Bits, Packed, Stack, stack};

    /// The words of a stack whose matrices lie in the opposite order behind a gap.
    fn turned_round(words: &[u32], dtype: DType) -> Vec<u32> {
        let table = StackTable::of(words, dtype).unwrap();
        let mut out = table.words().to_vec();
        out.extend([7; 64]);
        for part in (0..table.parts()).rev() {
            let (at, entries) = table.moved(part..part + 1, out.len());
            out[at..at + entries.len()].copy_from_slice(&entries);
            out.extend(&words[table.body(part..part + 1)]);
        }
        out
    }

    #[test]
    fn moved_ternary_matrices_are_the_same() {
        let packed = [(3, vec![1; 15], 2.0), (130, vec![0; 650], 3.0), (1, vec![-1; 5], 1.0)]
            .map(|(n, c, s)| Packed::new(n, 5, &c, s));
        let words = stack(&packed);
        let table = StackTable::of(&words, DType::Ternary).unwrap();
        assert_eq!((table.parts(), table.body(0..3)), (3, table.words().len()..words.len()));
        let moved = turned_round(&words, DType::Ternary);
        for (i, p) in packed.iter().enumerate() {
            let got = Stack(&moved).part(i);
            assert_eq!((got.bits, got.rows, got.scale, got.words), (p.bits, p.rows, p.scale, &p.words[..]));
        }
        assert!(StackTable::of(&words, DType::F32).is_none() && StackTable::of(&[], DType::Ternary).is_none());
    }

    #[test]
    fn moved_matrices_with_scales_are_the_same() {
        let shape = |rows| GroupShape { rows, cols: 64, bits: Bits::Two, group: 32 };
        let packed = [130, 5].map(|rows| {
            let fill = |row: usize, codes: &mut [i8], scales: &mut [half::f16]| {
                codes.iter_mut().enumerate().for_each(|(c, code)| *code = ((row + c) % 3) as i8 - 1);
                scales.fill(half::f16::from_f32(row as f32));
                Ok(())
            };
            GroupPacked::from_codes(shape(rows), fill).unwrap()
        });
        let words = groups::stack(&packed).unwrap();
        let moved = turned_round(&words, DType::Groups { group: 32 });
        for i in 0..2 {
            let [want, got] = [&words, &moved].map(|words| GroupStack(words).part(i));
            assert_eq!((want.words, want.scales, want.factor), (got.words, got.scales, got.factor));
        }
    }
}
