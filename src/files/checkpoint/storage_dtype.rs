//! The number formats of tensors in files.

use half::{bf16, f16};

use crate::quant::formats::Format;

/// The number format of a tensor's elements in a file; all are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum StorageDType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE 16-bit float.
    F16,
    /// bfloat16: the upper half of an [`StorageDType::F32`].
    BF16,
    /// 8-bit float with 4 exponent bits, without infinities.
    F8E4M3,
    /// 8-bit float with 5 exponent bits.
    F8E5M2,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte per truth value.
    Bool,
    /// Blocks of codes or integers with their scales, along the rows of a matrix.
    Blocks(Format),
}

impl StorageDType {
    /// The size of one element in bytes, 1, 2, 4 or 8; of [`StorageDType::Blocks`], of one block.
    pub fn size(self) -> usize {
        match self {
            StorageDType::F64 | StorageDType::I64 | StorageDType::U64 => 8,
            StorageDType::F32 | StorageDType::I32 | StorageDType::U32 => 4,
            StorageDType::F16 | StorageDType::BF16 | StorageDType::I16 | StorageDType::U16 => 2,
            StorageDType::F8E4M3 | StorageDType::F8E5M2 | StorageDType::I8 | StorageDType::U8 | StorageDType::Bool => 1,
            StorageDType::Blocks(format) => format.bytes(),
        }
    }

    /// The elements of a block, 1 of formats without blocks.
    pub fn block_elements(self) -> usize {
        match self {
            StorageDType::Blocks(format) => format.elements(),
            _ => 1,
        }
    }

    /// The bytes of a tensor of so many elements; none if they are no whole blocks, or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let whole = elements.is_multiple_of(self.block_elements());
        let blocks = (elements / self.block_elements()).checked_mul(self.size()).filter(|_| whole)?;
        blocks.checked_add(self.tail_bytes())
    }

    /// The bytes behind a tensor's last block.
    pub(crate) fn tail_bytes(self) -> usize {
        match self {
            StorageDType::Blocks(format) => format.tail_bytes(),
            _ => 0,
        }
    }

    /// Whether [`crate::files::Checkpoint::read_f32`] converts this format.
    pub fn reads_as_f32(self) -> bool {
        use StorageDType::{BF16, Blocks, F16, F32, F64};
        matches!(self, F64 | F32 | F16 | BF16 | Blocks(_))
    }

    /// Adds the elements in `bytes` as f32 (F64 rounds to nearest), none of formats that do not read as f32; `tail` are the
    /// bytes behind a tensor's last block.
    pub(crate) fn decode(self, bytes: &[u8], tail: &[u8], to: &mut Vec<f32>) {
        match self {
            StorageDType::Blocks(format) => {
                let before = to.len();
                to.resize(before + bytes.len() / format.bytes() * format.elements(), 0.0);
                format.decode(bytes, tail, &mut to[before..]);
            }
            StorageDType::F64 => to.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
            StorageDType::F32 => to.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            StorageDType::F16 => to.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
            StorageDType::BF16 => to.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
            _ => {}
        }
    }
}

impl std::fmt::Display for StorageDType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            StorageDType::Blocks(format) => return format.fmt(f),
            StorageDType::F64 => "f64",
            StorageDType::F32 => "f32",
            StorageDType::F16 => "f16",
            StorageDType::BF16 => "bf16",
            StorageDType::F8E4M3 => "f8_e4m3",
            StorageDType::F8E5M2 => "f8_e5m2",
            StorageDType::I64 => "i64",
            StorageDType::I32 => "i32",
            StorageDType::I16 => "i16",
            StorageDType::I8 => "i8",
            StorageDType::U64 => "u64",
            StorageDType::U32 => "u32",
            StorageDType::U16 => "u16",
            StorageDType::U8 => "u8",
            StorageDType::Bool => "bool",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_format_decodes_to_the_same_numbers() {
        let numbers = [0.0f32, -1.5, 0.25, 1024.0];
        let f64s: Vec<u8> = numbers.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
        let f32s: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        for (stored, bytes) in [
            (StorageDType::F64, f64s),
            (StorageDType::F32, f32s),
            (StorageDType::F16, f16s),
            (StorageDType::BF16, bf16s),
        ] {
            assert!(stored.reads_as_f32());
            let mut found = Vec::new();
            stored.decode(&bytes, &[], &mut found);
            assert_eq!(found, numbers, "{stored}");
        }
    }

    #[test]
    fn integers_do_not_read_as_f32() {
        assert!(!StorageDType::I64.reads_as_f32());
        let mut found = Vec::new();
        StorageDType::I64.decode(&[0; 8], &[], &mut found);
        assert!(found.is_empty());
    }
}
