//! BitGenModel's fusion of text and images, and the features by which both are compared.

use crate::models::bitgen::config::{DINO, IMAGE_SIZE};
use crate::models::bitgen::decoder::BitNet;
use crate::models::load::TensorScope;
use crate::models::robot::config::RobotSizes;
use crate::models::robot::robot_slots;
use crate::models::vision::dinov2::DinoV2;
use crate::ops::{AttentionShape, Columns, ROW_WORDS, UnaryKind};
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::{CountedBy, DType, Spec};

/// Factor of a fusion layer's attention before it is added.
const FUSION_SCALE: f32 = 0.1;

/// The image encoder, and all that stands between images and text.
#[derive(Debug)]
pub struct Fusion {
    dino: DinoV2,
    to_vision: BitNet,
    text: Modality,
    image: Modality,
    layers: Vec<BitNet>,
    mlp: [BitNet; 2],
}

/// The projections of one modality into the space of fusion and into that of features.
#[derive(Debug)]
struct Modality {
    transform: BitNet,
    transform_itc: BitNet,
    pooler_itc: BitNet,
}

impl Modality {
    fn load(w: &TensorScope, side: &str, d: usize, d_in: usize) -> Self {
        let linear = |name: &str, d_in| BitNet::load(w, &[&format!("cross_modal_{side}_{name}")], d, d_in);
        Modality {
            transform: linear("transform", d_in),
            transform_itc: linear("transform_itc", d_in),
            pooler_itc: linear("pooler_itc.0", d),
        }
    }

    /// Features `[samples, d]` of what `transform_itc` has made. Unlike stage 1's they are of any length.
    fn features(&self, p: &PlanBuilder, x: Slot) -> Slot {
        p.unary(self.pooler_itc.apply(p, x, None), UnaryKind::Tanh)
    }
}

impl Fusion {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, c: &RobotSizes) -> Self {
        let d = c.d;
        let layer = |j: usize| BitNet::load(w, &[&format!("cross_modal_att_layers.{j}")], d / 2, d);
        let dino = DINO.rsplit('.').next().unwrap_or(DINO);
        Fusion {
            dino: DinoV2::load(&w.at(dino), c.dino, IMAGE_SIZE),
            to_vision: BitNet::load(w, &["dinov2_to_vision"], c.d_vision, c.dino.d),
            text: Modality::load(w, "text", d, d),
            image: Modality::load(w, "image", d, c.d_vision),
            layers: (0..c.fusion_layers).map(layer).collect(),
            mlp: [
                BitNet::load(w, &["fusion_mlp.0"], c.fusion_ff, 2 * d),
                BitNet::load(w, &["fusion_mlp.3"], d, c.fusion_ff),
            ],
        }
    }

    /// Records the encoding of one image: its patches go to the places that the caller gives.
    pub fn record_patches(&self, p: &PlanBuilder, pixels: Slot, c: &RobotSizes, samples: usize) {
        let x = self.dino.record(p, pixels); // [1, 1 + n, d_dino]
        let places = p.input(robot_slots::PLACES, Spec::fixed(&[1 + c.patches(), 1], DType::U32));
        p.store_rows(whole(x), places, patches(p, c, samples, CountedBy::Fixed));
    }

    /// Records what text is fused with, of as many images as the step has outputs: their patches share the scales of
    /// activations. Rows are patches.
    pub fn record_images(&self, p: &PlanBuilder, c: &RobotSizes, samples: usize) {
        let (d, n) = (c.d, c.patches());
        let v = self.to_vision.apply(p, patches(p, c, samples, CountedBy::Rows), None);
        let v = p.tag("vision_features", v); // [samples · n, d_vision]
        let spans = p.constant("patches", Spec::counted(&[samples, 2], DType::U32, CountedBy::Outputs), move || {
            (0..samples).flat_map(|s| [(s * n) as u32, n as u32]).collect()
        });
        let itself = |what: &str, rows: usize, counted_by| {
            p.constant(what, Spec::counted(&[rows, 1], DType::U32, counted_by), move || (0..rows as u32).collect())
        };
        let common = self.image.transform.apply(p, v, None); // [samples · n, d]
        let (each, mean) = (itself("images", samples, CountedBy::Outputs), p.span_mean(common, spans)); // [samples, d]
        p.store_rows(whole(mean), each, image_mean(p, d, samples));
        let rows = itself("patch numbers", samples * n, CountedBy::Rows);
        for (j, layer) in self.layers.iter().enumerate() {
            let half = layer.apply(p, common, None); // [samples · n, d / 2]
            p.store_rows(whole(p.concat(half, half)), rows, image_keys(p, j, c, samples));
        }
        let x = p.span_mean(self.image.transform_itc.apply(p, v, None), spans);
        p.output(robot_slots::FEATURES, self.image.features(p, x));
    }

    /// Text `[rows, d]` fused with the images of [`Fusion::record_images`]; text's own features become an output.
    pub fn apply(&self, p: &PlanBuilder, x: Slot, of_sample: Slot, c: &RobotSizes, samples: usize) -> Slot {
        let max = p.spec(x).shape[0];
        let first = p.input(robot_slots::FIRST, Spec::counted(&[samples, 1], DType::U32, CountedBy::Outputs));
        let features = p.select_rows(self.text.transform_itc.apply(p, x, None), first);
        p.output(robot_slots::FEATURES, self.text.features(p, features));

        let mut t = self.text.transform.apply(p, x, None); // [rows, d]
        let spans = p.input(robot_slots::PATCH_ROWS, Spec::counted(&[max, ROW_WORDS], DType::U32, CountedBy::Rows));
        for j in 0..self.layers.len() {
            let keys = whole(image_keys(p, j, c, samples));
            let a = p.row_attention(whole(t), keys, keys, spans, AttentionShape { heads: 1, kv_heads: 1, d: c.d });
            t = p.affine(p.unary(a, UnaryKind::Scale(FUSION_SCALE)), None, None, Some(t));
        }
        let i = p.select_rows(image_mean(p, c.d, samples), of_sample); // [rows, d]
        let h = p.unary(self.mlp[0].apply(p, p.concat(t, i), None), UnaryKind::Relu); // [rows, d_ff]
        self.mlp[1].apply(p, h, None)
    }
}

/// All columns of a slot.
pub(crate) fn whole(slot: Slot) -> Columns {
    Columns { slot, at: 0 }
}

/// Patches of all images, `[samples · n, d_dino]`.
fn patches(p: &PlanBuilder, c: &RobotSizes, samples: usize, counted_by: CountedBy) -> Slot {
    p.state("image.patches", Spec::counted(&[samples * c.patches(), c.dino.d], DType::F32, counted_by))
}

/// The mean of each image's patches in the space of fusion, `[samples, d]`.
fn image_mean(p: &PlanBuilder, d: usize, samples: usize) -> Slot {
    p.state("image.mean", Spec::fixed(&[samples, d], DType::F32))
}

/// Keys, which are also the values, of fusion layer `j`, `[samples · n, d]`.
fn image_keys(p: &PlanBuilder, j: usize, c: &RobotSizes, samples: usize) -> Slot {
    p.state(&format!("image.keys.{j}"), Spec::fixed(&[samples * c.patches(), c.d], DType::F32))
}
