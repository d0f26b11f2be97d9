//! Block formats against worked blocks of other programs, and against their definitions element by element.

use std::path::Path;

use half::f16;
use ternion::unstable::quant::Bits;
use ternion::unstable::quant::formats::{Content, FORMATS, Format, codes, magnitude, other_type};

fn golden(name: &str, end: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/blocks").join(format!("{name}.{end}"));
    std::fs::read(path).unwrap()
}

fn format(name: &str) -> Format {
    let id = FORMATS.iter().find(|format| format.name() == name).unwrap().type_id();
    Format::with_type(id).find(|format| format.name() == name).unwrap()
}

/// The elements of blocks and their tail.
fn decode(format: Format, bytes: &[u8]) -> Vec<f32> {
    let (blocks, tail) = bytes.split_at(bytes.len() - format.tail_bytes());
    let mut values = vec![f32::NAN; blocks.len() / format.bytes() * format.elements()];
    format.decode(blocks, tail, &mut values);
    values
}

#[test]
fn worked_blocks_decode_to_the_same_bits() {
    let all = ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "TQ1_0", "TQ2_0", "I2_S", "Q1_0", "Q2_0", "PQ2_0", "PTQ1_0"];
    let files = all.map(|name| (name, name)).into_iter().chain([("Q2_0", "Q2_0_code3"), ("Q2_0_g128", "PQ2_0")]);
    let mut checked = 0;
    for (name, file) in files {
        let found: Vec<u32> = decode(format(name), &golden(file, "bin")).iter().map(|x| x.to_bits()).collect();
        let want = golden(file, "f32");
        let want: Vec<u32> = want.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        assert_eq!(found, want, "{name} of {file}");
        checked += 1;
    }
    assert_eq!(checked, FORMATS.len() + 1);
}

/// Element `j` of a block, by the formulas of the formats' descriptions.
fn element(name: &str, b: &[u8], tail: &[u8], j: usize) -> f32 {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let code = |code: u8, scale: f32| (f32::from(code) - 1.0) * scale;
    let digit = |byte: u8, n: usize| {
        let power = [1u32, 3, 9, 27, 81][n];
        ((u32::from(byte) * power % 256 * 3) >> 8) as u8
    };
    match name {
        "Q1_0" => [-half(0), half(0)][usize::from(b[2 + j / 8] >> (j % 8) & 1)],
        "Q2_0" | "Q2_0_g128" | "PQ2_0" => code(b[2 + j / 4] >> (2 * (j % 4)) & 3, half(0)),
        "TQ2_0" => code(b[j / 128 * 32 + j % 32] >> (2 * (j % 128 / 32)) & 3, half(64)),
        "TQ1_0" => match j {
            0..160 => code(digit(b[j % 32], j / 32), half(52)),
            160..240 => code(digit(b[32 + (j - 160) % 16], (j - 160) / 16), half(52)),
            _ => code(digit(b[48 + (j - 240) % 4], (j - 240) / 4), half(52)),
        },
        "PTQ1_0" => match j {
            0..80 => code(digit(b[j % 16], j / 16), half(26)),
            80..120 => code(digit(b[16 + (j - 80) % 8], (j - 80) / 8), half(26)),
            _ => code(digit(b[24 + (j - 120) % 2], (j - 120) / 2), half(26)),
        },
        "I2_S" => code(b[j % 32] >> (6 - 2 * (j / 32)) & 3, f32::from_le_bytes(*tail.first_chunk().unwrap())),
        "Q8_0" => half(0) * f32::from(b[2 + j] as i8),
        "Q4_0" => half(0) * (f32::from(b[2 + j % 16] >> (4 * (j / 16)) & 15) - 8.0),
        "Q4_K" => {
            let (i, s, byte) = (j / 32, &b[4..16], b[16 + j / 64 * 32 + j % 32]);
            let (scale, min) = match i {
                0..4 => (s[i] & 63, s[i + 4] & 63),
                _ => ((s[i + 4] & 15) | (s[i - 4] >> 6) << 4, (s[i + 4] >> 4) | (s[i] >> 6) << 4),
            };
            let q = f32::from(if i % 2 == 0 { byte & 15 } else { byte >> 4 });
            half(0) * f32::from(scale) * q - half(2) * f32::from(min)
        }
        "Q6_K" => {
            let (h, p) = (j / 128, j % 128);
            let (low, high) = (b[64 * h + p % 64], b[128 + 32 * h + p % 32]);
            let low = if p < 64 { low & 15 } else { low >> 4 };
            let q = f32::from(low | (high >> (2 * (p / 32)) & 3) << 4) - 32.0;
            half(208) * f32::from(b[192 + 8 * h + p / 16] as i8) * q
        }
        other => panic!("{other} has no definition here"),
    }
}

/// Random bytes, with scales that are numbers at each place where a format has one.
fn random_blocks(format: Format, n: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..n * format.bytes()).map(|_| next()).collect();
    for block in bytes.chunks_exact_mut(format.bytes()) {
        let places: &[usize] = match format.name() {
            "I2_S" => &[],
            "Q4_K" => &[0, 2],
            "TQ1_0" | "TQ2_0" | "PTQ1_0" | "Q6_K" => &[format.bytes() - 2],
            _ => &[0],
        };
        for &at in places {
            let scale = f16::from_f32((f32::from(next()) - 128.0) * 0.011);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    if format.tail_bytes() > 0 {
        bytes.extend(0.3f32.to_le_bytes());
        bytes.resize(n * format.bytes() + format.tail_bytes(), 0);
    }
    bytes
}

#[test]
fn every_format_decodes_as_it_is_defined() {
    for format in FORMATS.iter().map(|f| self::format(f.name())) {
        let bytes = random_blocks(format, 40);
        let (blocks, tail) = bytes.split_at(bytes.len() - format.tail_bytes());
        let values = decode(format, &bytes);
        assert_eq!(values.len(), 40 * format.elements());
        for (i, value) in values.iter().enumerate() {
            let block = &blocks[i / format.elements() * format.bytes()..][..format.bytes()];
            let want = element(format.name(), block, tail, i % format.elements());
            assert_eq!(value.to_bits(), want.to_bits(), "{format}: element {i}: {value} for {want}");
        }
    }
}

/// What a consumer packs: all blocks of some rows at once.
#[test]
fn codes_and_integers_of_many_blocks_are_those_of_each() {
    for format in FORMATS.iter().map(|f| self::format(f.name())) {
        let n = 7;
        let bytes = random_blocks(format, n);
        let (blocks, tail) = bytes.split_at(bytes.len() - format.tail_bytes());
        let (values, elements) = (decode(format, &bytes), n * format.elements());
        let found: Vec<f32> = match format.content() {
            Content::Codes(f) => {
                let mut packed = vec![0; elements * f.bits().count() / 8];
                let mut scales = vec![f16::NAN; n];
                f.unpack(blocks, &mut packed, &mut scales);
                let mut each = vec![9; elements];
                codes(f.bits(), &packed, &mut each);
                assert!(each.iter().all(|code| (-1..=2).contains(code)));
                assert!(f.bits() == Bits::Two || each.iter().all(|code| code.abs() == 1));
                let scale = |i: usize| f.tensor_scale(tail).unwrap_or(scales[i / format.elements()].to_f32());
                each.iter().enumerate().map(|(i, &code)| f32::from(code) * scale(i)).collect()
            }
            Content::Integers(f) => {
                let groups = elements / f.group();
                let (mut q, mut scales, mut offsets) = (vec![0; elements], vec![f32::NAN; groups], vec![0.0; groups]);
                f.unpack(blocks, &mut q, &mut scales, &mut offsets);
                assert!(f.has_offsets() || offsets.iter().all(|&x| x == 0.0));
                q.iter()
                    .enumerate()
                    .map(|(i, &q)| f32::from(q) * scales[i / f.group()] + offsets[i / f.group()])
                    .collect()
            }
        };
        // Equal as numbers: here 0 is added to what has no offset.
        assert_eq!(found, values, "{format}");
    }
}

#[test]
fn numbers_of_types_lead_to_formats() {
    let names = |id: u32| Format::with_type(id).map(|f| f.name()).collect::<Vec<_>>();
    assert_eq!(names(42), ["Q2_0", "Q2_0_g128"]);
    assert_eq!(names(35), ["TQ2_0"]);
    assert!(names(38).is_empty() && names(7000).is_empty());
    assert_eq!((other_type(3).0, other_type(7000).0), ("Q4_1", "unknown"));
    for id in [38, 39, 40] {
        assert!(!other_type(id).1.is_empty(), "{id} is refused with a reason");
    }
    for format in FORMATS {
        assert_eq!(other_type(format.type_id()).0, "unknown", "{} is in both lists", format.name());
        assert_eq!(format.elements() % 32, 0, "{}", format.name());
    }
}

#[test]
fn a_group_is_ternary_if_its_magnitudes_are_one() {
    assert_eq!(magnitude(&[0, 127, -127, 0]), Some(127));
    assert_eq!(magnitude(&[0, 0]), Some(0));
    assert_eq!(magnitude(&[-128, 0]), Some(128));
    assert_eq!(magnitude(&[1, 2, -2]), None);
    assert_eq!(magnitude(&[-8, 7]), None);
}
