//! Models of random weights, for measuring: no files, and a tensor takes memory only while it is read.
//!
//! * `published`: the models whose sizes are measured, by name ([`PublishedModel`]).
//! * `dense`: sizes, configuration and tensors of the dense ones, in the forms in which they are published.
//! * `source`: a model whose tensors are made when they are read; `fill`: what is in them.

mod dense;
mod fill;
mod published;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::weights::{PACKED_KEY, PackedInfo};
use crate::files::{ModelFiles, StorageDType, Weights};
use crate::models::{EmberNet, EmberNetConfig, TensorRequest};
use crate::quant::Bits;
use crate::tensor::Pack;
use fill::{Fill, SIZE};
use source::{Made, Synthetic};

pub use dense::{DenseForm, DenseModel, DenseSizes};
pub use fill::about_normal;
pub use published::PublishedModel;

/// An EmberNet of the published sizes with random weights: 834 million parameters.
///
/// # Errors
/// None that its sizes can cause.
pub fn embernet() -> Result<ModelFiles> {
    embernet_of(EmberNetConfig::published())
}

/// An EmberNet of these sizes with random weights, as a packed checkpoint.
///
/// # Errors
/// [`Error::Config`] from opening it, for sizes that do not fit one another; none here.
pub fn embernet_of(config: EmberNetConfig) -> Result<ModelFiles> {
    let name = "an EmberNet with random weights";
    let nothing = Synthetic::new(name, &serde_json::Value::Null, BTreeMap::new());
    let nothing = Weights::open(ModelFiles::Source(Arc::new(nothing)))?;
    let json = config.to_json();
    let wanted = EmberNet::tensors(config, &nothing);
    // Some are listed twice.
    let by_name: BTreeMap<&str, &TensorRequest> = wanted.iter().rev().map(|w| (w.name.as_str(), w)).collect();
    let (mut table, mut tensors) = (BTreeMap::new(), BTreeMap::new());
    for (seed, (tensor, request)) in by_name.into_iter().enumerate() {
        let (stored, fill, mut shape) = (stored_as(request.pack), fill_for(request), request.shape.clone());
        if fill == Fill::Bits {
            let [rows, cols] = *shape.as_slice() else {
                let object = format!("{name}: tensor {tensor}");
                return Err(Error::shape(object, "[rows, cols]", format!("{shape:?}")));
            };
            let scale_bits = (0.8 * SIZE).to_bits();
            table.insert(tensor, PackedInfo { rows, cols, bits: Bits::One.count(), scale_bits, group: None });
            shape = vec![Bits::One.matrix_words(rows, cols)];
        }
        tensors.insert(tensor.to_owned(), Made { stored, shape, fill, seed: seed as u64 });
    }
    let table = serde_json::to_string(&table).map_err(|e| Error::format(format!("{name}: {PACKED_KEY}"), e))?;
    Ok(ModelFiles::Source(Arc::new(Synthetic::new(name, &json, tensors).with(PACKED_KEY, table))))
}

fn stored_as(pack: Pack) -> StorageDType {
    match pack {
        Pack::Ternary(_) => StorageDType::U32,
        Pack::F16 | Pack::Int8 | Pack::Groups { .. } => StorageDType::F16,
        Pack::F32 => StorageDType::F32,
    }
}

fn fill_for(wanted: &TensorRequest) -> Fill {
    match wanted.pack {
        Pack::Ternary(_) => Fill::Bits,
        Pack::F16 | Pack::Int8 | Pack::Groups { .. } => Fill::WEIGHTS,
        Pack::F32 if wanted.shape.len() == 1 && wanted.name.ends_with(".weight") => Fill::Norm,
        Pack::F32 => Fill::Exact,
    }
}
