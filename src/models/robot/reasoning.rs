//! BitGenModel's reasoning, an LSTM that reads its own output, and its choice of robots.

use crate::models::bitgen::decoder::BitNet;
use crate::models::layers::Linear;
use crate::models::load::{ComputedTensor, Tensor, TensorScope};
use crate::models::robot::config::RobotSizes;
use crate::models::robot::fusion::whole;
use crate::models::robot::robot_slots;
use crate::ops::UnaryKind;
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::{CountedBy, DType, Spec};

/// Minimum of the length that a task's and a robot's vectors are divided by.
const FLOOR: f32 = 1e-12;

/// The reasoning module.
#[derive(Debug)]
pub struct Reasoning {
    encoder: BitNet,
    input: Linear,
    hidden: Linear,
    /// Confidence and gate, side by side.
    signs: BitNet,
    decoder: BitNet,
}

impl Reasoning {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, c: &RobotSizes) -> Self {
        let (cell, h) = (w.at("step_processor"), c.reasoning);
        let part = |which: &str| -> Linear {
            let weight: Tensor = cell.dense(&format!("weight_{which}_l0"), &[4 * h, h]);
            Linear { weight, bias: cell.vector(&format!("bias_{which}_l0"), 4 * h) }
        };
        Reasoning {
            encoder: BitNet::load(w, &["reasoning_encoder"], h, c.d),
            input: part("ih"),
            hidden: part("hh"),
            signs: BitNet::load(w, &["step_confidence", "step_gate"], 1, h),
            decoder: BitNet::load(w, &["reasoning_decoder"], c.d, h),
        }
    }

    /// All steps of reasoning about the samples' means `[samples, d]`, their states and signs stored, and then the
    /// output for the mean of the states that count, `[samples, d]`.
    pub fn record(&self, p: &PlanBuilder, means: Slot, c: &RobotSizes, samples: usize) -> Slot {
        let (h, steps) = (c.reasoning, c.reasoning_steps);
        let state = |name: &str, width| p.state(name, Spec::fixed(&[samples * steps, width], DType::F32));
        let (states, signs) = (state(robot_slots::STATES, h), state(robot_slots::SIGNS, 2));
        let nothing = Spec::counted(&[samples, h], DType::F32, CountedBy::Outputs);
        let nothing = p.constant("reasoning.nothing", nothing, move || vec![0; samples * h]);
        let mut output = self.encoder.apply(p, means, None); // [samples, h]
        let (mut hidden, mut cell) = (nothing, nothing);
        for step in 0..steps {
            let _scope = p.scope(format!("reasoning.{step}"));
            let gates = self.hidden.apply(p, hidden, Some(self.input.apply(p, output, None))); // [samples, 4·h]
            [hidden, cell] = p.lstm_cell(gates, cell);
            output = hidden;
            let places = strided(p, &format!("reasoning.{step}"), samples, steps, step);
            p.store_rows(whole(hidden), places, states);
            p.store_rows(whole(self.signs.apply(p, hidden, None)), places, signs);
        }
        let counted = p.input(robot_slots::COUNTED, Spec::counted(&[samples, 2], DType::U32, CountedBy::Outputs));
        self.decoder.apply(p, p.span_mean(states, counted), None)
    }
}

/// The choice of robots.
#[derive(Debug)]
pub struct Selector {
    task: BitNet,
    robots: ComputedTensor,
    scorer: BitNet,
}

impl Selector {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, c: &RobotSizes) -> Self {
        let d = c.robot_d;
        let mut robots = w.values("robot_embeddings", &[c.robots.len(), d]);
        for robot in robots.chunks_exact_mut(d) {
            let length = robot.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(f64::from(FLOOR));
            robot.iter_mut().for_each(|v| *v = (f64::from(*v) / length * (d as f64).sqrt()) as f32);
        }
        Selector {
            task: BitNet::load(w, &["task_encoder"], d, c.d),
            robots: ComputedTensor::new("robots", &[c.robots.len(), d], robots),
            scorer: BitNet::load(w, &["robot_scorer"], 1, 2 * d),
        }
    }

    /// Stores each robot's score for the samples' means `[samples, d]`. As in the original each robot is a call of its own,
    /// with its own scale of activations.
    pub fn record(&self, p: &PlanBuilder, means: Slot, c: &RobotSizes, samples: usize) {
        let n = c.robots.len();
        let scores = p.state(robot_slots::SCORES, Spec::fixed(&[samples * n, 1], DType::F32));
        let task = p.l2_norm(self.task.apply(p, means, None), FLOOR);
        let task = p.unary(task, UnaryKind::Scale((c.robot_d as f32).sqrt())); // [samples, d_robot]
        let robots = self.robots.slot(p);
        for j in 0..n {
            let _scope = p.scope(format!("robot.{j}"));
            let this = strided(p, &format!("robot.{j}.number"), samples, 0, j);
            let both = p.concat(task, p.select_rows(robots, this)); // [samples, 2·d_robot]
            let places = strided(p, &format!("robot.{j}"), samples, n, j);
            p.store_rows(whole(self.scorer.apply(p, both, None)), places, scores);
        }
    }
}

/// The numbers `first + stride · sample` of the samples, `[samples, 1]`.
fn strided(p: &PlanBuilder, name: &str, samples: usize, stride: usize, first: usize) -> Slot {
    let spec = Spec::counted(&[samples, 1], DType::U32, CountedBy::Outputs);
    p.constant(&format!("{name} of samples"), spec, move || (0..samples).map(|s| (first + stride * s) as u32).collect())
}
