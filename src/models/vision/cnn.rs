//! BitGen's small convolutional encoder: three convolutions, each with its batch norm folded in.

use crate::models::load::{ComputedTensor, TensorScope};
use crate::ops::{Pixels, PoolKind, UnaryKind, Window};
use crate::plan::{PlanBuilder, Slot};

const EPS: f64 = 1e-5;
/// Windows of the pool behind the first convolution, and of the one at the end, which leaves 7 × 7 tokens of 224 pixels.
const MAX_POOL: Window = Window { size: 3, stride: 2, pad: 1 };
const MEAN_POOL: Window = Window::tiles(2);
/// Tokens that an image becomes.
pub const CNN_TOKENS: usize = 49;
/// Each convolution: its number in the sequence of modules (its norm's is the next), and its window.
pub const STAGES: [(usize, Window); 3] = [
    (0, Window { size: 7, stride: 2, pad: 3 }),
    (4, Window { size: 3, stride: 2, pad: 1 }),
    (7, Window { size: 3, stride: 2, pad: 1 }),
];

/// The encoder.
#[derive(Debug)]
pub struct Cnn {
    stages: Vec<Stage>,
}

/// A convolution with its batch norm by running statistics (Ioffe & Szegedy 2015) as one matrix and one bias.
#[derive(Debug)]
struct Stage {
    number: usize,
    window: Window,
    weight: ComputedTensor,
    bias: ComputedTensor,
}

impl Cnn {
    /// Takes the tensors below `w`, convolutions to `channels` each.
    pub fn load(w: &TensorScope, channels: [usize; 3]) -> Self {
        let before = [3, channels[0], channels[1]];
        let stages = STAGES.into_iter().zip(before.into_iter().zip(channels));
        Cnn { stages: stages.map(|((number, window), sizes)| Stage::load(w, number, window, sizes)).collect() }
    }

    /// Pixels `[n, 3, 224, 224]` → `[n, 7², channels]`.
    pub fn record(&self, p: &PlanBuilder, pixels: Slot) -> Slot {
        let (mut x, mut form) = (pixels, Pixels::Planes);
        for stage in &self.stages {
            let _scope = p.scope(format!("cnn.{}", stage.number));
            x = stage.record(p, x, form);
            form = Pixels::Rows;
            // The number of the last module here: ReLU is two behind the convolution, and the first one has a pool.
            let mut last = stage.number + 2;
            if stage.number == 0 {
                x = p.pool(x, MAX_POOL, PoolKind::Max);
                last += 1;
            }
            p.tag(format!("cnn.{last}.out"), x);
        }
        p.tag("cnn.10.out", p.pool(x, MEAN_POOL, PoolKind::Mean))
    }
}

impl Stage {
    /// `γ · (conv(x) − mean) / sqrt(var + eps) + β` as one convolution, its rows padded to whole vectors of four.
    fn load(w: &TensorScope, number: usize, window: Window, (d_in, d_out): (usize, usize)) -> Self {
        let (conv, norm) = (w.at(number), w.at(number + 1));
        let weight = conv.values("weight", &[d_out, d_in, window.size, window.size]);
        let bias = conv.values("bias", &[d_out]);
        let norm = ["weight", "bias", "running_mean", "running_var"].map(|name| norm.values(name, &[d_out]));
        let columns = d_in * window.size * window.size;
        let padded = columns.next_multiple_of(4);
        let (mut rows, mut offsets) = (vec![0.0; d_out * padded], Vec::with_capacity(d_out));
        for o in 0..d_out {
            let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|i| f64::from(norm[i][o]));
            let factor = gamma / (var + EPS).sqrt();
            let row = weight[o * columns..][..columns].iter();
            rows[o * padded..].iter_mut().zip(row).for_each(|(to, &w)| *to = (f64::from(w) * factor) as f32);
            offsets.push(((f64::from(bias[o]) - mean) * factor + beta) as f32);
        }
        Stage {
            number,
            window,
            weight: ComputedTensor::new(format!("cnn.{number}.weight"), &[d_out, padded], rows),
            bias: ComputedTensor::new(format!("cnn.{number}.bias"), &[d_out], offsets),
        }
    }

    /// `[n, 3, s, s]` or `[n, s², d_in]` → `[n, g², d_out]`, behind ReLU.
    fn record(&self, p: &PlanBuilder, x: Slot, form: Pixels) -> Slot {
        let weight = self.weight.slot(p);
        let x = p.patches(x, form, self.window, 0, p.spec(weight).width());
        p.unary(p.matmul(x, weight, Some(self.bias.slot(p)), None), UnaryKind::Relu)
    }
}
