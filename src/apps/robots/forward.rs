//! One call of a BitGenModel: what is written to the device, the parts of its plan, and what is read back.

use std::ops::Range;

use crate::apps::robots::attention_window::AttentionSpan;
use crate::apps::robots::cache::RobotCache;
use crate::apps::robots::{LEFT_OUT, Programs, ReasoningStep, RobotChoice, RobotDecision, Tasks, Wanted};
use crate::engine::programs::{Program, floats};
use crate::error::{Error, Result};
use crate::models::{RobotSizes, robot_slots, slots};
use crate::ops::{MASKED, Row};
use crate::plan::{Backend, Step};

/// Rows whose logits are computed at once.
pub(crate) const LOGIT_ROWS: usize = 32;
/// The first step of reasoning behind which it may stop.
const FIRST_STOP: usize = 3;
/// Gate below which a sample wants to stop.
const STOP: f32 = 0.5;
/// Bound on a robot's score.
const MAX_SCORE: f32 = 50.0;

/// One call.
pub(crate) struct Call<'a> {
    pub sizes: &'a RobotSizes,
    pub tasks: &'a Tasks<'a>,
    pub cache: &'a RobotCache,
    pub span: &'a AttentionSpan,
    /// Places of the keys of one sample in the device's states.
    pub keys: usize,
}

/// What reasoning has stored, of all samples: states `[samples, steps, h]`, logits of confidence and gate
/// `[samples, steps, 2]`, and how many steps count.
struct Trace {
    states: Vec<f32>,
    signs: Vec<f32>,
    counted: usize,
}

impl Call<'_> {
    fn samples(&self) -> usize {
        self.tasks.texts.len()
    }

    /// Tokens of a sample.
    fn tokens(&self) -> usize {
        self.tasks.texts[0].len()
    }

    fn step(&self) -> Step {
        Step::new(self.samples() * self.tokens(), self.samples(), self.span.keys.len())
    }

    /// Whether key `key` of the cache and the call belongs to a token of the sample.
    fn keeps(&self, sample: usize, key: usize) -> bool {
        let cached = &self.cache.keep[sample];
        let own = |keep: &[&[bool]]| keep[sample][key - cached.len()];
        if key < cached.len() { cached[key] } else { self.tasks.keep.is_none_or(own) }
    }

    /// Keys that each token sees where those are the first of all, for a plan without mask.
    fn spans(&self) -> Option<Vec<usize>> {
        let padded = |sample: usize| self.span.keys.iter().any(|&key| !self.keeps(sample, key));
        if (0..self.samples()).any(padded) {
            return None;
        }
        let first = |sees: &Vec<bool>| {
            let n = sees.iter().take_while(|&&sees| sees).count();
            sees[n..].iter().all(|&sees| !sees).then_some(n)
        };
        self.span.sees.iter().map(first).collect()
    }

    /// Runs all parts of the plan, with the images in the device's states whose features are given.
    pub fn run(&self, programs: &mut Programs, images: Option<Vec<f32>>) -> Result<Vec<RobotDecision>> {
        let (spans, backend) = (self.spans(), programs.backend.as_mut());
        let program = &programs.forward[2 * usize::from(images.is_some()) + usize::from(spans.is_none())];
        self.write(program, backend, spans, images.is_some())?;
        let (first, second) = (program.behind(robot_slots::SIGNS)?, program.behind(robot_slots::SCORES)?);
        program.run_nodes(backend, &self.step(), 0..first)?;
        let trace = self.trace(program, backend)?;
        let counted = |sample: usize| [sample * self.sizes.reasoning_steps, trace.counted].map(|v| v as u32);
        let counted: Vec<u32> = (0..self.samples()).flat_map(counted).collect();
        program.write(backend, robot_slots::COUNTED, &counted)?;
        program.run_nodes(backend, &self.step(), first..second)?;
        let mut decisions = self.decisions(program, backend, &trace, images)?;
        self.logits(program, backend, second, &mut decisions)?;
        Ok(decisions)
    }

    /// Writes all inputs, and the cache's keys into the states.
    fn write(
        &self,
        program: &Program,
        backend: &mut dyn Backend,
        spans: Option<Vec<usize>>,
        images: bool,
    ) -> Result<()> {
        let (samples, n, all) = (self.samples(), self.tokens(), self.span.keys.len());
        let row = |sample: usize, i: usize| Row {
            token: self.tasks.texts[sample][i],
            pos: self.span.positions[i] as u32,
            seq_base: (sample * self.keys) as u32,
            seq_len: spans.as_ref().map_or(all, |spans| spans[i]) as u32,
        };
        let each = || (0..samples).flat_map(|sample| (0..n).map(move |i| (sample, i)));
        let rows: Vec<Row> = each().map(|(sample, i)| row(sample, i)).collect();
        let cached = self.cache.len();
        let place = |(sample, i): (usize, usize)| {
            let at = self.span.keys.iter().position(|&key| key == cached + i);
            at.map_or(u32::MAX, |at| (sample * self.keys + at) as u32)
        };
        let of_sample: Vec<u32> = each().map(|(sample, _)| sample as u32).collect();
        let ranges: Vec<u32> = (0..samples).flat_map(|sample| [(sample * n) as u32, n as u32]).collect();
        program.write(backend, slots::ROWS, bytemuck::cast_slice(&rows))?;
        program.write(backend, robot_slots::PLACES, &each().map(place).collect::<Vec<u32>>())?;
        program.write(backend, robot_slots::OF_SAMPLE, &of_sample)?;
        program.write(backend, robot_slots::SPANS, &ranges)?;
        if images {
            let patches = self.sizes.patches() as u32;
            let span = |(sample, _)| Row { token: 0, pos: 0, seq_base: sample as u32 * patches, seq_len: patches };
            let first: Vec<u32> = (0..samples).map(|sample| (sample * n) as u32).collect();
            let spans: Vec<Row> = each().map(span).collect();
            program.write(backend, robot_slots::PATCH_ROWS, bytemuck::cast_slice(&spans))?;
            program.write(backend, robot_slots::FIRST, &first)?;
        }
        if spans.is_none() {
            program.write(backend, robot_slots::MASK, bytemuck::cast_slice(&self.mask()))?;
        }
        self.write_keys(program, backend)
    }

    /// What is added to scores, `[samples · tokens, keys]`.
    fn mask(&self) -> Vec<f32> {
        let mut mask = vec![MASKED; self.samples() * self.tokens() * self.keys];
        for (r, row) in mask.chunks_exact_mut(self.keys).enumerate() {
            let (sample, i) = (r / self.tokens(), r % self.tokens());
            for ((added, &key), &sees) in row.iter_mut().zip(&self.span.keys).zip(&self.span.sees[i]) {
                if sees {
                    *added = if self.keeps(sample, key) { 0.0 } else { LEFT_OUT };
                }
            }
        }
        mask
    }

    /// Puts those keys of the cache that are there in this call in front of each sample's places.
    fn write_keys(&self, program: &Program, backend: &mut dyn Backend) -> Result<()> {
        let (cached, width) = (self.cache.len(), self.sizes.kv_width());
        let there: Vec<usize> = self.span.keys.iter().copied().filter(|&key| key < cached).collect();
        if there.is_empty() {
            return Ok(());
        }
        for (i, layer) in self.cache.layers.iter().enumerate() {
            for (name, samples) in robot_slots::keys(i).iter().zip(layer) {
                for (sample, keys) in samples.iter().enumerate() {
                    let words: Vec<f32> = there.iter().flat_map(|key| &keys[key * width..][..width]).copied().collect();
                    let at = sample * self.keys * width;
                    program.write_state(backend, name, at, bytemuck::cast_slice(&words))?;
                }
            }
        }
        Ok(())
    }

    /// Reads the steps of reasoning, and sees how many count: all samples stop together, behind the first step from number 3
    /// on in which all gates are below 0.5.
    fn trace(&self, program: &Program, backend: &mut dyn Backend) -> Result<Trace> {
        let steps = self.sizes.reasoning_steps;
        let n = self.samples() * steps;
        let wanted = [(robot_slots::STATES.into(), 0..n * self.sizes.reasoning), (robot_slots::SIGNS.into(), 0..2 * n)];
        let read = program.read_states(backend, &wanted)?;
        let [states, signs] = [0, 1].map(|i| read.get(i).map_or_else(Vec::new, |words| floats(words)));
        let gate = |sample: usize, step: usize| sigmoid(signs[2 * (sample * steps + step) + 1]);
        let stops = |&step: &usize| (0..self.samples()).all(|sample| gate(sample, step) < STOP);
        let counted = (FIRST_STOP..steps).find(stops).map_or(steps, |step| step + 1);
        Ok(Trace { states, signs, counted })
    }

    /// All but the logits.
    fn decisions(
        &self,
        program: &Program,
        backend: &mut dyn Backend,
        trace: &Trace,
        images: Option<Vec<f32>>,
    ) -> Result<Vec<RobotDecision>> {
        let (samples, n, d, robots) = (self.samples(), self.tokens(), self.sizes.d, self.sizes.robots.len());
        let scores = [(robot_slots::SCORES.into(), 0..samples * robots)];
        let scores = floats(&program.read_states(backend, &scores)?.concat());
        if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
            return Err(Error::NonFiniteLogits(format!("a robot's score is {score}")));
        }
        let mut wanted = vec![(robot_slots::EMBEDDINGS, samples * n * d), (robot_slots::CONTEXT, samples * d)];
        wanted.extend(images.is_some().then_some((robot_slots::FEATURES, samples * d)));
        let read: Vec<Vec<f32>> = program.read(backend, &wanted)?.iter().map(|words| floats(words)).collect();
        let part = |i: usize, sample: usize, width: usize| read[i][sample * width..][..width].to_vec();
        let decision = |sample: usize| {
            let scores: Vec<f32> =
                scores[sample * robots..][..robots].iter().map(|s| s.clamp(-MAX_SCORE, MAX_SCORE)).collect();
            RobotDecision {
                steps: self.steps(trace, sample),
                robots: self.chosen(&scores),
                scores,
                logits: Vec::new(),
                embeddings: part(0, sample, n * d),
                context: part(1, sample, d),
                features: images.as_ref().map(|images| [part(2, sample, d), images[sample * d..][..d].to_vec()]),
            }
        };
        Ok((0..samples).map(decision).collect())
    }

    fn steps(&self, trace: &Trace, sample: usize) -> Vec<ReasoningStep> {
        let (h, steps) = (self.sizes.reasoning, self.sizes.reasoning_steps);
        let one = |at: usize| ReasoningStep {
            state: trace.states[at * h..][..h].to_vec(),
            confidence: sigmoid(trace.signs[2 * at]),
            gate: sigmoid(trace.signs[2 * at + 1]),
        };
        (sample * steps..sample * steps + trace.counted).map(one).collect()
    }

    fn chosen(&self, scores: &[f32]) -> Vec<RobotChoice> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(self.sizes.top_robots);
        let choice = |robot: usize| RobotChoice {
            robot,
            name: self.sizes.robots[robot].clone(),
            probability: sigmoid(scores[robot]),
        };
        order.into_iter().map(choice).collect()
    }

    /// Adds the logits that are wanted; they come from nodes `from` on.
    fn logits(
        &self,
        program: &Program,
        backend: &mut dyn Backend,
        from: usize,
        decisions: &mut [RobotDecision],
    ) -> Result<()> {
        let (n, vocab) = (self.tokens(), self.sizes.vocab);
        let of = |sample: usize| -> Range<u32> {
            let (first, end) = (sample * n, (sample + 1) * n);
            let first = match self.tasks.logits {
                Wanted::None => end,
                Wanted::Last => end - 1,
                Wanted::All => first,
            };
            first as u32..end as u32
        };
        for (sample, decision) in decisions.iter_mut().enumerate() {
            let rows: Vec<u32> = of(sample).collect();
            for rows in rows.chunks(LOGIT_ROWS) {
                program.write(backend, slots::OUTPUTS, rows)?;
                let step = Step { outputs: rows.len() as u32, ..self.step() };
                program.run_nodes(backend, &step, from..program.plan.nodes.len())?;
                let words = program.read(backend, &[(slots::LOGITS, rows.len() * vocab)])?.concat();
                decision.logits.extend(floats(&words));
            }
        }
        Ok(())
    }

    /// The cache behind this call, from an empty one.
    pub fn read_keys(&self, programs: &mut Programs, mut next: RobotCache) -> Result<RobotCache> {
        let (program, width, all) = (&programs.forward[0], self.sizes.kv_width(), self.span.keys.len());
        let place = |key: &usize| self.span.keys.iter().position(|k| k == key);
        let places: Vec<usize> = self.span.next.iter().filter_map(place).collect();
        for (i, layer) in next.layers.iter_mut().enumerate() {
            for (name, samples) in robot_slots::keys(i).into_iter().zip(layer) {
                let at = |sample: usize| sample * self.keys * width;
                let range = |sample: usize| (name.clone(), at(sample)..at(sample) + all * width);
                let wanted: Vec<_> = (0..self.samples()).map(range).collect();
                let read = program.read_states(programs.backend.as_mut(), &wanted)?;
                for (keys, words) in samples.iter_mut().zip(&read) {
                    let words = floats(words);
                    *keys = places.iter().flat_map(|at| &words[at * width..][..width]).copied().collect();
                }
            }
        }
        for (sample, keep) in next.keep.iter_mut().enumerate() {
            *keep = self.span.next.iter().map(|&key| self.keeps(sample, key)).collect();
        }
        next.tokens = self.cache.tokens() + self.tokens();
        Ok(next)
    }
}

fn sigmoid(v: f32) -> f32 {
    (1.0 / (1.0 + f64::from(-v).exp())) as f32
}
