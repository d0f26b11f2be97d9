//! One value of a GGUF file.

use std::fmt;

use crate::error::Result;
use crate::files::checkpoint::gguf::reader::Reader;

/// Maximum number of elements of an array.
const MAX_ELEMENTS: usize = 1 << 30;
/// Maximum number of bytes of a text.
const MAX_TEXT: usize = 1 << 30;
/// Maximum number of characters of a text that a message shows.
const MAX_SHOWN: usize = 40;

/// The type of a value, or of an array's elements, as the file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GgufType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl GgufType {
    /// The next type; arrays are of what is not an array.
    fn read(reader: &mut Reader, of: impl fmt::Display + Copy) -> Result<Self> {
        const TYPES: [GgufType; 13] = [
            GgufType::U8,
            GgufType::I8,
            GgufType::U16,
            GgufType::I16,
            GgufType::U32,
            GgufType::I32,
            GgufType::F32,
            GgufType::Bool,
            GgufType::Text,
            GgufType::Array,
            GgufType::U64,
            GgufType::I64,
            GgufType::F64,
        ];
        let at = reader.at();
        let id = reader.u32(of)?;
        let found = usize::try_from(id).ok().and_then(|id| TYPES.get(id).copied());
        found.ok_or_else(|| reader.wrong(format!("byte {at}"), format!("{of} is {id}, expected 0 to 12")))
    }

    /// The bytes of a number, 0 of what has no fixed length.
    fn size(self) -> usize {
        match self {
            GgufType::U8 | GgufType::I8 | GgufType::Bool => 1,
            GgufType::U16 | GgufType::I16 => 2,
            GgufType::U32 | GgufType::I32 | GgufType::F32 => 4,
            GgufType::U64 | GgufType::I64 | GgufType::F64 => 8,
            GgufType::Text | GgufType::Array => 0,
        }
    }

    /// The next value of this type in bytes that were checked; nothing where they end.
    fn next(self, bytes: &mut &[u8]) -> Option<Scalar> {
        Some(match self {
            GgufType::U8 => Scalar::Unsigned(u8::from_le_bytes(first(bytes)?).into()),
            GgufType::I8 => Scalar::Signed(i8::from_le_bytes(first(bytes)?).into()),
            GgufType::U16 => Scalar::Unsigned(u16::from_le_bytes(first(bytes)?).into()),
            GgufType::I16 => Scalar::Signed(i16::from_le_bytes(first(bytes)?).into()),
            GgufType::U32 => Scalar::Unsigned(u32::from_le_bytes(first(bytes)?).into()),
            GgufType::I32 => Scalar::Signed(i32::from_le_bytes(first(bytes)?).into()),
            GgufType::F32 => Scalar::Float(f32::from_le_bytes(first(bytes)?).into()),
            GgufType::Bool => Scalar::Bool(first(bytes)? != [0]),
            GgufType::Text => Scalar::Length(usize::try_from(u64::from_le_bytes(first(bytes)?)).ok()?),
            GgufType::Array => return None,
            GgufType::U64 => Scalar::Unsigned(u64::from_le_bytes(first(bytes)?)),
            GgufType::I64 => Scalar::Signed(i64::from_le_bytes(first(bytes)?)),
            GgufType::F64 => Scalar::Float(f64::from_le_bytes(first(bytes)?)),
        })
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GgufType::U8 => "u8",
            GgufType::I8 => "i8",
            GgufType::U16 => "u16",
            GgufType::I16 => "i16",
            GgufType::U32 => "u32",
            GgufType::I32 => "i32",
            GgufType::F32 => "f32",
            GgufType::Bool => "truth values",
            GgufType::Text => "texts",
            GgufType::Array => "arrays",
            GgufType::U64 => "u64",
            GgufType::I64 => "i64",
            GgufType::F64 => "f64",
        })
    }
}

/// A value of a fixed length; of a text, its length.
enum Scalar {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Length(usize),
}

/// The first `N` bytes, which are taken off.
fn first<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// A value of a key in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GgufValue<'a> {
    /// An unsigned integer of 8 to 64 bits.
    Unsigned(u64),
    /// A signed integer of 8 to 64 bits.
    Signed(i64),
    /// A float of 32 or 64 bits.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text, of which nothing says that it is UTF-8.
    Text(&'a [u8]),
    /// Values of one type, none of which is an array.
    Array(GgufArray<'a>),
}

/// An array of a GGUF file, which stays in the form of the file: its texts and numbers are made when they are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufArray<'a> {
    kind: GgufType,
    len: usize,
    bytes: &'a [u8],
}

/// Where a value lies and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    kind: GgufType,
    /// Of an array, the type of its elements and their number.
    array: Option<(GgufType, usize)>,
    /// The bytes behind type and count.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Place {
    /// Reads past the type and the value of `key`, all of whose lengths are checked.
    pub(crate) fn read(reader: &mut Reader, key: &str) -> Result<Self> {
        let kind = GgufType::read(reader, format_args!("the type of {key:?}"))?;
        if kind != GgufType::Array {
            let start = reader.at();
            skip(reader, kind, 1, key)?;
            return Ok(Place { kind, array: None, start, end: reader.at() });
        }
        let element = GgufType::read(reader, format_args!("the type of elements of {key:?}"))?;
        if element == GgufType::Array {
            return Err(reader.wrong(format!("{key:?}"), "is an array of arrays, which no reader accepts"));
        }
        // A text has at least its length.
        let size = if element == GgufType::Text { size_of::<u64>() } else { element.size() };
        let len = reader.count(format_args!("the number of elements of {key:?}"), MAX_ELEMENTS, size)?;
        let start = reader.at();
        skip(reader, element, len, key)?;
        Ok(Place { kind, array: Some((element, len)), start, end: reader.at() })
    }

    /// The value, whose bytes are `bytes`.
    pub(crate) fn value<'a>(&self, bytes: &'a [u8]) -> Option<GgufValue<'a>> {
        match self.array {
            Some((kind, len)) => Some(GgufValue::Array(GgufArray { kind, len, bytes })),
            None => GgufArray { kind: self.kind, len: 1, bytes }.iter().next(),
        }
    }
}

/// Reads past `n` values of a type that is no array.
fn skip(reader: &mut Reader, kind: GgufType, n: usize, key: &str) -> Result<()> {
    if kind == GgufType::Text {
        for _ in 0..n {
            reader.text(format_args!("a text of {key:?}"), MAX_TEXT)?;
        }
        return Ok(());
    }
    // The count was checked against the rest of the file, so the product does not overflow.
    let bytes = reader.take(n * kind.size(), format_args!("the value of {key:?}"))?;
    match bytes.iter().find(|&&byte| kind == GgufType::Bool && byte > 1) {
        Some(byte) => Err(reader.wrong(format!("{key:?}"), format!("holds {byte} as a truth value, expected 0 or 1"))),
        None => Ok(()),
    }
}

impl<'a> GgufArray<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let (kind, mut rest) = (self.kind, self.bytes);
        (0..self.len).map_while(move |_| {
            Some(match kind.next(&mut rest)? {
                Scalar::Unsigned(n) => GgufValue::Unsigned(n),
                Scalar::Signed(n) => GgufValue::Signed(n),
                Scalar::Float(x) => GgufValue::Float(x),
                Scalar::Bool(yes) => GgufValue::Bool(yes),
                Scalar::Length(n) => {
                    let (text, behind) = rest.split_at_checked(n)?;
                    rest = behind;
                    GgufValue::Text(text)
                }
            })
        })
    }
}

impl<'a> GgufValue<'a> {
    /// The text, if it is one in UTF-8.
    pub fn as_text(self) -> Option<&'a str> {
        match self {
            GgufValue::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The integer, if it is one that is not negative.
    pub fn as_integer(self) -> Option<u64> {
        match self {
            GgufValue::Unsigned(n) => Some(n),
            GgufValue::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// The number, if it is a float or an integer.
    pub fn as_float(self) -> Option<f64> {
        match self {
            GgufValue::Float(x) => Some(x),
            GgufValue::Unsigned(n) => Some(n as f64),
            GgufValue::Signed(n) => Some(n as f64),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(self) -> Option<bool> {
        match self {
            GgufValue::Bool(yes) => Some(yes),
            _ => None,
        }
    }
}

impl fmt::Display for GgufValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GgufValue::Unsigned(n) => n.fmt(f),
            GgufValue::Signed(n) => n.fmt(f),
            GgufValue::Float(x) => x.fmt(f),
            GgufValue::Bool(yes) => yes.fmt(f),
            GgufValue::Text(bytes) => {
                let text = String::from_utf8_lossy(bytes.get(..4 * MAX_SHOWN).unwrap_or(bytes));
                let shown: String = text.chars().take(MAX_SHOWN).collect();
                let more = if shown.len() < bytes.len() { "…" } else { "" };
                write!(f, "{shown:?}{more}")
            }
            GgufValue::Array(GgufArray { kind, len, .. }) => write!(f, "an array of {len} {kind}"),
        }
    }
}
