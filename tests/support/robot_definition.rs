//! BitGenModel on text alone in plain loops, with the attention of a stream of tokens one after the other.

use std::path::Path;

use ternion::files::Weights;
use ternion::unstable::models::{BitGenModel, LoadOptions, RobotSizes};
use ternion::unstable::tensor::Pack;

/// Rows of a width.
#[derive(Clone)]
pub struct Rows {
    width: usize,
    data: Vec<f32>,
}

impl Rows {
    fn new(width: usize, data: Vec<f32>) -> Self {
        Rows { width, data }
    }

    fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.width)
    }

    fn mean(&self) -> Rows {
        let n = self.iter().len() as f64;
        let column = |i| (self.iter().map(|row| f64::from(row[i])).sum::<f64>() / n) as f32;
        Rows::new(self.width, (0..self.width).map(column).collect())
    }

    fn plus(&self, other: impl Fn(usize, usize) -> f32) -> Rows {
        let data = self.data.iter().enumerate().map(|(at, v)| v + other(at / self.width, at % self.width));
        Rows::new(self.width, data.collect())
    }
}

/// What a call gives.
pub struct Said {
    pub logits: Vec<f32>,
    pub scores: Vec<f32>,
    pub steps: usize,
}

/// The model with all keys and values of a stream so far.
pub struct Definition {
    weights: Weights,
    sizes: RobotSizes,
    /// `[layers]`: keys and values of every token.
    past: Vec<[Vec<Vec<f32>>; 2]>,
    /// Of each token: the tokens that it sees.
    seen: Vec<Vec<usize>>,
    kept: Vec<usize>,
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// `softmax(q · kᵀ / sqrt(d)) · v` of one query.
fn attend(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f32> {
    let scores: Vec<f64> = keys.iter().map(|key| dot(q, key) / (q.len() as f64).sqrt()).collect();
    let weights = softmax(&scores);
    let sum = |i: usize| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[i])).sum::<f64>() as f32;
    (0..values[0].len()).map(sum).collect()
}

impl Definition {
    pub fn open(dir: &Path) -> Self {
        let weights = Weights::open(dir).expect("weights");
        let options = LoadOptions::anywhere(Pack::F32);
        let sizes = BitGenModel::open(dir, &weights, options).expect("a model").sizes().clone();
        let past = vec![Default::default(); sizes.layers];
        Definition { weights, sizes, past, seen: Vec::new(), kept: Vec::new() }
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        let shape = self.weights.shape(name).unwrap_or_else(|| panic!("no {name}"));
        self.weights.checkpoint().read_f32(name, 0..shape.iter().product()).expect("numbers")
    }

    /// BitNetLinear as SPEC tells it, with one scale of activations for all rows.
    fn bit_net(&self, x: &Rows, name: &str) -> Rows {
        let (weight, bias) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        let mean = weight.iter().map(|w| f64::from(w.abs())).sum::<f64>() / weight.len() as f64;
        let scale = (mean as f32).max(1e-5);
        let code = |w: &f32| if w.abs() > 0.5 * scale { f64::from(w.signum()) } else { 0.0 };
        let codes: Vec<f64> = weight.iter().map(code).collect();
        let a = x.data.iter().fold(1e-8f32, |top, v| top.max(v.abs())) / 127.0;
        let row = |x: &[f32]| -> Vec<f32> {
            let n: Vec<f64> = x.iter().map(|v| f64::from((v / a).round_ties_even().clamp(-128.0, 127.0))).collect();
            let one = |(codes, bias): (&[f64], &f32)| {
                let sum: f64 = codes.iter().zip(&n).map(|(c, n)| c * n).sum();
                (sum * f64::from(scale * a)) as f32 + bias
            };
            codes.chunks_exact(x.len()).zip(&bias).map(one).collect()
        };
        Rows::new(bias.len(), x.iter().flat_map(row).collect())
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        let (weight, bias) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        let row = |x: &[f32]| -> Vec<f32> {
            let n = x.len() as f64;
            let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
            let one = |(i, v): (usize, &f32)| {
                ((f64::from(*v) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i])) as f32
            };
            x.iter().enumerate().map(one).collect()
        };
        Rows::new(x.width, x.iter().flat_map(row).collect())
    }

    /// Tokens that go on where the last call ended. Keys leave one by one: the first that is not a sink, when there are more
    /// than sinks and window.
    pub fn forward(&mut self, ids: &[u32]) -> Said {
        let (d, before) = (self.sizes.d, self.seen.len());
        let (sinks, window) = (self.sizes.sinks, self.sizes.window);
        let mut places = Vec::new();
        for token in before..before + ids.len() {
            self.kept.push(token);
            if self.kept.len() > sinks + window {
                self.kept.remove(sinks);
            }
            places.push(self.kept.len() - 1);
            self.seen.push(self.kept.clone());
        }
        let (tokens, positions) = (self.tensor("token_embedding.weight"), self.tensor("pos_embedding.weight"));
        let place = |i: usize| places[i].min(self.sizes.positions - 1);
        let value = |(i, id): (usize, &u32)| -> Vec<f32> {
            (0..d).map(|c| tokens[*id as usize * d + c] + positions[place(i) * d + c]).collect()
        };
        let x = Rows::new(d, ids.iter().enumerate().flat_map(value).collect());
        let mut x = self.remember(&x);
        for layer in 0..self.sizes.layers {
            x = self.attention(&x, layer, before);
        }
        let (said, steps) = self.reason(&x.mean());
        let x = self.norm(&x.plus(|_, i| said.data[i]), "layer_norm");
        let scores = self.scores(&x.mean());
        Said { logits: self.bit_net(&x, "output_projection").data, scores, steps }
    }

    fn remember(&self, x: &Rows) -> Rows {
        let q = self.bit_net(x, "episodic_memory.key_proj");
        let [keys, values] = ["keys", "values"].map(|name| self.tensor(&format!("episodic_memory.memory_{name}")));
        let [keys, values] =
            [(&keys, q.width), (&values, x.width)].map(|(all, width)| all.chunks_exact(width).collect::<Vec<_>>());
        let read: Vec<Vec<f32>> = q.iter().map(|q| attend(q, &keys, &values)).collect();
        self.bit_net(&x.plus(|r, i| read[r][i]), "episodic_memory.output_proj")
    }

    fn attention(&mut self, x: &Rows, layer: usize, before: usize) -> Rows {
        let name = |part: &str| format!("attention_layers.{layer}.{part}_proj");
        let [q, k, v] = ["q", "k", "v"].map(|part| self.bit_net(x, &name(part)));
        for (past, new) in self.past[layer].iter_mut().zip([&k, &v]) {
            past.extend(new.iter().map(<[f32]>::to_vec));
        }
        let (d, [keys, values]) = (self.sizes.head[0], &self.past[layer]);
        let row = |(i, q): (usize, &[f32])| -> Vec<f32> {
            let head = |h: usize| {
                let of = |past: &'_ [Vec<f32>]| -> Vec<Vec<f32>> {
                    self.seen[before + i].iter().map(|&token| past[token][h * d..][..d].to_vec()).collect()
                };
                let (keys, values) = (of(keys), of(values));
                let [keys, values] = [&keys, &values].map(|all| all.iter().map(Vec::as_slice).collect::<Vec<_>>());
                attend(&q[h * d..][..d], &keys, &values)
            };
            (0..self.sizes.n_heads).flat_map(head).collect()
        };
        let heads = Rows::new(q.width, q.iter().enumerate().flat_map(row).collect());
        self.bit_net(&heads, &name("out"))
    }

    fn reason(&self, mean: &Rows) -> (Rows, usize) {
        let part = |name: &str| self.tensor(&format!("reasoning_module.step_processor.{name}_l0"));
        let [w_ih, w_hh, b_ih, b_hh] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(part);
        let mut said = self.bit_net(mean, "reasoning_module.reasoning_encoder").data;
        let n = said.len();
        let (mut h, mut c, mut states) = (vec![0.0f32; n], vec![0.0f64; n], Vec::new());
        for step in 0..self.sizes.reasoning_steps {
            let gate = |i: usize| {
                dot(&w_ih[i * n..][..n], &said) + dot(&w_hh[i * n..][..n], &h) + f64::from(b_ih[i] + b_hh[i])
            };
            let gates: Vec<f64> = (0..4 * n).map(gate).collect();
            for i in 0..n {
                c[i] = sigmoid(gates[n + i]) * c[i] + sigmoid(gates[i]) * gates[2 * n + i].tanh();
                h[i] = (sigmoid(gates[3 * n + i]) * c[i].tanh()) as f32;
            }
            said.clone_from(&h);
            states.extend_from_slice(&h);
            let gate = self.bit_net(&Rows::new(n, h.clone()), "reasoning_module.step_gate").data[0];
            if step > 2 && sigmoid(f64::from(gate)) < 0.5 {
                break;
            }
        }
        let states = Rows::new(n, states);
        (self.bit_net(&states.mean(), "reasoning_module.reasoning_decoder"), states.iter().len())
    }

    fn scores(&self, mean: &Rows) -> Vec<f32> {
        let unit = |v: &[f32]| -> Vec<f32> {
            let length = dot(v, v).sqrt().max(1e-12);
            v.iter().map(|x| (f64::from(*x) / length * (v.len() as f64).sqrt()) as f32).collect()
        };
        let task = unit(&self.bit_net(mean, "robot_selector.task_encoder").data);
        let robots = self.tensor("robot_selector.robot_embeddings");
        let score = |robot: &[f32]| {
            let both = [task.clone(), unit(robot)].concat();
            self.bit_net(&Rows::new(both.len(), both), "robot_selector.robot_scorer").data[0].clamp(-50.0, 50.0)
        };
        robots.chunks_exact(task.len()).map(score).collect()
    }
}
