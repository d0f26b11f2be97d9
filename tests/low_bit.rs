//! Matrices of low-bit codes from each form of a file, against the numbers that the file stands for (`goldens` layout;
//! `TERNION_GOLDENS=DIR` checks another set).

mod support {
    pub mod golden;
}

use std::path::PathBuf;

use ternion::files::{MatrixForm, Quantisation, StorageDType, Weights};
use ternion::unstable::quant::groups::GroupPacked;
use ternion::unstable::tensor::WeightPart;

use support::golden::golden_root;

/// Files of which everything is read, with what their configuration says of their matrices.
fn tiny() -> Vec<PathBuf> {
    let folder = golden_root().join("gguf/tiny");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let files = files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    files
}

/// The matrices of a file, each with its rows and columns.
fn matrices(weights: &Weights) -> Vec<(String, [usize; 2])> {
    let shape = |shape: &[usize]| <[usize; 2]>::try_from(shape).ok();
    weights.checkpoint().tensors().filter_map(|t| Some((t.name.clone(), shape(&t.shape)?))).collect()
}

fn part(name: &str, [rows, cols]: [usize; 2]) -> WeightPart {
    WeightPart { name: name.into(), rows: 0..rows, cols }
}

fn values(packed: &GroupPacked) -> Vec<f32> {
    let (groups, cols) = (packed.shape.group, packed.shape.cols);
    let codes = packed.codes();
    let value = |i: usize| {
        let scale = packed.scale(i / cols, i % cols / groups).to_f32();
        packed.factor * (scale * f32::from(codes[i]))
    };
    (0..codes.len()).map(value).collect()
}

/// The codes of a matrix, if it is run as codes.
fn packed<'a>(
    weights: &'a Weights,
    name: &str,
    shape: [usize; 2],
    quantisation: Option<Quantisation>,
) -> Option<GroupPacked<'a>> {
    match weights.matrix_form(name, shape[1], quantisation).unwrap_or_else(|e| panic!("{e}")) {
        MatrixForm::Dense => None,
        MatrixForm::Codes { group, codes } => {
            Some(weights.groups(&part(name, shape), group as usize, codes).unwrap_or_else(|e| panic!("{e}")))
        }
    }
}

#[test]
fn codes_are_what_the_file_stands_for() {
    for file in tiny() {
        let weights = Weights::open(&file).unwrap();
        let mut exact = 0;
        for (name, shape) in matrices(&weights) {
            let Some(packed) = packed(&weights, &name, shape, None) else { continue };
            let want = weights.checkpoint().read_f32(&name, 0..shape[0] * shape[1]).unwrap();
            let stored = weights.checkpoint().get(&name).unwrap().stored.to_string();
            let scale = name.strip_suffix("weight").map(|stem| format!("{stem}scale"));
            let times = scale.and_then(|name| weights.checkpoint().read_f32(&name, 0..1).ok()).map_or(1.0, |v| v[0]);
            let (found, what) = (values(&packed), format!("{}: {name} of {stored}", file.display()));
            if stored == "Q4_K" {
                for (found, want) in found.chunks(32).zip(want.chunks(32)) {
                    let max = want.iter().fold(0f32, |max, v| max.max(v.abs()));
                    let off = found.iter().zip(want).fold(0f32, |off, (f, w)| off.max((f - w).abs()));
                    assert!(off <= max / 250.0, "{what}: off by {off} where the largest is {max}");
                }
                continue;
            }
            let want: Vec<f32> = want.iter().map(|v| times * v).collect();
            assert!(found == want, "{what}");
            exact += 1;
            // Some rows alone are those of the whole.
            let some = WeightPart { rows: 3..7, ..part(&name, shape) };
            if let MatrixForm::Codes { group, codes } = weights.matrix_form(&name, shape[1], None).unwrap() {
                let some = weights.groups(&some, group as usize, codes).unwrap();
                assert!(values(&some) == want[3 * shape[1]..7 * shape[1]], "{what}: rows 3 to 6");
            }
        }
        assert!(exact > 0, "{} has no matrix of codes", file.display());
    }
}

/// A folder of `gguf/hf`, the file of `gguf/tiny` with the same weights, and what its configuration says.
const TWINS: [(&str, &str, Option<Quantisation>); 5] = [
    ("bitnet_autobitlinear_offline", "bitnet_b158_i2s_relu2", Some(Quantisation::PackedRows { divides: false })),
    ("llama_bitlinear_inverse", "llama_i2s", Some(Quantisation::PackedRows { divides: true })),
    ("qwen3_unpacked_f16", "qwen3_pq2_0", None),
    ("qwen3_mlx_2bit", "qwen3_pq2_0", Some(Quantisation::Affine { bits: 2, group: 128 })),
    ("qwen3_mlx_1bit", "qwen3_q1_0", Some(Quantisation::Affine { bits: 1, group: 128 })),
];

#[test]
fn the_forms_of_hugging_face_hold_what_their_gguf_twins_do() {
    let mut folders = 0;
    for (folder, file, quantisation) in TWINS {
        let (folder, file) = (golden_root().join("gguf/hf").join(folder), golden_root().join("gguf/tiny").join(file));
        if std::env::var_os("TERNION_GOLDENS").is_none() && !folder.exists() {
            continue;
        }
        folders += 1;
        let (hf, gguf) = (Weights::open(&folder).unwrap(), Weights::open(file.with_extension("gguf")).unwrap());
        let mut compared = 0;
        for (name, shape) in matrices(&gguf) {
            let tensor = hf.checkpoint().get(&name).unwrap_or_else(|| panic!("{name} is not in {}", folder.display()));
            // Rows of queries and keys stand in another order in llama's GGUF files.
            let turned =
                folder.ends_with("llama_bitlinear_inverse") && (name.contains("q_proj") || name.contains("k_proj"));
            // Tables and heads may be left as floats.
            let floats = matches!(tensor.stored, StorageDType::F32 | StorageDType::BF16 | StorageDType::F16);
            if turned || (floats && quantisation.is_some()) {
                continue;
            }
            let Some(packed) = packed(&hf, &name, shape, quantisation) else {
                panic!("{name} of {} is not run as codes", folder.display())
            };
            let want = gguf.checkpoint().read_f32(&name, 0..shape[0] * shape[1]).unwrap();
            close(&values(&packed), &want, &format!("{name} of {}", folder.display()));
            compared += 1;
        }
        assert!(compared > 0, "{}", folder.display());
    }
    assert!(folders > 1, "{folders} folders");
}

/// Scales may be stored with fewer bits in one of two files.
fn close(found: &[f32], want: &[f32], what: &str) {
    let off = found.iter().zip(want).position(|(f, w)| (f - w).abs() > 4e-3 * w.abs());
    assert!(found.len() == want.len() && off.is_none(), "{what}: element {off:?}");
}

#[test]
fn a_scale_of_the_wrong_direction_is_refused() {
    let weights = Weights::open(golden_root().join("gguf/hf/bitnet_autobitlinear_offline")).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let wrong = weights.matrix_form(name, 256, Some(Quantisation::PackedRows { divides: true })).unwrap_err();
    assert!(wrong.to_string().contains("can only multiply"), "{wrong}");
}
